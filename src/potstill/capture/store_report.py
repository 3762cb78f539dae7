"""What a store keeps of its teacher, on a sample; what other estimators would keep; and whether storing pays.

Per token, with p the teacher's distribution over V tokens at the store's temperature and w the stored weights:

    mse   Σ (w − p)²: the noise of the gradient grows with it
    tv    ½ Σ |w − p|
    kl    KL(w / Σ w ‖ p), in nats: finite, since nothing is stored that p lacks
    ece   of the largest stored weight as the confidence that its token is the target, in 15 bins of equal
          width; `teacher_ece`: of p
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill import registry
from potstill.calibration import BINS, ece, equal_width, gap_sums
from potstill.capture.capturing import Capturing, Reading
from potstill.capture.estimators import Estimator
from potstill.capture.plan import Plan, length_of
from potstill.data.reader import Row
from potstill.errors import RunError
from potstill.models.anatomy import dims
from potstill.models.resolve import locate
from potstill.quantities import byte_size
from potstill.recipe import (
    CaptureSettings,
    Recipe,
    SampledCapture,
    ThresholdCapture,
    TopKCapture,
    members_of,
    weights_of,
)
from potstill.signals import Head
from potstill.store.codec import HIDDEN, LOGITS, TARGET_FLOOR, Entries, decode, encode
from potstill.store.estimators import tau_for_budget
from potstill.store.files import SignalStore, by_frequency, head_bytes, ranks_of

_ENTRY_BYTES = 3.0
_CHEAPER = 0.8
"""A warning is given if `threshold` has less than this share of the squared error, at no more bytes."""
_FARTHEST = 0.5
"""Nats a target between what was stored of a record and what the teacher says of it in another batch: rounding in
bfloat16 makes less than a tenth of it."""
_MUCH_LOST = 0.025
"""A warning is given if half the mass that `topk` does not keep is at least this."""


@dataclass(frozen=True)
class Report:
    """`facts` for machines, `lines` for people, and warnings."""

    facts: Mapping[str, Any]
    lines: Sequence[str]
    warnings: Sequence[str]


def sample_of(plan: Plan, tokens: int) -> list[tuple[Row, ...]]:
    """Parts of the plan's batches with at least `tokens` targets, spread over all lengths; all of a smaller store, so
    that its bytes are counted and not estimated."""
    stride = max(1, len(plan.batches) // 8)
    order = [n for start in range(stride) for n in range(start, len(plan.batches), stride)]
    for share in (4, 1):
        chosen, found = [], 0
        for number in order:
            some = plan.batches[number][: max(1, len(plan.batches[number]) // share)]
            chosen.append(some)
            found += sum(map(plan.targets, some))
            if found >= tokens:
                return chosen
    return chosen


def tau_for(settings: ThresholdCapture, capturing: Capturing, plan: Plan) -> float:
    """The τ at which a sample takes `bytes_per_token` on average, encoded as in the store; a shard's head is counted in
    proportion."""
    readings = [capturing.read(rows) for rows in sample_of(plan, settings.sample_tokens)]
    targets = max(sum(reading.target_ids.shape[0] for reading in readings), 1)
    dims = capturing.teacher.dims
    in_a_shard = sum(sequence.targets for shard in plan.planned for sequence in shard) / max(len(plan.planned), 1)

    def bytes_at(tau: float) -> float:
        estimator = registry.build(settings.model_copy(update={"tau": tau}))
        kept = [
            (row, entries)
            for reading in readings
            for row, entries in zip(reading.rows, capturing.keep(reading, estimator), strict=True)
        ]
        frequent = by_frequency([entries for _, entries in kept], dims.vocab)
        ranks = ranks_of(frequent, dims.vocab)
        blobs = (
            encode(
                replace(entries, ids=ranks[entries.ids]),
                estimator.grid(dims),
                capturing.uniforms_of_weights(row, entries),
            )
            for row, entries in kept
        )
        return sum(map(len, blobs)) / targets + len(head_bytes(frequent, dims.vocab)) / max(in_a_shard, 1)

    return tau_for_budget(bytes_at, settings.bytes_per_token)


def report_of(
    store: SignalStore, capturing: Capturing, plan: Plan, settings: CaptureSettings, recipe: Recipe
) -> Report:
    """The store's losses on a sample, read back from its files, beside those of other estimators on that sample; and
    the teacher's time, beside its time in trainings without a store.

    Raises:
        RunError: what is stored of a record is not what the teacher says of it.
    """
    seconds, encoding = capturing.seconds, capturing.encoding_seconds  # without those of the sample
    bytes_per_token = store.facts["bytes"] / max(store.facts["targets"] or sum(map(length_of, plan.rows)), 1)
    others = {name: registry.build(other) for name, other in _others(settings, bytes_per_token, store).items()}
    tables: dict[str, list[_Row]] = {name: [] for name in ("stored", *others)}
    for rows in sample_of(plan, settings.sample_tokens) if settings.response else ():
        reading = capturing.read(rows)
        kept = [store.read(row.record_id, row.rendered) for row in rows]
        tables["stored"].append(_compared(reading, kept, capturing.temperature, bytes_per_token))
        _check_read_back(reading, kept, tables["stored"][-1][:, _OWN])
        for name, estimator in others.items():
            blobs, entries = _encoded(reading, capturing, estimator)
            size = sum(map(len, blobs)) / max(reading.target_ids.shape[0], 1)
            tables[name].append(_compared(reading, entries, capturing.temperature, size))
    found = {name: _summary(rows) for name, rows in tables.items() if rows}
    warnings = _warnings(settings, found)
    # The teacher read few of the records, or none, where a store grew: what all would take follows from its rate.
    all_seconds = capturing.seconds / max(capturing.tokens, 1) * sum(map(length_of, plan.rows))
    worth = _worth(recipe, plan, all_seconds)
    facts = {
        "estimators": found,
        "nll": round(_nll(store, plan), 6) if settings.response else None,
        "bytes_per_token": bytes_per_token,
        "unit": "example" if plan.targets_are == "examples" else "token",
        "teacher_seconds": round(seconds, 3),
        "teacher_tokens_per_second": round(capturing.tokens / max(capturing.seconds, 1e-9), 1),
        "encoding_seconds": round(encoding, 3),
        "teacher_size": _size_of(capturing, recipe),
        "store_bytes": int(store.facts["bytes"]),
        **worth,
    }
    return Report(facts, _lines(settings, facts), warnings)


def _warnings(settings: CaptureSettings, found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Warnings where another estimator would have been better. Only unbiased ones are compared by squared error: that
    of `topk` is smaller at equal bytes, but does not average out over tokens."""
    if settings.estimator is None:
        return []
    stored, threshold = found["stored"], found.get("threshold")
    if settings.estimator == "top_k":
        if stored["tv"] < _MUCH_LOST:
            return []
        return [
            f"what {settings.kind} does not keep is {2 * stored['tv']:.0%} of the mass, and its shape is lost for "
            "good: capture.kind threshold has no bias"
        ]
    if threshold is None or threshold["mse"] >= _CHEAPER * stored["mse"] or threshold["bytes"] > stored["bytes"]:
        return []
    share = threshold["mse"] / stored["mse"]
    return [
        f"capture.kind threshold would have {share:.0%} of the squared error of {settings.kind}, at "
        f"{threshold['bytes']:.1f} bytes a token instead of {stored['bytes']:.1f}"
    ]


