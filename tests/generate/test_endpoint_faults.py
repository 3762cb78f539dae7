"""What servers do to those who ask them: limits, failures, silence, absence. And where the key may not be."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from generate.endpoint_run import EndpointRun
from mock_server import Mock, mock

from potstill.answering.base import Answered
from potstill.answering.budget import Budget, Caps
from potstill.answering.endpoint import EndpointAnswering
from potstill.answering.journal import Journal
from potstill.console import Console
from potstill.errors import RunError
from potstill.recipe import EndpointTeacher
from potstill.teachers import EndpointModel
from potstill.types import Reason, Request, Sampling

FAULTS = {"fail": 0.05, "truncate": 0.02, "hang": 0.01, "reset": 0.02}


def ask(server: Mock, folder: Path, count: int, **settings: Any) -> tuple[list[Answered], dict[str, Any]]:
    """So many requests, without files; what came, and what the client says of it."""
    teacher = EndpointModel(EndpointTeacher(base_url=server.url, model="m", **settings))
    requests = (Request(Sampling(24, 0.7), prompt=f"question {n}") for n in range(count))
    with (
        Journal(folder / "journal.sqlite") as journal,
        EndpointAnswering(teacher, journal, console=Console("quiet")) as asked,
    ):
        came = list(asked.answers(requests))
        assert len(journal) == sum(answered.raw is not None for answered in came)
        return came, asked.facts()


@pytest.mark.parametrize("dates", [False, True], ids=["seconds", "dates"])
def test_every_record_arrives_through_a_limit(dates: bool, tmp_path: Path) -> None:
    """The first 32 requests go out at once, and the bucket holds ten."""
    with mock(rate=10, burst=10, latency_seconds=0.01, dates=dates) as server:
        came, facts = ask(server, tmp_path, 60, timeout_seconds=20.0)
        stats = server.stats()
    assert all(answered.answer is not None for answered in came)
    assert stats["statuses"]["429"] == facts["troubles"]["status 429"] > 0


@pytest.mark.long
@pytest.mark.parametrize("dates", [False, True], ids=["seconds", "dates"])
def test_nobody_sends_while_told_to_wait_and_nine_tenths_of_the_permitted_rate_are_used(
    dates: bool, tmp_path: Path
) -> None:
    """On the clock of the wall; `test_endpoint_simulated.py` says the same of a simulated one."""
    with mock(rate=150, latency_seconds=0.02, dates=dates) as server:
        came, _ = ask(server, tmp_path, 1500, timeout_seconds=3.0)
        stats = server.stats()
    assert all(answered.answer is not None for answered in came)
    assert stats["violations"] == 0 and (dates or stats["rate_used"] >= 0.9)


def test_every_record_arrives_through_faults(tmp_path: Path) -> None:
    with mock(**FAULTS, latency_seconds=0.01) as server:
        came, facts = ask(server, tmp_path, 1000, timeout_seconds=3.0)
        stats = server.stats()
    assert all(answered.answer is not None for answered in came)
    # A request is repeated only if its answer did not come in time: those that hung, and on a busy machine more.
    late = facts["troubles"]["no answer in time"] - stats["statuses"]["hang"]
    assert stats["distinct"] == 1000 and stats["repeats"] <= late
    assert {"status 500", "an answer that is not valid JSON", "no answer in time", "a broken connection"} == set(
        facts["troubles"]
    )


def test_a_server_that_dies_is_waited_for_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher: dict[str, Any] = {"max_in_flight": 16, "retries": 2}
    with mock(latency_seconds=0.01, die_after=200, dead_seconds=3.0) as server:
        settings = EndpointTeacher(base_url=server.url, model="m", **teacher)
        requests = [Request(Sampling(8), prompt=f"question {n}") for n in range(400)]
        with (
            Journal(tmp_path / "journal.sqlite") as journal,
            EndpointAnswering(EndpointModel(settings), journal, console=Console("lines")) as asked,
        ):
            came = list(asked.answers(requests))
    assert all(answered.answer is not None for answered in came)  # though two second tries are all they have
    said = capsys.readouterr().err
    assert f"{server.url} is down (" in said and "; waiting for it" in said
    assert "the server answers again, after" in said


def test_patience_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = EndpointRun(tmp_path, "http://127.0.0.1:9/v1")
    assert made.here("teacher.patience_seconds=1") == 2
    said = capsys.readouterr().err
    assert "no answer to any request for 1 seconds: no connection" in said and "in the journal" in said


def test_a_request_that_fails_every_time_is_a_failure_of_its_own(tmp_path: Path) -> None:
    with mock(fail_prompts="question 7") as server:
        came, _ = ask(server, tmp_path, 20, retries=2)
        seen = server.stats()["requests"]
    failures = [(index, a.failure.reason, a.failure.detail) for index, a in enumerate(came) if a.failure is not None]
    assert failures == [(7, Reason.UNANSWERED, "3 tries; the last: status 500 (something broke)")]
    assert seen == 19 + 3


def test_limits_per_minute_are_kept(tmp_path: Path) -> None:
    with mock() as server:
        started = time.monotonic()
        came, _ = ask(server, tmp_path, 60, requests_per_minute=1200.0)
        took = time.monotonic() - started
        assert all(answered.answer is not None for answered in came)
    # 20 at once, and the other 40 at (1200 - 20) / 60 a second.
    assert took >= 2.0


class FullDisk:
    """A connection to SQLite to which the disk is full for whoever notes what may be under way: from the first, or
    once answers were committed."""

    def __init__(self, inner: sqlite3.Connection, *, later: bool) -> None:
        self.inner, self.full, self.rows = inner, not later, 0

    def executemany(self, statement: str, rows: list[Any]) -> Any:
        self.rows = len(rows)
        return self.inner.executemany(statement, rows)

    def execute(self, statement: str, *values: Any) -> Any:
        if "INTO ledger" in statement and self.full and not self.rows:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        self.full = self.full or self.rows > 0
        return self.inner.execute(statement, *values)

    def __enter__(self) -> Any:
        return self.inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self.inner.__exit__(*error)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("later", [False, True], ids=["at the first request", "among answers"])
def test_a_full_disk_ends_the_work_promptly_whoever_meets_it(later: bool, tmp_path: Path) -> None:
    with mock(latency_seconds=0.01) as server, Journal(tmp_path / "journal.sqlite") as journal:
        journal._database = FullDisk(journal._database, later=later)  # type: ignore[assignment]
        teacher = EndpointModel(EndpointTeacher(base_url=server.url, model="m", max_in_flight=256))
        requests = [Request(Sampling(24), prompt=f"question {n}") for n in range(2000)]
        budget = Budget(Caps(requests=10_000), journal.ledger(""))
        with (
            pytest.raises(RunError, match="the disk is full"),
            EndpointAnswering(teacher, journal, budget=budget, console=Console("quiet")) as asked,
        ):
            for _ in asked.answers(requests):
                pass
        assert len(journal) == (server.stats()["answers"] if later else 0) < 2000


@pytest.mark.long
def test_every_record_arrives_where_a_third_of_requests_are_refused_whatever_the_pace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others use the limit up: who slows down is refused as often, and each time nobody sends for a second."""
    with mock(crowded=1 / 3, latency_seconds=0.02, **FAULTS) as server:
        came, _ = ask(server, tmp_path, 100, timeout_seconds=3.0)
        stats = server.stats()
    met = stats["statuses"]["429"] / stats["requests"]
    assert all(answered.answer is not None for answered in came) and stats["violations"] == 0
    assert 0.2 < met < 0.45
    with capsys.disabled():
        print(f"\n100 records, {100 * met:.0f} % of requests refused: 0 missing, {100 / stats['seconds']:.1f} a second")


