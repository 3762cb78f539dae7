"""Settings of generation programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from potstill.recipe.base import COUNT_AT_MOST, Count, KindSettings, PartIfSet, Settings, Tokens, one_of
from potstill.recipe.teachers import TeacherSettings
from potstill.recipe.verify import Decontamination, Length, VerifierSettings, judges_of, leaves_of


class BudgetSettings(Settings):
    """The most that a stage may use of an endpoint, over all interruptions. A stated limit is a hard limit.

    `tokens` counts tokens read and written, `requests` everything that is sent (retries included), `money` is in US
    dollars and needs a known price. The worst case of each request is reserved before it is sent.
    """

    tokens: Count | None = None
    requests: Count | None = None
    money: float | None = Field(None, gt=0, allow_inf_nan=False)

    @property
    def stated(self) -> tuple[str, ...]:
        """The caps that are set, by name."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class GenerateSettings(KindSettings):
    """Base of every program in which a teacher writes.

    `budget` caps the use of an endpoint. `jsonl` also writes the records as JSON lines, beside the Parquet file.
    `decontaminate` keeps records that match an evaluation set out of the training records.
    """

    room: ClassVar[str] = "generate"
    asks: ClassVar[bool] = True
    """Whether the program sends requests to a teacher."""
    answers_records: ClassVar[bool] = False
    """Whether every record of the data is a prompt for the teacher."""
    teacher: str = "main"
    budget: BudgetSettings = BudgetSettings()
    jsonl: bool = False
    decontaminate: Annotated[Decontamination | None, PartIfSet()] = None

    @field_validator("decontaminate")
    @classmethod
    def _names_sets(cls, decontaminate: Decontamination | None) -> Decontamination | None:
        if decontaminate is not None and not decontaminate.against:
            raise ValueError("against names no evaluation set: name one, or drop decontaminate")
        return decontaminate

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of all teachers that receive requests: first the one that writes, then those that only judge."""
        if not self.asks:
            return ()
        judges = (judge.teacher or self.teacher for judge in judges_of(getattr(self, "verify", None)))
        return tuple(dict.fromkeys((self.teacher, *judges)))

    def check_teachers(self, teachers: Mapping[str, TeacherSettings]) -> None:
        """Refuse settings that these kinds of teachers cannot serve; `teachers` has all that are `asked`.

        Raises:
            ValueError: with the fix.
        """
        for judge in judges_of(getattr(self, "verify", None)):
            asked = teachers[judge.teacher or self.teacher]
            if getattr(asked, "api", "chat") == "completions" and getattr(asked, "tokenizer", None) is None:
                raise ValueError(
                    f"verify: a judge is asked in turns, and {judge.teacher or self.teacher!r} continues plain texts: "
                    "set its api: chat, or name its tokenizer"
                )
        remote = {teachers[name].remote for name in self.asked}
        if True not in remote and self.budget.stated:
            stated = ", ".join(f"budget.{name}" for name in self.budget.stated)
            kind = teachers[self.teacher].kind
            raise ValueError(f"{stated}: a cap for endpoints; a {kind!r} teacher takes token_budget")
        if len(remote) == 2 and getattr(self, "token_budget", None) is not None:
            raise ValueError(
                "token_budget: one teacher answers here and the other behind a server, and this cap is on one or the "
                "other: cap what the endpoint costs by budget (tokens, requests or money), and leave token_budget out"
            )


class VerifiedSettings(GenerateSettings):
    """Base of programs whose written records may go to a verifier.

    `verify`: records that it does not accept are kept out; `unjudged` decides about records that it cannot judge.
    """

    verify: Annotated[one_of(VerifierSettings) | None, PartIfSet()] = None  # type: ignore[valid-type]
    unjudged: Literal["reject", "accept"] = "reject"

    @property
    def best(self) -> int | None:
        """How many accepted records of a prompt are kept, by highest score; None keeps all."""
        return None

    @field_validator("verify")
    @classmethod
    def _knows_enough(cls, verify: Any) -> Any:
        if any(isinstance(leaf, Length) and leaf.unit == "tokens" for leaf in leaves_of(verify)):
            raise ValueError("length: a record has no count of tokens: set unit: words, or lower max_new_tokens")
        return verify


class SequenceProgram(VerifiedSettings):
    """Sequence-level distillation: the teacher answers each prompt. Kim & Rush 2016 (beam 5 in the paper).

    `temperature` 0 is greedy; `beams` > 1 is beam search. `token_budget` is a hard cap on generated tokens: a request
    is sent only if its worst case fits, and prompts that no longer fit are counted. `batch_size` is for teachers on
    this machine; it affects results in bfloat16 and is therefore part of the key.

    `keep: best` keeps, of a prompt's `samples` that `verify` accepts, the `kept` with the highest scores. An answer in
    the data is the reference for a verifier, unless the metadata have one.

    `held_out: given` leaves held-out records that have an answer as they are: they are not asked, and students of
    different texts are measured on the same ones.
    """

    kind: Literal["sequence"] = "sequence"
    answers_records: ClassVar[bool] = True
    samples: Count = 1
    max_new_tokens: Tokens = 256
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=COUNT_AT_MOST)
    beams: Count = 1
    batch_size: Count = 32
    token_budget: Count | None = None
    keep_unfinished: bool = True
    keep: Literal["all", "best"] = "all"
    kept: Count = 1
    held_out: Annotated[Literal["given"] | None, PartIfSet()] = None

    @model_validator(mode="after")
    def _possible(self) -> SequenceProgram:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search is deterministic: set temperature: 0, or beams: 1 to sample")
        if self.samples > 1 and self.temperature == 0 and self.beams == 1:
            raise ValueError("greedy answers are all the same: set temperature above 0, or samples: 1")
        if self.samples > self.beams > 1:
            raise ValueError(f"{self.beams} beams give at most {self.beams} samples: raise beams or lower samples")
        if self.keep == "best" and (self.verify is None or self.samples <= self.kept):
            raise ValueError(
                f"keep: best chooses {self.kept} of several samples by the score of verify: set samples above "
                f"{self.kept}, and a verifier that gives scores (kind: judge, or sentence_bleu)"
            )
        return self

    @property
    def best(self) -> int | None:
        """`kept`, with `keep: best`."""
        return self.kept if self.keep == "best" else None

    def check_teachers(self, teachers: Mapping[str, TeacherSettings]) -> None:
        """Only teachers on this machine support beam search."""
        super().check_teachers(teachers)
        if teachers[self.teacher].remote and self.beams > 1:
            raise ValueError("servers give no beam search: set beams: 1, or use a teacher that runs here (kind: local)")
