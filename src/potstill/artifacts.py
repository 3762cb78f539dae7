"""A stage's output folder: written aside, renamed when whole, and described by a manifest.

    runs/<name>/
      recipe.yaml            the resolved recipe
      journal.sqlite         every teacher answer (outside every artifact)
      <stage>/               a whole artifact, with manifest.json
      .partial-<stage>-<key>/   work in progress, with a manifest of its state

A half-written artifact never has a valid name, and a different key never continues it. A continued attempt finds only
the checkpoints of the attempt before it, so an artifact holds exactly what an uninterrupted attempt would have
written. Manifests hold the size, modification time and digest of every file; `Artifact.check_whole` compares them
whenever an artifact is read. No torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from potstill.errors import PotstillError, RunError
from potstill.types import digest

MANIFEST = "manifest.json"
_VERSIONS_OF = ("potstill", "torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The key of the stage that wrote it."""
        return str(self.manifest["key"])

    @property
    def output_digest(self) -> str:
        """One digest over all files; it goes into the keys of later stages."""
        return digest(self.manifest["files"])

    def check_whole(self, *, verify: bool = False) -> None:
        """Compare every file with the manifest: by size and modification time; by digest if the time differs (as that
        of a copy does) or with `verify`.

        Raises:
            RunError: a file is missing or has changed since it was written.
        """
        for name, expected in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                what = "is missing"
            elif self._differs(file, name, expected, verify):
                what = "has changed since it was written"
            else:
                continue
            verb = str(self.manifest["stage"]).partition(".")[0]
            raise RunError(
                f"{name} {what}",
                where=str(self.path),
                fix=f"restore the file, or make the stage again: potstill {verb} RECIPE --force",
            )

    def _differs(self, file: Path, name: str, expected: str, verify: bool) -> bool:
        size, changed = self.manifest["stat"][name]
        found = file.stat()
        if found.st_size != size:
            return True
        if verify:
            return file_digest(file) != expected
        return found.st_mtime_ns != changed and _digest_once(file) != expected


