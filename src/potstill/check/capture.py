"""What a store of the teacher's distributions will hold, permit and take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs
from potstill.recipe import CaptureSettings, HiddenCapture, SampledCapture, ThresholdCapture, TopKCapture

_FIXED_BYTES, _ENTRY_BYTES = 6.0, 2.0
"""Of a token: counts, entropy and the target's log-probability; of an entry: its id, at 16 bits."""
_FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_DISTINCT = 0.25
"""Distinct tokens among `sampled` draws, as a share: 12 of 50 on English text (RS-KD, arXiv 2503.16870)."""

PERMITS = {
    "unbiased": "objectives linear in its probabilities (forward_kl, soft_ce) have no bias; others are refused",
    None: "every objective on the response, at any temperature; training loads the output layer alone",
    "top_k": "forward_kl and soft_ce match what is not kept as one: a lower bound, biased by at most the mass left out",
}
"""What objectives may make of each estimator."""


def store_is_described(inputs: Inputs) -> Iterator[Finding]:
    """The estimator, what it permits, and its disk."""
    capture = inputs.recipe.capture
    if capture is None:
        return
    yield Finding("capture", f"{_described(capture)} of {capture.teacher!r}: {PERMITS[capture.estimator]}")
    known = inputs.facts(inputs.recipe.teachers[capture.teacher])
    size = bytes_per_token(capture, known.config.get("hidden_size") if known is not None else None)
    tokens = inputs.figures.get("tokens_at_most") or inputs.figures.get("tokens_a_pass")
    if size is None or not tokens:
        return
    inputs.figures["store_bytes"] = needed = round(size * int(tokens))
    text = f"the store takes at most {needed / 1e6:,.1f} MB, at some {size:.0f} bytes a token"
    free = shutil.disk_usage(Path()).free
    yield Finding("capture", text) if needed < free else warning("capture", f"{text}; {free / 1e6:,.0f} MB are free")


def bytes_per_token(capture: CaptureSettings, width: int | None) -> float | None:
    """The size of a token of a teacher of this hidden width, roughly; None if only its distributions tell."""
    if isinstance(capture, HiddenCapture):
        return None if width is None else _FIXED_BYTES + width * _FLOAT_BYTES[capture.dtype]
    if isinstance(capture, ThresholdCapture):
        return capture.bytes_per_token if capture.tau is None else None
    if isinstance(capture, SampledCapture):
        return _FIXED_BYTES + capture.draws * _DISTINCT * (_ENTRY_BYTES + 1)
    if isinstance(capture, TopKCapture):
        return _FIXED_BYTES + 2 + capture.k * (_ENTRY_BYTES + 2)
    return None


def _described(capture: CaptureSettings) -> str:
    if isinstance(capture, ThresholdCapture):
        budget = f"found for {capture.bytes_per_token:g} bytes a token" if capture.tau is None else f"{capture.tau:g}"
        return f"every p ≥ tau and an unbiased sample of the others (tau {budget})"
    if isinstance(capture, SampledCapture):
        return f"{capture.draws} draws"
    if isinstance(capture, TopKCapture):
        return f"the {capture.k} largest"
    if isinstance(capture, HiddenCapture):
        return f"the last hidden states in {capture.dtype}"
    return capture.kind
