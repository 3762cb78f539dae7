"""A teacher's measurements on a held-out set, kept below potstill's cache folder, so that they are not repeated for
another student, seed or control, in this run or another.

An entry's name is made of all that the values depend on: the teacher's weights and how they are opened, the batches of
the held-out set to the last token, what was computed, and the library's version. So what comes back is, bit for bit,
what would be computed. An entry holds the teacher's scores, its hidden rows (of classes its logits; of embeddings its
vectors) and its output layer, so that its weights need not be opened. Answers to the questions of a measure are entries
of their own.

Entries that were not used for a day are removed, the longest unused first, while all together are larger than
`MOST_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from potstill.console import Console
from potstill.evaluate.compared_models import ComparedModel
from potstill.evaluate.fidelity import Batches, TeacherRows
from potstill.evaluate.neighbours import Embedded
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import Size
from potstill.models import model_digests
from potstill.models.cache import cache_dir, cached_entry, entry_note, make_entry
from potstill.models.load import pick_device
from potstill.recipe import members_of
from potstill.types import digest

CONTRACT = 1
"""Raised when the meaning of an entry changes."""

ROOM = "teachers"
MOST_BYTES = 4 * 2**30
UNUSED_SECONDS = 24 * 3600.0

_SCORES, _VECTORS, _ANSWERS = "scores.safetensors", "vectors.safetensors", "answers.json"
_TEMPERED, _MORE = "nll_at ", "more "


class TeacherMemory:
    """The entries of one teacher.

    Args:
        teacher: which one, and how it is opened.
        batches: the held-out set.
        computed: what else the values depend on: the columns, the pooling.
        console: says when an entry is waited for.
    """

    def __init__(self, teacher: ComparedModel, batches: Batches, computed: Any, console: Console) -> None:
        self._batches, self._console = batches, console
        self._teacher = {
            "contract": CONTRACT,
            "weights": model_digests("teacher", members_of(teacher.settings)),
            # Where the weights are is not what they are.
            "settings": {k: v for k, v in teacher.settings.key_fields().items() if k != "model"},
            "task": [teacher.task, list(teacher.classes)],
            "device": str(pick_device(teacher.first.device)),
            "torch": torch.__version__,
        }
        self._measured = [computed, digest_of(batches)]

    # ---- scores --------------------------------------------------------------------------------------------------

    @property
    def _entry(self) -> str:
        return digest([self._teacher, self._measured])[:40]

    def load(self) -> tuple[Scores, TeacherRows | Embedded, Size] | None:
        """The scores, the rows that others are compared with, and the size; None if they are not kept."""
        folder = self._used(self._entry)
        if folder is None:
            return None
        size = Size(**entry_note(folder)["size"])
        scores = _scores_of(load_file(folder / _SCORES))
        if (folder / _VECTORS).exists():
            kept = load_file(folder / _VECTORS)
            return scores, Embedded(kept["vectors"], kept["nearest"].numpy()), size
        return scores, TeacherRows.kept_in(folder, self._batches), size

    def save(self, scores: Scores, rows: TeacherRows | Embedded, size: Size) -> TeacherRows | Embedded:
        """Keep what was measured; the rows, where they are now. Rows of a teacher whose output layer cannot be taken
        apart are not kept."""
        if isinstance(rows, TeacherRows) and not rows.can_be_kept:
            return rows

        def build(folder: Path, scratch: Path) -> Mapping[str, Any]:
            save_file(_columns_of(scores), folder / _SCORES)
            if isinstance(rows, TeacherRows):
                rows.keep_in(folder)
            else:
                kept = {"vectors": rows.vectors.contiguous(), "nearest": torch.from_numpy(rows.nearest)}
                save_file(kept, folder / _VECTORS)
            return {"size": asdict(size)}

        folder = make_entry(self._entry, build, self._console, ROOM)
        forget_unused()
        return TeacherRows.kept_in(folder, self._batches) if isinstance(rows, TeacherRows) else rows

    # ---- answers -------------------------------------------------------------------------------------------------

    def answers(self, identity: Any) -> Any:
        """Answers to the questions of a measure; None if they are not kept."""
        folder = self._used(self._named(identity))
        return None if folder is None else json.loads((folder / _ANSWERS).read_text(encoding="utf-8"))

    def keep_answers(self, identity: Any, answers: Any) -> None:
        """Keep answers to the questions of a measure."""

        def build(folder: Path, scratch: Path) -> Mapping[str, Any]:
            # ASCII, as half of a surrogate pair has no other form.
            (folder / _ANSWERS).write_text(json.dumps(answers), encoding="utf-8")
            return {}

        make_entry(self._named(identity), build, self._console, ROOM)

    def _named(self, identity: Any) -> str:
        return digest([self._teacher, "answers", identity])[:40]

    def _used(self, name: str) -> Path | None:
        folder = cached_entry(name, ROOM)
        if folder is not None:
            os.utime(folder)
        return folder


def digest_of(batches: Batches) -> str:
    """SHA-256 (hex) of the tensors of all batches, as models are given them, and of the order of their targets."""
    found = hashlib.sha256()
    for index in range(len(batches)):
        inputs = batches.inputs(index)
        for name, column in sorted(inputs.items()):
            if isinstance(column, torch.Tensor):
                found.update(f"{name} {list(column.shape)} {column.dtype}".encode())
                found.update(column.contiguous().numpy().tobytes())
        found.update(batches.numbers(index).tobytes())
    return found.hexdigest()


def forget_unused(most_bytes: int = MOST_BYTES, unused_seconds: float = UNUSED_SECONDS) -> None:
    """Remove entries as the head of this file says."""
    entries = [folder for folder in (cache_dir() / ROOM).glob("[!.]*") if folder.is_dir()]
    sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in entries}
    total = sum(sizes.values())
    for folder in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if total <= most_bytes or time.time() - folder.stat().st_mtime < unused_seconds:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]


_ARRAYS = ("nll", "correct", "predicted", "probability", "cosine", "pairs", "labels", "hit", "entropy", "collision")


def _columns_of(scores: Scores) -> dict[str, torch.Tensor]:
    named = {name: getattr(scores, name) for name in _ARRAYS}
    named |= {f"{_TEMPERED}{at!r}": values for at, values in scores.nll_at.items()}
    named |= {f"{_MORE}{name}": values for name, values in scores.more.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in named.items() if v is not None}


def _scores_of(columns: Mapping[str, torch.Tensor]) -> Scores:
    arrays = {name: column.numpy() for name, column in columns.items()}
    tempered = {float(n.removeprefix(_TEMPERED)): v for n, v in arrays.items() if n.startswith(_TEMPERED)}
    named: dict[str, Any] = {name: arrays[name] for name in _ARRAYS if name in arrays}
    more = {n.removeprefix(_MORE): v for n, v in arrays.items() if n.startswith(_MORE)}
    return Scores(**named, nll_at=tempered, more=more)
