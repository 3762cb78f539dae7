"""What a generation will cost at most, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.data.problems import as_prompt, with_reference
from potstill.generate.demand import Demand, of_judges
from potstill.generate.prices import check_price, dollars
from potstill.recipe import EndpointTeacher, ReasoningProgram, Recipe, SelfInstructProgram
from potstill.recipe.generate import GenerateSettings, VerifiedSettings
from potstill.recipe.verify import references_of
from potstill.teachers.endpoint_wire import body_of, bound_tokens
from potstill.types import Record, Request, Sampling


def estimate(recipe: Recipe, records: Sequence[Record]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Lines for a person, and the figures behind them: answers, tokens, and money where the price is known. Upper
    bounds: every answer as long as it may be, every byte of a prompt a token.

    Raises:
        RecipeError: money is capped, and a price is not known.
    """
    settings = recipe.generate
    assert settings is not None
    if not settings.asks:
        return ("no teacher is asked",), {"answers": 0, "tokens_at_most": 0}

    def reads(name: str, request: Request) -> int:
        teacher = recipe.teachers[name]
        return _bound(request, teacher) if isinstance(teacher, EndpointTeacher) else 0

    teacher = recipe.teachers[settings.teacher]
    turns = not isinstance(teacher, EndpointTeacher) or teacher.api == "chat" or teacher.tokenizer is not None
    if isinstance(settings, SelfInstructProgram):
        from potstill.generate import self_instruct_estimate

        return _said(recipe, self_instruct_estimate.most_asked(settings, records, reads=reads), at_most=True)
    if isinstance(settings, ReasoningProgram):
        from potstill.generate import chains_estimate

        return _said(recipe, chains_estimate.most_asked(settings, records, turns=turns, reads=reads), at_most=True)
    samples, longest = getattr(settings, "samples", 1), getattr(settings, "max_new_tokens", 0)
    asked = len(records) * samples
    sampling = Sampling(longest or 1)
    requests = (Request(sampling, r.messages, r.prompt or r.text or "", r.tools) for r in records)
    read = samples * sum(reads(settings.teacher, request) for request in requests)
    demands = [Demand(settings.teacher, asked, asked * longest, read)]
    if isinstance(settings, VerifiedSettings):
        judged = [(samples, prompt) for prompt in _prompts(settings, records, turns)]
        demands += of_judges(settings.verify, settings.teacher, judged, longest=longest, reads=reads)
    return _said(recipe, demands, at_most=False)


def _prompts(settings: VerifiedSettings, records: Sequence[Record], turns: bool) -> list[Record]:
    """What is judged, with the references that it is compared with."""
    keys = references_of(settings.verify)
    found = ((as_prompt(record, turns), record) for record in records)
    return [with_reference(prompt, record, *keys) for prompt, record in found if isinstance(prompt, Record)]


def _said(recipe: Recipe, demands: Sequence[Demand], *, at_most: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
    settings = recipe.generate
    assert settings is not None
    answers, judged = (sum(d.answers for d in demands if d.judges or not only) for only in (False, True))
    written = _within(settings, sum(d.written for d in demands))
    of_judges = f" ({judged:,} of a judge)" if judged else ""
    lines = [f"{'at most ' if at_most else ''}{answers:,} answers{of_judges}, at most {written:,} tokens written"]
    figures: dict[str, Any] = {"answers": answers, "tokens_at_most": written}
    remote = [name for name in settings.asked if isinstance(recipe.teachers[name], EndpointTeacher)]
    spent: list[float | None] = []
    for name in remote:
        its = [demand for demand in demands if demand.teacher == name]
        more, money = _of_endpoint(recipe, name, its, f"{name}: " if len(settings.asked) > 1 else "")
        lines += more
        spent.append(money)
        figures["tokens_read_at_most"] = figures.get("tokens_read_at_most", 0) + sum(d.read for d in its)
    if spent and None not in spent:
        figures["dollars_at_most"] = round(sum(money for money in spent if money is not None), 6)
    if remote:
        lines += _capped(settings)
    return tuple(lines), figures


def _of_endpoint(recipe: Recipe, name: str, demands: Sequence[Demand], prefix: str) -> tuple[list[str], float | None]:
    """What is said of an endpoint, and what it costs at most, if that is known."""
    teacher, settings = recipe.teachers[name], recipe.generate
    assert isinstance(teacher, EndpointTeacher) and settings is not None
    answers, written, read = (sum(getattr(d, key) for d in demands) for key in ("answers", "written", "read"))
    written = _within(settings, written)
    prices, lines, most = check_price(teacher, capped=settings.budget.money is not None), [], None
    if prices is None:
        lines.append(
            f"{prefix}at most {read:,} tokens read; what they cost is not known (state teacher.price to see it)"
        )
    else:
        most = dollars(prices.of(read, written, answers))
        lines.append(f"{prefix}at most {read:,} tokens read; at most ${most:,.4f} (prices from {prices.source})")
    return lines, most


def _within(settings: GenerateSettings, written: int) -> int:
    token_budget: int | None = getattr(settings, "token_budget", None)
    return written if token_budget is None else min(written, token_budget)


def _capped(settings: GenerateSettings) -> list[str]:
    caps = [f"{name} {getattr(settings.budget, name):,g}" for name in settings.budget.stated]
    return [f"capped at: {', '.join(caps)}"] if caps else []


def _bound(asked: Request, teacher: EndpointTeacher) -> int:
    prompt = str([dict(m) for m in asked.messages]) if asked.messages is not None else asked.prompt
    # A template that is rendered here writes around the turns what a server's would.
    around = 128 if teacher.api == "completions" and teacher.tokenizer is not None else 0
    return bound_tokens(body_of(asked, teacher, prompt, None)) + around
