"""One recipe in several arms: which is better, and how small a student may be.

file.py      a sweep as its YAML says it: arms, seeds, a grid
runs.py      does the runs; what is there is skipped, what fails is noted
result.py    what they came to
paired.py    differences of arms, with intervals over seeds and over records
capacity.py  the law of size and data, fitted to the runs
chart.py     the picture
"""
