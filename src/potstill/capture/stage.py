"""The stage `capture`: from records to a store of the teacher's distributions over them. No torch at import."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill import registry
from potstill.errors import RecipeError
from potstill.quantities import counted
from potstill.recipe import CaptureSettings, EndpointTeacher, Recipe, ThresholdCapture, TopKCapture, members_of
from potstill.stage import Context, Stage

if TYPE_CHECKING:
    from potstill.capture.capturing import Capturing
    from potstill.capture.plan import Plan, Targets
    from potstill.store.codec import Grid, TensorPart
    from potstill.store.earlier import EarlierStore, Matching
    from potstill.store.files import SignalStore, StoreWriter
    from potstill.teachers.base import Teacher
    from potstill.teachers.endpoint import EndpointModel

    Fill = Callable[[StoreWriter, Matching | None], None]
    """Writes the missing sequences of a store, some of them from an earlier one."""

CONTRACT = 5
STORE = "store"
"""The folder of the store in the artifact."""


def stage(recipe: Recipe, number: int = 0) -> Stage:
    """The stage of a recipe that has a `capture` section, of one of its teachers: `capture`, and for those of
    `capture.also` `capture.1` and so on.

    Its artifact holds `store/` (see `docs/store.md`), with the teacher's tokenizer in `store/tokenizer/`, and
    `fidelity.json`.
    """
    name, recipe = recipe.required_capture.stages[number], recipe.of_teacher(number)
    section = recipe.required_capture
    settings: dict[str, Any] = {
        "capture": section.key_fields() | {"max_length": recipe.captured_length},
        "teacher": recipe.teachers[section.teacher].key_fields(),
        "teacher_system": recipe.train.teacher_system if recipe.train is not None else None,
        "data": None if recipe.generate is not None else recipe.data.key_fields(),
        "task": recipe.task,
    }
    if section.features == "asked":
        settings["asked"] = _asking(recipe)
    refusals = recipe.train.refusals if recipe.train is not None else None
    if refusals is not None:
        settings["refusals"] = refusals.key_fields()
    reads = ("generate",) if recipe.generate is not None else ()
    return Stage(name, CONTRACT, reads, settings, partial(_sources, recipe), partial(_write, recipe, name))


def _asking(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides which inner tensors the objectives read."""
    train = recipe.required_train
    objectives = [o.key_fields() for o in train.all_objectives if o.needs().teacher]
    named = [{name: value for name, value in fields.items() if name != "weight"} for fields in objectives]
    pooling = None if recipe.spec.has_response else train.pooling
    return {"objectives": named, "student": recipe.required_student.key_fields(), "pooling": pooling}


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the teacher's weights, and of the data if no earlier stage has read them."""
    from potstill.data import source_digests
    from potstill.models import model_digests

    digests = {} if recipe.generate is not None else dict(source_digests(recipe.data))
    if recipe.train is not None and recipe.train.refusals is not None:
        of_refusals = source_digests(recipe.train.refusals.prompts)
        digests |= {f"refusals {name}": value for name, value in of_refusals.items()}
    return digests | model_digests("teacher", members_of(recipe.teachers[recipe.required_capture.teacher]))


def forecast(recipe: Recipe, run: Path, number: int = 0) -> str:
    """How many records `potstill capture` would take over from an earlier store of a run, and how many would cost the
    teacher's time. Its weights are not loaded.

    Raises:
        PotstillError: the data cannot be read.
    """
    from potstill.artifacts import Work
    from potstill.capture.plan import plan_of, read_rows
    from potstill.models import locate
    from potstill.recipe import weights_of
    from potstill.teachers.endpoint import EndpointModel

    name, recipe = recipe.required_capture.stages[number], recipe.of_teacher(number)
    settings = recipe.required_capture
    of, work = recipe.teachers[settings.teacher], Work(run, False)
    if isinstance(of, EndpointTeacher):
        served = EndpointModel(of)
        teacher: Teacher | EndpointModel = served
        folder = served.tokenizer_folder
    else:
        teacher, first = registry.build(of), members_of(of)[0]
        source = locate(str(weights_of(first)), getattr(first, "revision", None))
        if source is None:
            return f"{name}: what an earlier store saves is not known: the teacher is not on this machine yet"
        folder = source.path if recipe.spec.reads_text else None
    records = run / "generate" / "records.parquet" if recipe.generate is not None else None
    read = read_rows(recipe, records, folder, work)
    plan = plan_of(read.rows, read.held_out, settings.batch_tokens, settings.shard_tokens, _unit(recipe))
    earlier = _earlier(run / name)
    if earlier is None:
        return f"{name}: all {len(plan.rows):,} records cost the teacher's time: there is no earlier store"

    def identity_of(resolved: CaptureSettings) -> dict[str, Any]:
        return _identity(recipe, teacher, resolved)

    if isinstance(settings, ThresholdCapture) and settings.tau is None:
        settings = settings.model_copy(update={"tau": _tau_of(earlier, settings, identity_of)})
    if differing := earlier.differences(identity_of(settings), _OF_NO_RECORD):
        return f"{name}: all {len(plan.rows):,} records cost the teacher's time: {'; '.join(differing)}"
    return f"{name}: {earlier.matching(sequence for shard in plan.planned for sequence in shard).text}"


