"""One recipe in several arms: which is better, and how small a student may be.

file.py      a sweep as its YAML states it: arms, seeds, a grid
runs.py      does the runs; skips finished ones, notes failed ones
result.py    tables, claims and the picture
paired.py    differences of arms, with intervals over seeds and over records
capacity.py  the law of size and data, fitted to the runs
"""
