"""Measures: each a pure function from the values per target to metrics and findings. No torch.

base.py         input and output of a measure
fidelity.py     NLL, KL, agreement, accuracy, macro-F1, flips, neighbours
calibration.py  whether a model's confidence matches its accuracy
tails.py        where the loss is: rare targets, slices

The name of a file is the kind of its measure; `registry.build` loads it.
"""

from __future__ import annotations

import pkgutil

KINDS = {module.name: module.name for module in pkgutil.iter_modules(__path__)}
