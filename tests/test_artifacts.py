"""An artifact is whole or it is not there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from potstill.artifacts import read_artifact, read_attempts, write_artifact
from potstill.errors import RunError


def write(run: Path, key: str = "k" * 64, text: str = "hello") -> None:
    with write_artifact(run, "train", key, settings={"a": 1}, inputs={"generate": "x"}, seed=3) as work:
        (work.path / "out.txt").write_text(text)
        work.count("dropped")


def break_off(run: Path, key: str) -> None:
    """Begin an artifact and fail half-way."""
    with write_artifact(run, "train", key, settings={}, inputs={}, seed=0) as work:
        (work.path / "half.txt").write_text("half")
        raise ZeroDivisionError


def test_the_manifest_says_what_made_it(tmp_path: Path) -> None:
    write(tmp_path)
    artifact = read_artifact(tmp_path / "train")
    assert artifact is not None
    manifest = artifact.manifest
    assert (manifest["key"], manifest["settings"], manifest["inputs"], manifest["seed"]) == (
        "k" * 64,
        {"a": 1},
        {"generate": "x"},
        3,
    )
    assert manifest["counts"] == {"dropped": 1}
    assert set(manifest["files"]) == {"out.txt"}
    artifact.check_whole()


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train" / "out.txt").write_text("bent")
    artifact = read_artifact(tmp_path / "train")
    assert artifact is not None
    with pytest.raises(RunError, match="has changed since it was written"):
        artifact.check_whole()


def test_a_failure_leaves_no_artifact_and_the_same_key_continues(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path, "a" * 64)
    assert read_artifact(tmp_path / "train") is None
    with write_artifact(tmp_path, "train", "a" * 64, settings={}, inputs={}, seed=0) as work:
        assert work.resumed


def test_a_continued_attempt_finds_its_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    """What a killed process left (`.records.parquet.4711`) is in no artifact: keys downstream are as without a kill."""
    key = "a" * 64
    with (
        pytest.raises(ZeroDivisionError),
        write_artifact(tmp_path, "train", key, settings={}, inputs={}, seed=0) as work,
    ):
        (work.path / "checkpoints").mkdir()
        (work.path / "checkpoints" / "state.bin").write_text("x")
        (work.path / ".out.txt.4711").write_text("hal")
        (work.path / "model").mkdir()
        (work.path / "model" / "tmp_shard.safetensors").write_text("hal")
        raise ZeroDivisionError
    with write_artifact(tmp_path, "train", key, settings={}, inputs={}, seed=0) as work:
        assert (work.path / "checkpoints" / "state.bin").read_text() == "x"
        (work.path / "out.txt").write_text("whole")
    with write_artifact(tmp_path / "other", "train", key, settings={}, inputs={}, seed=0) as work:
        (work.path / "out.txt").write_text("whole")
    continued, undisturbed = read_artifact(tmp_path / "train"), read_artifact(tmp_path / "other" / "train")
    assert continued is not None and undisturbed is not None
    assert sorted(p.name for p in continued.path.iterdir()) == ["manifest.json", "out.txt"]
    assert continued.output_digest == undisturbed.output_digest


def test_damage_is_found_by_size_by_time_and_digest_and_by_digest_alone(tmp_path: Path) -> None:
    write(tmp_path)
    artifact, file = read_artifact(tmp_path / "train"), tmp_path / "train" / "out.txt"
    assert artifact is not None
    written = file.stat().st_mtime_ns
    os.utime(file, ns=(written, written + 1))
    artifact.check_whole()  # a copy: another time, the same bytes
    file.write_text("hullo")
    with pytest.raises(RunError, match=r"out\.txt has changed .*(?s:.*)potstill train RECIPE --force"):
        artifact.check_whole()
    os.utime(file, ns=(written, written))
    artifact.check_whole()  # a byte that flipped on the disk: nothing cheap shows it
    with pytest.raises(RunError, match="has changed"):
        artifact.check_whole(verify=True)
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        artifact.check_whole()


def test_a_failed_attempt_says_when_where_and_why(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path, "a" * 64)
    (failed,) = read_attempts(tmp_path)
    assert (failed.stage, failed.state, failed.error) == ("train", "failed", "ZeroDivisionError: ")
    assert failed.where is not None and re.search(r"test_artifacts\.py:\d+, in break_off", failed.where)
    assert failed.ended is not None and failed.started <= failed.ended

    with pytest.raises(RunError), write_artifact(tmp_path, "generate", "g" * 64, settings={}, inputs={}, seed=0):
        raise RunError("it broke", where="a.jsonl, row 3", fix="mend the row")
    with pytest.raises(KeyboardInterrupt), write_artifact(tmp_path, "report", "r" * 64, settings={}, inputs={}, seed=0):
        raise KeyboardInterrupt
    told = {a.stage: (a.state, a.error, a.where, a.fix) for a in read_attempts(tmp_path)}
    assert told["generate"] == ("failed", "it broke", "a.jsonl, row 3", "mend the row")
    assert told["report"] == ("interrupted", None, None, None)
    write(tmp_path, key="a" * 64)
    assert "train" not in {a.stage for a in read_attempts(tmp_path)}
    assert json.loads((tmp_path / "train" / "manifest.json").read_text())["state"] == "done"


def test_another_key_never_continues_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path, "a" * 64)
    with write_artifact(tmp_path, "train", "b" * 64, settings={}, inputs={}, seed=0) as work:
        assert not work.resumed
        assert [p.name for p in work.path.iterdir()] == ["manifest.json"]
    assert list(tmp_path.glob(".partial-*")) == []


def test_an_old_artifact_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write(tmp_path, text="old")
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path, "n" * 64)
    assert (tmp_path / "train" / "out.txt").read_text() == "old"
    write(tmp_path, key="n" * 64, text="new")
    assert (tmp_path / "train" / "out.txt").read_text() == "new"


def test_working_state_is_not_part_of_the_artifact(tmp_path: Path) -> None:
    with write_artifact(tmp_path, "train", "a" * 64, settings={}, inputs={}, seed=0) as work:
        (work.path / "checkpoints").mkdir()
        (work.path / "checkpoints" / "state.bin").write_text("x")
    assert not (tmp_path / "train" / "checkpoints").exists()


def test_a_file_where_the_run_should_be_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        write(tmp_path / "run")


@pytest.mark.needs("mounts")
def test_a_full_disk_loses_nothing_that_was_whole(tmp_path: Path) -> None:
    """On a file system of 1 MB, in a mount namespace of its own."""
    code = textwrap.dedent(
        """
        import sys, pathlib
        from potstill.artifacts import write_artifact, read_artifact
        from potstill.errors import RunError
        run = pathlib.Path(sys.argv[1])
        with write_artifact(run, "train", "a" * 64, settings={}, inputs={}, seed=0) as work:
            (work.path / "out.txt").write_text("whole")
        try:
            with write_artifact(run, "train", "b" * 64, settings={}, inputs={}, seed=0) as work:
                (work.path / "big.bin").write_bytes(bytes(4_000_000))
        except RunError as error:
            assert "disk is full" in str(error) and "continues" in str(error), error
            assert (run / "train" / "out.txt").read_text() == "whole"
            assert read_artifact(run / "train").key == "a" * 64
            print("held")
        """
    )
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c '{code}' {tmp_path}/run"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "held", done.stderr


@pytest.mark.parametrize("at", ["before the manifest", "after the manifest", "old stepped aside"])
def test_a_kill_during_the_swap_leaves_a_whole_artifact_or_a_partial_one(tmp_path: Path, at: str) -> None:
    write(tmp_path, text="old")
    code = textwrap.dedent(
        f"""
        import os, signal, pathlib, sys
        from potstill import artifacts
        real, at, calls = os.replace, {at!r}, 0
        def replace(a, b):
            global calls
            name = pathlib.Path(b).name
            calls += name == "manifest.json"  # the first says that the work began
            if at == "before the manifest" and name == "manifest.json" and calls == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if at == "after the manifest" and name == ".old-train":
                os.kill(os.getpid(), signal.SIGKILL)
            if at == "old stepped aside" and name == "train":
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)
        os.replace = replace
        run = pathlib.Path(sys.argv[1])
        with artifacts.write_artifact(run, "train", "n" * 64, settings={{}}, inputs={{}}, seed=0) as work:
            (work.path / "out.txt").write_text("new")
        """
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    standing = read_artifact(tmp_path / "train")
    assert standing is None or (tmp_path / "train" / "out.txt").read_text() == "old"
    write(tmp_path, key="n" * 64, text="new")
    assert (tmp_path / "train" / "out.txt").read_text() == "new"
    left = [name for name in os.listdir(tmp_path) if name.startswith((".partial", ".old"))]
    assert left == []
    assert json.loads((tmp_path / "train" / "manifest.json").read_text())["key"] == "n" * 64
