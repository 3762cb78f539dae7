"""Settings of verifiers, which accept or reject an answer, or cannot judge it. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, field_validator, model_validator

from potstill.recipe.base import COUNT_AT_MOST, Content, Cosmetic, Count, KindSettings, Settings, Tokens, one_of
from potstill.recipe.data import DataSettings, ImageSettings, expand_data


class VerifierSettings(KindSettings):
    """Base of every verifier."""

    room: ClassVar[str] = "verify"


class ReferenceSettings(VerifierSettings):
    """Base of verifiers that compare with a reference answer in `record.metadata[reference]`: a value, or a list of
    values of which any will do. `answer: final` searches the text for the final answer (the last `\\boxed{…}`,
    `<answer>…</answer>`, `#### …`, "the answer is …"); `whole` takes all of it."""

    reference: str = "reference"
    answer: Literal["final", "whole"] = "final"


class Exact(ReferenceSettings):
    """The same text, ignoring white space at the ends and its amount within."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = False
    ignore_punctuation: bool = False


class Numeric(ReferenceSettings):
    """The same number, computed exactly (`0.5` is `1/2`), or within a tolerance, absolute or relative to the
    reference."""

    kind: Literal["numeric"] = "numeric"
    absolute_tolerance: float = Field(0.0, ge=0)
    relative_tolerance: float = Field(0.0, ge=0, lt=1)


class Choice(ReferenceSettings):
    """The letter of a multiple choice. The reference is a letter, a number (0 is the first) or the text of a choice;
    the texts of choices are optional, in `record.metadata[choices]`."""

    kind: Literal["choice"] = "choice"
    letters: str = Field("ABCDEFGHIJ", min_length=2, pattern=r"^[A-Z]+$")
    choices: str = "choices"


class SentenceBLEU(VerifierSettings):
    """At least `least` sentence BLEU, in [0, 1], with the reference answer in `record.metadata[reference]`. BLEU is
    the score: with `keep: best` a program keeps the sample closest to the reference (sequence-level interpolation, Kim
    & Rush 2016, §3.3)."""

    kind: Literal["sentence_bleu"] = "sentence_bleu"
    reference: str = "reference"
    least: float = Field(0.0, ge=0, le=1)


class Regex(VerifierSettings):
    """A pattern (of the package `regex`) that must, or must not, be found; without one, the pattern in
    `record.metadata[key]`."""

    kind: Literal["regex"] = "regex"
    pattern: str | None = None
    key: str = "pattern"
    found: Literal["anywhere", "whole", "nowhere"] = "anywhere"
    ignore_case: bool = False
    deadline_seconds: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _compiles(self) -> Regex:
        if self.pattern is not None:
            # The standard library knows fewer patterns than `regex`: refuse only what neither can read.
            try:
                re.compile(self.pattern)
            except re.error as error:
                import regex

                try:
                    regex.compile(self.pattern)
                except regex.error:
                    raise ValueError(f"the pattern cannot be read: {error}") from None
        return self


class WorkerSettings(VerifierSettings):
    """Base of verifiers that judge in worker processes: an item not judged within `deadline_seconds` is killed with
    its process, and its verdict is `cannot_judge`."""

    deadline_seconds: PositiveFloat = 5.0
    workers: Annotated[Count, Cosmetic()] = 1


class JSONSchema(WorkerSettings):
    """One JSON value (in the last fenced block, if there is one) that a JSON Schema accepts; without a schema here,
    the schema in `record.metadata[key]`."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | bool | None = None
    key: str = "schema"


class Math(WorkerSettings):
    """The same mathematical value as the reference: typed and exact for plain kinds of values (numbers, dates, times,
    tuples, sets, percentages, words), by the package `math-verify` otherwise."""

    kind: Literal["math"] = "math"
    reference: str = "reference"


class ReasoningGym(WorkerSettings):
    """Full marks from the scorer of the problem's own generator, for the answer without surrounding white space."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    key: str = "reasoning_gym"
    answer: Literal["final", "whole"] = "final"


class SandboxSettings(Settings):
    """Limits of a program under test. `method: auto` uses bubblewrap, else `unshare`, else refuses; `unsafe: true`
    runs it without isolation where neither works. `python` defaults to the interpreter that runs potstill, without its
    packages.
    """

    method: Literal["auto", "bubblewrap", "unshare"] = "auto"
    unsafe: bool = False
    wall_seconds: PositiveFloat = 10.0
    memory_megabytes: Count = 512
    disk_megabytes: Count = 64
    processes: Count = 16
    output_bytes: Count = 1_000_000
    python: Annotated[Path | None, Content()] = None


class PythonTests(VerifierSettings):
    """The written program passes the record's tests, in a sandbox. `record.metadata[tests]` is Python text, a list of
    `assert` lines, or a list of `{input, output}` for programs that read and print."""

    kind: Literal["python_tests"] = "python_tests"
    tests: str = "tests"
    block: Literal["last", "first", "all"] = "last"
    sandbox: SandboxSettings = SandboxSettings()


