"""A store grows with its data: what it has is taken over, and the teacher reads the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture.test_served import Engine
from capture.test_served import recipe as served_recipe
from train.recipes import write_recipe
from train.small import conversations

from potstill.artifacts import read_artifact
from potstill.capture.filling import Filling
from potstill.cli import app
from potstill.console import Console
from potstill.errors import RunError
from potstill.pipeline import open_run, run_recipe
from potstill.recipe import load_recipe
from potstill.store.codec import HIDDEN
from potstill.store.exchange import pull, push
from potstill.store.files import SignalStore, StoreWriter
from potstill.teachers.local import LocalModel
from tiny_models import make_tiny_causal_lm, tiny_model

SMALL = {"batch_tokens": 120, "shard_tokens": 600, "sample_tokens": 1}
RELATIONS = {"objectives": [{"kind": "forward_kl"}, {"kind": "attention_kl"}]}
AT_TWO = ("train.objectives=[{kind: forward_kl, temperature: 2.0}]",)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "threshold": {"kind": "threshold", "tau": 0.02},
    "sampled": {"kind": "sampled"},
    "topk": {"kind": "topk", "k": 8},
    "hidden": {"kind": "hidden", "dtype": "int8"},
    "relations": {"kind": "threshold", "tau": 0.02, "features": "asked", "feature_dtype": "int8"},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("teacher"))


class Said(Console):
    """A console that keeps what is said."""

    def __init__(self) -> None:
        super().__init__("quiet")
        self.lines: list[str] = []

    def say(self, message: str, **facts: Any) -> None:
        self.lines.append(message)

    def of(self, words: str) -> str:
        return next(line for line in self.lines if words in line)


def recipe(folder: Path, teacher: Path, rows: Sequence[Any], **captured: Any) -> Path:
    train = RELATIONS if "features" in captured else {}
    path = write_recipe(folder, teacher, train=train, capture={**captured, **SMALL, **captured})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def capture(path: Path, run: Path, *overrides: str, force: bool = False) -> Said:
    said = Said()
    run_recipe(load_recipe(path, overrides), run, console=said, verb="capture", force=force)
    return said


def digests(run: Path) -> dict[str, str]:
    files = [file for file in sorted((run / "capture/store").rglob("*")) if file.is_file()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def store_of(run: Path) -> SignalStore:
    return SignalStore(run / "capture/store")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that the teacher reads to fill a store, without those of the report."""
    found: list[str] = []
    batches = Filling.batches

    def spied(self: Filling, read: Any) -> Iterator[Any]:
        def noted(rows: Any, missing: Any) -> Any:
            found.extend(row.record_id for row in rows)
            return read(rows, missing)

        return batches(self, noted)

    monkeypatch.setattr(Filling, "batches", spied)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_store_is_a_fresh_one_and_the_teacher_reads_what_is_new(
    kind: str, tmp_path: Path, teacher: Path, asked: list[str]
) -> None:
    """Byte for byte, where the teacher gives the same numbers in any batch: here each row is alone."""
    rows, kept = conversations(44), {**KINDS[kind], "batch_tokens": 8}
    path = recipe(tmp_path, teacher, rows[:40], **kept)
    capture(path, tmp_path / "run")
    before = set(store_of(tmp_path / "run").records)
    path = recipe(tmp_path, teacher, rows[5:], **kept)
    asked.clear()
    said = capture(path, tmp_path / "run")
    new = set(store_of(tmp_path / "run").records) - before
    assert len(new) == 4 and sorted(asked) == sorted(new)
    assert (
        "35 of 39 records are taken over from the earlier store, and 4 cost the teacher's time; 5 of its records"
        in (said.of("taken over"))
    )
    assert read_artifact(tmp_path / "run/capture").manifest["counts"]["taken over"] == 35  # type: ignore[union-attr]
    capture(path, tmp_path / "fresh")
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")
    facts = json.loads((tmp_path / "run/capture/fidelity.json").read_text())
    assert facts["online_seconds"] > 4 * facts["teacher_seconds"], "of all records, and not of the four that were read"


def test_in_larger_batches_it_is_a_fresh_one_but_for_rounding(tmp_path: Path, teacher: Path, asked: list[str]) -> None:
    rows = conversations(46)
    capture(recipe(tmp_path, teacher, rows[:40], **KINDS["hidden"]), tmp_path / "run")
    path = recipe(tmp_path, teacher, rows[::-1], **KINDS["hidden"])
    asked.clear()
    capture(path, tmp_path / "run")
    assert len(asked) == 6
    capture(path, tmp_path / "fresh")
    one, other = store_of(tmp_path / "run"), store_of(tmp_path / "fresh")
    assert one.records == other.records
    for record, tokens in one.records.items():
        ours, theirs = one.read(record, tokens), other.read(record, tokens)
        np.testing.assert_allclose(ours.target_log_prob, theirs.target_log_prob, atol=0.01)
        np.testing.assert_allclose(ours.tensors[HIDDEN], theirs.tensors[HIDDEN], atol=0.05)