@pytest.mark.long
def test_a_campaign_of_all_faults_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit, failures of every kind, and a server that dies for twenty seconds."""
    started = time.monotonic()
    with mock(**FAULTS, latency_seconds=0.02, die_after=3000, dead_seconds=20.0) as server:
        came, facts = ask(server, tmp_path, 8000, timeout_seconds=3.0)
        stats = server.stats()
    assert all(answered.answer is not None for answered in came) and stats["repeats"] == 0
    (tmp_path / "limited").mkdir()
    with mock(rate=300, latency_seconds=0.02, **FAULTS) as server:
        _, limited = ask(server, tmp_path / "limited", 9000, timeout_seconds=3.0)
        told = server.stats()
    met = told["statuses"]["429"] / told["requests"]
    assert told["violations"] == 0
    assert told["rate_used"] >= 0.9
    with capsys.disabled():
        print(
            f"\n8000 records through {facts['troubles']}, down for 20 s: 0 missing, {stats['repeats']} repeated; "
            f"9000 through a limit that {100 * met:.0f} % of requests met: 0 violations, "
            f"{100 * told['rate_used']:.1f} % "
            f"of the permitted rate, {limited['troubles']}; {time.monotonic() - started:.0f} s"
        )


# ---- the key ---------------------------------------------------------------------------------------------------


KEY = "sk-potstill-0123456789-never-to-be-seen"


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("right", [True, False], ids=["accepted", "refused and repeated by the server"])
def test_the_key_is_sent_and_is_nowhere_else(right: bool, tmp_path: Path) -> None:
    with mock(require_key=KEY if right else "another") as server:
        made = EndpointRun(tmp_path, server.url, prompts=4)
        process = made.start("teacher.api_key_env=POTSTILL_TEST_KEY", POTSTILL_TEST_KEY=KEY)
        _, errors = process.communicate()
        assert process.returncode == (0 if right else 2)
        assert len(server.stats()["keys"]) == 1
    assert KEY not in errors and KEY.encode() not in everything_in(tmp_path)
    if not right:
        assert "refuses access (401: Incorrect API key provided: …" in errors


def test_the_key_is_in_no_repr_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import traceback

    monkeypatch.setenv("POTSTILL_TEST_KEY", KEY)
    settings = EndpointTeacher(base_url="http://127.0.0.1:9/v1", model="m", api_key_env="POTSTILL_TEST_KEY")
    teacher = EndpointModel(settings)
    client = teacher.open(teacher)  # not begun
    assert KEY not in f"{settings!r} {teacher!r} {client!r} {settings.model_dump()} {teacher.identity}"
    quick = settings.model_copy(update={"patience_seconds": 0.1})
    with pytest.raises(Exception) as caught:
        EndpointModel(quick).generate([Request(Sampling(4), prompt="p")], seed=0)
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "address", ["http://user:secret@127.0.0.1/v1", "ftp://127.0.0.1/v1", "http:///v1", "http://127.0.0.1/v1?key=secret"]
)
def test_an_address_that_holds_a_key_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        EndpointTeacher(base_url=address, model="m")


def test_ctrl_c_keeps_what_is_under_way(tmp_path: Path) -> None:
    """What was sent before is waited for: it is paid for."""
    with mock(latency_seconds=0.5) as server:
        made = EndpointRun(tmp_path, server.url, prompts=300)
        process = made.start("teacher.max_in_flight=32")
        deadline = time.monotonic() + 300
        while server.stats()["requests"] < 40 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(Exception):
            process.communicate(timeout=20)
        stats = server.stats()
        with Journal(made.run / "journal.sqlite") as journal:
            assert len(journal) == stats["requests"] < made.requests
