"""When to save and to evaluate, and progress on the console."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.console import Console, Progress


class SaveBySeconds(TrainerCallback):
    """Saves a checkpoint when `seconds` have passed since the last one; the first process decides for all.

    At the last step only with `at_the_end`: usually the caller writes the result itself.
    """

    def __init__(self, seconds: float, *, at_the_end: bool = False) -> None:
        self.seconds, self.at_the_end = seconds, at_the_end
        self._last = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = time.monotonic() - self._last >= self.seconds
        last = state.global_step >= state.max_steps
        if (last and self.at_the_end) or (_first_decides(due, args) and not last):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = time.monotonic()


class EvaluateEvenly(TrainerCallback):
    """Evaluates `times` times, evenly spaced, the last time at the last step."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps(state.max_steps):
            control.should_evaluate = True

    def steps(self, max_steps: int) -> set[int]:
        """The optimiser steps after which to evaluate."""
        return {max(1, round(max_steps * k / self.times)) for k in range(1, self.times + 1)}


class CountsTokens(Protocol):
    """What a `ConsoleProgress` reads: tokens seen so far, and in the whole training."""

    tokens_seen: int

    def tokens_in_all(self, max_steps: int) -> int: ...


class ConsoleProgress(TrainerCallback):
    """Tokens (or `unit`) per second, loss and time left, on a `Console`. Only the first process prints."""

    def __init__(self, console: Console, label: str, unit: str = "tokens") -> None:
        self.console, self.label, self.unit = console, label, unit
        self.trainer: CountsTokens | None = None
        self._task: Progress | None = None
        self._close: Any = None
        self._shown = 0
        self._note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or self.trainer is None:
            return
        self._shown = self.trainer.tokens_seen
        left = max(self.trainer.tokens_in_all(state.max_steps) - self._shown, 0)
        label = self.label if state.global_step == 0 else f"{self.label} (from step {state.global_step})"
        self._close = self.console.task(label, total=left, unit=self.unit)
        self._task = self._close.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._task is None or self.trainer is None:
            return
        note = f"step {state.global_step}/{state.max_steps}{self._note}"
        self._task.advance(self.trainer.tokens_seen - self._shown, note)
        self._shown = self.trainer.tokens_seen

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._note = f", loss {logs['loss']:.3f}"
            if state.is_world_process_zero:
                self.console.note("log", step=state.global_step, steps=state.max_steps, loss=logs["loss"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not metrics:
            return
        shown = {"eval_kl": "KL {:.3f}", "eval_nll": "NLL {:.3f}", "eval_top1_agreement": "agreement {:.3f}"}
        shown |= {"eval_accuracy": "accuracy {:.3f}", "eval_objectives": "loss {:.4f}"}
        text = ", ".join(form.format(metrics[name]) for name, form in shown.items() if name in metrics)
        facts = {name.removeprefix("eval_"): metrics[name] for name in shown if name in metrics}
        self.console.say(f"held out, step {state.global_step}: {text}", step=state.global_step, **facts)

    def close(self) -> None:
        """End the task, also after an interruption."""
        if self._close is not None:
            self._close.__exit__(None, None, None)
            self._close = self._task = None


def _first_decides(decision: bool, args: TrainingArguments) -> bool:
    if args.world_size <= 1:
        return decision
    decided = torch.tensor(int(decision), device=args.device)
    torch.distributed.broadcast(decided, src=0)
    return bool(decided.item())
