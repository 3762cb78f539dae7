"""A store is copied to URLs and back, whole or not at all, and opens in `datasets`."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from datasets import Dataset

from potstill.errors import DataError, RunError
from potstill.store.codec import HIDDEN, Entries, Grid, TensorPart
from potstill.store.exchange import INCOMING, pull, push, to_parquet
from potstill.store.files import FACTS, OUTPUT_LAYER, Planned, SignalStore, StoreWriter, facts_of, sealed


class ConnectionClosedError(Exception):
    """File systems raise errors of their own, which are no OSError (those of botocore, say)."""


PLAN = [[Planned(f"r{shard}{place}", f"d{shard}{place}", 4, 6) for place in range(2)] for shard in range(2)]
BESIDE = (TensorPart("hidden.1", "tokens", (2, 3)),)


def made(folder: Path, grid: Grid = Grid.threshold(50, 0.01, BESIDE), seed: int = 0) -> SignalStore:  # noqa: B008 it is frozen
    random = np.random.default_rng(seed)
    with StoreWriter(folder, {"teacher": "abc"}, grid, PLAN) as writer:
        for record in [PLAN[shard][place].record for shard, place in writer.missing()]:
            tensors = {
                part.name: random.normal(size=(part.count(4, 6), *part.shape)).astype(np.float32)
                for part in grid.tensors
            }
            numbers = (random.random(4).astype(np.float32), -random.random(4).astype(np.float32))
            each = 0 if HIDDEN in tensors else 3
            ids = np.concatenate([random.choice(50, each, replace=False) for _ in range(4)]).astype(np.int32)
            weights = random.random(4 * each).astype(np.float32)
            entries = Entries(np.arange(5) * each, ids, weights, *numbers, np.zeros(0, np.float32), tensors)
            writer.append([(record, entries, random.random(4 * each))])
        writer.finish()
    return SignalStore(folder)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


def test_a_store_goes_to_a_url_and_comes_back(tmp_path: Path, url: str) -> None:
    store = made(tmp_path / "here")
    push(tmp_path / "here", url)
    found = pull(url, tmp_path / "there")
    assert found.damaged() == []
    assert found.facts == store.facts
    assert (found.read("r11", "d11").ids == store.read("r11", "d11").ids).all()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, url: str) -> None:
    made(tmp_path / "here")
    push(str(tmp_path / "here"), url)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"(here|notes\.txt) is there, which is no file of this store"):
        pull(url, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "notes.txt"]


def test_a_copy_that_was_cut_short_goes_on_with_what_is_missing(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "here")
    push(tmp_path / "here", url)
    system, _ = fsspec.core.url_to_fs(url)
    real, fetched = system.get_file, []

    def slow(source: str, target: str, **more: object) -> None:
        if len(fetched) == 2:
            raise ConnectionClosedError("the connection broke")
        fetched.append(source)
        real(source, target, **more)

    monkeypatch.setattr(system, "get_file", slow)
    with pytest.raises(RunError, match="the connection broke"):
        pull(url, tmp_path / "there")
    with pytest.raises(DataError, match="no finished store"):
        SignalStore(tmp_path / "there")
    monkeypatch.setattr(system, "get_file", lambda *a, **k: (fetched.append(a[0]), real(*a, **k))[1])
    assert pull(url, tmp_path / "there").damaged() == []
    assert len(fetched) == len(set(fetched)) == 4


def test_a_copy_to_a_url_that_was_cut_short_goes_on_and_a_whole_one_is_made_anew(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "here")
    system, root = fsspec.core.url_to_fs(url)
    real, sent = system.put_file, []

    def broken(source: str, target: str, **more: object) -> None:
        if len(sent) == 2:
            raise ConnectionClosedError("the connection broke")
        sent.append(target)
        real(source, target, **more)

    monkeypatch.setattr(system, "put_file", broken)
    with pytest.raises(RunError, match="the connection broke"):
        push(tmp_path / "here", url)
    with pytest.raises(DataError, match="no finished store"):
        pull(url, tmp_path / "there")
    monkeypatch.setattr(system, "put_file", lambda *a, **k: (sent.append(a[1]), real(*a, **k))[1])
    push(tmp_path / "here", url)
    assert len(sent) == len(set(sent)) == 4
    assert pull(url, tmp_path / "there").damaged() == [] and not system.exists(f"{root}/{INCOMING}")
    push(tmp_path / "here", url)
    assert len(sent) == 8


def test_a_copy_of_another_store_that_was_cut_short_leaves_nothing_to_this_one(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of both have the same names and sizes: those of hidden states always have."""
    grid = Grid.hidden(50, 4, "float32")
    for name, seed in (("one", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / OUTPUT_LAYER).write_bytes(b"weights")
        made(tmp_path / name, grid, seed)
    sizes = [(tmp_path / name / "shard-00000.bin").stat().st_size for name in ("one", "other")]
    assert sizes[0] == sizes[1]
    system, _ = fsspec.core.url_to_fs(url)
    with monkeypatch.context() as cut:
        real = system.put_file
        cut.setattr(system, "put_file", lambda a, b: real(a, b) if b.endswith("shard-00000.bin") else 1 / 0)
        with pytest.raises(RunError, match="division by zero"):
            push(tmp_path / "one", url)
    push(tmp_path / "other", url)
    assert pull(url, tmp_path / "there").damaged() == []


def test_a_store_goes_with_its_tokenizer(tmp_path: Path, url: str) -> None:
    (tmp_path / "here" / "tokenizer" / "extra").mkdir(parents=True)
    (tmp_path / "here" / "tokenizer" / "extra" / "chat.jinja").write_text("{{ messages }}")
    made(tmp_path / "here")
    for to in (url, f"file://{tmp_path}/some/where"):
        push(tmp_path / "here", to)
        found = pull(to, tmp_path / to[:4])
        assert (found.folder / "tokenizer" / "extra" / "chat.jinja").read_text() == "{{ messages }}"
        assert found.check_files("tokenizer")
    (found.folder / "tokenizer" / "extra" / "chat.jinja").write_text("{{ massages }}")
    assert found.damaged() == ["tokenizer/extra/chat.jinja"]
    with pytest.raises(DataError, match=r"tokenizer/extra/chat.jinja is damaged"):
        found.check_files("tokenizer")


def test_a_flipped_bit_at_the_url_is_found_and_named(tmp_path: Path, url: str) -> None:
    made(tmp_path / "here")
    push(tmp_path / "here", url)
    system, root = fsspec.core.url_to_fs(url)
    content = bytearray(system.cat_file(f"{root}/shard-00001.bin"))
    content[9] ^= 1
    system.pipe_file(f"{root}/shard-00001.bin", bytes(content))
    with pytest.raises(DataError, match=r"shard-00001.bin is damaged"):
        pull(url, tmp_path / "there")
    assert not (tmp_path / "there" / FACTS).exists()


def test_a_url_without_a_store_and_names_that_leave_the_folder_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="no finished store"):
        pull(url, tmp_path / "there")
    made(tmp_path / "here")
    push(tmp_path / "here", url)
    system, root = fsspec.core.url_to_fs(url)
    facts = facts_of(system.cat_file(f"{root}/{FACTS}").decode(), url)
    facts["shards"][1]["name"] = "../00001.bin"
    system.pipe_file(f"{root}/{FACTS}", sealed(facts).encode())
    with pytest.raises(DataError, match=r"which is no file of a store"):
        pull(url, tmp_path / "there")


def test_datasets_opens_it_as_parquet(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    to_parquet(store, tmp_path / "signals.parquet")
    rows = Dataset.from_parquet(str(tmp_path / "signals.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows["record"][:] == ["r00", "r01", "r10", "r11"]
    ours = store.read("r10", "d10")
    row = rows[2]
    assert [len(ids) for ids in row["ids"]] == [3, 3, 3, 3]
    assert np.concatenate(row["ids"]).tolist() == ours.ids.tolist()
    assert np.concatenate(row["weights"]).tolist() == pytest.approx(ours.weights.tolist())
    assert row["entropy"] == pytest.approx(ours.entropy.tolist())
    assert np.array(row["hidden.1"]).shape == (6, 6)
    assert np.array(row["hidden.1"]).reshape(6, 2, 3) == pytest.approx(ours.tensors["hidden.1"])
    assert HIDDEN not in row