def _unit(recipe: Recipe) -> Targets:
    """What a response is stored of."""
    if not recipe.required_capture.response:
        return "none"
    return "tokens" if recipe.spec.has_vocabulary else "examples"


def _write(recipe: Recipe, name: str, context: Context) -> None:
    from potstill.capture.capturing import Capturing
    from potstill.capture.features import NO_FEATURES, features_of
    from potstill.capture.plan import plan_of, read_rows
    from potstill.capture.store_report import report_of
    from potstill.models.resolve import resolve
    from potstill.recipe import weights_of
    from potstill.students.base import Materials

    work, settings = context.work, recipe.required_capture
    if isinstance(recipe.teachers[settings.teacher], EndpointTeacher):
        _write_served(recipe, name, context)
        return
    teacher: Teacher = registry.build(recipe.teachers[settings.teacher])
    first = members_of(recipe.teachers[settings.teacher])[0]
    source = resolve(str(weights_of(first)), revision=getattr(first, "revision", None), console=context.console)
    folder = source.path if recipe.spec.reads_text else None
    generated = context.inputs.get("generate")
    records = generated.path / "records.parquet" if generated is not None else None
    read = read_rows(recipe, records, folder, work)
    plan = plan_of(read.rows, read.held_out, settings.batch_tokens, settings.shard_tokens, _unit(recipe))
    growing = context.out / "checkpoints"  # what an attempt that continues begins with
    growing.mkdir(exist_ok=True)
    features = NO_FEATURES
    if settings.features:
        of_one = (
            source if members_of(recipe.teachers[settings.teacher]) == (recipe.teachers[settings.teacher],) else None
        )
        trust = bool(getattr(first, "trust_remote_code", False))
        materials = Materials(
            of_one, folder, context.console, trust_remote_code=trust, task=recipe.task, labels=read.classes or None
        )
        features = features_of(recipe, teacher.dims, materials, plan.batches[-1][-1])
    opened = partial(
        Capturing, teacher, plan, read.reader.collator(), settings.temperature, recipe.seed, features=features
    )

    def identity_of(resolved: CaptureSettings) -> dict[str, Any]:
        return _identity(recipe, teacher, resolved) | {
            "dims": asdict(teacher.dims),
            "targets": plan.targets_are,
            "labels": getattr(teacher, "labels", None),
        }

    earlier = _earlier(context.run / name)
    found = growing / "settings.json"
    resolved = _resolved(settings, opened(), plan, found, context, earlier, identity_of)
    capturing = opened()
    estimator = registry.build(resolved)
    parts: tuple[TensorPart, ...] = ()
    if features.names:
        parts = features.parts(opened().read(plan.batches[-1][-1:], features=True).features[0])
    grid = estimator.grid(teacher.dims, parts)

    def fill(writer: StoreWriter, taken: Matching | None) -> None:
        capturing.fill(writer, plan, estimator, context.console, growing / "seconds.json", taken)

    store = _filled(context, name, identity_of(resolved), grid, plan, fill, folder, earlier)
    report = report_of(store, capturing, plan, resolved, recipe)
    _end(context, store, report.facts, report.lines, [*report.warnings, *_off_budget(found, settings, report.facts)])


