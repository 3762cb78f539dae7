"""Where an answer ends its reasoning: read off what a model wrote."""

from __future__ import annotations

from dataclasses import replace

from potstill.types import Answer

OPEN, CLOSE = "<think>", "</think>"


def split_reasoning(answer: Answer, *, required: bool = False) -> Answer | None:
    """The answer without its reasoning, which then stands apart; None if its reasoning has no end.

    Reasoning is what the server sets apart; else what stands between `<think>` at the beginning and `</think>`; else
    what stands before a bare `</think>` (templates that open the block in the prompt). Where there are several ends,
    the last one counts, so that no word of reasoning is taken for an answer. Reasoning without an answer behind it, cut
    short, has no end either.

    Args:
        answer: as the teacher gave it.
        required: the teacher always reasons: an answer without any end of it was cut short inside.
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
