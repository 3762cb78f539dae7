"""Settings of the programs that generate instructions or clean conversations. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.recipe.base import COUNT_AT_MOST, Content, Count, PathText, Tokens
from potstill.recipe.generate import GenerateSettings, VerifiedSettings
from potstill.recipe.verify import Judge, Language, Math, PythonTests, ReasoningGym, ReferenceSettings, leaves_of

SELF_INSTRUCT_WORDS = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
    "go to",
)
ALPACA_WORDS = (*SELF_INSTRUCT_WORDS, "video", "audio", "music", "flowchart", "diagram")
"""Instructions with these words ask for things that a language model cannot do; they are left out."""


class SelfInstructProgram(VerifiedSettings):
    """New instructions with answers, from examples that people wrote (the recipe's `data`): Self-Instruct (Wang et al.
    2022, arXiv 2212.10560) and its variant Alpaca (Taori et al. 2023).

    `style: alpaca` requests whole tasks (instruction, input, output), `tasks_per_call` at a time including the
    `demonstrations`; `self_instruct` first requests instructions, then examples of each. Of the demonstrations, up to
    `generated` are earlier answers. A None takes the style's default.

    It ends at `target` instructions, or after `calls` calls for instructions. The `calls_per_round` calls of a round
    do not see each other's tasks: more of them use a server better and produce a few more duplicates. `rouge_above`:
    an instruction whose ROUGE-L F with one in the pool exceeds it is left out. `cut_off: whole` drops all tasks of an
    answer that was cut at max_new_tokens, `last` only its last task. `verify` comes last; `target` counts the records
    that go to it.
    """

    kind: Literal["self_instruct"] = "self_instruct"
    style: Literal["alpaca", "self_instruct"] = "alpaca"
    target: Count = 1000
    calls: Count = 500
    calls_per_round: Count = 8
    demonstrations: Count | None = None
    generated: Annotated[int, Field(ge=0, le=COUNT_AT_MOST)] | None = None
    tasks_per_call: Count | None = None
    seed: int = Field(0, ge=0, le=COUNT_AT_MOST)
    classification: bool = True
    max_new_tokens: Tokens = 3072
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=COUNT_AT_MOST)
    batch_size: Count = 8
    token_budget: Count | None = None
    least_words: Count = 4
    most_words: Count = 150
    without_words: tuple[str, ...] | None = None
    without_openings: tuple[str, ...] = ("Write a program",)
    ascii_start: bool = True
    rouge_above: float = Field(0.7, gt=0, lt=1)
    cut_off: Literal["whole", "last"] = "whole"

    @model_validator(mode="after")
    def _verifiable(self) -> SelfInstructProgram:
        for leaf in leaves_of(self.verify):
            pairs = isinstance(leaf, Judge) and leaf.form == "pairwise"
            if pairs or isinstance(leaf, (ReferenceSettings, Math, PythonTests, ReasoningGym)):
                raise ValueError(
                    f"verify: {leaf.kind} compares with what the data bring, and a task that a teacher makes brings "
                    "nothing: use length, language, refusal, a regex, or a judge by rubric"
                )
        return self

    @model_validator(mode="after")
    def _possible(self) -> SelfInstructProgram:
        shown, generated, tasks = self.shown, self.shown_generated, self.tasks
        if generated >= shown:
            raise ValueError(f"generated: {generated} of {shown} demonstrations: leave at least one to the seeds")
        if tasks <= shown:
            raise ValueError(
                f"tasks_per_call: {tasks} counts the {shown} demonstrations, so nothing is asked for: raise it"
            )
        if self.most_words < self.least_words:
            raise ValueError(f"most_words: {self.most_words} is below least_words: {self.least_words}")
        if self.cut_off == "last" and self.style == "self_instruct":
            raise ValueError("cut_off: last is for style: alpaca, whose answers hold whole tasks: set cut_off: whole")
        return self

    @property
    def shown(self) -> int:
        """The number of demonstrations in a prompt: 3 (Alpaca), or 8."""
        return self.demonstrations or (3 if self.style == "alpaca" else 8)

    @property
    def shown_generated(self) -> int:
        """How many of them are generated: none (Alpaca), or 2."""
        if self.generated is not None:
            return self.generated
        return 0 if self.style == "alpaca" else min(2, self.shown - 1)

    @property
    def tasks(self) -> int:
        """The number of tasks in a prompt and its answer together: 20 (Alpaca), or 16."""
        return self.tasks_per_call or (20 if self.style == "alpaca" else 16)

    @property
    def sampled_at(self) -> tuple[float, float]:
        """Temperature and top-p of the calls for tasks: 1.0 and 1.0 (Alpaca), or 0.7 and 0.5."""
        temperature, top_p = (1.0, 1.0) if self.style == "alpaca" else (0.7, 0.5)
        return (
            temperature if self.temperature is None else self.temperature,
            top_p if self.top_p is None else self.top_p,
        )

    @property
    def blacklist(self) -> tuple[str, ...]:
        """Words that no instruction may contain."""
        if self.without_words is not None:
            return self.without_words
        return ALPACA_WORDS if self.style == "alpaca" else SELF_INSTRUCT_WORDS


class ConversationsProgram(GenerateSettings):
    """Training conversations from exports of real ones, as Vicuna (Chiang et al. 2023) made them from ShareGPT's. No
    teacher is involved.

    `html: always` converts turns to Markdown; `auto` only those that begin with an HTML tag. `language` drops
    conversations that such a verifier rejects. A conversation longer than `max_length` tokens, as rendered and counted
    by `tokenizer` (the student's: a model or a folder), is split between pairs of turns; `max_length: null` never
    splits. `without_words` drops conversations that contain one of these words.
    """

    kind: Literal["conversations"] = "conversations"
    asks: ClassVar[bool] = False
    html: Literal["auto", "always", "never"] = "auto"
    language: Language | None = None
    max_length: Tokens | None = 2048
    tokenizer: Annotated[PathText | None, Content()] = None
    without_words: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> ConversationsProgram:
        if self.max_length is not None and self.tokenizer is None:
            raise ValueError(
                "max_length is in tokens: name the student's tokenizer (a model or a folder), or set max_length: null"
            )
        if self.language is not None and self.language.of != "answer":
            raise ValueError(f"language.of: {self.language.of!r}: a conversation is looked at whole; leave it out")
        if self.budget.stated:
            raise ValueError(f"budget.{self.budget.stated[0]}: no teacher is asked, so nothing is used; leave it out")
        return self
