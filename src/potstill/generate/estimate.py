"""The requests and the maximum cost of a generation, before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.data.problems import as_prompt, with_reference
from potstill.generate.reasoning import reference_of, render_request
from potstill.generate.self_instruct import SHOWN_EXAMPLES, seed_of
from potstill.generate.self_instruct_text import (
    classification_prompt,
    examples_prompt,
    instructions_prompt,
    labelled_examples_prompt,
    tasks_prompt,
)
from potstill.recipe import EndpointTeacher, ReasoningProgram, Recipe, SelfInstructProgram
from potstill.recipe.generate import GenerateSettings, VerifiedSettings
from potstill.recipe.verify import VerifierSettings, judges_of, references_of
from potstill.teachers.endpoint_wire import body_of, bound_tokens
from potstill.teachers.prices import check_price, dollars
from potstill.types import Record, Request, Sampling
from potstill.verify.judge import asking, questions_of

Reads = Callable[[str, Request], int]
"""An upper bound on the tokens that the teacher of that name reads for a request."""


@dataclass(frozen=True)
class Demand:
    """The maximum demand on one teacher, for writing or for judging."""

    teacher: str
    answers: int
    written: int
    read: int
    judges: bool = False


def of_judges(
    verify: VerifierSettings | None,
    writer: str,
    judged: Iterable[tuple[int, Record]],
    *,
    longest: int,
    reads: Reads,
) -> Iterator[Demand]:
    """The demand on each judge of a verifier.

    Args:
        verify: its settings.
        writer: the name of the teacher that writes; it is also the judge if none is named.
        judged: (number of answers, prompt with its reference) each.
        longest: tokens of the longest answer, at four bytes each.
        reads: bounds the tokens of a request.
    """
    judges, text = tuple(judges_of(verify)), "x" * 4 * longest
    prompts = list(judged) if judges else []
    for judge in judges:
        name = judge.teacher or writer
        asked = read = 0
        for answers, prompt in prompts:
            questions = [asking(judge, question) for question in questions_of(judge, prompt, text)]
            asked += answers * len(questions)
            read += answers * sum(reads(name, question) for question in questions)
        yield Demand(name, asked, asked * judge.max_new_tokens, read, judges=True)


def of_reasoning(
    settings: ReasoningProgram, records: Iterable[Record], *, turns: bool, reads: Reads
) -> tuple[Demand, ...]:
    """An upper bound for a whole run: all samples of every problem, a hint for each, every answer judged.

    Args:
        settings: the program's.
        records: the problems.
        turns: whether a plain prompt becomes the user's turn.
        reads: bounds the tokens of a request.
    """
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    judged: list[tuple[int, Record]] = []
    chains = read = 0
    for record in records:
        prompt = as_prompt(record, turns)
        if isinstance(prompt, str):
            continue
        prompt = with_reference(prompt, record, settings.reference)
        reference = reference_of(prompt, settings.reference)
        try:
            put = [(settings.samples, render_request(settings.instruction, prompt, sampling, 0))]
            if settings.hint is not None and reference is not None:
                put.append((settings.hint_samples, render_request(settings.hint, prompt, sampling, 0, reference)))
        except ValueError:
            continue  # the problem is not a text
        answers = sum(samples for samples, _ in put)
        chains += answers
        read += sum(samples * reads(settings.teacher, request) for samples, request in put)
        judged.append((answers, prompt))
    writes = Demand(settings.teacher, chains, chains * settings.max_new_tokens, read)
    judging = of_judges(settings.verify, settings.teacher, judged, longest=settings.max_new_tokens, reads=reads)
    return writes, *judging


_EXAMPLES = 8


def of_self_instruct(settings: SelfInstructProgram, records: Iterable[Record], *, reads: Reads) -> tuple[Demand, ...]:
    """An upper bound for a whole run: every call made, every answer of maximum length, every round requesting examples
    for the whole target, every task judged (in style `self_instruct` with at most eight examples each). A generated
    task that is shown again counts four bytes a token, or as much as the longest seed."""
    seeds = [seed for record in records if (seed := seed_of(record)) is not None]
    own_words = "x" * 12 * settings.most_words
    make = tasks_prompt if settings.style == "alpaca" else instructions_prompt
    sized = sorted(seeds, key=lambda seed: len(make([seed], settings.tasks).encode()), reverse=True)
    shown = sized[: settings.shown]
    generated = 4 * settings.max_new_tokens * settings.shown_generated
    longest = sorted(seeds, key=lambda s: len(f"{s.instruction}{s.input}{s.output}".encode()), reverse=True)
    wanted = settings.target * math.ceil(settings.calls / settings.calls_per_round)
    answers, written = settings.calls, settings.calls * settings.max_new_tokens
    read = settings.calls * (len(make(shown, settings.tasks).encode()) + generated)
    if settings.style == "self_instruct":
        examples = max(
            len(examples_prompt(own_words, longest[:SHOWN_EXAMPLES]).encode()),
            len(labelled_examples_prompt(own_words).encode()),
        )
        answers += wanted
        written += wanted * settings.max_new_tokens
        read += wanted * examples
        if settings.classification:
            answers, written = answers + wanted, written + 3 * wanted
            read += wanted * len(classification_prompt(own_words).encode())
    # The text around a prompt in a request's body is counted with each.
    read += answers * reads(settings.teacher, Request(Sampling(settings.max_new_tokens), prompt=""))
    writes = Demand(settings.teacher, answers, written, read)
    task = Record(prompt=own_words + "x" * 4 * settings.max_new_tokens)  # an instruction, and its input
    judged = [(settings.target if settings.style == "alpaca" else _EXAMPLES * wanted, task)]
    return writes, *of_judges(settings.verify, settings.teacher, judged, longest=settings.max_new_tokens, reads=reads)


def estimate(recipe: Recipe, records: Sequence[Record]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Lines for a person, and the figures behind them: answers, tokens, and money if the price is known. Upper bounds:
    every answer of maximum length, every byte of a prompt a token.

    Raises:
        RecipeError: money is capped, and a price is unknown.
    """
    settings = recipe.required_generate
    if not settings.asks:
        return ("no teacher is asked",), {"answers": 0, "tokens_at_most": 0}

    def reads(name: str, request: Request) -> int:
        teacher = recipe.teachers[name]
        return _bound(request, teacher) if isinstance(teacher, EndpointTeacher) else 0

    teacher = recipe.teachers[settings.teacher]
    turns = not isinstance(teacher, EndpointTeacher) or teacher.api == "chat" or teacher.tokenizer is not None
    if isinstance(settings, SelfInstructProgram):
        return _lines(recipe, settings, of_self_instruct(settings, records, reads=reads), at_most=True)
    if isinstance(settings, ReasoningProgram):
        return _lines(recipe, settings, of_reasoning(settings, records, turns=turns, reads=reads), at_most=True)
    samples, longest = getattr(settings, "samples", 1), getattr(settings, "max_new_tokens", 0)
    asked = len(records) * samples
    sampling = Sampling(longest or 1)
    requests = (Request(sampling, r.messages, r.prompt or r.text or "", r.tools) for r in records)
    read = samples * sum(reads(settings.teacher, request) for request in requests)
    demands = [Demand(settings.teacher, asked, asked * longest, read)]
    if isinstance(settings, VerifiedSettings):
        judged = [(samples, prompt) for prompt in _prompts(settings, records, turns)]
        demands += of_judges(settings.verify, settings.teacher, judged, longest=longest, reads=reads)
    return _lines(recipe, settings, demands, at_most=False)


