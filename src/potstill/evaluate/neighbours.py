"""Nearest neighbours of sentence embeddings, and whether they agree with the teacher's.

Every example becomes one vector of length 1: its last hidden states, pooled. The nearest neighbour is the example of
another group with the largest cosine (examples of one group come from the same text). Cosines are computed by blocks of
rows, so that no N × N matrix is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from potstill.errors import ModelError
from potstill.evaluate.fidelity import Advance, Batches, check_numbers
from potstill.evaluate.scores import Scores
from potstill.models.anatomy import dims
from potstill.recipe import Pooling
from potstill.signals import Ask, Batch, Side, View
from potstill.teachers.base import OpenTeacher, device_of

_BLOCK_ROWS = 1024
MOST_PAIRS = 5000


@dataclass(frozen=True)
class Embedded:
    """A model's unit vectors [N,D], and the index of each one's nearest neighbour [N]."""

    vectors: Float[Tensor, "N D"]
    nearest: NDArray[np.int64]

    def cosines(self, others: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosines of each vector with one other vector [N]."""
        found: NDArray[np.float32] = (self.vectors * self.vectors[torch.from_numpy(others)]).sum(-1).numpy()
        return found


def embed(
    model: OpenTeacher, batches: Batches, pooling: Pooling, advance: Advance, name: str = "student"
) -> Float[Tensor, "N D"]:
    """The vectors of all held-out examples, in order, in fp32 on the CPU.

    Raises:
        ModelError: some are not finite.
    """
    tap = f"hidden.{dims(model.modules[0]).layers}"

    def states(index: int) -> tuple[Batch, Mapping[str, Tensor]]:
        batch = batches.batch(index, device_of(model))
        return batch, model.signals(batch, Ask(taps=frozenset({tap}))).taps

    with torch.no_grad():
        return embedded(states, batches, tap, pooling, advance, name)


def embedded(
    states: Callable[[int], tuple[Batch, Mapping[str, Tensor]]],
    batches: Batches,
    tap: str,
    pooling: Pooling,
    advance: Advance,
    name: str,
) -> Float[Tensor, "N D"]:
    """As `embed`, from the inner tensors of each batch: the state `tap`, or the same pooled, as a store keeps it."""
    side: Side = "teacher" if name == "teacher" else "student"
    pooled_tap = f"pooled.{tap.removeprefix('hidden.')}.{pooling}"
    vectors: Tensor | None = None
    for index in range(len(batches)):
        (batch, taps), numbers = states(index), batches.numbers(index)
        found = taps.get(pooled_tap)
        if found is None:
            found = pooled(taps[tap].float(), batch.text(side), pooling)
        made = torch.nn.functional.normalize(found, dim=-1).cpu()
        if vectors is None:
            vectors = torch.empty(batches.targets, made.shape[-1])
        vectors[torch.from_numpy(numbers)] = made
        advance(len(numbers))
    if vectors is None:
        raise ModelError("there is nothing to embed", where=name)
    check_numbers(vectors.sum(-1).numpy(), name)
    return vectors


def pooled(states: Float[Tensor, "B T H"], view: View, how: Pooling) -> Float[Tensor, "B H"]:
    """One vector per row (rows are not packed here): the mean or maximum over its tokens, or its first or last token's
    state."""
    real = (view.segment_ids > 0).to(states.device)
    if how == "mean":
        return (states * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
    if how == "max":
        return states.masked_fill(~real[..., None], float("-inf")).amax(1)
    rows = torch.arange(states.shape[0], device=states.device)
    return states[rows, real.sum(1) - 1 if how == "last" else torch.zeros_like(rows)]


def nearest(vectors: Float[Tensor, "N D"], groups: Sequence[str]) -> NDArray[np.int64]:
    """The index of each example's nearest neighbour in other groups; the first of equals."""
    _, numbers = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    group_of: Int[Tensor, " N"] = torch.from_numpy(numbers)
    found = []
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        cosines = vectors[block] @ vectors.T
        cosines.masked_fill_(group_of[block, None] == group_of[None, :], float("-inf"))
        found.append(cosines.argmax(-1))
    return torch.cat(found).numpy()


def pairs_of(groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Independent random pairs of examples [P,2]: one example of each group, each in one pair."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(groups))
    _, first = np.unique(np.asarray(groups, dtype=np.str_)[shuffled], return_index=True)
    ones = random.permutation(shuffled[first])
    return ones[: len(ones) // 2 * 2].reshape(-1, 2)[:MOST_PAIRS]


def score_neighbours(
    mine: Embedded, teacher: Embedded | None, labels: NDArray[np.int64], pairs: NDArray[np.int64]
) -> Scores:
    """The scores of an embedding.

    Args:
        mine: the model's.
        teacher: the teacher's; None for the teacher itself, or without a teacher.
        labels: the class of each example [N], −1 if it has none.
        pairs: pairs of examples [P,2], the same for all models.
    """
    left, right = (mine.vectors[torch.from_numpy(pairs[:, side])] for side in (0, 1))
    regret = None
    if teacher is not None:
        # By rounding, an equal neighbour may appear slightly nearer than the teacher's own.
        regret = np.maximum(teacher.cosines(teacher.nearest) - teacher.cosines(mine.nearest), 0)
    return Scores(
        agree=None if teacher is None else mine.nearest == teacher.nearest,
        correct=None if (labels < 0).any() else labels[mine.nearest] == labels,
        predicted=mine.nearest,
        cosine=mine.cosines(mine.nearest),
        regret=regret,
        pairs=(left * right).sum(-1).double().numpy(),
    )
