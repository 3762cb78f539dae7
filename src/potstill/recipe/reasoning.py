"""Settings of the program `reasoning`: verified chains of thought, sampled until enough are accepted. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.recipe.base import COUNT_AT_MOST, Count, Settings, Tokens, one_of
from potstill.recipe.generate import GenerateSettings
from potstill.recipe.verify import VerifierSettings, leaves_of

Rate = Annotated[float, Field(ge=0, le=1)]


class ChainFilters(Settings):
    """Requirements for a chain, whatever its answer. They apply to reasoning and answer together, in words (a Chinese,
    Japanese or Korean character is a word). None turns one off. DeepSeek-R1 (arXiv 2501.12948, §2.3.3) removed mixed
    languages, long paragraphs and code blocks.

    `most_tokens` counts the teacher's tokens. `repetition` is the maximum share of runs of `repeated_words` words that
    occurred earlier in the chain. `languages` (ISO 639-1) allows a share of `other_share` letters in another language.
    `paragraph_words` is the length of the longest paragraph. `code: false` refuses fenced code blocks.
    """

    least_words: int = Field(0, ge=0, le=COUNT_AT_MOST)
    most_words: Count | None = None
    most_tokens: Tokens | None = None
    repetition: Rate | None = 0.3
    repeated_words: Count = 8
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    other_share: float = Field(0.1, ge=0, lt=1)
    paragraph_words: Count | None = None
    code: bool = True

    @model_validator(mode="after")
    def _possible(self) -> ChainFilters:
        if self.most_words is not None and self.most_words < self.least_words:
            raise ValueError(f"most_words: {self.most_words} is below least_words: {self.least_words}")
        return self


class ReasoningProgram(GenerateSettings):
    """Chains of thought with rejection sampling: of a problem's `samples`, those whose answer `verify` accepts. Ho et
    al. 2022, arXiv 2212.10071 (several chains a problem, T = 0.7); DeepSeek-R1, arXiv 2501.12948.

    The samples of a problem are requested `samples_at_once` (default: all), and no more once `stop_at` different
    chains are accepted. A chain that was cut short is never kept. `keep` chooses `kept` of the accepted chains: the
    first (`all`), the `shortest`, the most `diverse`, or those with the highest scores (`best`). `accept_all` also
    keeps rejected chains, with their verdicts. `unjudged` decides about chains that the verifier cannot judge.
    `pass_rate` keeps problems whose share of accepted samples is within [low, high].

    `instruction` is the prompt for the teacher, with `{problem}` in it; the record contains the problem alone. `hint`
    (STaR, arXiv 2203.14465) is another prompt, with `{problem}` and `{reference}`, used `hint_samples` times where no
    chain was accepted; the record contains no hint either. The reference answer is in `record.metadata[reference]`, or
    else the record's own answer.

    `target` is what the student learns: the chain, or the final answer alone. `reasoning` is where a record keeps the
    reasoning: in the message's `reasoning_content`, in its text between `<think>` and `</think>`, or (`auto`) in the
    former unless the teacher's chat template would drop it there.
    """

    kind: Literal["reasoning"] = "reasoning"
    answers_records: ClassVar[bool] = True
    verify: one_of(VerifierSettings)  # type: ignore[valid-type]
    samples: Count = 4
    samples_at_once: Count | None = None
    stop_at: Count | None = None
    accept_all: bool = False
    unjudged: Literal["reject", "accept"] = "reject"
    keep: Literal["all", "shortest", "diverse", "best"] = "all"
    kept: Count | None = None
    pass_rate: tuple[Rate, Rate] = (0.0, 1.0)
    filters: ChainFilters = ChainFilters()
    instruction: str | None = None
    hint: str | None = None
    hint_samples: Count = 1
    reference: str = "reference"
    target: Literal["chain", "answer"] = "chain"
    reasoning: Literal["auto", "reasoning_content", "think"] = "auto"
    max_new_tokens: Tokens = 1024
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=COUNT_AT_MOST)
    batch_size: Count = 32
    token_budget: Count | None = None

    @model_validator(mode="after")
    def _possible(self) -> ReasoningProgram:
        if self.temperature == 0 and (self.samples > 1 or (self.hint is not None and self.hint_samples > 1)):
            raise ValueError("greedy answers are all the same: set temperature above 0, or samples: 1")
        if self.stop_at is not None and self.stop_at > self.samples:
            raise ValueError(f"{self.samples} samples never give {self.stop_at} accepted: raise samples")
        if self.samples_at_once is not None and self.samples_at_once > self.samples:
            raise ValueError(f"samples_at_once: {self.samples_at_once} is above samples: {self.samples}")
        if self.keep in ("diverse", "best") and self.kept is None:
            raise ValueError(f"keep: {self.keep} chooses some of the accepted: say how many a problem, kept: 2")
        low, high = self.pass_rate
        if low > high:
            raise ValueError(f"pass_rate: no rate is within [{low}, {high}]")
        if self.windowed and self.stop_at is not None:
            raise ValueError("pass_rate counts all samples, and stop_at leaves some unasked: drop one of them")
        keys = {leaf.reference for leaf in leaves_of(self.verify) if hasattr(leaf, "reference")}
        if keys and self.reference not in keys and (self.reference != "reference" or self.hint is not None):
            raise ValueError(
                f"reference: {self.reference} is where a problem's answer is put, and verify compares with "
                f"{', '.join(sorted(keys))}: name the same as verify.reference"
            )
        for name, needed in (("instruction", ("{problem}",)), ("hint", ("{problem}", "{reference}"))):
            template = getattr(self, name)
            missing = [part for part in needed if template is not None and part not in template]
            if missing:
                raise ValueError(f"{name} has no {missing[0]}: say where it goes")
        return self

    @property
    def windowed(self) -> bool:
        """Whether a pass rate can exclude a problem."""
        return self.pass_rate != (0.0, 1.0)
