"""The cells of the benchmark of the distillation loss: vocabulary, teacher's width, masked share and dtype.

A cell's variants are measured side by side. Its rows are appended to the file of `--resume` when it is complete, so
that an interrupted grid continues after its last complete cell.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Variant, has_peer, ratio, run_interleaved, say
from benchmarks.kd_variants import ERROR_DRAWS, OBJECTIVES, PEER_BETA, PRODUCT_CHUNK_ROWS, fastest_products

VOCABULARIES = (49_152, 151_936, 262_144)
ROWS = {49_152: 1024, 151_936: 768, 262_144: 512}
"""N by vocabulary, for a machine with 24 GiB: several chunks each, a floor of two to eight seconds."""

ERROR_ROWS = 16
PEERS = {"trl": "trl", "liger": "liger_kernel"}
SAME = {"float32": 1e-4, "bfloat16": 2e-2}
"""Maximum relative difference between losses and gradient norms of one objective, by dtype."""


@dataclass(frozen=True)
class Cell:
    """One set of shapes and a dtype."""

    vocab: int
    teacher_hidden: int
    masked: float
    dtype: str
    rows: int

    def __str__(self) -> str:
        return f"V={self.vocab} H_t={self.teacher_hidden}x masked={self.masked:g} {self.dtype}"


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """All requested cells, small vocabularies first."""
    grid = options.grid
    vocabularies: Sequence[int] = options.vocab or (VOCABULARIES if grid else VOCABULARIES[:1])
    widths: Sequence[int] = options.teacher_hidden or ((1, 2) if grid else (1,))
    shares: Sequence[float] = options.masked or ((0.0, 0.5) if grid else (0.0,))
    dtypes: Sequence[str] = options.dtype or (("float32", "bfloat16") if grid else ("float32",))
    for vocab, dtype, width, share in product(vocabularies, dtypes, widths, shares):
        yield Cell(vocab, width, share, dtype, options.rows or ROWS.get(vocab, 1024))


def variants_of(
    cell: Cell, objectives: Sequence[str], options: argparse.Namespace, liger: Mapping[str, Any] | None, trl: bool
) -> list[Variant]:
    """The floor, every objective, and the peers on the objectives that they have; then one process each for the
    errors."""
    shared: dict[str, Any] = {
        "rows": cell.rows,
        "vocab": cell.vocab,
        "width": options.hidden,
        "teacher_hidden": cell.teacher_hidden,
        "masked": cell.masked,
        "dtype": cell.dtype,
        "temperature": options.temperature,
        "hard_ce": False,
        "device": options.device,
        "calls": options.calls,
    }
    timed: list[tuple[str, str, dict[str, Any]]] = [("ours", name, {}) for name in objectives]
    for name in objectives:
        if name in PEER_BETA:
            timed += [("trl", name, {})] if trl else []
            timed += [("liger", name, dict(liger))] if liger is not None else []
    chunks = {"products": PRODUCT_CHUNK_ROWS, "products in ours' chunks": "ours"}
    variants = [
        Variant(f"{cell} {name}", {"by": "products", **shared, "chunk_rows": rows}) for name, rows in chunks.items()
    ]
    for by, name, more in timed:
        variants.append(Variant(f"{cell} {by} {name}", {"by": by, "objective": name, **shared, **more}))
    if not cell.masked:
        for by, name, more in timed:
            settings = {"by": by, "objective": name, **shared, **more, "error_rows": ERROR_ROWS}
            variants.append(Variant(f"{cell} error of {by} {name}", settings, rounds=1))
    return [one for one in variants if not options.only or any(word in one.name for word in options.only)]


def ratios_of(cell: Cell, objectives: Sequence[str], rows: Sequence[Row]) -> dict[str, float | None]:
    """Ratios of ours to the floor (the faster of its two forms) and to the peers."""
    floor = fastest_products(rows)
    found: dict[str, float | None] = {}
    for name in objectives:
        ours = f"{cell} ours {name}"
        found[f"{ours} / products"] = ratio(rows, ours, floor)
        for by in PEERS:
            found[f"{ours} / {by}"] = ratio(rows, ours, f"{cell} {by} {name}")
    return found


def refuse_unequal(rows: Sequence[Row]) -> None:
    """Check that ours and the peers computed the same loss and gradient; otherwise their times are not comparable. A
    peer that differs from the others is reported, and marked in its row (`differs`)."""
    for name in OBJECTIVES:
        same = [row for row in rows if row.get("objective") == name and "loss" in row]
        for key in ("loss", "weight_gradient_norm"):
            for row in same:
                middle = statistics.median([other[key] for other in same])
                if abs(row[key] - middle) > SAME[row["dtype"]] * abs(middle):
                    found = f"{row['variant']} computes something else: {key} {row[key]} against {middle}"
                    if row["by"] not in PEERS or len(same) < 3:
                        raise RuntimeError(found)
                    say(found)
                    row["differs"] = {**row.get("differs", {}), key: row[key] / middle - 1}


def run(
    module: str, options: argparse.Namespace, best_liger: Callable[..., Mapping[str, Any]]
) -> tuple[list[Row], dict[str, float | None]]:
    """Measure all cells; return their rows and ratios."""
    objectives = list(OBJECTIVES) if not options.objective or "all" in options.objective else options.objective
    compared = any(name in PEER_BETA for name in objectives)
    there = {by: compared and has_peer(package, f"the comparison with {by}") for by, package in PEERS.items()}
    kept = _Kept(options.resume, options, objectives)
    rows: list[Row] = []
    ratios: dict[str, float | None] = {}
    cells = list(cells_of(options))
    for number, cell in enumerate(cells, 1):
        say(f"cell {number}/{len(cells)}: {cell}, N={cell.rows}")
        found = kept.cells.get(str(cell))
        if found is None:
            liger = kept.liger.get(cell.dtype)
            if liger is None and there["liger"] and (not options.only or any("liger" in word for word in options.only)):
                liger = _best_of(best_liger, cell, options)
                kept.keep_liger(cell.dtype, liger)
            found = run_interleaved(
                module, variants_of(cell, objectives, options, liger, there["trl"]), options.repeats
            )
            refuse_unequal(found)
            kept.keep(cell, found)
        rows += found
        ratios |= ratios_of(cell, objectives, found)
    return rows, ratios


def _best_of(best_liger: Callable[..., Mapping[str, Any]], cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Liger's best settings in this dtype, determined on one cell and kept for the others."""
    floor = variants_of(cell, [], options, None, False)[0]
    base = {**floor.settings, "by": "liger", "objective": "forward_kl", "masked": 0.0}
    found = best_liger(lambda **changes: Variant("liger", {**base, **changes}))
    return {"chunk_size": found["chunk_size"], "compiled": found["compiled"]}


class _Kept:
    """The file of finished cells, one a line. Lines with other settings, and incomplete ones, are ignored."""

    def __init__(self, path: Path | None, options: argparse.Namespace, objectives: Sequence[str]) -> None:
        self.path = path
        names = ("rows", "hidden", "temperature", "calls", "repeats", "device", "only")
        self.asked: dict[str, Any] = {name: getattr(options, name) for name in names}
        self.asked |= {"objectives": list(objectives), "error_draws": ERROR_DRAWS}
        self.cells: dict[str, list[Row]] = {}
        self.liger: dict[str, Mapping[str, Any]] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            try:
                kept = json.loads(line)
            except ValueError:
                continue
            if kept["asked"] == self.asked:
                self.cells |= kept.get("cells", {})
                self.liger |= kept.get("liger", {})

    def keep(self, cell: Cell, rows: Sequence[Row]) -> None:
        self._add(cells={str(cell): list(rows)})

    def keep_liger(self, dtype: str, settings: Mapping[str, Any]) -> None:
        self.liger[dtype] = settings
        self._add(liger={dtype: dict(settings)})

    def _add(self, **what: Any) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                # Begin a new line, even after an incomplete one.
                file.write("\n" + json.dumps({"asked": self.asked, **what}) + "\n")