@dataclass
class Work:
    """An artifact that is being written. Counts and warnings go into its manifest."""

    path: Path
    resumed: bool
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a count, e.g. `dropped: empty completion`."""
        self.counts[name] = self.counts.get(name, 0) + amount

    def warn(self, text: str) -> None:
        """Note a warning (once)."""
        if text not in self.warnings:
            self.warnings.append(text)


State = Literal["running", "failed", "interrupted"]


@dataclass(frozen=True)
class Attempt:
    """An unfinished attempt, from its manifest. `running`: the process is still at work, or was killed."""

    stage: str
    state: State
    started: str
    ended: str | None
    error: str | None
    where: str | None
    fix: str | None


def read_attempts(run: Path) -> list[Attempt]:
    """The unfinished attempts in a run folder, by stage."""
    attempts = []
    for partial in sorted(run.glob(".partial-*")):
        try:
            found = parse_json((partial / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {"stage": partial.name.removeprefix(".partial-").rpartition("-")[0], "state": "running"}
        details = {name: found.get(name) for name in ("ended", "error", "where", "fix")}
        # A kill between the manifest and the rename leaves one that says `done`.
        state: State = "running" if found["state"] == "done" else found["state"]
        attempts.append(Attempt(found["stage"], state, found.get("started", "?"), **details))
    return attempts


def read_artifact(path: Path) -> Artifact | None:
    """The artifact at a path, or None if there is none (whole ones always have a manifest)."""
    try:
        manifest = parse_json((path / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("it is no JSON object")
        return Artifact(path, manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(
            f"the manifest is damaged: {error}", where=str(path), fix="run the stage again with --force"
        ) from error


@contextmanager
def write_artifact(
    run: Path, stage: str, key: str, *, settings: Mapping[str, Any], inputs: Mapping[str, str], seed: int
) -> Iterator[Work]:
    """Write one artifact: yields a `Work` whose folder is renamed to `<run>/<stage>` when the block ends well.

    An earlier attempt with the same key is continued (`resumed`); attempts with other keys are removed. Files and
    folders whose names start with `checkpoints` are working state: a continued attempt finds nothing else, and they
    are removed before the rename. If the block fails, the manifest in the partial folder records when, with which
    error and where.

    Raises:
        RunError: the folder cannot be written, or the disk is full (whole artifacts are kept).
    """
    partial = run / f".partial-{stage}-{key[:16]}"
    started = time.time()
    made_by = {"stage": stage, "key": key, "settings": dict(settings), "inputs": dict(inputs), "seed": seed}
    made_by |= {"versions": _versions(), "started": _utc(started)}
    try:
        run.mkdir(parents=True, exist_ok=True)
        for stale in run.glob(f".partial-{stage}-*"):
            if stale != partial:
                shutil.rmtree(stale)
        resumed = partial.is_dir()
        partial.mkdir(exist_ok=True)
        _remove(p for p in partial.iterdir() if not p.name.startswith(_STATE))
        _write_manifest(partial, {**made_by, "state": "running"})
        work = Work(partial, resumed)
        yield work
        _remove(partial.glob(f"{_STATE}*"))
        files = [p for p in sorted(partial.rglob("*")) if p.is_file() and p != partial / MANIFEST]
        manifest = {
            **made_by,
            "state": "done",
            "files": {str(p.relative_to(partial)): file_digest(p) for p in files},
            "stat": {str(p.relative_to(partial)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files},
            "ended": _utc(time.time()),
            "seconds": round(time.time() - started, 1),
            "resumed": resumed,
            "counts": work.counts,
            "warnings": work.warnings,
            "facts": work.facts,
        }
        _write_manifest(partial, manifest)
        _swap_in(partial, run / stage)
    except BaseException as error:
        shown = disk_error(error, run) if isinstance(error, OSError) else error
        with suppress(OSError):  # the disk may be what failed
            _write_manifest(partial, {**made_by, **_failure(shown), "ended": _utc(time.time())})
        if shown is error:
            raise
        raise shown from error


def copy_artifact(artifact: Artifact, run: Path) -> None:
    """Put an artifact of another run into this one: by hard links where the file system has them, which take no room.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
    """
    partial = run / f".partial-{artifact.path.name}-{artifact.key[:16]}"

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        return target

    try:
        _remove(run.glob(f".partial-{artifact.path.name}-*"))
        shutil.copytree(artifact.path, partial, copy_function=link)
        _swap_in(partial, run / artifact.path.name)
    except OSError as error:
        raise disk_error(error, run) from error


_STATE = "checkpoints"


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, default=str))


def _failure(error: BaseException) -> dict[str, Any]:
    """The entries of a manifest for an error: its message, and where it was raised."""
    if isinstance(error, KeyboardInterrupt):
        return {"state": "interrupted"}
    if isinstance(error, PotstillError):
        return {"state": "failed", "error": error.what, "where": error.where, "fix": error.fix}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "state": "failed",
        "error": f"{type(error).__name__}: {error}",
        "where": f"{frame.filename}:{frame.lineno}, in {frame.name}",
    }


def disk_error(error: OSError, path: Path) -> RunError:
    """The error to show for an OSError: disk full, not writable, or a file where a folder should be."""
    where = str(error.filename or path)
    if error.errno == errno.ENOSPC:
        return RunError(
            "the disk is full", where=where, fix="free some space and run the same command again: it continues"
        )
    return RunError(
        f"cannot be written: {error.strerror}",
        where=where,
        fix="choose another folder with --run, or fix its permissions",
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no such file. Raises ValueError if it is no JSON."""
    if not path.is_file():
        return {}
    read: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    return read


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or is nested deeper than Python can read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """A digest of a file's bytes, or of the names and bytes of a folder's files except weights (a recipe names a
    folder for its tokenizer or configuration). `missing` if nothing is there."""
    try:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix not in _WEIGHTS)
            return digest({p.relative_to(path).as_posix(): _digest_once(p) for p in files})
        return _digest_once(path)
    except OSError:
        return "missing"


_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack")
_digests: dict[tuple[str, int, int], str] = {}


def _digest_once(path: Path) -> str:
    """A file's digest, remembered in this process by path, size and modification time."""
    stat = path.stat()
    known = str(path), stat.st_size, stat.st_mtime_ns
    if known not in _digests:
        _digests[known] = file_digest(path)
    return _digests[known]


def _swap_in(partial: Path, final: Path) -> None:
    """Replace a folder. The old one is moved aside first, so that the name never holds half a folder."""
    old = final.with_name(f".old-{final.name}")
    if old.exists():
        shutil.rmtree(old)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    if old.exists():
        shutil.rmtree(old)


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