# ---- one estimator ------------------------------------------------------------------------------------------------


def _encoded(reading: Reading, capturing: Capturing, estimator: Estimator) -> tuple[list[bytes], list[Entries]]:
    """The blobs of a reading's rows, and what comes back from them."""
    grid = estimator.grid(capturing.teacher.dims)
    kept = capturing.keep(reading, estimator)
    blobs = [
        encode(entries, grid, capturing.uniforms_of_weights(row, entries))
        for row, entries in zip(reading.rows, kept, strict=True)
    ]
    return blobs, [decode(blob, e.entropy.size, grid) for blob, e in zip(blobs, kept, strict=True)]


def _others(settings: CaptureSettings, size: float, store: SignalStore) -> dict[str, CaptureSettings]:
    """The estimators that the store is compared with: the other kinds, at about as many bytes."""
    if settings.estimator is None:
        return {}  # hidden states lose nothing that another estimator would keep
    entries = max(1, round((size - 5) / _ENTRY_BYTES))
    by_kind: dict[str, CaptureSettings] = {
        "threshold": ThresholdCapture(tau=min(1.0, 0.5 / entries)),
        "sampled": SampledCapture(draws=50),
        "topk": TopKCapture(k=entries),
    }
    return {kind: other for kind, other in by_kind.items() if kind != settings.kind}


