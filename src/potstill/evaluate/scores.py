"""Scores of one model on every held-out target. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.tasks import SPECS, Task


@dataclass(frozen=True)
class Scores:
    """One model on every held-out target, in order [N]. A field is None where the task has no such value, and so are
    those that compare with a teacher where there is none.

    Attributes:
        nll: −log of the probability of the target, nats.
        kl: KL(teacher ‖ model), nats.
        agree: whether the first choice (of an embedding the nearest neighbour) is the teacher's.
        correct: whether the class, or the neighbour's, is the example's own.
        predicted: the class that a classifier puts first; of an embedding, the number of the nearest other example.
        probability: of the first choice, in [0, 1].
        cosine: of an embedding and its nearest neighbour's, in [−1, 1].
        regret: how much smaller the teacher's cosine to this model's neighbour is than to its own; 0 where they agree.
        pairs: cosines of fixed pairs of examples [P].
        labels: the class of each example, of a classification.
        hit: whether the target (a token, a class) is the model's first choice.
        entropy: of the model's distribution, nats.
        collision: Σ q², the sum of its squared probabilities.
        nll_at: the NLL at other temperatures.
        more: further columns by name: `reverse_kl` and `total_variation` to the teacher, `classes` (the probability
            of each [N, C]), and those of a measure's own questions.
    """

    nll: NDArray[np.float32] | None = None
    kl: NDArray[np.float32] | None = None
    agree: NDArray[np.bool_] | None = None
    correct: NDArray[np.bool_] | None = None
    predicted: NDArray[np.int64] | None = None
    probability: NDArray[np.float32] | None = None
    cosine: NDArray[np.float32] | None = None
    regret: NDArray[np.float32] | None = None
    pairs: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None
    hit: NDArray[np.bool_] | None = None
    entropy: NDArray[np.float32] | None = None
    collision: NDArray[np.float32] | None = None
    nll_at: Mapping[float, NDArray[np.float32]] = field(default_factory=dict)
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def chance_of(labels: NDArray[np.int64], task: Task) -> NDArray[np.float64] | None:
    """The probability that each example [N] is right by label frequencies alone: for classes, 1 if its class is the
    largest, else 0; for embeddings, the share of other examples with its label. None without labels."""
    if not SPECS[task].has_classes and SPECS[task].has_response:
        return None
    if len(labels) < 2 or (labels < 0).any():
        return None
    sizes = np.bincount(labels)
    if SPECS[task].has_classes:
        return np.asarray(labels == int(sizes.argmax()), dtype=np.float64)
    return np.asarray((sizes[labels] - 1) / (len(labels) - 1), dtype=np.float64)
