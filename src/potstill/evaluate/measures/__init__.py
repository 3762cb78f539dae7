"""Measures: each a pure function from what was computed per target to metrics and findings. No torch.

base.py         what a measure is given, and what it gives
fidelity.py     NLL, KL, agreement, accuracy, macro-F1, flips, neighbours
calibration.py  whether a model is as often right as it is sure
tails.py        where the loss is: rare targets, slices

The kind of a measure is the name of its file; `registry.build` loads it.
"""

from __future__ import annotations

import pkgutil

KINDS = {module.name: module.name for module in pkgutil.iter_modules(__path__)}