_Row = NDArray[np.float64]
"""[targets, columns]: bytes, mse, tv, kl, confidence, hit; of the teacher confidence, hit, and the target's
log-probability at temperature 1."""
_OWN = 8


def _check_read_back(reading: Reading, kept: Sequence[Entries], own: NDArray[np.float64]) -> None:
    """Refuse a store in which a record has the signals of another, or of another teacher."""
    stored = np.concatenate([np.zeros(0), *(entries.target_log_prob for entries in kept)])
    apart = np.abs(np.maximum(own, TARGET_FLOOR) - stored)
    for row, part in zip(reading.rows, np.split(apart, np.cumsum(reading.sizes)[:-1]), strict=True):
        if part.size and part.mean() > _FARTHEST:
            raise RunError(
                f"what is stored of record {row.record_id!r} is not what the teacher says of it: its log-probabilities "
                f"lie {part.mean():.2f} nats a target apart",
                where="capture",
                fix="capture again from nothing, in a new run folder",
            )


def _compared(reading: Reading, kept: Sequence[Entries], temperature: float, size: float) -> _Row:
    rows: list[Tensor] = []
    entries = [(offset, e) for e in kept for offset in range(e.entropy.size)]
    own: list[Tensor] = []
    for some, log_p in reading.log_probabilities():
        own.append(log_p.gather(1, reading.target_ids[some, None].to(log_p.device)))
        if temperature != 1.0:
            log_p = (log_p / temperature).log_softmax(-1)
        if isinstance(head := reading.response, Head) and HIDDEN in kept[0].tensors:
            hidden = torch.from_numpy(np.stack([e.tensors[HIDDEN][offset] for offset, e in entries[some]]))
            logits = replace(head, hidden=hidden.to(head.hidden)).logits()
            rows.append(_distances(log_p, logits.float().softmax(-1), reading.target_ids[some]))
            continue
        if LOGITS in kept[0].tensors:
            logits = torch.from_numpy(np.stack([e.tensors[LOGITS][offset] for offset, e in entries[some]]))
            rows.append(_distances(log_p, logits.to(log_p).softmax(-1), reading.target_ids[some]))
            continue
        stored = torch.zeros(log_p.shape)
        for place, (offset, e) in enumerate(entries[some]):
            of_target = slice(int(e.offsets[offset]), int(e.offsets[offset + 1]))
            stored[place, torch.from_numpy(e.ids[of_target]).long()] = torch.from_numpy(e.weights[of_target])
        rows.append(_distances(log_p, stored.to(log_p), reading.target_ids[some]))
    table = torch.cat([torch.cat(rows), torch.cat(own)], 1).cpu().double().numpy()
    return np.concatenate([np.full((table.shape[0], 1), size), table], axis=1)


def _distances(log_p: Float[Tensor, "C V"], stored: Float[Tensor, "C V"], targets: Tensor) -> Float[Tensor, "C 7"]:
    p, targets = log_p.exp(), targets.to(log_p.device)
    normalised = stored / stored.sum(1, keepdim=True).clamp_min(1e-30)
    kl = torch.where(stored > 0, normalised * (normalised.clamp_min(1e-30).log() - log_p), 0.0).sum(1)
    confidence, first = stored.max(1)
    teacher_confidence, teacher_first = p.max(1)
    columns = [(stored - p).square().sum(1), (stored - p).abs().sum(1) / 2, kl, confidence.clamp_max(1.0)]
    columns += [first == targets, teacher_confidence, teacher_first == targets]
    return torch.stack([column.to(p.dtype) for column in columns], 1)


