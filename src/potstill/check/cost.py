"""The cost of a run on this machine: time, memory and disk, before anything is loaded.

The time is a rough estimate from the measured rate of a matrix product; `potstill check --probe` times a training
step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs, all_teachers
from potstill.quantities import byte_size
from potstill.recipe import Recipe, members_of, weights_of

_BYTES = {"float32": 4, "bfloat16": 2, "auto": 4}
_OPTIMISER_BYTES = 8
"""AdamW's two moments, in fp32."""

_TRAINS_AT, _WRITES_AT, _READS_AT = 0.35, 0.1, 0.5
"""Fractions of the rate of a matrix product at which models train, write (one token at a time) and read."""

_UNSURE = 2.0
"""Estimated times are given as half to twice the estimate."""


def product_rate(size: int = 768, seconds: float = 0.05) -> float:
    """Operations per second of fp32 matrix products on this machine's processor, measured now."""
    import numpy as np

    one = np.ones((size, size), dtype=np.float32)
    one @ one  # threads start
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not done:
        one @ one
        done += 1
    return 2 * size**3 * done / spent


def conversions_are_announced(inputs: Inputs) -> Iterator[Finding]:
    """A GGUF file is converted once, which takes memory and time."""
    for name, teacher in all_teachers(inputs.recipe.teachers):
        known = inputs.facts(teacher)
        if inputs.source(teacher) is not None or known is None or known.conversion is None:
            continue
        memory, seconds = known.conversion.bytes, known.conversion.seconds
        inputs.figures |= {"conversion_bytes": memory, "conversion_seconds": round(seconds)}
        text = (
            f"{name} is converted once: about {byte_size(memory)} of memory, {_duration(seconds)}, and "
            f"{byte_size(4 * known.parameters)} of disk for its weights in fp32"
        )
        yield _within_memory(memory, Finding("cost", text))


def memory_is_estimated(inputs: Inputs) -> Iterator[Finding]:
    """The memory of teacher, student and optimiser in training, separately and together; of a captured teacher apart
    from its student. Where both do not fit, and each alone does, a store is suggested."""
    recipe = inputs.recipe
    student = inputs.figures.get("student_parameters")
    if recipe.train is None or student is None:
        return
    trained = 0 if recipe.student is not None and recipe.student.lora is not None else student
    parts = {"student": 4 * student, "gradients and optimiser": (4 + _OPTIMISER_BYTES) * trained}
    if inputs.is_taught:
        teacher = 0
        for member in members_of(inputs.teacher):
            known = inputs.facts(member)
            if known is None:
                return
            teacher += _BYTES.get(str(getattr(member, "dtype", "auto")), 4) * known.parameters
        if recipe.capture is not None:
            inputs.figures["memory_bytes_apart"] = {"capture": teacher, "training": sum(parts.values())}
            text = (
                f"memory in capture: teacher {byte_size(teacher)}, and activations; training loads no teacher "
                f"(together they would take {byte_size(teacher + sum(parts.values()))})"
            )
            yield _within_memory(teacher, Finding("cost", text))
        else:
            parts = {"teacher": teacher, **parts}
    total = sum(parts.values())
    inputs.figures["memory_bytes"] = {**{name.replace(" ", "_"): size for name, size in parts.items()}, "all": total}
    named = " + ".join(f"{name} {byte_size(size)}" for name, size in parts.items() if size)
    found = _within_memory(total, Finding("cost", f"memory in training: {named} = {byte_size(total)}, and activations"))
    if "teacher" in parts and found.level == "warning":
        apart = max(parts["teacher"], total - parts["teacher"])
        if _within_memory(apart, Finding("cost", "")).level == "fact":
            found = warning("cost", f"{found.text}; one after the other they fit: add `capture: {_store_for(recipe)}`")
    yield found


def _store_for(recipe: Recipe) -> str:
    """The section `capture` with which a recipe's objectives train from a store."""
    train = recipe.required_train
    objectives = [o for o in train.all_objectives if o.needs().teacher]
    tapped = any("taps" in alternatives for o in objectives for alternatives in o.needs().teacher)
    responds = [o for o in objectives if "taps" not in frozenset().union(*o.needs().teacher)]
    linear = all("top_logprobs" in alternatives for o in responds for alternatives in o.needs().teacher)
    at = {getattr(o, "temperature", 1.0) for o in responds}
    kind = "features"
    if responds:
        kind = "dense" if recipe.spec.has_classes else "threshold" if linear and at == {1.0} else "hidden"
    return f"{{kind: {kind}, features: asked}}" if tapped else f"{{kind: {kind}}}"


