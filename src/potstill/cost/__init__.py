"""`potstill cost`: what a token costs from the teacher and from the student, and when distilling pays. No torch.

economics.py  prices, break-even and the grid: arithmetic on plain numbers
cascade.py    the student answers what it is sure of: a threshold, fitted on one half of the held-out groups
inputs.py     the numbers, each with its source: measured in the run, given, from a table, or assumed
text.py       what the command prints
"""
