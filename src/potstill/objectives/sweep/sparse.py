"""A stored or sampled distribution in place of a teacher's logits.

For objectives that are linear in the teacher's probabilities, Σ w (−log q) over the stored entries has the right
expectation whenever the weights do, and so has its gradient (Σ w) · q − w. Nothing is renormalised: weights divided by
their own sum would have another expectation.

A `top_k` store is biased. Its remaining mass r (1 − Σ w, where the store does not keep it) is matched against all
tokens that are not stored, as one: r · (−log Q), with Q the student's mass on them. By the chain rule of KL, the value
lacks r · KL(tail of the teacher ‖ tail of the student), each normalised; so the value is a lower bound, and the
gradient is off by at most √2 · r in L2 (on a token that is not stored it is q − r · q/Q instead of q − p).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from potstill.objectives.sweep.rows import SparseRows
from potstill.signals import Sparse


class SparseTeacher:
    """A sparse signal, cut into tiles. Offsets are copied to the host once, since slices need them."""

    def __init__(self, sparse: Sparse, student_vocab: int, dtype: torch.dtype) -> None:
        self.sparse, self.dtype = sparse, dtype
        self.rows = sparse.offsets.shape[0] - 1
        self.vocab = min(student_vocab, sparse.vocab or student_vocab)
        self._offsets: Sequence[int] = sparse.offsets.tolist()
        if sparse.ids.numel() and int(sparse.ids.max()) >= self.vocab:
            raise ValueError(
                f"the stored distribution has token {int(sparse.ids.max())}, and student and teacher share "
                f"{self.vocab} tokens: its mass cannot be matched"
            )

    def tile(self, rows: slice) -> SparseRows:
        """The entries of some rows."""
        sparse, kept = self.sparse, self.sparse.offsets[rows.start : rows.stop + 1].diff()
        entries = slice(self._offsets[rows.start], self._offsets[rows.stop])
        return SparseRows(
            torch.repeat_interleave(torch.arange(kept.shape[0], device=kept.device), kept),
            sparse.ids[entries].long(),
            sparse.weights[entries].to(self.dtype),
            sparse.entropy[rows].to(self.dtype),
            kept,
            sparse.estimator == "top_k",
            self.vocab,
            None if sparse.rest is None else sparse.rest[rows].to(self.dtype).exp(),
        )


def check_takes(rules: Sequence[object], sparse: Sparse) -> None:
    """Check that each rule accepts this signal.

    Raises:
        ValueError: one does not, or needs another temperature than the stored one.
    """
    for rule in rules:
        name, takes = type(rule).__name__, getattr(rule, "sparse", "none")
        if takes == "none" or (takes == "bounded_tail" and sparse.estimator != "top_k"):
            raise ValueError(
                f"{name} needs every probability of the teacher's, and this signal is a {sparse.estimator} sample of "
                f"them: it would be biased. Give it a head or dense logits, or use forward_kl or soft_ce"
            )
        temperature = getattr(rule, "temperature", 1.0)
        if temperature != sparse.temperature:
            raise ValueError(
                f"the distribution was stored at temperature {sparse.temperature:g} and {name} is at {temperature:g}: "
                f"give the objective the store's, or store it anew"
            )
