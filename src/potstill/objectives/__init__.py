"""What the student is asked to match: response, features, relations.

base.py         what an objective is: settings, scope, count, and a row rule or a function of signals
divergences.py  the vocabulary-sized ones written plainly: the references
response.py     forward_kl, hard_ce: row rules of the sweep
features.py     hidden_cosine
rows.py         a tile of rows, what rules share on it, and the rule's protocol
heads.py        where logits come from and their gradients go
sweep.py        the fused sweep
loss.py         the loss of a micro-batch, each objective by its own global count
statistics.py   per-token measures for evaluation
"""

from __future__ import annotations

from potstill.objectives.base import DirectObjective, Objective, VocabularyObjective
from potstill.objectives.features import HiddenCosineLoss, hidden_cosine
from potstill.objectives.loss import Loss, total_loss
from potstill.objectives.response import ForwardKLLoss, HardCELoss
from potstill.objectives.rows import RowRule, Rows
from potstill.objectives.statistics import TokenStatistics, token_statistics
from potstill.objectives.sweep import Swept, fused_sweep

__all__ = [
    "DirectObjective",
    "ForwardKLLoss",
    "HardCELoss",
    "HiddenCosineLoss",
    "Loss",
    "Objective",
    "RowRule",
    "Rows",
    "Swept",
    "TokenStatistics",
    "VocabularyObjective",
    "hidden_cosine",
    "fused_sweep",
    "token_statistics",
    "total_loss",
]
