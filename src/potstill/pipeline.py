"""Runs a recipe's stages in order; skips what is fresh, continues what was interrupted."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from potstill.artifacts import Artifact, copy_artifact, disk_error, read_artifact, write_artifact, write_atomically
from potstill.check import check_recipe, fetch_questions
from potstill.check.cost import estimated_bytes, estimated_seconds
from potstill.check.inputs import Inputs
from potstill.console import Console
from potstill.errors import PotstillError, RunError
from potstill.peak import watched
from potstill.policy.gate import rulings_on
from potstill.policy.provenance import RECORDED, provenance_of
from potstill.recipe import Recipe, dump_recipe, weights_of
from potstill.recipe.reading import read_yaml
from potstill.stage import Context, Stage, stages_of

EVENTS = "events.jsonl"
"""The file of a run that holds what happened in it, one JSON object a line."""

State = Literal["fresh", "stale", "missing", "interrupted"]


@dataclass(frozen=True)
class Status:
    """The state of one stage in a run, and how long it took."""

    stage: str
    state: State
    seconds: float = 0.0


def default_run(recipe: Recipe) -> Path:
    """The default run folder: `runs/<name>` below the current folder."""
    return Path("runs") / recipe.name


def run_recipe(
    recipe: Recipe,
    run: Path,
    *,
    console: Console,
    verb: str | None = None,
    force: bool = False,
    verify: bool = False,
    shared: Sequence[Path] = (),
) -> list[Status]:
    """Run the stages of a recipe (or only those of one verb) into a run folder.

    It begins with the gate on licences and `potstill check`: errors in the recipe's files stop the run before its
    folder is made and before anything is fetched. Models that had to be fetched or converted are checked again before
    the first stage, and questions of measures that had to be fetched are read. An artifact is compared with its
    manifest before a stage reads or skips it; `verify` reads every byte. A stage whose key a run folder of `shared` has
    already takes over that artifact.

    Raises:
        RefusedError: a licence or terms do not allow it.
        RunError: the folder belongs to another recipe, is in use, or cannot be written; a verb's inputs are missing;
            or a file of an artifact has changed.
        PotstillError: what the check found, or what a stage raises.
    """
    rulings_on(recipe).refuse()
    verbs = _verbs_to_do(recipe, run, verb, force)
    seconds: Mapping[str, float] = {}
    sizes: Mapping[str, int] = {}
    if verbs:
        findings = check_recipe(recipe, verbs)
        findings.refuse()
        for finding in findings.warnings:
            console.warn(finding.text)
        seconds = estimated_seconds(recipe, findings.figures)
        sizes = estimated_bytes(recipe, findings.figures)
    with open_run(recipe, run), _noted(run, console, verb):
        if prepare_models(recipe, console):
            rulings_on(recipe).refuse()  # with the licences that came along
            check_recipe(recipe, verbs).refuse()
        if "evaluate" in verbs:
            fetch_questions(Inputs(recipe))
        stages = stages_of(recipe)
        if verb is not None and not any(_verb(s) == verb for s in stages):
            raise RunError(f"the recipe has no {verb} section", where=recipe.name, fix=f"add `{verb}:` to it")
        statuses: list[Status] = []
        for stage in stages:
            if verb is None or _verb(stage) == verb:
                _require_fresh(stage, stages, recipe, run)
                statuses.append(_run_stage(stage, recipe, run, console, force, verify, shared, seconds, sizes))
        return statuses


@contextmanager
def _noted(run: Path, console: Console, verb: str | None) -> Iterator[None]:
    """Append what happens to the run's file of events, with how it began and ended."""
    with console.events_to(run / EVENTS):
        console.note("begin", pid=os.getpid(), verb=verb)
        try:
            yield
        except PotstillError as error:
            console.note("end", state="failed", error=error.what, where=error.where, fix=error.fix)
            raise
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            console.note("end", state=state, error=f"{type(error).__name__}: {error}")
            raise
        console.note("end", state="done")


def _verbs_to_do(recipe: Recipe, run: Path, verb: str | None, force: bool) -> set[str]:
    """The verbs with a stage that is not fresh. Fresh stages need no check."""
    wanted = {_verb(stage) for stage in stages_of(recipe)} if verb is None else {verb}
    if force:
        return wanted
    try:
        return wanted & {status.stage.partition(".")[0] for status in plan(recipe, run) if status.state != "fresh"}
    except PotstillError:  # a file is missing: the check names it
        return wanted


def plan(recipe: Recipe, run: Path) -> list[Status]:
    """The state of every stage, without running any. A stage whose inputs are not fresh is stale or missing."""
    statuses: list[Status] = []
    fresh: set[str] = set()
    for stage in stages_of(recipe):
        found = read_artifact(run / stage.name)
        if set(stage.reads) <= fresh:
            key, _ = stage.key(recipe, _inputs(stage, run))
            if found is not None and found.key == key:
                fresh.add(stage.name)
                statuses.append(Status(stage.name, "fresh", found.manifest["seconds"]))
                continue
            if (run / f".partial-{stage.name}-{key[:16]}").is_dir():
                statuses.append(Status(stage.name, "interrupted"))
                continue
        statuses.append(Status(stage.name, "missing" if found is None else "stale"))
    return statuses


