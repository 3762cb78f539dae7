"""Separate a model's reasoning from its answer."""

from __future__ import annotations

from dataclasses import replace

from potstill.types import Answer

OPEN, CLOSE = "<think>", "</think>"


def split_reasoning(answer: Answer, *, required: bool = False) -> Answer | None:
    """The answer with its reasoning split off into `reasoning`; None if the reasoning has no end.

    Reasoning is what the server sets apart; else the text between a leading `<think>` and `</think>`; else the text
    before a bare `</think>` (templates that open the block in the prompt). The last `</think>` counts, so that no
    reasoning is taken for an answer. Reasoning that was cut short without an answer has no end either.

    Args:
        answer: as the teacher gave it.
        required: the teacher always reasons: an answer without `</think>` was cut short inside its reasoning.
    """
    if answer.reasoning is not None:
        unended = not answer.text.strip() and answer.finish == "length"
        return None if unended or answer.text.lstrip().startswith(OPEN) else answer
    before, close, text = answer.text.rpartition(CLOSE)
    if not close:
        return None if required or answer.text.lstrip().startswith(OPEN) else answer
    if text.lstrip().startswith(OPEN):
        return None
    reasoning = before.strip().removeprefix(OPEN).strip()
    return replace(answer, text=text.lstrip(), reasoning=reasoning)
