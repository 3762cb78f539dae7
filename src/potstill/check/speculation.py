"""Preconditions on speculative decoding: the draft has the target's tokens, both caches can be rolled back, and there
are prompts to measure on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from potstill.artifacts import Work
from potstill.check.findings import Finding, warning
from potstill.check.inputs import RECORDS_READ, Inputs
from potstill.check.models import model_is_usable
from potstill.errors import ModelError
from potstill.models.facts import size_in
from potstill.models.folder import ModelSource
from potstill.quantities import counted
from potstill.recipe import Existing
from potstill.recipe.speculate import LayersDraft, OtherModelDraft, SpeculateSettings, StudentDraft
from potstill.recipe.teachers import TeacherSettings
from potstill.speculate.fitting import check_draft_tokenizer, check_heads, check_rows
from potstill.speculate.prompts import read_prompts


def draft_fits_its_target(inputs: Inputs) -> Iterator[Finding]:
    """The draft is here or can be fetched, has the target's tokens, and fewer layers; heads are of this target."""
    if (settings := inputs.recipe.speculate) is None:
        return
    chosen, target = settings.model_draft, _target(inputs, settings)
    source, known = inputs.source(target), inputs.facts(target)
    if isinstance(chosen, LayersDraft) and known is not None and known.layers is not None:
        if chosen.layers >= known.layers:
            raise ModelError(
                f"a draft of the first {chosen.layers} layers of a target that has {known.layers}",
                where="speculate.draft.layers",
                fix=f"choose 1 to {known.layers - 1} layers" if known.layers > 1 else "use {kind: lookup}",
            )
        yield Finding("speculate", f"the draft: the target's first {chosen.layers} of {known.layers} layers")
    if isinstance(chosen, OtherModelDraft):
        yield from model_is_usable(inputs, "the draft", chosen, "speculate")
        own = inputs.facts(chosen)
        if own is not None and known is not None:
            sizes = [size_in(facts.config, "vocab_size") for facts in (own, known)]
            if sizes[0] is not None and sizes[1] is not None:
                check_rows(sizes[0], sizes[1], chosen.frequent)
    draft = _draft(inputs, settings)
    if draft is not None and source is not None:
        check_draft_tokenizer(source.name, source.path, draft.path)
    if settings.heads_draft is not None and settings.heads_draft.weights is not None:
        config = None if known is None else known.config
        widths = {name: None if config is None else size_in(config, name) for name in ("hidden_size", "vocab_size")}
        check_heads(settings.heads_draft.weights, widths)


def prompts_can_be_decoded(inputs: Inputs) -> Iterator[Finding]:
    """At least two prompts leave room for an answer in the target's context; a shorter context of the draft's is
    said."""
    if (settings := inputs.recipe.speculate) is None or inputs.sides is None:
        return
    target = _target(inputs, settings)
    chat, known = inputs.chat(target), inputs.facts(target)
    if chat is None or known is None or len(inputs.sides.train) + len(inputs.sides.held_out) > RECORDS_READ:
        return
    work = Work(Path(), resumed=False)
    prompts = read_prompts(inputs.recipe, chat, known.context_length, work)
    left_out = "".join(f"; {reason}: {amount:,}" for reason, amount in work.counts.items())
    yield Finding("speculate", f"measured on {counted(len(prompts), 'prompt')}{left_out}")
    draft = _draft(inputs, settings)
    own = inputs.facts(settings.model_draft) if draft is not None and settings.model_draft is not None else None
    needed = max(map(len, prompts)) + settings.max_new_tokens
    if own is not None and own.context_length is not None and own.context_length < needed:
        yield warning(
            "speculate",
            f"the draft's context has {own.context_length:,} tokens, and prompts with answers up to {needed:,}: behind "
            "its context the target writes alone",
        )


def target_can_be_rolled_back(inputs: Inputs) -> None:
    """Tokens can be taken back from the caches of target and draft. Loads torch, and no weights."""
    if (settings := inputs.recipe.speculate) is None:
        return
    target = _target(inputs, settings)
    sources = {"speculate.target": inputs.source(target), "speculate.draft": _draft(inputs, settings)}
    if getattr(target, "trust_remote_code", False) or not any(sources.values()):
        return  # the code of a model's folder runs in the run alone
    from transformers import PreTrainedModel

    from potstill.decoding.cached_model import check_rollback
    from potstill.students.outline import outline_of_folder

    for where, source in sources.items():
        model = outline_of_folder(source, inputs.recipe.task) if source is not None else None
        if not isinstance(model, PreTrainedModel):
            continue
        try:
            check_rollback(model)
        except ModelError as error:
            raise ModelError(error.what, where=where, fix=error.fix) from None


def _target(inputs: Inputs, settings: SpeculateSettings) -> TeacherSettings:
    target: TeacherSettings = inputs.recipe.teachers[settings.target]
    return target


def _draft(inputs: Inputs, settings: SpeculateSettings) -> ModelSource | None:
    """The files of a draft that is a model of its own and is here, or from which the student starts."""
    chosen, student = settings.model_draft, inputs.recipe.student
    if isinstance(chosen, OtherModelDraft):
        return inputs.source(chosen)
    return inputs.source(student) if isinstance(chosen, StudentDraft) and isinstance(student, Existing) else None
