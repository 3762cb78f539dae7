"""Objectives: what the student learns to match. Response, features, relations.

base.py         the contract: settings, scope, count, and a row rule or a function of signals
divergences.py  the vocabulary-sized ones in plain form: the references for the row rules
response.py     KL both ways, soft and hard cross-entropy, total variation, logits: row rules of the sweep
mixtures.py     JSD and the skewed KLs
decoupled.py    decoupled KD
soft.py         the parts that rules at a temperature share
features.py     hidden_cosine, hidden_mse, hidden_smooth_l1
attention.py    attention_scores, attention_kl
minilm.py       minilm_v1, minilm_v2
modules.py      attention_transfer, hint
medusa.py       heads that predict the tokens behind the next one
relations.py    rkd_distance, rkd_angle, similarity_preserving
angles.py       the angles of all triplets of a batch
layers.py       pairs of student and teacher layers
projections.py  learned maps to the teacher's width, initialised randomly or by principal components
pooling.py      from the states of an example's tokens to one vector
norms.py        unit vectors with a finite gradient everywhere
sweep/          the fused sweep: one pass over each head for all row rules
loss.py         the loss of a micro-batch, each objective by its own global count
statistics.py   per-token measures for evaluation
"""

from __future__ import annotations

from potstill.objectives.angles import rkd_angle
from potstill.objectives.attention import AttentionKLLoss, AttentionScoresLoss, distribution_kl, score_mse
from potstill.objectives.base import DirectObjective, Objective, TappedObjective, VocabularyObjective, row_rule
from potstill.objectives.decoupled import DecoupledKDRule
from potstill.objectives.features import (
    HiddenCosineLoss,
    HiddenMSELoss,
    HiddenSmoothL1Loss,
    hidden_cosine,
    hidden_mse,
    hidden_smooth_l1,
)
from potstill.objectives.loss import Loss, total_loss
from potstill.objectives.medusa import MedusaLoss
from potstill.objectives.minilm import MiniLMv1Loss, MiniLMv2Loss
from potstill.objectives.mixtures import JSDRule, SkewedKLRule, SkewedReverseKLRule
from potstill.objectives.modules import AttentionTransferLoss, HintLoss, attention_transfer, hint
from potstill.objectives.pooling import pool
from potstill.objectives.relations import (
    RKDAngleLoss,
    RKDDistanceLoss,
    SimilarityPreservingLoss,
    rkd_distance,
    similarity_preserving,
)
from potstill.objectives.response import (
    AcceptanceRule,
    ForwardKLRule,
    HardCERule,
    LogitMSERule,
    ReverseKLRule,
    SoftCERule,
    TotalVariationRule,
)
from potstill.objectives.statistics import TokenStatistics, token_statistics
from potstill.objectives.sweep.engine import Swept, fused_sweep
from potstill.objectives.sweep.rows import RowRule, Rows

__all__ = [
    "AttentionKLLoss",
    "AttentionScoresLoss",
    "AttentionTransferLoss",
    "DecoupledKDRule",
    "DirectObjective",
    "ForwardKLRule",
    "HardCERule",
    "HiddenCosineLoss",
    "HiddenMSELoss",
    "HiddenSmoothL1Loss",
    "HintLoss",
    "JSDRule",
    "LogitMSERule",
    "Loss",
    "MedusaLoss",
    "MiniLMv1Loss",
    "MiniLMv2Loss",
    "Objective",
    "RKDAngleLoss",
    "RKDDistanceLoss",
    "ReverseKLRule",
    "RowRule",
    "Rows",
    "SkewedKLRule",
    "SkewedReverseKLRule",
    "SoftCERule",
    "SimilarityPreservingLoss",
    "Swept",
    "TappedObjective",
    "TokenStatistics",
    "AcceptanceRule",
    "TotalVariationRule",
    "VocabularyObjective",
    "attention_transfer",
    "distribution_kl",
    "hidden_cosine",
    "hidden_mse",
    "hidden_smooth_l1",
    "hint",
    "pool",
    "rkd_angle",
    "rkd_distance",
    "row_rule",
    "score_mse",
    "similarity_preserving",
    "fused_sweep",
    "token_statistics",
    "total_loss",
]
