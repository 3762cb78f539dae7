"""What one model is worth on every held-out target. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.tasks import SPECS, Task


@dataclass(frozen=True)
class Scores:
    """One model on every held-out target, in order [N]; nats. What a task has no meaning for is None, and so is what
    compares with a teacher where there is none.

    `predicted` is the class that a classifier puts first, and `confidence` its probability; of an embedding,
    `predicted` is the number of the nearest other example. `correct` says whether the class, or the neighbour's, is the
    example's own. `regret` is how much less like the example its neighbour is than the teacher's choice, as the teacher
    sees it (a difference of cosines, 0 where they agree). `pairs` [P] are cosines of fixed pairs of examples.
    """

    nll: NDArray[np.float32] | None = None
    kl: NDArray[np.float32] | None = None
    agree: NDArray[np.bool_] | None = None
    correct: NDArray[np.bool_] | None = None
    predicted: NDArray[np.int64] | None = None
    confidence: NDArray[np.float32] | None = None
    regret: NDArray[np.float32] | None = None
    pairs: NDArray[np.float64] | None = None


def chance_of(labels: NDArray[np.int64], task: Task) -> NDArray[np.float64] | None:
    """How likely each example [N] is right by the labels' frequencies alone: of classes, whether its class is the
    largest; of embeddings, the share of the other examples that have its label. None where there are no labels."""
    if not SPECS[task].has_classes and SPECS[task].has_response:
        return None
    if len(labels) < 2 or (labels < 0).any():
        return None
    sizes = np.bincount(labels)
    if SPECS[task].has_classes:
        return np.asarray(labels == int(sizes.argmax()), dtype=np.float64)
    return np.asarray((sizes[labels] - 1) / (len(labels) - 1), dtype=np.float64)