class Judge(VerifierSettings):
    """A model's opinion, through the same journal and budget as the answers: the recipe's `teacher` of this name, or,
    if None, the one that writes. `rubric`: marks from 1 to `marks`, accepted from `accept_from`. `pairwise`: better
    than, or as good as, the reference, asked in both orders; it cannot judge if the orders disagree."""

    kind: Literal["judge"] = "judge"
    teacher: str | None = None
    form: Literal["rubric", "pairwise"] = "rubric"
    rubric: str = "The answer is correct, complete, and does what was asked."
    marks: int = Field(5, ge=2, le=100)
    accept_from: Count = 4
    ties: Literal["accept", "reject"] = "accept"
    reference: str = "reference"
    max_new_tokens: Tokens = 512
    temperature: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _attainable(self) -> Judge:
        if self.accept_from > self.marks:
            raise ValueError(f"accept_from: {self.accept_from} is above the highest mark, {self.marks}")
        return self


Part = Literal["answer", "reasoning", "both"]
"""The part to judge: the answer's text, the reasoning before it, or both together."""


class Length(VerifierSettings):
    """A minimum and maximum length. `tokens` are the teacher's (of reasoning and answer together)."""

    kind: Literal["length"] = "length"
    unit: Literal["characters", "words", "tokens"] = "words"
    least: int = Field(1, ge=0, le=COUNT_AT_MOST)
    most: Count | None = None
    of: Part = "answer"

    @model_validator(mode="after")
    def _possible(self) -> Length:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most: {self.most} is below least: {self.least}")
        if self.unit == "tokens" and self.of != "both":
            raise ValueError("tokens are counted of reasoning and answer together: set of: both")
        return self


class Language(VerifierSettings):
    """Written in one of `languages` (ISO 639-1 codes). Up to `other_share` of the letters may be in paragraphs of
    another language, or in scripts that none of the languages uses. Code, formulas and addresses are ignored; it
    cannot judge fewer than `least_letters` letters."""

    kind: Literal["language"] = "language"
    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    least_letters: Count = 20
    other_share: float = Field(0.1, ge=0, lt=1)
    of: Part = "answer"


class Refusal(VerifierSettings):
    """By key phrases: `accept: answers` accepts what does not look like a refusal, `accept: refusals` what does. Such
    lists miss 26 to 47 % of the refusals that people see."""

    kind: Literal["refusal"] = "refusal"
    accept: Literal["answers", "refusals"] = "answers"
    phrases: tuple[str, ...] = ()
    within_characters: Count = 300


class Composite(VerifierSettings):
    """Base of verifiers made of others, which are run in order, as far as needed."""

    of: Annotated[tuple[one_of(VerifierSettings), ...], Field(min_length=1)]  # type: ignore[valid-type]


class AllOf(Composite):
    """Accepts if all do, rejects at the first that does; otherwise it cannot judge."""

    kind: Literal["all"] = "all"


class AnyOf(Composite):
    """Accepts at the first that does, rejects if all do; otherwise it cannot judge."""

    kind: Literal["any"] = "any"


class FirstOf(Composite):
    """The first verdict of one that can judge."""

    kind: Literal["first"] = "first"


def judges_of(verify: Any) -> Iterator[Judge]:
    """The judges in a verifier's settings, including those in composites."""
    return (leaf for leaf in leaves_of(verify) if isinstance(leaf, Judge))


def references_of(verify: Any) -> tuple[str, ...]:
    """The keys of the metadata in which verifiers look for a reference answer."""
    return tuple(dict.fromkeys(leaf.reference for leaf in leaves_of(verify) if hasattr(leaf, "reference")))


def workers_of(verify: Any) -> int:
    """The largest number of worker processes of any verifier in some settings; 1 if none has any."""
    return max([1, *(leaf.workers for leaf in leaves_of(verify) if isinstance(leaf, WorkerSettings))])


def leaves_of(verify: Any) -> Iterator[VerifierSettings]:
    """The verifiers that judge: those in a composite, or the verifier itself; none for None."""
    if not isinstance(verify, Composite):
        if verify is not None:
            yield verify
        return
    for member in verify.of:
        yield from leaves_of(member)


class Decontamination(Settings):
    """Evaluation sets that the records must not contain, and when a record matches one. Words are compared in lower
    case without punctuation. A text of at least `ngram` words matches if it shares a run of `ngram` words with an
    evaluation item, or `overlap` of the item's runs of `overlap_ngram` words; a text of any length, if its edit
    similarity with an item is at least `similarity` (0 to 1). Answers of fewer than `answer_words` words are not
    compared: short answers coincide by chance."""

    against: dict[str, Annotated[one_of(DataSettings), BeforeValidator(expand_data)]]  # type: ignore[valid-type]
    ngram: Count = 13
    overlap_ngram: Count = 8
    overlap: float = Field(0.5, gt=0, le=1)
    similarity: float = Field(0.9, gt=0, le=1)
    fuzzy_characters: Count = 2000
    answer_words: Count = 8

    @field_validator("against")
    @classmethod
    def _of_texts(cls, against: dict[str, DataSettings]) -> dict[str, DataSettings]:
        for name, source in against.items():
            if isinstance(source, ImageSettings):
                raise ValueError(f"{name}: images hold no text to compare: name a set of texts, or leave it out")
        return against
