"""Checkpoints that count only when they are whole (rule 15).

A checkpoint is written to `.partial-checkpoint-<step>`, gets a list of its files with their sizes (`complete.json`),
is flushed to disk, and then renamed to `checkpoint-<step>`. A checkpoint without a list, or that does not match it, is
skipped when training resumes. No torch.

checkpoint-<step>/
  config.json, model.safetensors (or the adapter), tokenizer …   the student: opens with from_pretrained
  projectors.safetensors                                         modules trained along and never exported
  optimizer.pt, scheduler.pt, rng_state*.pth                     pickles of transformers, read with weights_only=True
  trainer_state.json                                             transformers' state: step, logs, best so far
  complete.json                                                  every file's size; written last
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artifacts import disk_error
from potstill.errors import RunError

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
AT_LEAST_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointStore:
    """The checkpoints of one training, in one folder.

    Args:
        folder: their folder.
        writes: whether this process renames and removes; other processes only add their own files to a checkpoint.
        wait: a barrier, called by every process.
    """

    def __init__(self, folder: Path, *, writes: bool = True, wait: Callable[[], object] = lambda: None) -> None:
        self.folder, self.writes, self.wait = folder, writes, wait

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether or not it exists."""
        return self.folder / f"checkpoint-{step}"

    @contextmanager
    def writing(self, step: int, facts: Mapping[str, Any]) -> Iterator[Path]:
        """A folder to write a checkpoint into; it is renamed if the block ends without an error.

        Raises:
            RunError: the disk is full, or cannot be written to.
        """
        partial = aside(self.folder, step)
        try:
            if self.writes:
                if partial.exists():
                    shutil.rmtree(partial)
                partial.mkdir(parents=True)
            self.wait()
            yield partial
            self.wait()
            if self.writes:
                seal(partial, self.path(step), facts)
            self.wait()
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def keep(self, limit: int | None, best: str | None) -> None:
        """Remove the oldest whole checkpoints until `limit` are left, but never the best.

        Raises:
            RunError: they cannot be removed.
        """
        try:
            if self.writes and limit:
                rotate(self.folder, limit, Path(best) if best else None)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        self.wait()

    def to_resume(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to resume from: the given one, or with True the newest whole one.

        Raises:
            RunError: the given one is not whole, or there is none.
        """
        if self.writes and self.folder.is_dir():
            sweep(self.folder)
        if not asked:
            return None
        if asked is True:
            found, passed_over = last_whole(self.folder) if self.folder.is_dir() else (None, [])
            for torn in passed_over:
                logger.warning("%s is not whole and is passed over", torn)
            if found is None:
                raise RunError(
                    "there is no whole checkpoint to resume from", where=str(self.folder), fix="train from the start"
                )
            return found
        if not is_whole(Path(asked)):
            raise RunError(
                "this checkpoint is not whole",
                where=str(asked),
                fix="resume_from_checkpoint=True takes the newest that is",
            )
        return Path(asked)


def aside(folder: Path, step: int) -> Path:
    """The folder in which a step's checkpoint is written before it is whole."""
    return folder / f".partial-checkpoint-{step}"


def seal(partial: Path, final: Path, facts: Mapping[str, Any]) -> None:
    """Give a checkpoint its final name, once all its files are on disk. `COMPLETE` lists the files, and has `facts`."""
    files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
    files.pop(COMPLETE, None)
    (partial / COMPLETE).write_text(json.dumps({"files": files, "facts": dict(facts)}, indent=1), encoding="utf-8")
    for name in (*files, COMPLETE):
        _to_disk(partial / name)
    _to_disk(partial)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _to_disk(final.parent)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint exists with its full size."""
    try:
        listed = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in listed.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """The facts stored with a whole checkpoint."""
    facts: dict[str, Any] = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["facts"]
    return facts


def step_of(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name.

    Raises:
        ValueError: it is no checkpoint's name.
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint.name!r} is not the name of a checkpoint")
    return int(match[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """Everything with the name of a checkpoint, whole or not, oldest step first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(found, key=step_of)


def last_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and the newer ones that are not whole."""
    passed_over: list[Path] = []
    for checkpoint in reversed(checkpoints_in(folder)):
        if is_whole(checkpoint):
            return checkpoint, passed_over
        passed_over.append(checkpoint)
    return None, passed_over


def rotate(folder: Path, limit: int, best: Path | None) -> None:
    """Remove the oldest whole checkpoints until `limit` are left, except the best one and those that are not whole."""
    whole = [p for p in checkpoints_in(folder) if is_whole(p)]
    spare = [p for p in whole[: -max(limit, AT_LEAST_KEPT)] if best is None or p.name != best.name]
    for checkpoint in spare:
        # Rename first: an interrupted removal must not leave half a checkpoint under a valid name.
        leaving = checkpoint.with_name(f".old-{checkpoint.name}")
        os.replace(checkpoint, leaving)
        shutil.rmtree(leaving)


def sweep(folder: Path) -> None:
    """Remove remains of an interrupted save or removal."""
    for pattern in (".partial-checkpoint-*", ".old-checkpoint-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
