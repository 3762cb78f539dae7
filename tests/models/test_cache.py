"""The cache: where it is, that an entry is whole or not there, and that two processes make one entry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models.cache import cache_dir, cached_entry, entry_note, make_entry, remembered_digest

QUIET = Console("quiet")


def build(folder: Path, scratch: Path) -> dict[str, Any]:
    (scratch / "download").write_text("not kept")
    (folder / "weights").write_text("four")
    return {"revision": "1"}


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POTSTILL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home/.cache/potstill"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/potstill"
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own" and cache_dir().is_dir()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written_is_named_with_the_fix(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(ModelError, match="cache folder cannot be used") as caught:
        make_entry("some", build, QUIET)
    assert str(tmp_path / "file") in str(caught.value) and "POTSTILL_CACHE" in str(caught.value)
    assert (tmp_path / "file").read_text() == "a file where a folder should be"


def test_a_read_only_cache_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    with pytest.raises(ModelError, match="cannot be written"):
        cache_dir()


def test_an_entry_keeps_what_was_built_and_nothing_else(cache: Path) -> None:
    entry = make_entry("some", build, QUIET)
    assert entry == cached_entry("some") and entry_note(entry)["revision"] == "1"
    assert sorted(p.name for p in entry.iterdir()) == ["potstill.json", "weights"]
    assert sorted(p.name for p in (cache / "models").iterdir()) == [".some.lock", "some"]


def test_an_entry_is_built_once(cache: Path) -> None:
    make_entry("some", build, QUIET)
    make_entry("some", lambda folder, scratch: pytest.fail("built again"), QUIET)


@pytest.mark.parametrize("damage", ["cut", "gone", "note cut", "note gone"])
def test_a_torn_entry_is_never_used_and_is_made_again(damage: str, cache: Path) -> None:
    entry = make_entry("some", build, QUIET)
    file = entry / ("potstill.json" if damage.startswith("note") else "weights")
    if damage.endswith("cut"):
        file.write_text(file.read_text()[:2])
    else:
        file.unlink()
    assert cached_entry("some") is None
    assert (make_entry("some", build, QUIET) / "weights").read_text() == "four"


def test_nothing_is_left_of_an_entry_that_failed(cache: Path) -> None:
    def fail(folder: Path, scratch: Path) -> dict[str, Any]:
        build(folder, scratch)
        raise ModelError("the download is corrupted")

    with pytest.raises(ModelError, match="corrupted"):
        make_entry("some", fail, QUIET)
    assert cached_entry("some") is None
    assert [p.name for p in (cache / "models").iterdir()] == [".some.lock"]


def test_a_full_disk_is_said_whichever_library_meets_it(cache: Path) -> None:
    class SafetensorError(Exception):
        """Of a library in Rust: no OSError."""

    def fill(folder: Path, scratch: Path) -> dict[str, Any]:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ModelError, match="No space left on device") as caught:
        make_entry("some", fill, QUIET)
    assert "POTSTILL_CACHE" in str(caught.value)
    assert cached_entry("some") is None


def test_a_defect_is_not_dressed_up_as_the_users_mistake(cache: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        make_entry("some", lambda folder, scratch: {"": 1 / 0}, QUIET)


MAKE = """
import sys, time
from pathlib import Path
from potstill.console import Console
from potstill.models.cache import make_entry

def build(folder, scratch):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    (folder / "weights").write_text("fo")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    (folder / "weights").write_text("four")
    return {}

print((make_entry("some", build, Console("lines")) / "weights").read_text())
"""


def start(log: Path, until: Path) -> subprocess.Popen[str]:
    """A process that builds the entry, and ends when a file is there."""
    command = [sys.executable, "-c", MAKE, str(log), str(until)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 300
    while not (log.is_file() and log.read_text()):
        assert time.monotonic() < deadline, "the other process never began"
        time.sleep(0.01)


def test_two_processes_build_an_entry_once_and_both_get_it_whole(cache: Path, tmp_path: Path) -> None:
    log, until = tmp_path / "log", tmp_path / "until"
    first = start(log, until)
    wait_for(log)
    second = start(log, until)
    assert second.stderr is not None
    assert "waiting for another process that is preparing some" in second.stderr.readline()
    until.touch()
    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert outputs == ["four\n", "four\n"]
    assert log.read_text() == "built\n"


def test_a_killed_process_leaves_no_entry_and_the_next_one_begins_anew(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = start(log, tmp_path / "never")
    wait_for(log)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (cache / "models/.making-some").is_dir(), "it was killed while it built"
    assert cached_entry("some") is None
    assert (make_entry("some", build, QUIET) / "weights").read_text() == "four"
    assert not (cache / "models/.making-some").exists()


def test_a_digest_is_remembered_until_size_or_time_changes(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    first, stat = remembered_digest(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered_digest(file) == first, "same path, size and time: not read again"
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = remembered_digest(file)
    assert changed != first
    file.write_text("three")
    assert remembered_digest(file) not in (first, changed)


def test_a_damaged_memory_of_digests_is_not_believed(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    digest = remembered_digest(file)
    for memory in (cache / "digests").iterdir():
        memory.write_text("{")
    assert remembered_digest(file) == digest
