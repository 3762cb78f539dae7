"""`kill -9` at any moment, then the same command: the same rows, and at most one batch written twice (rule 11)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from generate.run_generate import main

SCRIPT = Path(__file__).parent / "run_generate.py"
BATCH_SECONDS = 0.04
RECIPE = """
name: killed
seed: 7
teacher: {kind: fake, seconds: %s, calls: %s, empty_every: 9}
data: {kind: jsonl, path: prompts.jsonl, format: prompt, held_out: 0.2}
generate: {kind: sequence, samples: 2, temperature: 0.7, max_new_tokens: 24, batch_size: 6, token_budget: %s}
"""


class Campaign:
    """A recipe in a folder, and what became of it."""

    def __init__(self, folder: Path, *, seconds: float = BATCH_SECONDS, budget: int = 1200) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.calls, self.run = folder, folder / "calls", folder / "run"
        draw = random.Random(1)
        lines = [f'{{"prompt": "{i} {"and more " * draw.randrange(1, 9)}"}}' for i in range(48)]
        (folder / "prompts.jsonl").write_text("\n".join(lines))
        (folder / "recipe.yaml").write_text(RECIPE % (seconds, self.calls, budget))

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), str(self.folder / "recipe.yaml"), str(self.run), *overrides]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def finish(self, *overrides: str) -> None:
        process = self.start(*overrides)
        _, errors = process.communicate()
        assert process.returncode == 0, errors

    def wait_for(self, batches: int, process: subprocess.Popen[str]) -> None:
        """Until so many batches were begun, or it ended by itself."""
        deadline = time.monotonic() + 300
        while self.batches < batches and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    @property
    def batches(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    @property
    def output(self) -> dict[str, bytes]:
        return {name: (self.run / "generate" / name).read_bytes() for name in ("records.parquet", "rejects.jsonl")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """An uninterrupted run."""
    campaign = Campaign(tmp_path_factory.mktemp("whole"))
    campaign.finish()
    assert campaign.batches >= 10
    return campaign


def kill(process: subprocess.Popen[str]) -> bool:
    """SIGKILL it; whether it was still at work."""
    alive = process.poll() is None
    os.kill(process.pid, signal.SIGKILL) if alive else None
    process.communicate()
    return alive


def test_killed_at_random_moments_of_its_work_it_ends_with_the_same_rows(whole: Campaign, tmp_path: Path) -> None:
    """A kill while the n-th batch is under way or just after, for several n, all in one run."""
    campaign, draw, kills = Campaign(tmp_path / "killed"), random.Random(os.urandom(8)), 0
    for after in (1, 3, 4, 8, whole.batches):
        process = campaign.start()
        campaign.wait_for(after + kills, process)
        time.sleep(draw.uniform(0, 1.5 * BATCH_SECONDS))
        kills += kill(process)
    assert kills >= 4
    campaign.finish()
    assert campaign.output == whole.output
    assert campaign.batches <= whole.batches + kills
    assert not list(campaign.run.glob(".partial-*"))


@pytest.mark.long
def test_fifty_kills_at_fifty_random_points(whole: Campaign, tmp_path: Path) -> None:
    """Fifty runs, each killed once at a random point of its whole duration (start-up and writing included) and then
    completed: no answer lost, none twice, at most one batch repeated."""
    started = time.monotonic()
    Campaign(tmp_path / "timed", seconds=2 * BATCH_SECONDS).finish()
    duration = time.monotonic() - started
    draw, kills, repeated, at_work = random.Random(os.urandom(8)), 0, [], 0
    for index in range(50):
        campaign = Campaign(tmp_path / f"killed-{index}", seconds=2 * BATCH_SECONDS)
        process = campaign.start()
        time.sleep(draw.uniform(0, duration))
        kills += kill(process)
        at_work += 0 < campaign.batches < whole.batches
        campaign.finish()
        assert campaign.output == whole.output
        repeated.append(campaign.batches - whole.batches)
        shutil.rmtree(campaign.folder)
    assert max(repeated) <= 1
    print(f"50 runs, {kills} killed alive, {at_work} between batches; {sum(repeated)} batches repeated, 0 rows differ")


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A finished run; its teacher takes no time."""
    campaign = Campaign(tmp_path_factory.mktemp("answered"), seconds=0.0)
    run_here(campaign)
    return campaign


def test_a_second_run_asks_nothing(whole: Campaign, answered: Campaign) -> None:
    before = answered.batches
    run_here(answered)
    assert answered.batches == before
    assert answered.output == whole.output


@pytest.mark.parametrize(
    "change",
    [
        "generate.temperature=0.8",
        "generate.top_p=0.9",
        "generate.top_k=9",
        "generate.max_new_tokens=23",
        "generate.batch_size=4",
        "teacher.name=other",
        "teacher.dtype=float32",
        "teacher.template='{% for m in messages %}{{ m.content }}{% endfor %}'",
        "seed=8",
    ],
)
def test_what_changes_answers_is_a_miss(change: str, answered: Campaign, whole: Campaign) -> None:
    before = answered.batches
    run_here(answered, change)
    # Not exactly as many: answers of other lengths use the budget up elsewhere.
    assert answered.batches - before >= 0.7 * whole.batches
    assert answered.output["records.parquet"] != whole.output["records.parquet"]


@pytest.mark.parametrize("change", ["generate.keep_unfinished=false", "data.licence=CC0-1.0"])
def test_what_only_changes_what_is_kept_asks_nothing(change: str, answered: Campaign, whole: Campaign) -> None:
    before = answered.batches
    run_here(answered, change)
    assert answered.batches == before
    assert answered.output["records.parquet"] != whole.output["records.parquet"]


@pytest.mark.needs("mounts")
def test_a_full_disk_keeps_what_was_answered(whole: Campaign, tmp_path: Path) -> None:
    """The run folder is a small tmpfs, and fills up in the middle of the work."""
    campaign = Campaign(tmp_path / "full")
    campaign.run.mkdir()
    command = " ".join([sys.executable, str(SCRIPT), str(campaign.folder / "recipe.yaml"), str(campaign.run)])
    script = f"""
        set -u
        mount -t tmpfs -o size=512k tmpfs {campaign.run} || exit 99
        dd if=/dev/zero of={campaign.run}/ballast bs=1k count=440 2>/dev/null
        {command}; echo "full: $?"; wc -l < {campaign.calls}
        rm {campaign.run}/ballast
        {command}; echo "freed: $?"
        cp -r {campaign.run}/generate {campaign.folder}/saved
    """
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
    full, calls, freed = done.stdout.split("\n")[:3]
    assert full == "full: 2" and "the disk is full" in done.stderr and "free some space" in done.stderr
    assert 1 < int(calls) < whole.batches
    assert freed == "freed: 0"
    assert campaign.batches == whole.batches + 1  # the batch that no longer fitted
    for name, content in whole.output.items():
        assert (campaign.folder / "saved" / name).read_bytes() == content


def run_here(campaign: Campaign, *overrides: str) -> None:
    """The same without a process of its own."""
    assert main(str(campaign.folder / "recipe.yaml"), str(campaign.run), *overrides) == 0