@contextmanager
def open_run(recipe: Recipe, run: Path) -> Iterator[None]:
    """Lock a run folder for this process (its process id is in the lock file), bind it to one recipe, and save the
    resolved recipe in it."""
    saved = run / "recipe.yaml"
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / _LOCK).open("a")
    except OSError as error:
        raise disk_error(error, run) from error
    with lock:
        if not _locked(lock):
            raise RunError("another potstill is at work in this run", where=str(run), fix="wait for it, or use --run")
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        if saved.is_file():
            kept = read_yaml(saved)
            owner = kept.get("name") if isinstance(kept, dict) else None
            if owner != recipe.name:
                raise RunError(
                    f"this run folder belongs to the recipe {owner!r}, not {recipe.name!r}",
                    where=str(run),
                    fix="choose another folder with --run, or remove this one",
                )
        try:
            write_atomically(saved, dump_recipe(recipe))
        except OSError as error:
            raise disk_error(error, run) from error
        yield


_LOCK = ".lock"


def _locked(lock: TextIO) -> bool:
    """Whether the lock was had. `process_at_work` holds it for an instant, so one refusal is none."""
    for pause in (0.05, 0.2, 0.0):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(pause)
    return False


def process_at_work(run: Path) -> int | None:
    """The number of the process that holds a run folder; None if there is none, 0 if its number is not known."""
    try:
        with (run / _LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read().strip()
                return int(text) if text.isdecimal() else 0
            return None
    except OSError:
        return None


def prepare_models(recipe: Recipe, console: Console) -> bool:
    """Fetch and unpack every model that the recipe names (once), so that keys can tell weights apart.

    Returns:
        Whether any model was not ready before.
    """
    from potstill.models.resolve import locate, resolve

    prepared = False
    for settings in recipe.models:
        model, revision = weights_of(settings), getattr(settings, "revision", None)
        if model is not None:
            prepared = prepared or locate(model, revision) is None
            remote = getattr(settings, "trust_remote_code", False)
            resolve(model, revision=revision, trust_remote_code=remote, console=console)
    tokenizer = getattr(recipe.generate, "tokenizer", None)
    if tokenizer is not None:
        prepared = prepared or locate(tokenizer) is None
        resolve(tokenizer, console=console)
    return prepared


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    run: Path,
    console: Console,
    force: bool,
    verify: bool,
    shared: Sequence[Path],
    estimates: Mapping[str, float],
    sizes: Mapping[str, int],
) -> Status:
    inputs = _inputs(stage, run)
    key, digests = stage.key(recipe, inputs)
    found = read_artifact(run / stage.name)
    if found is not None and found.key == key and not force:
        found.check_whole(verify=verify)
        console.say(f"{stage.name}: fresh, skipped", stage=stage.name, state="fresh")
        return Status(stage.name, "fresh", found.manifest["seconds"])
    for artifact in inputs.values():
        artifact.check_whole(verify=verify)
    if not force and (other := _shared(stage, key, shared)) is not None:
        other.check_whole(verify=verify)
        copy_artifact(other, run)
        console.say(f"{stage.name}: taken over from {other.path.parent}", stage=stage.name, state="fresh")
        return Status(stage.name, "fresh", other.manifest["seconds"])
    started = time.monotonic()
    with write_artifact(run, stage.name, key, settings=stage.settings, inputs=digests, seed=recipe.seed) as work:
        console.say(
            f"{stage.name}: {'continued' if work.resumed else 'started'}", stage=stage.name, resumed=work.resumed
        )
        if _verb(stage) in RECORDED:
            work.facts["policy"] = provenance_of(recipe, RECORDED[_verb(stage)]).to_dict()
        if stage.name in estimates and not work.resumed:
            work.facts["estimated_seconds"] = round(estimates[stage.name], 1)
        context = Context(recipe, run, inputs, work, console)
        if stage.name in sizes:
            with watched() as memory:
                stage.write(context)
            work.facts["memory"] = {"estimated": sizes[stage.name], **memory}
        else:
            stage.write(context)
    seconds = time.monotonic() - started
    for warning in work.warnings:
        console.warn(f"{stage.name}: {warning}")
    counts = ", ".join(f"{name} {amount}" for name, amount in work.counts.items())
    console.say(
        f"{stage.name}: done in {seconds:,.1f} s{': ' if counts else ''}{counts}",
        stage=stage.name,
        state="done",
        counts=work.counts,
    )
    return Status(stage.name, "missing" if found is None else "stale", seconds)


def _shared(stage: Stage, key: str, folders: Sequence[Path]) -> Artifact | None:
    """The artifact of the same key in one of the folders."""
    found = (read_artifact(folder / stage.name) for folder in folders)
    return next((artifact for artifact in found if artifact is not None and artifact.key == key), None)


def _require_fresh(stage: Stage, stages: Sequence[Stage], recipe: Recipe, run: Path) -> None:
    """Raises RunError unless every stage upstream was made by the recipe as it is now."""
    for upstream in (s for s in stages if s.name in stage.reads):
        _require_fresh(upstream, stages, recipe, run)
        inputs = _inputs(upstream, run)
        found = _inputs(stage, run)[upstream.name]
        if found.key != upstream.key(recipe, inputs)[0]:
            raise RunError(
                f"{upstream.name} in this run was made by other settings or other inputs than the recipe's now",
                where=str(run),
                fix=f"`potstill run` makes it again; or `potstill {_verb(upstream)}` does that stage alone",
            )


def _inputs(stage: Stage, run: Path) -> Mapping[str, Artifact]:
    found: dict[str, Artifact] = {}
    for name in stage.reads:
        artifact = read_artifact(run / name)
        if artifact is None:
            verb = name.partition(".")[0]
            raise RunError(
                f"{stage.name} reads what {verb} makes, and {name} is not there yet",
                where=str(run),
                fix=f"`potstill run` does every stage in order; or run `potstill {verb}` first",
            )
        found[name] = artifact
    return found


def _verb(stage: Stage) -> str:
    return stage.name.partition(".")[0]
