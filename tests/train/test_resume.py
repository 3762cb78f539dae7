"""Interrupted training goes on from its last whole checkpoint, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from train.recipes import write_recipe
from train.small import conversations, largest_difference, trainer, weights_of
from transformers import TrainerCallback

from potstill.errors import RunError
from potstill.train import DistillTrainer
from potstill.train.checkpoints import checkpoints_in, step_of
from tiny_models import tiny_model

STEPS = 7


class Interrupted(Exception):
    pass


class InterruptAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interrupted


def with_dropout() -> nn.Module:
    return tiny_model("gpt2", layers=2, seed=1, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)


def with_adapter() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(tiny_model(layers=2, seed=1), config)


STUDENTS = {"dropout": with_dropout, "adapter": with_adapter}


def make(folder: Path, student: str = "dropout", **changes: Any) -> DistillTrainer:
    """Three steps an epoch, in micro-batches of 4 + 4, the last one smaller: step 5 is in the middle of an epoch."""
    teacher = tiny_model("gpt2" if student == "dropout" else "llama", layers=2, hidden=48, seed=2)
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
    }
    return trainer(folder, student=STUDENTS[student](), teacher=teacher, **settings | changes)


def interrupt(made: DistillTrainer, step: int) -> None:
    made.add_callback(InterruptAt(step))
    with pytest.raises(Interrupted):
        made.train()


@pytest.fixture(scope="module", params=STUDENTS)
def uninterrupted(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Tensor], float, int]:
    made = make(tmp_path_factory.mktemp("whole"), request.param)
    made.train()
    return request.param, weights_of(made.module), made.evaluate(conversations(5))["eval_kl"], made.tokens_seen


def check_equal(made: DistillTrainer, expected: tuple[str, dict[str, Tensor], float, int]) -> None:
    _, weights, kl, tokens = expected
    assert largest_difference(weights_of(made.module), weights) <= 1e-6
    assert made.evaluate(conversations(5))["eval_kl"] == pytest.approx(kl, rel=1e-6)
    assert made.tokens_seen == tokens
    logged = [entry["step"] for entry in made.state.log_history if "loss" in entry]
    assert logged == list(range(1, STEPS + 1))


def test_training_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, uninterrupted: Any) -> None:
    interrupt(make(tmp_path, uninterrupted[0]), step=5)
    assert [p.name for p in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    again = make(tmp_path, uninterrupted[0])
    again.train(resume_from_checkpoint=True)
    check_equal(again, uninterrupted)


def test_a_torn_checkpoint_is_passed_over_when_training_resumes(
    tmp_path: Path, uninterrupted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(make(tmp_path, uninterrupted[0]), step=5)
    torn = tmp_path / "checkpoint-4" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    again = make(tmp_path, uninterrupted[0])
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is not whole and is passed over" in caplog.text
    check_equal(again, uninterrupted)


def test_a_torn_checkpoint_that_is_named_is_refused(tmp_path: Path) -> None:
    make(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="not whole"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_nothing_more_is_learned_from_a_checkpoint_of_the_last_step(tmp_path: Path) -> None:
    made = make(tmp_path, max_steps=4)
    made.train()
    again = make(tmp_path, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert largest_difference(weights_of(again.module), weights_of(made.module)) == 0


def test_the_projector_is_restored_with_the_checkpoint(tmp_path: Path) -> None:
    made = make(tmp_path, max_steps=2)
    made.train()
    saved = load_file(tmp_path / "checkpoint-2" / "projectors.safetensors")
    again = make(tmp_path, max_steps=2)
    assert largest_difference(dict(again.module.projectors.state_dict()), saved) > 0, "it was drawn anew"
    again.train(resume_from_checkpoint=True)
    assert largest_difference(dict(again.module.projectors.state_dict()), saved) == 0
    made.save_model(str(tmp_path / "saved"))
    assert not any("project" in p.name for p in (tmp_path / "saved").iterdir())
    assert not any("project" in name for name in load_file(tmp_path / "saved" / "model.safetensors"))


def test_pickles_are_read_as_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, max_steps=2).train()
    read: list[tuple[str, Any]] = []
    load = torch.load

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        read.append((Path(file).name, kwargs.get("weights_only")))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    make(tmp_path, max_steps=4).train(resume_from_checkpoint=True)
    assert {name for name, _ in read} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert all(weights_only is True for _, weights_only in read)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    make(tmp_path, max_steps=2).train()
    other = trainer(
        tmp_path, student=tiny_model("gpt2", layers=3, seed=1), teacher=tiny_model("gpt2", layers=2, seed=2)
    )
    with pytest.raises(RunError, match="does not fit the student"):
        other.train(resume_from_checkpoint=True)


def test_there_is_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no whole checkpoint"):
        make(tmp_path).train(resume_from_checkpoint=True)


# ---- real kills ------------------------------------------------------------------------------------------------


class Killed:
    """A server that runs the stage in processes of its own; what they say goes to a file."""

    def __init__(self, said: Path) -> None:
        self.said = said
        with said.open("w") as out:
            self.server = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "recipes.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True,
            )  # fmt: skip

    def run(
        self, recipe: Path, run: Path, *overrides: str, kill: Callable[[float], bool] | None = None
    ) -> tuple[int, float, str]:
        """Exit status as `wait` gives it, seconds, and what the console said. It is killed as soon as `kill`, which is
        given the seconds since its start, says so."""
        assert self.server.stdin is not None and self.server.stdout is not None
        before = self.said.stat().st_size
        self.server.stdin.write(" ".join([str(recipe), str(run), *overrides]) + "\n")
        self.server.stdin.flush()
        child, started = int(self.server.stdout.readline()), time.monotonic()
        if kill is not None:
            while not (ended := _has_ended(child)) and not kill(time.monotonic() - started):
                time.sleep(0.002)
            with suppress(ProcessLookupError):  # it may have ended before
                if not ended:
                    os.kill(child, signal.SIGKILL)
        status = int(self.server.stdout.readline())
        return status, time.monotonic() - started, self.said.read_bytes()[before:].decode(errors="replace")


def _has_ended(process: int) -> bool:
    """Whether a child of the server is gone, or waits to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Killed]:
    made = Killed(tmp_path / "said")
    yield made
    assert made.server.stdin is not None
    made.server.stdin.close()
    made.server.wait(timeout=30)


