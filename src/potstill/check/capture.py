"""What a store of the teacher's distributions will hold, permit and take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs
from potstill.check.models import sizes_of, student_sizes
from potstill.quantities import byte_size
from potstill.recipe import (
    AttentionKL,
    AttentionScores,
    CaptureSettings,
    DenseCapture,
    HiddenCapture,
    HiddenSettings,
    MiniLMv1,
    MiniLMv2,
    Modules,
    PooledSettings,
    SampledCapture,
    ThresholdCapture,
    TopKCapture,
)
from potstill.recipe.layers import pairs_of_attention, pairs_of_states

_FIXED_BYTES, _ENTRY_BYTES = 6.0, 2.0
"""Of a token: counts, entropy and the target's log-probability; of an entry: its id, at 16 bits."""
_FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_DISTINCT = 0.25
"""Distinct tokens among `sampled` draws, as a share: 12 of 50 on English text (RS-KD, arXiv 2503.16870)."""

PERMITS = {
    "unbiased": "objectives linear in its probabilities (forward_kl, soft_ce) have no bias; others are refused",
    None: "every objective on the response, at any temperature",
    "top_k": "forward_kl and soft_ce match what is not kept as one: the value is a lower bound, the gradient "
    "is off by at most √2 times the mass left out",
}
"""What objectives may make of each estimator."""


def store_is_described(inputs: Inputs) -> Iterator[Finding]:
    """The estimator, what it permits, and its disk."""
    capture = inputs.recipe.capture
    if capture is None:
        return
    permits = PERMITS[capture.estimator] if capture.response else "objectives on layers, relations and embeddings alone"
    yield Finding("capture", f"{_described(capture)} of {capture.teacher!r}: {permits}")
    known = inputs.facts(inputs.recipe.teachers[capture.teacher])
    config = known.config if known is not None else {}
    features, pooled = feature_bytes(inputs, capture) or (None, 0)
    if features:
        yield Finding("capture", f"layers and relations take some {features:,} bytes a token ({capture.feature_dtype})")
    tokens = inputs.figures.get("tokens_at_most") or inputs.figures.get("tokens_a_pass")
    if features is None or not tokens:
        return
    if inputs.recipe.spec.has_vocabulary:
        size = bytes_per_token(capture, config.get("hidden_size"), config.get("vocab_size"))
        a_record = pooled
    else:
        size, classes = 0.0, len(inputs.sides.classes) if inputs.sides is not None else 0
        a_record = pooled + (classes * _FLOAT_BYTES[capture.dtype] if isinstance(capture, DenseCapture) else 0)
    if size is None:
        return
    size += features
    needed = round(size * int(tokens) + a_record * int(inputs.figures.get("records", 0)))
    inputs.figures["store_bytes"] = needed
    each = [f"{size:,.0f} bytes a token"] * (size > 0) + [f"{a_record:,} bytes a record"] * (a_record > 0)
    text = f"the store takes at most {byte_size(needed)}, at some {' and '.join(each)}"
    free = shutil.disk_usage(Path()).free
    yield Finding("capture", text) if needed < free else warning("capture", f"{text}; {byte_size(free)} are free")


def feature_bytes(inputs: Inputs, capture: CaptureSettings) -> tuple[int, int] | None:
    """Bytes of the inner tensors that are kept: of a token, and (embeddings) of a record; None if files do not tell."""
    teacher, student = sizes_of({}), student_sizes(inputs)
    known = inputs.facts(inputs.recipe.teachers[capture.teacher])
    if known is not None and not known.module:
        teacher = sizes_of(known.config)
    names = set(capture.features)
    if capture.features == "asked":
        layers = student["layers"], teacher["layers"]
        if layers[0] is None or layers[1] is None:
            return None
        names = set(_asked(inputs, layers[0], layers[1]))
    found = {"token": 0, "record": 0}
    for kind in (name.partition(".")[0] for name in names):
        width = teacher[_WIDTH[kind]] if kind in _WIDTH else None
        if width is None:
            return None
        found["record" if kind == "pooled" else "token"] += width * _FLOAT_BYTES[capture.feature_dtype]
    return found["token"], found["record"]


_WIDTH = {"hidden": "hidden", "queries": "queries", "keys": "keys", "values": "keys", "pooled": "hidden"}


def _asked(inputs: Inputs, student: int, teacher: int) -> Iterator[str]:
    """The names of the states and attention tensors that objectives read, of models with these numbers of layers."""
    for objective in inputs.recipe.train.all_objectives if inputs.recipe.train is not None else ():
        if isinstance(objective, HiddenSettings):
            yield from (f"hidden.{k}" for _, k in pairs_of_states(objective.layers, student, teacher))
        if isinstance(objective, (AttentionScores, AttentionKL)):
            layers = {k for _, k in pairs_of_attention(objective.layers, student, teacher)}
            yield from (f"{kind}.{k}" for kind in ("queries", "keys") for k in layers)
        if isinstance(objective, MiniLMv1):
            yield from (f"{kind}.{teacher - 1}" for kind in ("queries", "keys", "values"))
        if isinstance(objective, MiniLMv2):
            yield from (f"{kind}.{objective.teacher_layer % teacher}" for kind in objective.relations)
        if isinstance(objective, PooledSettings) and not isinstance(objective.at, Modules):
            layer = teacher if objective.at == "last" else objective.at[1] % (teacher + 1)
            yield f"pooled.{layer}.{objective.pooling}"


def bytes_per_token(capture: CaptureSettings, width: int | None, vocab: int | None = None) -> float | None:
    """The size of a token of a teacher of this hidden width and vocabulary, roughly; None if only its distributions
    tell."""
    if not capture.response:
        return 0.0
    if isinstance(capture, DenseCapture):
        return None if vocab is None else _FIXED_BYTES + vocab * _FLOAT_BYTES[capture.dtype]
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
    if isinstance(capture, DenseCapture):
        return f"all logits in {capture.dtype}"
    return "layers alone" if not capture.response else capture.kind