def test_a_store_that_grows_many_times_rounds_nothing_twice(tmp_path: Path, teacher: Path) -> None:
    rows, kept = conversations(44), {**KINDS["hidden"], "batch_tokens": 8}
    for count in (38, 40, 42, 44):
        path = recipe(tmp_path, teacher, rows[:count], **kept)
        capture(path, tmp_path / "run")
    capture(path, tmp_path / "fresh")
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")


def test_a_budget_keeps_its_tau(tmp_path: Path, teacher: Path) -> None:
    rows, kept = conversations(44), {"kind": "threshold", "bytes_per_token": 12}
    path = recipe(tmp_path, teacher, rows[:40], **kept)
    capture(path, tmp_path / "run")
    tau = store_of(tmp_path / "run").identity["estimator"]["tau"]
    said = capture(recipe(tmp_path, teacher, rows, **kept), tmp_path / "run")
    assert "40 of 44 records are taken over" in said.of("taken over")
    assert store_of(tmp_path / "run").identity["estimator"]["tau"] == tau


def test_killed_anywhere_a_growing_store_ends_as_one_that_was_not(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = conversations(46)
    capture(recipe(tmp_path, teacher, rows[:38], **KINDS["threshold"]), tmp_path / "before")
    path = recipe(tmp_path, teacher, rows[3:], **KINDS["threshold"])
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    capture(path, tmp_path / "whole")
    append, run = StoreWriter.append, tmp_path / "run"
    shutil.copytree(tmp_path / "before", run)
    kills = 0
    for after in (1, 0, 2, 1, 3, 99):
        left = [after]

        def killed(self: StoreWriter, batch: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            append(self, batch)

        monkeypatch.setattr(StoreWriter, "append", killed)
        try:
            capture(path, run)
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 4 and digests(run) == digests(tmp_path / "whole")


@pytest.mark.parametrize(("name", "most"), [("shard-00001.bin", 1), ("shard-00001.jsonl", 30)])
def test_a_flipped_bit_costs_the_records_that_it_hit(
    name: str, most: int, tmp_path: Path, teacher: Path, asked: list[str]
) -> None:
    """One record, or all of a shard whose index cannot be believed."""
    rows, kept = conversations(44), {**KINDS["threshold"], "batch_tokens": 8}
    capture(recipe(tmp_path, teacher, rows[:40], **kept), tmp_path / "run")
    file = tmp_path / "run/capture/store" / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    path = recipe(tmp_path, teacher, rows, **kept)
    asked.clear()
    said = capture(path, tmp_path / "run")
    hit = len(asked) - 4
    assert 1 <= hit <= most
    assert ("1 damaged" in said.of("taken over")) == (most == 1)
    capture(path, tmp_path / "fresh")
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("capture.temperature=2.0", "temperature: 1.0 there, 2.0 here"),
        ("capture.tau=0.03", "estimator.tau: 0.02 there, 0.03 here"),
        ("capture={kind: topk}", "estimator.kind: threshold there, topk here"),
        ("seed=6", "seed: 5 there, 6 here"),
        ("teacher.dtype=bfloat16", "teacher.dtype: float32 there, bfloat16 here"),
    ],
)
def test_of_another_teacher_estimator_or_temperature_nothing_is_taken_over(
    change: str, why: str, tmp_path: Path, teacher: Path, asked: list[str]
) -> None:
    rows = conversations(42)
    capture(recipe(tmp_path, teacher, rows[:40], **KINDS["threshold"]), tmp_path / "run")
    path = recipe(tmp_path, teacher, rows, **KINDS["threshold"])
    asked.clear()
    said = capture(path, tmp_path / "run", change, *(AT_TWO if "temperature" in change else ()))
    assert why in said.of("nothing is taken over") and len(asked) == 42


def test_of_an_edited_teacher_or_template_nothing_is_taken_over(
    tmp_path: Path, teacher: Path, asked: list[str]
) -> None:
    edited = Path(shutil.copytree(teacher, tmp_path / "edited"))
    path = recipe(tmp_path, edited, conversations(40), **KINDS["threshold"])
    capture(path, tmp_path / "run")
    template = edited / "chat_template.jinja"
    template.write_text("!" + template.read_text())
    asked.clear()
    said = capture(path, tmp_path / "run")
    assert "teacher.digest: " in said.of("nothing is taken over") and len(asked) == 40