def _summary(parts: Sequence[_Row]) -> dict[str, float]:
    table = np.concatenate(parts)
    means = table[:, :4].mean(0)
    found = dict(zip(("bytes", "mse", "tv", "kl"), map(float, means), strict=True))
    return found | {"ece": _ece(table[:, 4], table[:, 5]), "teacher_ece": _ece(table[:, 6], table[:, 7])}


def _ece(confidence: NDArray[np.float64], hit: NDArray[np.float64]) -> float:
    if not confidence.size:
        return 0.0
    return float(ece(gap_sums(confidence, hit, equal_width(confidence, BINS), BINS), confidence.size))


def _size_of(capturing: Capturing, recipe: Recipe) -> dict[str, Any]:
    """As `evaluate.summary.Size`, for evaluations that do not open the teacher."""
    modules: Sequence[nn.Module] = getattr(capturing.teacher, "modules", ())
    members = members_of(recipe.teachers[recipe.required_capture.teacher])
    found = [locate(weights_of(member) or "", getattr(member, "revision", None)) for member in members]
    config: Any = getattr(modules[0], "config", None) if modules else None
    text = getattr(config, "text_config", None) or config
    return {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "bytes": sum(source.weight_bytes for source in found if source is not None),
        "layers": sum(dims(module).layers for module in modules),
        "positions": getattr(text, "max_position_embeddings", None),
    }


# ---- the whole store ----------------------------------------------------------------------------------------------


def _nll(store: SignalStore, plan: Plan) -> float:
    """The teacher's own mean NLL of the learned tokens, in nats, at temperature 1."""
    total = sum(
        float(store.read(row.record_id, row.rendered).target_log_prob.sum(dtype=np.float64)) for row in plan.rows
    )
    return -total / max(int(store.facts["targets"]), 1)


def _worth(recipe: Recipe, plan: Plan, seconds: float) -> dict[str, Any]:
    """How often the recipe's trainings read the training side, the teacher's seconds for that without a store, and the
    number of passes from which storing pays. `seconds`: of the teacher, for all records once."""
    train = recipe.train
    if train is None:
        return {}
    tokens = sum(map(length_of, plan.rows))
    trained = [row for row in plan.rows if row.record_id not in plan.held_out]
    share = sum(map(length_of, trained)) / max(tokens, 1)
    passes = float(train.seeds) * sum(_epochs({**train.args, **stage.args}, len(trained)) for stage in train.in_stages)
    online = seconds * share * passes
    return {"passes": round(passes, 2), "online_seconds": round(online, 1), "break_even_passes": round(1 / share, 2)}


def _epochs(args: Mapping[str, Any], rows: int) -> float:
    steps = int(args.get("max_steps", -1))
    if steps <= 0:
        return float(args.get("num_train_epochs", 1))
    a_step = int(args.get("per_device_train_batch_size", 8)) * int(args.get("gradient_accumulation_steps", 1))
    return steps * a_step / max(rows, 1)


def _lines(settings: CaptureSettings, facts: Mapping[str, Any]) -> list[str]:
    stored = facts["estimators"].get("stored")
    size = f"{facts['bytes_per_token']:,.1f} bytes a {facts['unit']} ({settings.kind})"
    size += f", {byte_size(facts['store_bytes'])}"
    lost = ""
    if stored is not None:
        lost = f"; on a sample squared error {stored['mse']:.4f}, TV {stored['tv']:.3f}, KL {stored['kl']:.3f} nats"
    own = "" if facts["nll"] is None else f"the teacher's own NLL is {facts['nll']:.3f} nats a {facts['unit']}; "
    lines = [
        f"capture: {size}{lost}",
        f"capture: {own}it read {facts['teacher_tokens_per_second']:,.0f} tokens/s for {facts['teacher_seconds']:,.0f} "
        f"s, and encoding took {facts['encoding_seconds']:,.0f} s",
    ]
    if "passes" in facts:
        pays = facts["passes"] > facts["break_even_passes"]
        lines.append(
            f"capture: trainings read these records {facts['passes']:g} times; with the teacher in training that would "
            f"take it {facts['online_seconds']:,.0f} s: storing {'pays' if pays else 'costs more'} here "
            f"(break-even at {facts['break_even_passes']:g} passes)"
        )
    return lines