def _write_served(recipe: Recipe, name: str, context: Context) -> None:
    """As `_write`, of a teacher behind a server."""
    from potstill.capture.plan import plan_of, read_rows
    from potstill.capture.served import Served, dims_of, fill_from, report_of_served
    from potstill.capture.written import Written
    from potstill.teachers.endpoint import EndpointModel

    settings = recipe.required_capture
    if not isinstance(settings, TopKCapture):
        raise RecipeError("a server gives its likeliest tokens alone", where="capture.kind", fix="use kind: topk")
    model = EndpointModel(recipe.teachers[settings.teacher])
    generated = context.inputs.get("generate")
    records = generated.path / "records.parquet" if generated is not None else None
    read = read_rows(recipe, records, model.tokenizer_folder, context.work)
    plan = plan_of(read.rows, read.held_out, settings.batch_tokens, settings.shard_tokens)
    growing = context.out / "checkpoints"
    growing.mkdir(exist_ok=True)
    dims, estimator = dims_of(model), registry.build(settings)
    identity = _identity(recipe, model, settings) | {
        "dims": asdict(dims),
        "targets": plan.targets_are,
        "labels": None,
    }

    def filled(fill: Fill, earlier: EarlierStore | None) -> SignalStore:
        return _filled(context, name, identity, estimator.grid(dims), plan, fill, model.tokenizer_folder, earlier)

    if model.settings.prompt_logprobs is None:
        written = Written(model, settings, read.records)
        without = written.check(plan)
        store = filled(lambda writer, _: fill_from(written, plan, context.console, writer), None)  # costs nothing
        report = report_of_served(store, plan, None, without)
    else:
        with Served(model, settings) as served:
            apart = served.check_before_paying(plan, read.reader.collator(), context.console, growing / "server.json")

            def fill(writer: StoreWriter, taken: Matching | None) -> None:
                if taken is not None:
                    served.check_earlier(plan, taken)
                fill_from(served, plan, context.console, writer, taken)

            store = filled(fill, _earlier(context.run / name))
        report = report_of_served(store, plan, apart)
    _end(context, store, report.facts, report.lines, report.warnings)


def _filled(
    context: Context,
    name: str,
    identity: Mapping[str, Any],
    grid: Grid,
    plan: Plan,
    fill: Fill,
    tokenizer: Path | None,
    earlier: EarlierStore | None,
) -> SignalStore:
    """The store of a plan: what an earlier attempt or store has of it is kept, and `fill` writes the rest. Of an
    earlier store of the very same plan these are whole shards, so that a damaged one is captured as it was; of another
    plan single records."""
    from potstill.store.files import TOKENIZER, SignalStore, StoreWriter

    growing, before = context.out / "checkpoints", context.run / name / STORE
    with StoreWriter(growing / STORE, identity, grid, plan.planned):
        pass  # its plan is on the disk now
    matching = None
    if _same_plan(before, growing / STORE):
        if not context.work.resumed and (taken := _take_over(before, growing / STORE)):
            context.console.say(f"capture: {taken} of {counted(len(plan.shards), 'shard')} are whole and are kept")
    elif earlier is not None:
        matching = _matching(earlier, identity, grid, plan, context)
    with StoreWriter(growing / STORE, identity, grid, plan.planned) as writer:
        fill(writer, matching)
        if tokenizer is not None:
            _copy_tokenizer(tokenizer, growing / STORE / TOKENIZER)
        writer.finish()
    _link(growing / STORE, context.out / STORE)
    return SignalStore(context.out / STORE)


