"""What a generation will cost at most, before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from potstill.generate.prices import check_price, dollars
from potstill.recipe import EndpointTeacher, ReasoningProgram, Recipe, SelfInstructProgram
from potstill.teachers.endpoint_wire import body_of, bound_tokens
from potstill.types import Record, Request, Sampling


def estimate(recipe: Recipe, records: Sequence[Record]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Lines for a person, and the figures behind them: answers, tokens, and money where the price is known. Upper
    bounds: every answer as long as it may be, every byte of a prompt a token.

    Raises:
        RecipeError: money is capped, and the price is not known.
    """
    settings = recipe.generate
    assert settings is not None
    if not settings.asks:
        return ("no teacher is asked",), {"answers": 0, "tokens_at_most": 0}
    if isinstance(settings, SelfInstructProgram):
        return _of_self_instruct(recipe, settings, records)
    if isinstance(settings, ReasoningProgram):
        return _of_reasoning(recipe, settings, records)
    samples, longest = getattr(settings, "samples", 1), getattr(settings, "max_new_tokens", 0)
    asked = len(records) * samples
    written = asked * longest
    token_budget = getattr(settings, "token_budget", None)
    written = min(written, token_budget) if token_budget else written
    teacher = recipe.teachers[settings.teacher]
    read = 0
    if isinstance(teacher, EndpointTeacher):
        read = samples * sum(_bound(record, longest, teacher) for record in records)
    return _said(recipe, f"{asked:,} answers", asked, written, read)


def _of_self_instruct(
    recipe: Recipe, settings: SelfInstructProgram, records: Sequence[Record]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    from potstill.generate.self_instruct_estimate import most_asked

    bound = most_asked(settings, records)
    written = min(bound.written, settings.token_budget or bound.written)
    teacher = recipe.teachers[settings.teacher]
    read = bound.prompt_bytes
    if isinstance(teacher, EndpointTeacher):
        # What is around a prompt in the body of a request is counted with each.
        read += bound.answers * _bound(Record(prompt=""), settings.max_new_tokens, teacher)
    return _said(recipe, f"at most {bound.answers:,} answers", bound.answers, written, read)


def _of_reasoning(
    recipe: Recipe, settings: ReasoningProgram, records: Sequence[Record]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    from potstill.generate.chains_estimate import most_asked

    teacher = recipe.teachers[settings.teacher]

    def reads(request: Request) -> int:
        return _bound_of(request, teacher) if isinstance(teacher, EndpointTeacher) else 0

    turns = not isinstance(teacher, EndpointTeacher) or teacher.api == "chat"
    bound = most_asked(settings, records, turns=turns, reads=reads)
    written = min(bound.written, settings.token_budget or bound.written)
    answers = f"at most {bound.answers:,} answers" + (f" ({bound.judged:,} of a judge)" if bound.judged else "")
    return _said(recipe, answers, bound.answers, written, bound.read)


def _said(recipe: Recipe, answers: str, asked: int, written: int, read: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    settings = recipe.generate
    assert settings is not None
    lines = [f"{answers}, at most {written:,} tokens written"]
    figures: dict[str, Any] = {"answers": asked, "tokens_at_most": written}
    teacher = recipe.teachers[settings.teacher]
    if not isinstance(teacher, EndpointTeacher):
        return tuple(lines), figures
    figures["tokens_read_at_most"] = read
    prices = check_price(teacher, settings.budget.money)
    if prices is None:
        lines.append(f"at most {read:,} tokens read; what they cost is not known (state teacher.price to see it)")
    else:
        most = dollars(prices.of(read, written, asked))
        figures["dollars_at_most"] = round(most, 6)
        lines.append(f"at most {read:,} tokens read; at most ${most:,.4f} (prices from {prices.source})")
    caps = [f"{name} {getattr(settings.budget, name):,g}" for name in settings.budget.stated]
    if caps:
        lines.append(f"capped at: {', '.join(caps)}")
    if teacher.api_key_env is not None and not os.environ.get(teacher.api_key_env, "").strip():
        lines.append(f"the environment variable {teacher.api_key_env} (the key) is not set here")
    return tuple(lines), figures


def _bound(record: Record, longest: int, teacher: EndpointTeacher) -> int:
    asked = Request(Sampling(longest or 1), record.messages, record.prompt or record.text or "", record.tools)
    return _bound_of(asked, teacher)


def _bound_of(asked: Request, teacher: EndpointTeacher) -> int:
    prompt = str([dict(m) for m in asked.messages]) if asked.messages is not None else asked.prompt
    return bound_tokens(body_of(asked, teacher, prompt, None))