def result(run: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    measured = [json.loads(line) for line in (run / "train" / "history.jsonl").read_text().splitlines()]
    return load_file(run / "train" / "model" / "model.safetensors"), measured


def kill_and_compare(
    server: Killed, tmp_path: Path, teacher: Path, kills: int, seed: int, *, by_time: bool = True, **changes: Any
) -> int:
    """Kill a training this many times, let it finish, and compare. Returns how often it went on from a checkpoint.

    The kills come at random moments, or with `by_time` False a random number of checkpoints after the one that the
    attempt began with, which no load on the machine moves.
    """
    recipe = write_recipe(tmp_path, teacher, **changes)
    often = "train.checkpoint_seconds=0.01"
    status, seconds, _ = server.run(recipe, tmp_path / "whole", often)
    assert status == 0
    moments, went_on, run = random.Random(seed), 0, tmp_path / "run"

    def end() -> Callable[[float], bool]:
        if by_time:
            moment = moments.uniform(0.1, 1.0) * seconds
            return lambda since: since >= moment
        step = newest(run) + moments.randint(1, 2)
        return lambda since: newest(run) >= step

    for kill in [*(end for _ in range(kills)), None]:
        status, _, said = server.run(recipe, run, often, kill=None if kill is None else kill())
        went_on += "(from step" in said
        if status == 0:
            break
        assert status == signal.SIGKILL, said
    (weights, history), (expected, expected_history) = result(run), result(tmp_path / "whole")
    assert largest_difference(weights, expected) <= 1e-6
    for key in ("loss", "eval_kl"):
        ours = {entry["step"]: entry[key] for entry in history if key in entry}
        theirs = {entry["step"]: entry[key] for entry in expected_history if key in entry}
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert not list(run.glob(".partial-*"))
    return went_on


def newest(run: Path) -> int:
    """The step of the newest checkpoint of an unfinished training; 0 where there is none."""
    return max((step_of(p) for folder in run.glob(".partial-*/checkpoints") for p in checkpoints_in(folder)), default=0)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, tiny_llama: Path, server: Killed) -> None:
    assert kill_and_compare(server, tmp_path, tiny_llama, kills=4, seed=11, by_time=False) > 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["plain", "adapter and projector", "best"])
def test_many_kills(tmp_path: Path, tiny_llama: Path, server: Killed, seed: int, kind: str) -> None:
    three = [{"kind": "forward_kl"}, {"kind": "hard_ce"}, {"kind": "hidden_cosine", "over": "tokens"}]
    changes: dict[str, Any] = {
        "plain": {},
        "adapter and projector": {
            "student": {"kind": "from_teacher", "layers": [0, 3], "lora": {"r": 2, "dropout": 0.1}},
            "train": {"objectives": three},
        },
        "best": {"train": {"keep": "best", "evaluations": 6}},
    }
    kill_and_compare(server, tmp_path, tiny_llama, kills=6, seed=seed, **changes[kind])
