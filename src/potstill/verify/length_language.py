"""Verifiers of an answer's length and language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from importlib import metadata
from typing import Any

from potstill.errors import RecipeError, did_you_mean
from potstill.recipe.verify import Language, Length, Part
from potstill.registry import implements
from potstill.types import Answer, Record, Verdict
from potstill.verify.answer_extraction import without_reasoning
from potstill.verify.base import BaseVerifier
from potstill.verify.workers import require


def part_of(answer: Answer, part: Part) -> str:
    """The text of the named part of an answer."""
    reasoning = answer.reasoning or ""
    if part == "answer":
        return without_reasoning(answer.text)
    return {"reasoning": reasoning, "both": f"{reasoning}\n\n{answer.text}"}[part]


@implements(Length)
class LengthVerifier(BaseVerifier[Length]):
    """Counts characters, words (runs without white space) or the teacher's tokens, without the reasoning."""

    contract = 2

    def judge(self, record: Record, completion: str) -> Verdict:
        if self._settings.unit == "tokens":
            return self.cannot_judge("a text alone does not say its number of tokens")
        if self._settings.of != "answer":
            return self.cannot_judge("a text alone does not say the reasoning before it")
        return self._within(without_reasoning(completion))

    def judge_answer(self, record: Record, answer: Answer) -> Verdict:
        if self._settings.unit == "tokens":
            return self._judge(answer.completion_tokens)
        return self._within(part_of(answer, self._settings.of))

    def _within(self, text: str) -> Verdict:
        text = text.strip()
        return self._judge(len(text) if self._settings.unit == "characters" else len(text.split()))

    def _judge(self, length: int) -> Verdict:
        asked = self._settings
        if length < asked.least:
            return self.reject(f"{length} {asked.unit}, fewer than {asked.least}")
        if asked.most is not None and length > asked.most:
            return self.reject(f"{length} {asked.unit}, more than {asked.most}")
        return self.accept(f"{length} {asked.unit}")


_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$[^$]*\$\$|\$[^$\n]*\$|\\\(.{0,2000}?\\\)|\\\[.{0,2000}?\\\]|\\[a-zA-Z]+|https?://\S+"
    r"|\b[\w.+-]{1,64}@\S+|<[^<>\n]+>",
    re.DOTALL,
)
_SCRIPTS = {"zh": "CJK", "ja": "CJK HIRAGANA KATAKANA", "ko": "HANGUL CJK", "ru": "CYRILLIC", "uk": "CYRILLIC"}
_SCRIPTS |= {"be": "CYRILLIC", "bg": "CYRILLIC", "mk": "CYRILLIC", "kk": "CYRILLIC", "ky": "CYRILLIC", "mn": "CYRILLIC"}
_SCRIPTS |= {"sr": "CYRILLIC LATIN", "ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "ps": "ARABIC", "ug": "ARABIC"}
_SCRIPTS |= {"he": "HEBREW", "el": "GREEK", "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "th": "THAI"}
_SCRIPTS |= {"bn": "BENGALI", "as": "BENGALI", "pa": "GURMUKHI", "gu": "GUJARATI", "or": "ORIYA", "ta": "TAMIL"}
_SCRIPTS |= {"te": "TELUGU", "kn": "KANNADA", "ml": "MALAYALAM", "si": "SINHALA", "lo": "LAO", "km": "KHMER"}
_SCRIPTS |= {"hy": "ARMENIAN", "ka": "GEORGIAN", "am": "ETHIOPIC", "dz": "TIBETAN"}
PARAGRAPH_LETTERS = 40
"""Minimum letters of a paragraph whose language is identified."""


@implements(Language)
class LanguageVerifier(BaseVerifier[Language]):
    """Identifies the language of each paragraph by `py3langid`, and the scripts of all letters: one label for the whole
    text would miss a word or a paragraph in another language.

    Raises:
        MissingExtra: py3langid is not installed.
        RecipeError: (on first use) it does not know a language.
    """

    contract = 2

    def __init__(self, settings: Language) -> None:
        super().__init__(settings)
        require("py3langid", "py3langid", "verify", "the verifier 'language'")

    @property
    def version(self) -> str:
        return f"{self.contract}+py3langid-{metadata.version('py3langid')}"

    def judge(self, record: Record, completion: str) -> Verdict:
        if self._settings.of != "answer":
            return self.cannot_judge("a text alone does not say the reasoning before it")
        return self._judge(without_reasoning(completion))

    def judge_answer(self, record: Record, answer: Answer) -> Verdict:
        return self._judge(part_of(answer, self._settings.of))

    def _judge(self, text: str) -> Verdict:
        wanted = self._settings.languages
        _check_known(wanted)
        prose = _NO_PROSE.sub(" ", text)
        scripts = _scripts(prose)
        letters = sum(scripts.values())
        if letters < self._settings.least_letters:
            return self.cannot_judge(f"{letters} letters are too few to tell a language")
        own = {script for language in wanted for script in _SCRIPTS.get(language, "LATIN").split()}
        foreign = sum(n for script, n in scripts.items() if script not in own)
        strange = {script.title(): n for script, n in scripts.items() if script not in own}
        whole = _identify(prose)
        paragraphs = [
            p for p in re.split(r"\n\s*\n|\n(?=[-*#\d])", prose) if sum(_scripts(p).values()) >= PARAGRAPH_LETTERS
        ]
        others = [(p, _identify(p)) for p in paragraphs]
        elsewhere = sum(
            sum(n for s, n in _scripts(p).items() if s in own) for p, found in others if found not in wanted
        )
        share = (foreign + elsewhere) / letters
        languages = sorted({found for _, found in others if found not in wanted} | set(strange))
        if not others and whole not in wanted:
            return self.reject(f"written in {whole}, not in {' or '.join(wanted)}")
        if share > self._settings.other_share:
            return self.reject(f"{share:.0%} of its letters are of other languages or scripts: {', '.join(languages)}")
        return self.accept(f"written in {whole if whole in wanted else ' or '.join(wanted)}", 1 - share)


def _scripts(text: str) -> Counter[str]:
    """Letters by script."""
    return Counter(_script(c) for c in text if c.isalpha())


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0].split("-")[0].replace("FULLWIDTH", "LATIN")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _identify(text: str) -> str:
    return str(_identifier().classify(" ".join(text.split()))[0])


@cache
def _check_known(languages: tuple[str, ...]) -> None:
    known = _identifier().labels
    for language in languages:
        if language not in known:
            raise RecipeError(f"py3langid knows no language {language!r}{did_you_mean(language, known)}")
