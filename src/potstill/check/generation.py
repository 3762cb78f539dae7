"""Preconditions on generation: prompts, teachers, verifiers, and the maximum cost."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from potstill import registry
from potstill.check.findings import Finding, facts, warning
from potstill.check.inputs import RECORDS_READ, Inputs
from potstill.data.problems import Admitted, admit, as_prompt, with_reference
from potstill.data.tokenize import ids_of
from potstill.errors import DataError, MissingExtra, RecipeError
from potstill.models.resolve import locate
from potstill.quantities import counted
from potstill.recipe import (
    ConversationsProgram,
    EndpointTeacher,
    Recipe,
    SelfInstructProgram,
    VerifierSettings,
    members_of,
)
from potstill.recipe.measures import Capability
from potstill.recipe.verify import Judge, Language, leaves_of, references_of
from potstill.types import Reason, Record, Sampling

_MUCH = 0.1
"""A warning is given if at least this share of prompts does not fit."""


def verifiers_of(recipe: Recipe) -> Iterator[VerifierSettings]:
    """Every verifier of a recipe, including those in composites."""
    evaluate = recipe.evaluate
    solve = evaluate.solve if evaluate is not None else None
    measures = evaluate.measures or () if evaluate is not None else ()
    written = [(task, "verify") for m in measures if isinstance(m, Capability) for task in m.written]
    for section, key in ((recipe.generate, "verify"), (recipe.generate, "language"), (solve, "verify"), *written):
        yield from leaves_of(getattr(section, key, None))


def verifiers_can_be_opened(inputs: Inputs) -> None:
    """The packages that verifiers need are installed, languages are known, and programs have a sandbox."""
    for leaf in verifiers_of(inputs.recipe):
        if isinstance(leaf, Judge):
            continue  # it judges through a teacher
        opened = registry.build(leaf)
        if isinstance(leaf, Language):
            opened.verify(Record(text=""), "")  # this looks up its languages
        opened.close()
    needs_overlap = isinstance(inputs.recipe.generate, SelfInstructProgram)
    if needs_overlap and importlib.util.find_spec("rapidfuzz") is None:
        raise MissingExtra("rapidfuzz", "generate", "ROUGE-L")


def verifiers_can_judge(inputs: Inputs) -> None:
    """The data have what verifiers compare with: reference answers, tests, schemas."""
    generate = inputs.recipe.generate
    verify: VerifierSettings | None = getattr(generate, "verify", None)
    if generate is None or verify is None or inputs.sides is None or isinstance(generate, SelfInstructProgram):
        return
    if getattr(generate, "unjudged", "reject") == "reject":
        from potstill.verify.preconditions import refuse_unjudgeable

        own = getattr(generate, "reference", None)
        keys = (own,) if own is not None else references_of(verify)
        prompts = [
            with_reference(prompt, record, *keys)
            for record in (*inputs.records("train"), *inputs.asked_held_out())
            if isinstance(prompt := as_prompt(record, turns=True), Record)
        ]
        if prompts:
            refuse_unjudgeable(verify, prompts, called=counted(len(prompts), "prompt"), where="generate.verify")


def endpoints_can_be_asked(inputs: Inputs) -> Iterator[Finding]:
    """The servers' keys are set, tokenizers for rendering are on this machine, and conversations can be rendered."""
    generate, evaluate = inputs.recipe.generate, inputs.recipe.evaluate
    writers = generate.asked if generate is not None else ()
    judges = evaluate.asked if evaluate is not None else ()
    for name in dict.fromkeys((*writers, *judges)):
        for teacher in members_of(inputs.recipe.teachers[name]):
            if not isinstance(teacher, EndpointTeacher):
                continue
            opened = registry.build(teacher)
            try:
                opened.secret()
            except RecipeError as error:
                # A check may run on another machine than the run.
                yield warning("generate", f"{name}: {error.what} here ({error.fix})")
            if teacher.tokenizer is not None and locate(teacher.tokenizer) is None:
                yield Finding("teachers", f"{name}: its tokenizer, {teacher.tokenizer}, will be fetched")
            elif teacher.api == "completions" and inputs.sides is not None:
                first = next(iter(inputs.records("train")), None)
                if first is not None and isinstance(prompt := as_prompt(first, opened.turns), Record):
                    opened.rendered(_request(prompt))


