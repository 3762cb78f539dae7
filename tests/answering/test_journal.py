"""The journal: what it keeps, and what it says when it cannot."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill.answering.journal import Journal
from potstill.errors import RunError
from potstill.types import Answer


def answer(text: str, tokens: int = 3) -> Answer:
    return Answer(text, "stop", 5, tokens)


def test_answers_come_back_as_they_were_given(tmp_path: Path) -> None:
    given = Answer("Grüß Gott\n\u2028 👋\x00", "length", 7, 9, reasoning="<think>")
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch([("k", given)], "b", 1.5)
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.get("k", "b") == given
        assert journal.seconds_of("b") == 1.5
        assert len(journal) == 1


def test_an_answer_stands_only_for_the_batch_in_which_it_was_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch([("k", answer("in b"))], "b")
        journal.put_batch([("k", answer("in c"))], "c")
        assert journal.get("k") is None
        assert journal.get("k", "b") == answer("in b")
        assert journal.get("k", "c") == answer("in c")


def test_a_batch_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        with pytest.raises(AttributeError):
            journal.put_batch([("k", answer("whole")), ("l", None)], "b")  # the second cannot be written
        assert len(journal) == 0
        assert not journal.holds("b")
        journal.put_batch([("k", answer("one")), ("l", answer("two"))], "b")
        assert journal.get_batch(["l", "k"], "b") == [answer("two"), answer("one")]
        assert journal.get_batch(["k", "m"], "b") is None


def test_many_are_found_at_once_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch([(f"k{n}", answer(f"text {n}")) for n in range(1200)])
        journal.put_batch([("k7", answer("in b"))], "b")
        found = journal.get_many([f"k{n}" for n in range(0, 2400, 2)])
        assert found == {f"k{n}": answer(f"text {n}") for n in range(0, 1200, 2)}
        journal._database.execute("UPDATE answers SET answer = replace(answer, 'text 4', 'test 4') WHERE key = 'k4'")
        with pytest.raises(RunError, match="is not what was written"):
            journal.get_many(["k2", "k4"])


def test_a_ledger_is_committed_with_the_answers_and_its_last_entry_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.ledger("a") is None
        journal.put_batch([("k", answer("one"))], ledger=("a", lambda: {"lost": 1}))
        journal.put_batch([], ledger=("a", lambda: {"lost": 2}))
        journal.put_batch([], ledger=("b", lambda: {"lost": 3}))
        with pytest.raises(AttributeError):
            journal.put_batch([("l", None)], ledger=("a", lambda: {"lost": 9}))
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert (journal.ledger("a"), journal.ledger("b"), len(journal)) == ({"lost": 2}, {"lost": 3}, 1)


def test_a_journal_from_before_ledgers_is_used_as_it_is(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch([("k", answer("kept"))])
        journal._database.execute("DROP TABLE ledger")
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.get("k") == answer("kept") and journal.ledger("a") is None


def test_threads_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal, ThreadPoolExecutor(4) as pool:

        def work(index: int) -> None:
            for n in range(20):
                journal.put_batch([(f"{index}-{n}", answer("text"))])
                assert journal.get_many([f"{index}-{n}"])

        list(pool.map(work, range(4)))
        assert len(journal) == 80


def test_what_was_paid_for_first_stays(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch([("k", answer("first"))])
        journal.put_batch([("k", answer("second"))])
        assert journal.get("k") == answer("first")


def test_what_is_committed_survives_a_kill_at_once(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    script = (
        "import os, sys; from pathlib import Path; from potstill.answering.journal import Journal\n"
        "from potstill.types import Answer\n"
        "journal = Journal(Path(sys.argv[1])); journal.put_batch([('k', Answer('kept', 'stop', 1, 1))], 'b')\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -9
    assert (tmp_path / "journal.sqlite-wal").exists()
    with Journal(file) as journal:
        assert journal.get("k", "b") == Answer("kept", "stop", 1, 1)


def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = [journal._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]  # 2 is FULL


def test_a_journal_in_use_by_another_process_is_refused_with_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    script = (
        "import sys, time; from pathlib import Path; from potstill.answering.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(RunError, match=r"another process uses the journal[\s\S]*wait until it has ended"):
            Journal(file)
    finally:
        other.kill()
        other.wait()
    with Journal(file) as journal:  # whoever held it is gone, and so is the lock
        assert len(journal) == 0


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "journal.sqlite"
    text.write_text("not a database at all, but long enough to have had a header" * 3)
    before = text.read_bytes()
    with pytest.raises(RunError, match=r"damaged: file is not a database[\s\S]*fix: "):
        Journal(text)
    assert text.read_bytes() == before

    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    with pytest.raises(RunError, match="of another program"):
        Journal(foreign)


def test_a_torn_page_is_found_at_opening(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with Journal(file) as journal:
        for index in range(200):
            journal.put_batch([(f"{index:064d}", answer("word " * 50))], f"b{index}")
    content = bytearray(file.read_bytes())
    content[3 * 4096 : 4 * 4096] = bytes(4096)
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"the journal is damaged[\s\S]*move it away"):
        Journal(file)


def test_a_changed_byte_inside_an_answer_is_found_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with Journal(file) as journal:
        journal.put_batch([("k", answer("the truth"))], "b")
    content = file.read_bytes()
    assert content.count(b"the truth") == 1
    file.write_bytes(content.replace(b"the truth", b"the tooth"))
    with Journal(file) as journal, pytest.raises(RunError, match="is not what was written"):
        journal.get("k", "b")


def test_a_folder_in_its_place_is_an_error_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(RunError, match="cannot be used"):
        Journal(tmp_path / "journal.sqlite")
