"""What a teacher gave for an example, kept on disk: long comparisons ask for the same examples many times.

One SQLite file (WAL) per teacher below potstill's cache folder, one blob per example and ask. The file's name is made
of whatever the numbers depend on: the teacher's weights, its precision and device, the libraries' versions. The key of
a blob is made of the ask and of the example's own view, padding left out.

What comes back is what was computed the first time, bit for bit, but for padding, which is zero. In another batch, the
padding of the other rows would have rounded it differently in the last digits.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load, save
from torch import Tensor

from potstill.errors import CapabilityError
from potstill.models.cache import cache_dir, cache_error
from potstill.signals import Ask, Batch, Dense, ImageView, ModelDims, Signals, View
from potstill.types import canonical_json, digest

CONTRACT = 2
"""Raised when the meaning of what is stored changes."""

_RESPONSE = "response"
_WAIT_SECONDS = 60.0

Compute = Callable[[Batch, Ask], Signals]


class SignalCache:
    """Signals of one teacher, by example.

    `hits` and `misses` count examples since it was made.
    """

    def __init__(self, identity: Mapping[str, Any]) -> None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "contract": CONTRACT}
        self.identity = {**identity, **versions}
        self.hits = self.misses = 0
        self._open: tuple[int, sqlite3.Connection] | None = None

    @property
    def path(self) -> Path:
        """Its file."""
        return cache_dir() / "signals" / f"{digest(self.identity)[:32]}.sqlite"

    def dims(self, compute: Callable[[], ModelDims]) -> ModelDims:
        """The teacher's sizes, remembered, so that its weights need not be opened where all else is here."""
        row = self._read("SELECT value FROM facts WHERE name = 'dims'", ())
        if row:
            return ModelDims(**json.loads(row[0][0]))
        sizes = compute()
        self._write("INSERT OR REPLACE INTO facts VALUES ('dims', ?)", [(json.dumps(asdict(sizes)),)])
        return sizes

    def signals(self, batch: Batch, ask: Ask, compute: Compute, sizes: ModelDims) -> Signals:
        """What is asked for a batch: of the examples that are known from here, of the others from `compute`.

        Args:
            batch: its teacher's view is read; of its targets those that are examples.
            ask: what is wanted.
            compute: gives `dense` signals and taps for a batch.
            sizes: the teacher's.

        Raises:
            CapabilityError: the response is over a vocabulary (a distribution per token, which is not kept), or a tap
                is the output of a module over texts (whose layout is not known).
        """
        view = batch.teacher
        self._refuse(batch, ask)
        keys = [_key(ask, of_row) for of_row in _rows_of(view)]
        known = self._look_up(keys)
        missing = [row for row, key in enumerate(keys) if key not in known]
        if missing:
            known |= self._compute(view, missing, keys, ask, compute)
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        return _assemble([known[key] for key in keys], batch, ask, sizes)

    @staticmethod
    def _refuse(batch: Batch, ask: Ask) -> None:
        if ask.response and batch.targets_are == "tokens":
            raise CapabilityError(
                "a teacher's distributions over a vocabulary are not cached: they would take gigabytes a minute",
                fix="set cache: false on the teacher",
            )
        named = sorted(name for name in ask.taps if name.startswith("module:"))
        if named and isinstance(batch.teacher, View):
            raise CapabilityError(
                f"{named[0]} is not cached: where the tokens are in a module's output is not known",
                fix="set cache: false on the teacher, or ask for hidden states",
            )

    def _compute(
        self, view: View | ImageView, missing: Sequence[int], keys: Sequence[bytes], ask: Ask, compute: Compute
    ) -> dict[bytes, dict[str, Tensor]]:
        some = _part(view, torch.tensor(missing, device=_tensor(view).device))
        numbers = torch.arange(len(missing), device=_tensor(view).device)
        everyone = Batch(some, some, numbers, {"student": numbers, "teacher": numbers}, "examples")
        given = compute(everyone, ask)
        lengths = [None] * len(missing) if isinstance(some, ImageView) else (some.segment_ids > 0).sum(1).tolist()
        made: dict[bytes, dict[str, Tensor]] = {}
        for at, row in enumerate(missing):
            tensors = {name: _cut(name, tap[at], lengths[at]) for name, tap in given.taps.items()}
            if ask.response:
                if given.dense is None:
                    raise CapabilityError("only whole logits of examples are cached", fix="set cache: false")
                tensors[_RESPONSE] = given.dense.logits[at]
            made[keys[row]] = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        self._write("INSERT OR REPLACE INTO signals VALUES (?, ?)", [(key, save(value)) for key, value in made.items()])
        return made

    # ---- the file -------------------------------------------------------------------------------------------------

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Tensor]]:
        wanted = list(set(keys))
        rows = self._read(f"SELECT key, value FROM signals WHERE key IN ({','.join('?' * len(wanted))})", wanted)
        return {key: load(value) for key, value in rows}

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._connection.execute(query, list(values)).fetchall()
        except sqlite3.Error as error:
            raise cache_error(OSError(str(error)), self.path) from error

    def _write(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        try:
            with self._connection as transaction:
                transaction.executemany(query, rows)
        except sqlite3.Error as error:
            raise cache_error(OSError(str(error)), self.path) from error

    @property
    def _connection(self) -> sqlite3.Connection:
        """This process's own: a connection does not survive a fork."""
        if self._open is None or self._open[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            made = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, check_same_thread=False)
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = NORMAL")
            made.execute("CREATE TABLE IF NOT EXISTS signals (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            made.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            made.commit()
            self._open = (os.getpid(), made)
        return self._open[1]


# ---- examples ----------------------------------------------------------------------------------------------------


def _tensor(view: View | ImageView) -> Tensor:
    return view.input_ids if isinstance(view, View) else view.pixels


def _rows_of(view: View | ImageView) -> list[list[Tensor]]:
    """The tensors of each row, padding left out."""
    if isinstance(view, ImageView):
        return [[pixels] for pixels in view.pixels.cpu()]
    columns = [t.cpu() for t in (view.input_ids, view.position_ids, view.segment_ids)]
    lengths = (columns[2] > 0).sum(1).tolist()
    return [[column[row, :length] for column in columns] for row, length in enumerate(lengths)]


def _key(ask: Ask, of_row: Sequence[Tensor]) -> bytes:
    what = hashlib.sha256(canonical_json({"response": ask.response, "taps": sorted(ask.taps)}).encode())
    for tensor in of_row:
        what.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        what.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return what.digest()


def _part(view: View | ImageView, rows: Tensor) -> View | ImageView:
    if isinstance(view, ImageView):
        return ImageView(view.pixels.index_select(0, rows))
    return View(*(t.index_select(0, rows) for t in (view.input_ids, view.position_ids, view.segment_ids)))


def _cut(name: str, row: Tensor, length: int | None) -> Tensor:
    """One row of a tap without its padding: [T,H] of a state, [A,T,d] of attention, an image's as it is."""
    if length is None:
        return row
    return row[:length] if name.startswith("hidden.") else row[:, :length]


def _assemble(rows: Sequence[Mapping[str, Tensor]], batch: Batch, ask: Ask, sizes: ModelDims) -> Signals:
    view = batch.teacher
    device = _tensor(view).device
    taps = {name: _stacked(name, [row[name] for row in rows], view).to(device) for name in sorted(ask.taps)}
    dense = None
    if ask.response:
        logits = torch.stack([row[_RESPONSE] for row in rows]).to(device)
        dense = Dense(logits.index_select(0, batch.target_positions["teacher"]))
    return Signals(dense=dense, taps=taps, dims=sizes)


def _stacked(name: str, rows: Sequence[Tensor], view: View | ImageView) -> Tensor:
    if isinstance(view, ImageView):
        return torch.stack(list(rows))
    width = view.input_ids.shape[1]
    time = 0 if name.startswith("hidden.") else 1
    whole = rows[0].new_zeros(len(rows), *(width if d == time else size for d, size in enumerate(rows[0].shape)))
    for at, row in enumerate(rows):
        whole[at].narrow(time, 0, row.shape[time]).copy_(row)
    return whole