def prompts_fit(inputs: Inputs) -> Iterator[Finding]:
    """Prompts rendered by the teacher's template leave room for an answer in its context."""
    recipe = inputs.recipe
    generate = recipe.generate
    if generate is None or not generate.asks or inputs.sides is None or not generate.answers_records:
        return
    teacher = recipe.teachers[generate.teacher]
    chat = inputs.chat(teacher)
    if chat is None:
        return
    if chat.template is None and not getattr(teacher, "remote", False):
        yield warning(
            "generate",
            f"{generate.teacher} has no chat template: prompts are continued as they stand, not answered as questions",
        )
    known = inputs.facts(teacher)
    stated = getattr(teacher, "context_length", None)
    context = stated or (known.context_length if known is not None else None)
    longest = int(getattr(generate, "max_new_tokens", 0))
    filled, short, refused, looked_at, seen = 0, 0, Counter[str](), 0, set[int]()
    for record in islice((*inputs.records("train"), *inputs.asked_held_out()), RECORDS_READ):
        admitted = admit(record, chat.template is not None, seen, lambda prompt: len(ids_of(prompt, chat)))
        if isinstance(admitted, Admitted):
            looked_at += 1
            room = (context or 1 << 62) - (admitted.tokens or 0)
            filled += room <= 0
            short += 0 < room < longest
        elif admitted.reason == Reason.TEMPLATE_REFUSES:
            looked_at += 1
            refused[admitted.detail] += 1
    if looked_at and filled + sum(refused.values()) == looked_at:
        why = f"the chat template refuses them ({refused.most_common(1)[0][0]})" if refused else "they fill its context"
        raise DataError(
            f"none of {looked_at:,} prompts can be put to {generate.teacher}: {why}",
            where="data",
            fix=f"shorten them to leave room in {context:,} tokens" if context and filled else "see its chat template",
        )
    for count, what in ((filled, f"fill the teacher's context of {context} tokens"), (short, "leave less room")):
        if count:
            text = f"{count:,} of {looked_at:,} prompts {what}" + (" than max_new_tokens" if count is short else "")
            yield warning("generate", text) if count > _MUCH * looked_at else Finding("generate", text)
    if refused:
        yield warning("generate", f"the chat template refuses {sum(refused.values()):,} of {looked_at:,} prompts")


def _request(prompt: Record) -> Any:
    from potstill.types import Request

    return Request(Sampling(1), prompt.messages, prompt.prompt or "", prompt.tools)


def seeds_suffice(inputs: Inputs) -> Iterator[Finding]:
    """Self-instruct has as many seeds (instructions with outputs) as a prompt shows."""
    generate = inputs.recipe.generate
    if not isinstance(generate, SelfInstructProgram) or inputs.sides is None:
        return
    from potstill.generate.self_instruct import seed_of

    records = (*inputs.records("train"), *inputs.records("held_out"))
    seeds = sum(seed_of(record) is not None for record in records)
    needed = generate.shown  # the first calls have no generated ones to show
    if seeds < needed:
        raise DataError(
            f"{seeds} seeds, and a prompt shows {needed}",
            where="data",
            fix="give more seeds with instruction and output (recipes/seeds.jsonl has some), or lower "
            "generate.demonstrations",
        )
    yield Finding("generate", f"{seeds:,} seeds, {needed} of them in a prompt")


def conversations_can_be_counted(inputs: Inputs) -> Iterator[Finding]:
    """Conversations that are split by tokens have a tokenizer with a chat template; HTML has its converter."""
    generate = inputs.recipe.generate
    if not isinstance(generate, ConversationsProgram):
        return
    if generate.html == "always" and importlib.util.find_spec("markdownify") is None:
        raise MissingExtra("markdownify", "generate", "turning HTML into Markdown")
    if generate.tokenizer is None or generate.max_length is None:
        return
    source = locate(generate.tokenizer)
    if source is None:
        yield Finding("generate", f"the tokenizer, {generate.tokenizer}, will be fetched")
        return
    if not inputs.chat_in(source.path).templates:
        raise DataError(
            "the tokenizer has no chat template, so the length of a conversation is not known",
            where=f"generate.tokenizer: {generate.tokenizer}",
            fix="name one that has (an instruct model's), or set max_length: null",
        )


def generation_is_estimated(inputs: Inputs) -> Iterator[Finding]:
    """The number of answers, and the maximum of tokens and dollars."""
    recipe = inputs.recipe
    if recipe.generate is None or inputs.sides is None:
        return
    from potstill.generate.estimate import estimate

    budget, longest = (getattr(recipe.generate, name, None) for name in ("token_budget", "max_new_tokens"))
    if budget is not None and longest is not None and budget < longest:
        raise RecipeError(
            f"token_budget {budget:,} is less than one answer may take, so nothing is asked",
            where="generate.token_budget",
            fix=f"set it to {longest:,} (generate.max_new_tokens) or more",
        )
    records = [*inputs.asked()[0], *inputs.asked_held_out()]
    lines, costs = estimate(recipe, records)
    inputs.figures |= {**costs, "records_asked": len(records)}
    yield from facts("generate", lines)
    if recipe.generate.asks and costs.get("answers") == 0:
        raise DataError(
            "no answer is asked for: no record on either side can be put to the teacher",
            where="generate",
            fix="give data with prompts",
        )
