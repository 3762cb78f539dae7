"""Cost of two hundred watchers of a live page, and size of the first page.

    python -m benchmarks.studio --json

A tiny training runs in a process of its own, while windows without and with watchers alternate. Its speed varies
between windows, so each window is compared with its neighbour, the spread of these ratios is given, and the server's
share of a core too. The watchers themselves run on this machine as well, in the benchmark's process. Run it idle.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]

from benchmarks.claims import Aim, claims_of, command_line
from potstill.sweep.paired import mean_over

MODULE = "benchmarks.studio"
WATCHERS = 200
WINDOW_SECONDS = 8.0
_TESTS = Path(__file__).parents[1] / "tests"

AIMS = [
    Aim("first page with its style and scripts", "bytes", most=200_000),
    Aim("first page, in a new browser, until it can be used", "s", most=1.0),
    Aim("a training's rate without watchers over that with 200", "", most=1.02),
    Aim("the server's share of a core with 200 watchers", "", most=0.04),
    Aim("memory that the server gains from the first to the last window with 200", "MB", most=5.0),
]

RECIPE = """\
name: long
teacher: {kind: local, model: ./teacher, device: cpu}
student: {kind: from_teacher, layers: every_other}
data: {kind: jsonl, path: data.jsonl, held_out: 0.25}
train: {max_length: 64, objectives: [{kind: forward_kl}], args: {max_steps: 1000000, use_cpu: true, logging_steps: 5}}
"""


def make_run(folder: Path) -> None:
    """A run whose tiny model trains for hours."""
    sys.path.insert(0, str(_TESTS))
    import_module("tiny_models").make_tiny_causal_lm(folder / "teacher")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b c"}]
    rows = [{"messages": [{**turns[0], "content": f"q {number}"}, turns[1]]} for number in range(64)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def steps_done(run: Path) -> int:
    """The last step in the run's log."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()[-50:]
    noted = [event["step"] for line in lines if (event := json.loads(line))["event"] == "log"]
    return max(noted, default=0)


async def window(address: str, run: Path, server: psutil.Process, watchers: int) -> dict[str, float]:
    """Rate of the training, memory and processor share of the server, over one window."""

    async def watch(session: aiohttp.ClientSession) -> None:
        async with session.get(f"{address}runs/long/events") as stream:
            async for _ in stream.content.iter_any():
                pass

    endless = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=endless) as session:
        tasks = [asyncio.create_task(watch(session)) for _ in range(watchers)]
        await asyncio.sleep(2)
        before, started, cpu = steps_done(run), time.monotonic(), sum(server.cpu_times()[:2])
        await asyncio.sleep(WINDOW_SECONDS)
        seconds = time.monotonic() - started
        found = {
            "steps_per_second": (steps_done(run) - before) / seconds,
            "cores": (sum(server.cpu_times()[:2]) - cpu) / seconds,
            "megabytes": server.memory_info().rss / 1e6,
        }
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def first_page_bytes(address: str) -> int:
    """The bytes of the list of runs, its style and its scripts."""
    parts = ("", "static/studio.css", "static/studio.js", "static/htmx-4.0.1.min.js")
    async with aiohttp.ClientSession() as session:
        sizes = []
        for part in parts:
            async with session.get(address + part) as answer:
                sizes.append(len(await answer.read()))
    return sum(sizes)


async def seconds_until_usable(address: str, visits: int = 5) -> float | None:
    """Median time from asking for the first page until its scripts have run, each time in a browser without a cache;
    None without Chromium."""
    chromium = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if chromium is None:
        return None
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = []
        for _ in range(visits):
            context = await browser.new_context()
            page = await context.new_page()
            await page.goto(address)
            timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
            found.append(float(await page.evaluate(timing)) / 1000)
            await context.close()
        await browser.close()
    return statistics.median(found)


async def measure(rounds: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        make_run(runs / "long")
        command = [sys.executable, "-m", "potstill.cli", "studio", folder, "--port", "48765"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        run = runs / "long"
        command = [sys.executable, "-m", "potstill.cli", "run", str(run / "recipe.yaml"), "--run", str(run), "-q"]
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            address = next(line.split()[1] for line in process.stdout if line.startswith("open "))
            while not (runs / "long/events.jsonl").is_file() or steps_done(runs / "long") < 50:
                await asyncio.sleep(0.5)
            usable = await seconds_until_usable(address)
            page, server = await first_page_bytes(address), psutil.Process(process.pid)
            windows: dict[int, list[dict[str, float]]] = {0: [], WATCHERS: []}
            for number in range(rounds):
                # Alternate, so that neither is always first.
                for watchers in (0, WATCHERS) if number % 2 == 0 else (WATCHERS, 0):
                    windows[watchers].append(await window(address, runs / "long", server, watchers))
        finally:
            training.kill()
            process.kill()
            training.wait()
            process.wait()
    return {"first_page_bytes": page, "usable_seconds": usable, "alone": windows[0], "watched": windows[WATCHERS]}


def slow_downs(found: Mapping[str, Any]) -> list[float]:
    """The training's rate in each window without watchers over that in the neighbouring one with them."""
    pairs = zip(found["alone"], found["watched"], strict=True)
    return [alone["steps_per_second"] / watched["steps_per_second"] for alone, watched in pairs]


def figures(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The values of the aims, by name."""
    watched = found["watched"]
    values = (
        found["first_page_bytes"],
        found["usable_seconds"],
        statistics.median(slow_downs(found)),
        statistics.median(window["cores"] for window in watched),
        watched[-1]["megabytes"] - watched[0]["megabytes"],
    )
    return {
        aim.name: None if value is None else round(float(value), 4) for aim, value in zip(AIMS, values, strict=True)
    }


def main() -> None:
    """Measure, and print the windows and one line of JSON."""
    parser = command_line(MODULE, __doc__)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.rounds))
    claims = claims_of(AIMS, figures(found))
    ratios = slow_downs(found)
    mean = mean_over(ratios, 0.95)
    slow_down = {"median": statistics.median(ratios), "mean": None if mean is None else asdict(mean)}
    if arguments.json:
        print(json.dumps({"benchmark": "studio", **found, "slow_down": slow_down, "claims": claims}))
        return
    for claim in claims:
        print(f"{claim['name']:<75} {claim['value']:>12} {claim['unit']:<6} {claim['aim']:<10} {claim['met']}")


if __name__ == "__main__":
    main()