def time_is_estimated(inputs: Inputs) -> Iterator[Finding]:
    """Rough durations of generation by a local teacher, and of training with its controls, on this processor."""
    recipe, figures = inputs.recipe, inputs.figures
    student, train = figures.get("student_parameters"), recipe.train
    local = [m for m in members_of(inputs.teacher) if weights_of(m) is not None]
    teacher = sum(known.parameters for member in local if (known := inputs.facts(member)) is not None)
    asked = recipe.teachers[recipe.generate.teacher] if recipe.generate is not None and recipe.generate.asks else None
    written = int(figures.get("tokens_at_most", 0)) if asked is not None and not asked.remote else 0
    writer = sum(known.parameters for member in members_of(asked) if (known := inputs.facts(member)) is not None)
    tokens = _trained_tokens(inputs)
    if not ((written and writer) or (tokens and student)):
        return
    rate = product_rate()
    if written and writer:
        seconds = 2 * writer * written / (rate * _WRITES_AT)
        figures["generation_seconds"] = round(seconds)
        yield Finding("cost", f"generation: at most {_between(seconds)} on this machine's processor, roughly")
    if tokens and student and train is not None:
        once = 6 * student * tokens / (rate * _TRAINS_AT)
        read = 2 * teacher * tokens / (rate * _READS_AT) if inputs.is_taught else 0.0
        if recipe.capture is not None and read:
            all_tokens = int(figures.get("tokens_at_most") or figures.get("tokens_a_pass") or 0)
            once_read = 2 * teacher * all_tokens / (rate * _READS_AT)
            figures["capture_seconds"] = round(once_read)
            text = f"capture: {_between(once_read)}; a teacher in training would take {_between(read * train.seeds)}"
            yield Finding("cost", f"{text}, roughly")
            read = 0.0
        seconds = once * len(train.trainings) + read * train.seeds
        figures["training_seconds_estimated"] = round(seconds)
        controls = f" with {len(train.controls)} control{'s' * (len(train.controls) > 1)}" if train.controls else ""
        if train.seeds > 1:
            controls += f", by {train.seeds} seeds"
        yield Finding(
            "cost",
            f"training{controls}: {_between(seconds)} on this machine's processor, roughly (--probe measures a step)",
        )


def estimated_seconds(recipe: Recipe, figures: Mapping[str, Any]) -> dict[str, float]:
    """The estimate of each stage, by its name, from the figures of a check; stages without one are left out."""
    found = {"generate": figures.get("generation_seconds"), "capture": figures.get("capture_seconds")}
    trained = figures.get("training_seconds_estimated")
    if trained is not None and recipe.train is not None:
        trainings = recipe.train.trainings
        found |= {training.stage: trained / len(trainings) for training in trainings}
    return {name: float(seconds) for name, seconds in found.items() if seconds is not None}


def estimated_bytes(recipe: Recipe, figures: Mapping[str, Any]) -> dict[str, int]:
    """The estimated memory of each stage that has one, by its name: weights and the optimiser's moments, without
    activations. A control that reads no teacher needs the student's part alone."""
    parts, apart = figures.get("memory_bytes"), figures.get("memory_bytes_apart", {})
    found: dict[str, int] = {}
    if recipe.capture is not None and "capture" in apart:
        found[recipe.capture.stages[0]] = int(apart["capture"])
    if parts is not None and recipe.train is not None:
        alone = parts["all"] - parts.get("teacher", 0)
        of_text = ("text_only", "text_only_equal_seconds")
        found |= {t.stage: alone if t.control in of_text else parts["all"] for t in recipe.train.trainings}
    return found


def _trained_tokens(inputs: Inputs) -> int:
    """The maximum number of tokens that one training reads."""
    train, figures = inputs.recipe.train, inputs.figures
    if train is None or not inputs.task.reads_text or not figures.get("records"):
        return 0
    if inputs.recipe.generate is not None:
        asked = max(int(figures.get("records_asked", figures["records"])), 1)
        a_pass: float = int(figures.get("tokens_at_most", 0)) * figures["train"] / asked
        rows = figures["train"] * getattr(inputs.recipe.generate, "samples", 1)
    else:
        a_pass = int(figures.get("tokens_a_pass", 0)) * figures["train"] / figures["records"]
        rows = figures["train"]
    args: dict[str, Any] = train.args
    rows_a_step = int(args.get("per_device_train_batch_size", 8)) * int(args.get("gradient_accumulation_steps", 1))
    passes: float = figures.get("steps", 0) * rows_a_step / max(rows, 1)
    return round(a_pass * passes)


def disk_suffices(inputs: Inputs) -> Iterator[Finding]:
    """What each stage keeps fits, all together, on the disk of the current folder: the store, the trained models, the
    checkpoints of a training, the exports."""
    recipe, student = inputs.recipe, inputs.figures.get("student_parameters")
    parts = {"store": int(inputs.figures.get("store_bytes", 0))}
    if student is not None and recipe.train is not None:
        train = recipe.train
        kept = int(train.args.get("save_total_limit") or 2) + 1  # one is written before another is removed
        parts |= {
            "trained models": 4 * student * len(train.trainings),
            "checkpoints": kept * (4 + _OPTIMISER_BYTES) * student,
            "exports": 4 * student * len(recipe.export),
        }
    needed = sum(parts.values())
    if not needed:
        return
    inputs.figures["disk_bytes"] = {**{name.replace(" ", "_"): size for name, size in parts.items()}, "all": needed}
    free = shutil.disk_usage(Path()).free
    named = " + ".join(f"{name} {byte_size(size)}" for name, size in parts.items() if size)
    text = f"disk, at most: {named} = {byte_size(needed)}; {byte_size(free)} are free here"
    yield warning("cost", text) if needed > free else Finding("cost", text)


def _within_memory(needed: float, finding: Finding) -> Finding:
    available = available_memory()
    if available is None:
        return finding
    if needed <= available:
        return Finding(finding.topic, f"{finding.text}; {byte_size(available)} are available")
    return warning(finding.topic, f"{finding.text}; only {byte_size(available)} of memory are available now")


def available_memory() -> int | None:
    """Bytes of memory that this process may still use, of the machine or its control group; None if unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        return None
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no control group, or no limit
    return min(found, default=None)


def _between(seconds: float) -> str:
    return f"{_duration(seconds / _UNSURE)} to {_duration(seconds * _UNSURE)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 1):,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