def _end(
    context: Context, store: SignalStore, facts: Mapping[str, Any], lines: Sequence[str], warnings: Sequence[str]
) -> None:
    """Write what was found of a store, and say it."""
    work = context.work
    (context.out / "fidelity.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    work.facts["fidelity"] = facts
    for warning in warnings:
        work.warn(warning)
    for line in lines:
        context.console.say(line)
    work.count("records", len(store))
    work.count("targets", int(store.facts["targets"]))
    work.count("bytes", int(store.facts["bytes"]))


def _identity(recipe: Recipe, teacher: Teacher | EndpointModel, resolved: CaptureSettings) -> dict[str, Any]:
    """What a store is of, as far as it is known before the teacher is loaded."""
    served = isinstance(recipe.teachers[resolved.teacher], EndpointTeacher)
    return {
        "teacher": dict(getattr(teacher, "signals_identity", None) or teacher.identity),
        "estimator": {**resolved.key_fields(), "signal": resolved.estimator},
        "temperature": resolved.temperature,
        "max_length": recipe.captured_length,
        "task": recipe.task,
        **({} if served else {"seed": recipe.seed}),  # of the draws
    }


_OF_NO_RECORD = frozenset(
    {"max_length"}
    | {f"estimator.{name}" for name in ("teacher", "max_length", "batch_tokens", "shard_tokens", "sample_tokens")}
    | {"estimator.tolerance"}
)
"""Entries of an identity that change nothing of a record, but for rounding. (One that is cut elsewhere has another
number of tokens, and is another sequence.)"""


def _off_budget(found: Path, settings: CaptureSettings, facts: Mapping[str, Any]) -> Iterator[str]:
    """A warning where the τ of an earlier store does not meet the budget. `found` is the file of `_resolved`."""
    if not isinstance(settings, ThresholdCapture) or settings.tau is not None:
        return
    kept, size = json.loads(found.read_text(encoding="utf-8"))["of_earlier"], facts["bytes_per_token"]
    if kept and abs(size / settings.bytes_per_token - 1) > _OFF:
        yield (
            f"tau is that of the earlier store, and makes {size:.1f} bytes a token where {settings.bytes_per_token:g} "
            "were asked for: remove the capture from the run folder to find it anew"
        )


_OFF = 0.1
"""How far the bytes a token may be from the budget, as a share of it."""


def _tau_of(
    earlier: EarlierStore | None, settings: ThresholdCapture, identity_of: Callable[[CaptureSettings], dict[str, Any]]
) -> float | None:
    """The τ of an earlier store of the same settings: with another one nothing of it could be taken over."""
    tau = earlier.identity["estimator"].get("tau") if earlier is not None else None
    if earlier is None or tau is None:
        return None
    wanted = identity_of(settings.model_copy(update={"tau": tau}))
    return None if earlier.differences(wanted, _OF_NO_RECORD) else float(tau)


def _resolved(
    settings: CaptureSettings,
    capturing: Capturing,
    plan: Plan,
    file: Path,
    context: Context,
    earlier: EarlierStore | None,
    identity_of: Callable[[CaptureSettings], dict[str, Any]],
) -> CaptureSettings:
    """The settings with their τ, found once: a continued attempt reads it, and a store that grows keeps it."""
    if not isinstance(settings, ThresholdCapture) or settings.tau is not None:
        return settings
    from potstill.artifacts import write_atomically

    if file.is_file():
        tau = float(json.loads(file.read_text(encoding="utf-8"))["tau"])
    elif (kept := _tau_of(earlier, settings, identity_of)) is not None:
        tau = kept
        write_atomically(file, json.dumps({"tau": tau, "of_earlier": True}))
    else:
        context.console.say(f"capture: looking for tau, for {settings.bytes_per_token:g} bytes a token")
        from potstill.capture.store_report import tau_for

        tau = tau_for(settings, capturing, plan)
        write_atomically(file, json.dumps({"tau": tau, "of_earlier": False}))
    return settings.model_copy(update={"tau": tau})


def _same_plan(one: Path, other: Path) -> bool:
    """Whether two stores hold the same sequences, in the same shards, of the same identity."""
    from potstill.store.files import PLAN

    try:
        return (one / PLAN).read_bytes() == (other / PLAN).read_bytes()
    except OSError:
        return False


def _earlier(artifact: Path) -> EarlierStore | None:
    """The store of an earlier capture, if there is one that can be read."""
    from potstill.errors import DataError
    from potstill.store.earlier import EarlierStore

    try:
        return EarlierStore(artifact / STORE)
    except DataError:
        return None


def _matching(
    earlier: EarlierStore, identity: Mapping[str, Any], grid: Grid, plan: Plan, context: Context
) -> Matching | None:
    """What is taken over from an earlier store; says how much, or why nothing."""
    differing = earlier.differences(identity, _OF_NO_RECORD) or ["what is kept of a record"] * (earlier.grid != grid)
    if differing:
        context.console.say(f"capture: nothing is taken over from the earlier store: {'; '.join(differing)}")
        return None
    matching = earlier.matching(sequence for shard in plan.planned for sequence in shard)
    context.console.say(f"capture: {matching.text}")
    context.work.count("taken over", len(matching))
    return matching if len(matching) else None


def _take_over(old: Path, new: Path) -> int:
    """Link the undamaged shards of an earlier store of the very same plan; the number of them. So `--force` captures
    again only what is damaged."""
    from potstill.artifacts import file_digest
    from potstill.store.files import FACTS

    try:
        shards = json.loads((old / FACTS).read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError):
        return 0
    taken = 0
    for shard in shards:
        data, index = old / shard["name"], (old / shard["name"]).with_suffix(".jsonl")
        files = ((data, shard["sha256"]), (index, shard["index_sha256"]))
        if all(file.is_file() and file_digest(file) == digest for file, digest in files):
            for file, _ in reversed(files):  # the index first: a shard always has one
                _link_or_copy(file, new / file.name)
            taken += 1
    return taken


def _link(source: Path, target: Path) -> None:
    """The finished store under its own name, by hard links: the checkpoints stay whole until the artifact is."""
    from potstill.store.files import FACTS, PLAN, SignalStore, files_of

    for name in (*files_of(SignalStore(source).facts), PLAN, FACTS):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(source / name, target / name)


def _link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, whole from the moment that it is there."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        part = target.with_name(f"{target.name}.copied")
        shutil.copy2(source, part)
        os.replace(part, target)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """What a training compares its student's tokenizer with: all files of the model but weights and code."""
    from potstill.artifacts import disk_error

    try:
        for file in sorted(source.rglob("*")):
            if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
                copy = target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    except OSError as error:
        raise disk_error(error, target) from error
