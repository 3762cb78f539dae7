"""Verifier of refusals, by phrases."""

from __future__ import annotations

import re

from potstill.recipe.verify import Refusal
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import without_reasoning
from potstill.verify.base import BaseVerifier, shown

_CANNOT = "(?:cannot|can't|cant|can not|could not|couldn't|won't|will not|would not|wouldn't)"
_DO = """help assist provide fulfil fulfill comply create write generate give support answer engage participate offer
    share discuss continue recommend condone complete produce tell explain teach advise respond make encourage promote
    facilitate""".split()
PHRASES: tuple[str, ...] = (
    r"i(?:'m| am)(?: very| so| really| truly| deeply)? (?:sorry|afraid)\b",
    r"\b(?:i|we) (?:do )?apologi[sz]e\b",
    r"\bmy apologies\b",
    rf"\bi (?:simply |just |really )?{_CANNOT} (?:\w+ )?(?:{'|'.join(_DO)}|do (?:that|this)|in good|be (?:a )?part)\b",
    r"\bi(?:'m| am) (?:unable|prohibited)\b",
    r"\bi(?:'m| am) not (?:able|going|allowed|permitted|comfortable|programmed|designed|willing)\b",
    r"\bi (?:must|have to|need to|will have to) (?:\w+ )?(?:decline|refuse|refrain|pass)\b",
    r"\bi (?:respectfully |politely )?(?:decline|refuse)\b",
    r"\bas an? (?:\w+ )?(?:ai|artificial intelligence|language model|assistant)\b[^.]*\b(?:cannot|can't|not|unable)\b",
    r"\b(?:goes )?against my (?:programming|guidelines|principles|ethic\w*|values|policy|policies|purpose)\b",
    r"\bi (?:do not|don't) (?:feel comfortable|have the (?:ability|capability)|condone|provide|engage|support)\b",
    r"\bi (?:do not|don't) think (?:i|that's|this|it)\b",
    r"\bnot (?:appropriate|ethical|acceptable) (?:for me )?to\b",
    r"\b(?:it is|it's|it would be|this is|that is|that's) (?:\w+ )?(?:illegal|unethical|inappropriate)\b",
    r"\b(?:it is|it's|it would be|this is|that is|that's) not (?:appropriate|ethical)\b",
    r"\b(?:can't|cannot|unable to|not able to) (?:assist|help) (?:you )?with (?:that|this|your)\b",
    r"\bno,? i (?:won't|can't|cannot|will not)\b",
    r"\bi'd (?:rather|prefer) not\b",
)
"""Beginnings of refusals in English, in lower case, with plain apostrophes."""


_ANY = re.compile("|".join(PHRASES))
WITHIN = 200
"""Characters of an answer in which a refusal is looked for."""


def refuses(answer: str) -> bool:
    """Whether an answer begins like a refusal, by `PHRASES`."""
    return _ANY.search(_opening(answer, WITHIN)) is not None


def _opening(answer: str, characters: int) -> str:
    return " ".join(without_reasoning(answer).split())[:characters].casefold().replace("’", "'")


@implements(Refusal)
class RefusalVerifier(BaseVerifier[Refusal]):
    """Looks for phrases of refusal near the beginning. Such lists miss 26 to 47 % of the refusals that human annotators
    see, and match some answers: the count is a rough lower bound, not a refusal rate."""

    contract = 2
    BAND = "a list of phrases misses 26 to 47 % of refusals"

    def __init__(self, settings: Refusal) -> None:
        super().__init__(settings)
        own = [re.escape(" ".join(p.split()).casefold()) for p in settings.phrases]
        self._pattern = re.compile("|".join([*PHRASES, *own]))

    def judge(self, record: Record, completion: str) -> Verdict:
        opening = _opening(completion, self._settings.within_characters)
        if not opening:
            return self.cannot_judge("no answer")
        found = self._pattern.search(opening)
        wanted = self._settings.accept == "refusals"
        if found:
            said = f"looks like a refusal: {shown(found.group())}"
            return self.accept(said) if wanted else self.reject(said)
        said = f"no phrase of refusal in its first {self._settings.within_characters} characters ({self.BAND})"
        return self.reject(said) if wanted else self.accept(said)
