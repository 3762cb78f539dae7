"""A teacher behind a server: records a second, processor time a record, and memory, side by side with other clients.

    python -m benchmarks.generate --json                      10,000 records each, and ours with 200,000 too
    python -m benchmarks.generate --records 2000 --many 0     a quick look

Against the mock server of the tests, in a process of its own on the same machine, with so many connections as
`--connections` says and an answer after `--latency` seconds. Each variant has fresh processes of its own, rounds are
interleaved.

    ours                the stage `generate`: prompts from a file, through the journal (every answer committed and
                        flushed before it is used) and the caps' counting, to Parquet, ledger and card
    ours_many           the same with `--many` prompts
    aiohttp             a bare client: as many tasks as connections, answers in a list; nothing is kept
    aiohttp_wal         the same, with one SQLite commit an answer (WAL, synchronous=NORMAL: not flushed)
    openai              the official SDK, as many tasks as connections, answers in a list
    ours_limited        ours against a server that lets `--rate` requests a second pass, from a bucket that holds a
                        tenth of a second's worth, and fails a tenth of them; `rate_used` is the requests that
                        passed, over what the rate allows in the time of the run (the target: 0.9)

`first_seconds` is a first run with a hundred records, in which modules are loaded. After it, `seconds` is from the
first prompt to the last byte written; `cpu_ms_per_record` is the time of the client's process, all threads;
`resident_bytes` its peak in memory. The targets: 2,000 records a second on two cores, 0.45 ms of processor time a
record, and `ours_many` within 50 MB of `ours`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import Aim, claims_of, command_line

MODULE = "benchmarks.generate"
SERVER = Path(__file__).parents[1] / "tests" / "mock_server.py"
WARM_UP = 100
AIMS = [
    Aim("records per second", "1/s", least=2000),
    Aim("processor time per record", "ms", most=0.45),
    Aim("memory beyond that of 10,000 prompts", "MB", most=50),
    Aim("share of the permitted rate that is used under faults", "", least=0.9),
]
FAULTS = {"fail": 0.05, "truncate": 0.03, "reset": 0.02}
BODY: dict[str, Any] = {"model": "mock", "max_tokens": 32, "temperature": 0.7, "top_p": 1.0}


def prompt(number: int) -> str:
    """A question of some 40 words, different for each number."""
    return f"Question {number}. " + "What does a still do with the barley, the malt, the peat and the water? " * 3


def ours(url: str, folder: Path, records: int, connections: int) -> None:
    """The stage, as the pipeline runs it."""
    from potstill.console import Console
    from potstill.pipeline import run_recipe
    from potstill.recipe import load_recipe

    recipe = load_recipe(folder / "recipe.yaml")
    run_recipe(recipe, folder / "run", console=Console("quiet"))
    manifest = json.loads((folder / "run" / "generate" / "manifest.json").read_text(encoding="utf-8"))
    if manifest["counts"]["answers kept"] != records:
        raise RuntimeError(f"{records} records were to come, and these are the counts: {manifest['counts']}")


def prepare(url: str, folder: Path, records: int, connections: int) -> None:
    """Write prompts and recipe, before timing starts."""
    with (folder / "prompts.jsonl").open("w") as lines:
        lines.writelines(json.dumps({"prompt": prompt(number)}) + "\n" for number in range(records))
    more = f"max_in_flight: {connections}, timeout_seconds: 20"
    teacher = f"{{kind: endpoint, base_url: {url}, model: mock, {more}}}"
    (folder / "recipe.yaml").write_text(
        f"name: bench\nteacher: {teacher}\ndata: {{kind: jsonl, path: prompts.jsonl, format: prompt, held_out: 0.1}}\n"
        "generate: {kind: sequence, max_new_tokens: 32, temperature: 0.7}\n"
    )


def aiohttp_client(url: str, folder: Path, records: int, connections: int, *, journal: bool = False) -> None:
    """A bare client."""
    import aiohttp

    answers: list[Any] = []
    database = sqlite3.connect(folder / "answers.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("CREATE TABLE answers (key INTEGER PRIMARY KEY, answer TEXT)")

    async def work() -> None:
        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(number: int) -> None:
                body = BODY | {"messages": [{"role": "user", "content": prompt(number)}], "seed": number}
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    text = (await response.json())["choices"][0]["message"]["content"]
                if journal:
                    database.execute("INSERT INTO answers VALUES (?, ?)", (number, text))
                else:
                    answers.append(text)

            await side_by_side(ask, records, connections)

    asyncio.run(work())
    stored = database.execute("SELECT count(*) FROM answers").fetchone()[0]
    check_count(stored if journal else len(answers), records)


def openai_client(url: str, folder: Path, records: int, connections: int) -> None:
    """The official SDK."""
    import openai

    answers: list[Any] = []

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def ask(number: int) -> None:
                found = await client.chat.completions.create(
                    messages=[{"role": "user", "content": prompt(number)}], seed=number, **BODY
                )
                answers.append(found.choices[0].message.content)

            await side_by_side(ask, records, connections)

    asyncio.run(work())
    check_count(len(answers), records)


def check_count(came: int, records: int) -> None:
    """Raises RuntimeError if answers are missing."""
    if came != records:
        raise RuntimeError(f"{came} answers came where {records} were asked for")


async def side_by_side(ask: Callable[[int], Awaitable[None]], records: int, connections: int) -> None:
    """As many concurrent tasks as connections, each sending one request after another."""
    numbers = iter(range(records))

    async def one_after_the_other() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(one_after_the_other() for _ in range(connections)))


CLIENTS: dict[str, Callable[[str, Path, int, int], None]] = {
    "ours": ours,
    "ours_many": ours,
    "ours_limited": ours,
    "aiohttp": aiohttp_client,
    "aiohttp_wal": lambda *a: aiohttp_client(*a, journal=True),
    "openai": openai_client,
}


@contextlib.contextmanager
def mock_server(latency: float, **flags: float) -> Iterator[str]:
    """The mock server of the tests, in a process of its own, until the block ends; yields its root address."""
    command = [sys.executable, str(SERVER), "--latency-seconds", str(latency)]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def stats_of(address: str) -> dict[str, Any]:
    """The server's request counts."""
    with urllib.request.urlopen(f"{address}/stats", timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


def passed_of(stats: dict[str, Any]) -> int:
    """Number of requests that the server's rate limit admitted."""
    return int(stats["requests"] - stats["statuses"].get("429", 0))


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """One variant, in this process.

    Raises:
        RuntimeError: the server gave fewer answers than there are records.
    """
    records, connections, client = asked["records"], asked["connections"], CLIENTS[asked["variant"]]
    rate = asked.get("rate")
    flags = FAULTS | {"rate": rate, "burst": max(1.0, rate / 10)} if rate else {}
    with mock_server(asked["latency"], **flags) as address, tempfile.TemporaryDirectory(dir=asked["folder"]) as made:
        took, cpu = 0.0, 0.0
        for name, amount in (("first", WARM_UP), ("measured", records)):
            first_seconds, folder, before = took, Path(made) / name, stats_of(address)
            folder.mkdir()
            if client is ours:
                prepare(f"{address}/v1", folder, amount, connections)
            started, cpu_before = time.perf_counter(), time.process_time()
            client(f"{address}/v1", folder, amount, connections)
            took, cpu = time.perf_counter() - started, time.process_time() - cpu_before
        stats = stats_of(address)
    if stats["answers"] != WARM_UP + records:
        raise RuntimeError(f"the server gave {stats['answers']} answers for {WARM_UP} and {records} records")
    return {
        "seconds": [took],
        "peak_bytes": None,
        "first_seconds": round(first_seconds, 3),
        "resident_bytes": peak_resident_bytes(),
        "cpu_ms_per_record": round(1000 * cpu / records, 4),
        "most_at_a_time": stats["peak"],
        **({"rate_used": round((passed_of(stats) - passed_of(before)) / (rate * took), 4)} if rate else {}),
    }


def peak_resident_bytes() -> int:
    """Peak resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def finished(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with rates, without the folder."""
    done = []
    for row in rows:
        rest = {name: value for name, value in row.items() if name != "folder"}
        done.append(rest | {"records_per_second": round(row["records"] / row["seconds"], 1)})
    return done


def ratios_of(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Speed of ours relative to each peer (records a second), and the additional memory for many prompts."""
    from benchmarks.harness import ratio

    ratios: dict[str, float | None] = {
        f"records/s of ours over {peer}": ratio(rows, "ours", peer, "records_per_second")
        for peer in ("aiohttp", "aiohttp_wal", "openai")
    }
    by_name = {row["variant"]: row for row in rows}
    if {"ours", "ours_many"} <= set(by_name):
        more = by_name["ours_many"]["resident_bytes"] - by_name["ours"]["resident_bytes"]
        ratios["MB more with many prompts"] = round(more / 1e6, 1)
    return ratios


def values_of(rows: Sequence[dict[str, Any]], ratios: Mapping[str, float | None]) -> dict[str, float | None]:
    """The values of the aims, by name."""
    by_name = {row["variant"]: row for row in rows}
    ours, limited = by_name.get("ours", {}), by_name.get("ours_limited", {})
    figures = (
        ours.get("records_per_second"),
        ours.get("cpu_ms_per_record"),
        ratios.get("MB more with many prompts"),
        limited.get("rate_used"),
    )
    return {aim.name: value for aim, value in zip(AIMS, figures, strict=True)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; see the module's docstring."""
    parser = command_line(MODULE, __doc__, workers=True)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=200_000, help="0: leave it out; it has one round")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds until the server answers, on average")
    parser.add_argument("--rate", type=float, default=150, help="requests a second of ours_limited, for three minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CLIENTS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="the disk that is written to")
    options = parser.parse_args(arguments)
    if options.worker is not None:
        print(json.dumps(measure(json.loads(options.worker))))
        return
    # It loads torch, which workers must not carry.
    import torch

    from benchmarks.harness import Variant, has_peer, machine, print_result, run_interleaved

    about = machine(torch.device("cpu"))
    shared = {"connections": options.connections, "latency": options.latency, "folder": os.fspath(options.folder)}
    variants = []
    for name in CLIENTS:
        many = name == "ours_many"
        if (options.only and name not in options.only) or (many and not options.many):
            continue
        if name == "openai" and not has_peer("openai", "the comparison with the openai SDK"):
            continue
        settings = shared | {"records": options.many if many else options.records}
        limited = name == "ours_limited"
        if limited:
            settings |= {"records": int(180 * options.rate), "rate": options.rate}
        variants.append(Variant(name, settings, rounds=1 if many or limited else None))
    rows = finished(run_interleaved(MODULE, variants, options.rounds))
    ratios = ratios_of(rows)
    claims = claims_of(AIMS, values_of(rows, ratios))
    print_result("generate", about, rows, ratios, only_json=options.json, claims=claims)


if __name__ == "__main__":
    main()