def _prompts(settings: VerifiedSettings, records: Sequence[Record], turns: bool) -> list[Record]:
    """The prompts to judge, with their references."""
    keys = references_of(settings.verify)
    found = ((as_prompt(record, turns), record) for record in records)
    return [with_reference(prompt, record, *keys) for prompt, record in found if isinstance(prompt, Record)]


def _lines(
    recipe: Recipe, settings: GenerateSettings, demands: Sequence[Demand], *, at_most: bool
) -> tuple[tuple[str, ...], dict[str, Any]]:
    answers, judged = (sum(d.answers for d in demands if d.judges or not only) for only in (False, True))
    written = _within(settings, sum(d.written for d in demands))
    of_judges = f" ({judged:,} of a judge)" if judged else ""
    lines = [f"{'at most ' if at_most else ''}{answers:,} answers{of_judges}, at most {written:,} tokens written"]
    figures: dict[str, Any] = {"answers": answers, "tokens_at_most": written}
    asked = {name: recipe.teachers[name] for name in settings.asked}
    remote = {name: teacher for name, teacher in asked.items() if isinstance(teacher, EndpointTeacher)}
    spent: list[float | None] = []
    for name, teacher in remote.items():
        its = [demand for demand in demands if demand.teacher == name]
        more, money = _of_endpoint(settings, teacher, its, f"{name}: " if len(asked) > 1 else "")
        lines += more
        spent.append(money)
        figures["tokens_read_at_most"] = figures.get("tokens_read_at_most", 0) + sum(d.read for d in its)
    if spent and None not in spent:
        figures["dollars_at_most"] = round(sum(money for money in spent if money is not None), 6)
    if remote:
        lines += _capped(settings)
    return tuple(lines), figures


def _of_endpoint(
    settings: GenerateSettings, teacher: EndpointTeacher, demands: Sequence[Demand], prefix: str
) -> tuple[list[str], float | None]:
    """Lines about an endpoint, and its maximum cost in dollars, if known."""
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
    # A template that is rendered here adds the text that a server's would.
    around = 128 if teacher.api == "completions" and teacher.tokenizer is not None else 0
    return bound_tokens(body_of(asked, teacher, prompt, None)) + around
