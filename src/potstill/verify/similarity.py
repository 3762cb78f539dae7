"""Similarity to a reference answer: the sentence BLEU of `sacrebleu`."""

from __future__ import annotations

from importlib import metadata

from potstill.recipe.verify import SentenceBLEU
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import without_reasoning
from potstill.verify.base import BaseVerifier, references
from potstill.verify.workers import require


@implements(SentenceBLEU)
class SentenceBLEUVerifier(BaseVerifier[SentenceBLEU]):
    """BLEU of one sentence against one or more references, in [0, 1], as the verdict's score.

    Up to four words, exponential smoothing, orders longer than the answer left out, tokens of mteval-13a: sacrebleu's
    defaults (Post 2018).

    Raises:
        MissingExtra: sacrebleu is not installed.
    """

    def __init__(self, settings: SentenceBLEU) -> None:
        super().__init__(settings)
        require("sacrebleu", "sacrebleu", "verify", "verify: {kind: sentence_bleu}")
        from sacrebleu.metrics.bleu import BLEU

        self._bleu = BLEU(effective_order=True)

    @property
    def version(self) -> str:
        return f"{self.contract}+sacrebleu-{metadata.version('sacrebleu')}"

    def judge(self, record: Record, completion: str) -> Verdict:
        known = references(record, self._settings.reference)
        if not known:
            return self.cannot_judge(f"the record has no metadata[{self._settings.reference!r}]")
        score = self._bleu.sentence_score(without_reasoning(completion), known).score / 100
        text = f"sentence BLEU {score:.3f}"
        if score < self._settings.least:
            return self.reject(f"{text}, less than {self._settings.least:g}", score)
        return self.accept(text, score)
