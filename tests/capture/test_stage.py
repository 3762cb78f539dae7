"""Capture and training from what was captured: the same as with the teacher, without it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train.recipes import write_recipe

from potstill.artifacts import read_artifact
from potstill.capture.capturing import Capturing
from potstill.capture.plan import plan_of
from potstill.capture.store_report import sample_of
from potstill.console import Console
from potstill.data import read_sides, reader_of
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError, ModelError, RunError
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe
from potstill.signals import Ask, Batch
from potstill.store.files import SignalStore, facts_of, sealed
from potstill.teachers import StoredTeacher
from potstill.teachers.local import LocalModel
from tiny_models import make_tiny_causal_lm

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def write(tmp_path: Path, teacher: Path) -> Write:
    def made(**changes: Any) -> Path:
        return write_recipe(tmp_path, teacher, **{"capture": {"kind": "threshold", "bytes_per_token": 12}, **changes})

    return made


def run(path: Path, folder: Path, *overrides: str, verb: str | None = None, **how: Any) -> None:
    run_recipe(load_recipe(path, overrides), folder, console=Console("quiet"), verb=verb, **how)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / "history.jsonl").read_text().splitlines()]


def test_training_loads_no_teacher(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(write(), tmp_path / "run", verb="capture")

    def loaded(self: LocalModel) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(LocalModel, "model", property(loaded))
    run(write(), tmp_path / "run", verb="train")
    assert (tmp_path / "run" / "train" / "model" / "config.json").is_file()
    assert all(entry["eval_kl"] > 0 for entry in history(tmp_path / "run") if "eval_kl" in entry)


@pytest.mark.parametrize("packing", [False, True])
def test_a_store_of_all_tokens_trains_as_the_teacher_does(write: Write, tmp_path: Path, packing: bool) -> None:
    whole = {"kind": "topk", "k": 60_000}
    run(write(capture=whole, train={"packing": packing}), tmp_path / "stored")
    run(write(capture=None, train={"packing": packing}), tmp_path / "online")
    stored, taught = history(tmp_path / "stored"), history(tmp_path / "online")
    for ours, theirs in zip(stored, taught, strict=True):
        for name in {"forward_kl/value", "eval_kl", "eval_nll", "eval_top1_agreement"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=2e-3)


@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_hidden_states_train_as_the_teacher_does_by_any_divergence(
    write: Write, tmp_path: Path, dtype: str, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"objectives": [{"kind": "reverse_kl", "temperature": 2.0}, {"kind": "jsd"}], "packing": True}
    run(write(capture=None, train=train), tmp_path / "online")
    path = write(capture={"kind": "hidden", "dtype": dtype}, train=train)
    run(path, tmp_path / "stored", verb="capture")

    def loaded(self: LocalModel) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(LocalModel, "model", property(loaded))
    run(path, tmp_path / "stored", verb="train")
    stored, taught = history(tmp_path / "stored"), history(tmp_path / "online")
    compared = 0
    for ours, theirs in zip(stored, taught, strict=True):
        for name in {"reverse_kl/value", "jsd/value", "eval_kl", "eval_nll", "eval_top1_agreement"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=within)
            compared += 1
    assert compared >= 8
    facts = json.loads((tmp_path / "stored" / "capture" / "fidelity.json").read_text())
    assert facts["estimators"]["stored"]["tv"] < within


def test_a_budget_of_bytes_is_met_and_what_was_lost_is_stated(write: Write, tmp_path: Path) -> None:
    run(write(), tmp_path / "stored")
    facts = json.loads((tmp_path / "stored" / "capture" / "fidelity.json").read_text())
    assert facts["bytes_per_token"] == pytest.approx(12, rel=0.03), "a small store, of which all was sampled"
    stored, largest = facts["estimators"]["stored"], facts["estimators"]["topk"]
    assert stored["mse"] > 0 and 0 < stored["tv"] <= 1.5 and stored["kl"] > 0 and largest["tv"] <= 0.5
    assert facts["passes"] == 2 and facts["nll"] > 0


def test_a_shorter_training_reads_the_first_targets_of_the_same_store(write: Write, tmp_path: Path) -> None:
    path = write(capture={"kind": "topk", "k": 60_000, "max_length": 200})
    run(path, tmp_path / "run", "train.max_length=200")
    before = digests(tmp_path / "run" / "capture" / "store")
    run(path, tmp_path / "run", "train.max_length=40")
    assert digests(tmp_path / "run" / "capture" / "store") == before
    assert "cut at 40 tokens" in str(read_artifact(tmp_path / "run" / "train").manifest["counts"])  # type: ignore[union-attr]


def test_a_longer_training_than_was_captured_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(capture={"kind": "topk", "k": 4, "max_length": 40})
    with pytest.raises(DataError, match="were captured") as caught:
        run(path, tmp_path / "run", "train.max_length=200")
    assert "capture.max_length" in str(caught.value)


def test_draws_belong_to_the_record_and_not_to_its_batch(write: Write, tmp_path: Path) -> None:
    stores = []
    for tokens in (40, 4096):
        path = write(capture={"kind": "threshold", "tau": 0.05, "batch_tokens": tokens})
        run(path, tmp_path / str(tokens), verb="capture")
        stores.append(SignalStore(tmp_path / str(tokens) / "capture" / "store"))
    lines = (stores[0].folder / "shard-00000.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        one, other = (store.read(line["record"], line["tokens"]) for store in stores)
        assert (one.offsets == other.offsets).all()
        targets = range(one.entropy.size)  # ids of a target come in an order of the shard's
        kept = [[set(e.ids[e.offsets[t] : e.offsets[t + 1]].tolist()) for t in targets] for e in (one, other)]
        assert kept[0] == kept[1]


def test_killed_at_random_moments_the_store_is_byte_for_byte_the_same(write: Write, tmp_path: Path) -> None:
    path = write(capture={"kind": "threshold", "tau": 0.02, "batch_tokens": 60, "shard_tokens": 300})
    run(path, tmp_path / "whole", verb="capture")
    chosen, killed = random.Random(1), tmp_path / "killed"
    command = [sys.executable, "-m", "potstill.cli", "capture", str(path), "--run", str(killed)]
    seen = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        grown = 1 + seen + chosen.randrange(4)
        for _ in range(3000):
            parts = list(killed.glob(".partial-capture-*/checkpoints/store/*.jsonl*"))
            seen = sum(part.read_text().count("\n") for part in parts)
            if seen >= grown or process.poll() is not None:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(path, killed, verb="capture")
    assert digests(killed / "capture" / "store") == digests(tmp_path / "whole" / "capture" / "store")


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00001.jsonl"])
def test_a_flipped_bit_is_named_and_its_shard_alone_is_captured_again(
    write: Write, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(capture={"kind": "threshold", "tau": 0.02, "batch_tokens": 60, "shard_tokens": 300})
    run(path, tmp_path / "run", verb="capture")
    store = tmp_path / "run" / "capture" / "store"
    before, file = digests(store), store / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=name):
        run(path, tmp_path / "run", verb="capture", verify=True)
    read, kept = Capturing.read, []
    monkeypatch.setattr(Capturing, "read", lambda self, rows, **how: kept.append(rows) or read(self, rows, **how))
    monkeypatch.setattr("potstill.capture.store_report.sample_of", lambda plan, tokens: sample_of(plan, 1))
    run(path, tmp_path / "run", verb="capture", force=True)
    assert digests(store) == before
    tokens = sum(len(row) for rows in kept for row in rows)
    assert 300 <= tokens < 300 + 60 + 90, "one shard, and the sample of the report"


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_kill_while_whole_shards_are_taken_over_loses_nothing(
    write: Write, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two of the files, and in the middle of one where the file system has no links."""
    path = write(capture={"kind": "hidden", "batch_tokens": 60, "shard_tokens": 300})
    run(path, tmp_path / "run", verb="capture")
    store, link, linked = tmp_path / "run" / "capture" / "store", os.link, []
    before = digests(store)
    (store / "shard-00002.bin").write_bytes(b"damaged")

    def killed(source: Path, target: Path) -> None:
        linked.append(target)
        if len(linked) > at:
            monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("killed"))
            raise OSError(errno.EXDEV, "another file system")
        link(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(pytest.fail.Exception):
        run(path, tmp_path / "run", verb="capture", force=True)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    run(path, tmp_path / "run", verb="capture", force=True)
    assert digests(store) == before


def test_the_output_layer_is_written_once_and_anew_where_it_is_damaged(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.capture import capturing

    save, saved = capturing.save_output_layer, []
    monkeypatch.setattr(capturing, "save_output_layer", lambda head, to: saved.append(to) or save(head, to))
    path = write(capture={"kind": "hidden", "batch_tokens": 60, "shard_tokens": 300})
    run(path, tmp_path / "run", verb="capture")
    store = tmp_path / "run" / "capture" / "store"
    before = digests(store)
    assert len(saved) == 1
    layer = bytearray((store / "head.safetensors").read_bytes())
    layer[-1] ^= 1
    (store / "head.safetensors").write_bytes(layer)
    teacher = StoredTeacher(store)
    with pytest.raises(DataError, match=r"head.safetensors is damaged"):
        teacher.signals(_first_batch(teacher, path), Ask(response=True))
    run(path, tmp_path / "run", verb="capture", force=True)
    assert digests(store) == before and len(saved) == 2


def _first_batch(teacher: StoredTeacher, path: Path) -> Batch:
    recipe = load_recipe(path)
    reader = reader_of(recipe, teacher.folder / "tokenizer", ())
    return Batch.from_inputs(teacher.joining(reader.collator())([reader.row(read_sides(recipe.data).train[0])]))


@pytest.mark.parametrize("kind", ["threshold", "sampled", "topk", "hidden", "dense"])
def test_a_teacher_that_gives_no_numbers_is_refused(write: Write, tmp_path: Path, teacher: Path, kind: str) -> None:
    broken = Path(shutil.copytree(teacher, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    path = write_recipe(tmp_path, broken, capture={"kind": kind})
    with pytest.raises(ModelError, match="logits that are not finite"):
        run(path, tmp_path / "run", verb="capture")


def test_signals_of_another_record_of_equal_length_are_refused(
    write: Write, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest can tell, since they were written so: the sample is read back beside the teacher."""
    decided = Path(shutil.copytree(teacher, tmp_path / "decided"))
    weights = load_file(decided / "model.safetensors")
    weights["model.norm.weight"] *= 30
    save_file(weights, decided / "model.safetensors", {"format": "pt"})
    path = write_recipe(tmp_path, decided, capture={"kind": "hidden"})
    keep = Capturing.keep

    def permuted(self: Capturing, reading: Any, estimator: Any) -> list[Any]:
        kept = keep(self, reading, estimator)
        for at, size in enumerate(reading.sizes[1:]):
            if size == reading.sizes[at]:
                kept[at], kept[at + 1] = kept[at + 1], kept[at]
                break
        return kept

    monkeypatch.setattr(Capturing, "keep", permuted)
    with pytest.raises(RunError, match=r"is not what the teacher says of it: .* nats a target apart"):
        run(path, tmp_path / "permuted", verb="capture")
    monkeypatch.setattr(Capturing, "keep", keep)
    run(path, tmp_path / "whole", verb="capture")


@pytest.fixture(scope="module")
def once_captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, data, a recipe, and a run that has captured."""
    folder = tmp_path_factory.mktemp("captured")
    path = write_recipe(folder, make_tiny_causal_lm(folder / "teacher"), capture={"kind": "hidden"})
    run(path, folder / "run", verb="capture")
    other = write_recipe(folder / "other", make_tiny_causal_lm(folder / "other" / "teacher", seed=9))
    shutil.copyfile(folder / "data.jsonl", folder / "other" / "data.jsonl")
    run(other, folder / "other" / "run", "capture={kind: hidden}", verb="capture")
    return folder


@pytest.fixture
def captured(once_captured: Path, tmp_path: Path) -> Iterator[Path]:
    """The same folder under the same name, put back afterwards."""
    shutil.copytree(once_captured, tmp_path / "kept")
    yield once_captured
    shutil.rmtree(once_captured)
    shutil.copytree(tmp_path / "kept", once_captured)


def weights_edited(folder: Path) -> None:
    file = folder / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] += 0.01
    save_file(weights, file, {"format": "pt"})


def template_edited(folder: Path) -> None:
    file = folder / "teacher" / "chat_template.jinja"
    file.write_text("!" + file.read_text())


def answers_exchanged(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    one, other = rows[0]["messages"][1], rows[5]["messages"][1]
    one["content"], other["content"] = other["content"], one["content"]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))


def put_in_place(*names: str) -> Callable[[Path], None]:
    """Files of another teacher's store of the same records."""

    def put(folder: Path) -> None:
        for name in names:
            shutil.copyfile(folder / "other/run/capture/store" / name, folder / "run/capture/store" / name)

    return put


def temperature_edited(folder: Path) -> None:
    file = folder / "run/capture/store/store.json"
    facts = facts_of(file.read_text(), "")
    facts["identity"]["temperature"] = 2.0
    file.write_text(sealed(facts))


STALE, CHANGED = "made by other settings or other inputs", "has changed since it was written"


@pytest.mark.parametrize(
    ("edit", "overrides", "message"),
    [
        (weights_edited, (), STALE),
        (template_edited, (), STALE),
        (answers_exchanged, (), STALE),
        (put_in_place("shard-00000.bin"), (), CHANGED),
        (put_in_place("head.safetensors"), (), CHANGED),
        (put_in_place("store.json"), (), CHANGED),
        (put_in_place("store.json", "head.safetensors", "shard-00000.bin", "shard-00000.jsonl"), (), CHANGED),
        (temperature_edited, (), CHANGED),
        (None, ("train.teacher_system=Be brief.",), STALE),
        (None, ("capture.dtype=int8",), STALE),
        (None, ("data.split_seed=7",), STALE),
        (None, ("seed=6",), STALE),
    ],
)
def test_a_store_that_is_no_longer_of_the_recipe_is_refused(
    captured: Path, edit: Callable[[Path], None] | None, overrides: tuple[str, ...], message: str
) -> None:
    """Edited in place, under the same names."""
    if edit is not None:
        edit(captured)
    with pytest.raises(RunError, match=message):
        run(captured / "recipe.yaml", captured / "run", *overrides, verb="train")


def test_a_store_that_is_of_the_recipe_is_read(captured: Path) -> None:
    run(captured / "recipe.yaml", captured / "run", verb="train")


def test_layers_of_fewer_tokens_than_a_training_reads_are_refused(write: Write, tmp_path: Path) -> None:
    train = {"objectives": [{"kind": "hidden_cosine", "layers": "last"}]}
    path = write(capture={"kind": "features", "features": "asked", "max_length": 40}, train=train)
    with pytest.raises(DataError, match="tokens here, and what is stored is of 40"):
        run(path, tmp_path / "run", "train.max_length=200")
    run(path, tmp_path / "run", "train.max_length=30")


def test_batches_are_made_on_the_teachers_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        modules = (torch.nn.Linear(1, 1, device="meta"),)

    def made(inputs: Any, device: torch.device) -> Batch:
        raise RunError(f"made on {device}")

    row = Tokenized([1, 2, 3], [1, 2, 3], "r")
    monkeypatch.setattr(Batch, "from_inputs", made)
    with pytest.raises(RunError, match="made on meta"):
        Capturing(Elsewhere(), plan_of({"r": row}, frozenset(), 30, 100), lambda rows: {}).read([row])  # type: ignore[arg-type]


def test_another_teacher_makes_the_store_stale(write: Write, tmp_path: Path) -> None:
    run(write(), tmp_path / "run", verb="capture")
    first = read_artifact(tmp_path / "run" / "capture")
    other = make_tiny_causal_lm(tmp_path / "other", seed=9)
    path = write_recipe(tmp_path, other, capture={"kind": "threshold", "bytes_per_token": 12})
    with pytest.raises(RunError, match="capture in this run was made by other settings or other inputs"):
        run(path, tmp_path / "run", verb="train")
    run(path, tmp_path / "run", verb="capture")
    second = read_artifact(tmp_path / "run" / "capture")
    assert first is not None and second is not None and first.key != second.key


def test_batches_hold_at_most_their_tokens_and_shards_whole_batches() -> None:
    rows = {f"r{n}": Tokenized([1] * (3 + n % 9), [1] * (3 + n % 9), f"r{n}") for n in range(50)}
    plan = plan_of(rows, frozenset(), 30, 100)
    assert all(len(batch[0]) * len(batch) <= 30 for batch in plan.batches)
    assert [n for shard in plan.shards for n in shard] == list(range(len(plan.batches)))
    assert sorted(row.record_id for row in plan.rows) == sorted(rows)


def test_a_sample_is_spread_over_all_lengths_and_is_all_of_a_small_store() -> None:
    rows = {f"r{n}": Tokenized([1] * (3 + n), [1] * (3 + n), f"r{n}") for n in range(64)}
    plan = plan_of(rows, frozenset(), 400, 100_000)
    some = sample_of(plan, 200)
    assert len({len(part[0]) for part in some}) == len(some) > 1 and sum(len(r) for part in some for r in part) < 800
    assert sorted(r.record_id for part in sample_of(plan, 10**6) for r in part) == sorted(rows)


def test_a_row_longer_than_a_batch_stands_alone() -> None:
    rows = {"a": Tokenized([1] * 90, [1] * 90, "a"), "b": Tokenized([1] * 3, [1] * 3, "b")}
    assert [len(batch) for batch in plan_of(rows, frozenset(), 30, 100).batches] == [1, 1]