def test_records_that_are_rendered_otherwise_are_read_again_and_others_are_not(
    tmp_path: Path, teacher: Path, asked: list[str]
) -> None:
    """A longer `max_length` is another text for those alone that it cut."""
    rows = conversations(40)
    path = recipe(tmp_path, teacher, rows, **KINDS["threshold"])
    lengths = sorted(json.loads(line)["length"] for line in _index(path, tmp_path / "all"))
    bound = lengths[len(lengths) // 2]
    capture(path, tmp_path / "run", f"capture.max_length={bound}")
    asked.clear()
    said = capture(path, tmp_path / "run", "capture.max_length=200")
    cut = sum(length > bound for length in lengths)
    assert 0 < cut < 40 and len(asked) == cut
    assert f"({cut} captured with other tokens)" in said.of("taken over")
    same_records(store_of(tmp_path / "run"), store_of(tmp_path / "all"))


def _index(path: Path, run: Path) -> list[str]:
    capture(path, run)
    return [line for file in sorted((run / "capture/store").glob("*.jsonl")) for line in file.read_text().splitlines()]


def same_records(one: SignalStore, other: SignalStore) -> None:
    assert one.records == other.records and [one.length(r) for r in one.records] == [
        other.length(r) for r in other.records
    ]


def test_order_and_copies_of_records_and_the_place_of_teacher_and_run_do_not_matter(
    tmp_path: Path, teacher: Path, asked: list[str]
) -> None:
    rows, kept = conversations(41), {**KINDS["threshold"], "batch_tokens": 8}
    capture(recipe(tmp_path, teacher, rows[:40], **kept), tmp_path / "run")
    moved = Path(shutil.copytree(teacher, tmp_path / "elsewhere" / "teacher"))
    (tmp_path / "run").rename(tmp_path / "moved")
    path = recipe(tmp_path, moved, [*rows[::-1], rows[0], rows[7]], **kept)
    asked.clear()
    capture(path, tmp_path / "moved")
    assert len(asked) == 1
    capture(path, tmp_path / "fresh")
    assert digests(tmp_path / "moved") == digests(tmp_path / "fresh")


def test_a_store_that_came_back_from_a_url_grows(tmp_path: Path, teacher: Path, asked: list[str]) -> None:
    rows, kept = conversations(42), {**KINDS["hidden"], "batch_tokens": 8}
    capture(recipe(tmp_path, teacher, rows[:40], **kept), tmp_path / "first")
    push(tmp_path / "first/capture/store", "memory://growing")
    pull("memory://growing", tmp_path / "run/capture/store")
    path = recipe(tmp_path, teacher, rows, **kept)
    asked.clear()
    capture(path, tmp_path / "run")
    assert len(asked) == 2
    capture(path, tmp_path / "fresh")
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")


def test_two_writers_of_a_growing_store_are_refused(tmp_path: Path, teacher: Path) -> None:
    capture(recipe(tmp_path, teacher, conversations(40), **KINDS["threshold"]), tmp_path / "run")
    path = recipe(tmp_path, teacher, conversations(42), **KINDS["threshold"])
    with (
        open_run(load_recipe(path), tmp_path / "run"),
        pytest.raises(RunError, match="another potstill is at work in this run"),
    ):
        capture(path, tmp_path / "run")


def test_what_a_store_saves_is_said_beforehand(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"kind": "threshold", "bytes_per_token": 12}
    path = recipe(tmp_path, teacher, conversations(40), **kept)
    dry = ["capture", str(path), "--run", str(tmp_path / "run"), "--dry-run"]

    def loaded(self: LocalModel) -> None:
        raise AssertionError("the teacher was loaded")

    def said(*more: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(LocalModel, "model", property(loaded))
            app([*dry, *more], standalone_mode=False)
        return capsys.readouterr().out

    assert "all 40 records cost the teacher's time: there is no earlier store" in said()
    capture(path, tmp_path / "run")
    recipe(tmp_path, teacher, conversations(44)[2:], **kept)
    assert (
        "capture: 38 of 42 records are taken over from the earlier store, and 4 cost the teacher's time; 2 of" in said()
    )
    assert "temperature: 1.0 there" in said("capture.temperature=2.0", *AT_TWO)
    assert json.loads(said("--json").splitlines()[-1])["forecasts"]
    said_after = capture(path, tmp_path / "run").of("taken over")
    assert "38 of 42 records are taken over" in said_after
    assert "records" not in said()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_server_is_asked_for_new_texts_alone_and_refused_if_it_is_another(
    tmp_path: Path, teacher: Path, engine: Engine
) -> None:
    path, rows = served_recipe(tmp_path, teacher, engine, "vllm", **SMALL), conversations(44)
    capture(path, tmp_path / "run")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    engine.seen.clear()
    said = capture(path, tmp_path / "run")
    assert "40 of 44 records are taken over" in said.of("taken over")
    assert len(engine.seen) == 3 + 1 + 4, "the check before paying, one text of the earlier store, and the new ones"
    capture(path, tmp_path / "fresh")
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows[:42])), encoding="utf-8")
    engine.model = tiny_model("llama", seed=8)
    with pytest.raises(RunError, match="answers otherwise than in the earlier store"):
        capture(path, tmp_path / "run")
