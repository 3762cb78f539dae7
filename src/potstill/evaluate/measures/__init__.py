"""Measures: each a pure function from what was computed per target, or answered, to metrics and findings.

Those of held-out targets load no torch; those that ask models do.

base.py         input and output of a measure
fidelity.py     NLL, KL, agreement, accuracy, macro-F1, flips, neighbours
calibration.py  whether a model's confidence matches its accuracy
tails.py        where the loss is: rare targets, slices
exposure.py     how much farther a student is from its teacher on its own text
judged.py       what a judge prefers
lm_eval.py      tasks of lm-eval, on our models
memorisation.py  how much nearer to its teacher a student is on trained text
capability.py   tasks of multiple choice
safety.py       what models refuse
solved.py       the share of held-out problems that models solve

The name of a file is the kind of its measure; `registry.build` loads it.
"""
