"""One recipe in several arms: which is better, and how small a student may be.

file.py          a sweep as its YAML states it: arms, seeds, a grid
runs.py          does the runs; skips finished ones, notes failed ones
result.py        tables, claims and the picture
paired.py        differences of arms, with intervals over seeds and over records
capacity.py      the law of size and data, fitted to the runs
beside.py        further metrics beside the one that decides
questions.py     whether the teacher is too strong, whether an assistant would help
side_by_side.py  finished runs, compared on one page
"""
