"""Verifiers that compare an answer with a reference as text, as a number, or as a choice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from potstill.recipe.verify import Choice, Exact, Numeric, ReferenceSettings
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answers import answer_value, reference_value
from potstill.verify.base import BaseVerifier, references, shown
from potstill.verify.final import final_answer, marked, without_reasoning
from potstill.verify.values import Value, clean, read_value


class _Compares(BaseVerifier):
    """What the three have in common: no reference, no judgement."""

    def verify(self, record: Record, completion: str) -> Verdict:
        assert isinstance(self._settings, ReferenceSettings)
        known = references(record, self._settings.reference)
        if not known:
            return self.cannot_judge(f"the record has no metadata[{self._settings.reference!r}]")
        said = without_reasoning(completion)
        return self.against(known, final_answer(said) if self._settings.answer == "final" else said, record)

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        raise NotImplementedError


@implements(Exact)
class ExactVerifier(_Compares):
    """The same text, after Unicode composition (NFC) and with runs of white space as one space."""

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        answer = self._plain(said)
        if not answer:
            return self.reject("no answer")
        for text in known:
            if answer == self._plain(text):
                return self.accept(f"the same text as {shown(text)}")
        return self.reject(f"{shown(said)} is not {shown(known[0])}")

    def _plain(self, text: str) -> str:
        assert isinstance(self._settings, Exact)
        text = unicodedata.normalize("NFC", text)
        if self._settings.ignore_case:
            text = text.casefold()
        if self._settings.ignore_punctuation:
            # A minus sign or a point inside a number is no punctuation.
            text = re.sub(r"(?<!\d)[^\w\s−+-]|[^\w\s](?!\d)", " ", text)
        return " ".join(text.split())


@implements(Numeric)
class NumericVerifier(_Compares):
    """The same number, computed with fractions; `|answer − reference| ≤ absolute + relative·|reference|` where there is
    a tolerance. A percentage is a hundredth; a unit is compared where both have one."""

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        assert isinstance(self._settings, Numeric)
        answer = answer_value(said) if self._settings.answer == "final" else read_value(said)
        if answer is None or answer.number is None:
            return self.reject(f"{shown(said)} gives no number")
        readable = [(text, reference_value(text)) for text in known]
        if not any(r.number is not None for _, r in readable):
            return self.cannot_judge(f"the reference {shown(known[0])} is no number")
        for text, reference in readable:
            if self._near(reference, answer):
                return self.accept(f"{shown(answer.text)} is {shown(text)}")
        return self.reject(f"{shown(answer.text)} is not {shown(known[0])}")

    def _near(self, reference: Value, answer: Value) -> bool:
        assert isinstance(self._settings, Numeric)
        if reference.number is None or answer.number is None:
            return False
        if reference.unit and answer.unit and reference.unit != answer.unit:
            return False
        relative = Fraction(str(self._settings.relative_tolerance)) * abs(reference.number)
        within = Fraction(str(self._settings.absolute_tolerance)) + relative
        return abs(reference.number - answer.number) <= within


_STATED = re.compile(r"\b(?:answer|option|choice)\s*(?:is|:)?\s*[*(\[]*([A-Z])(?![\w'’])", re.IGNORECASE)
_WHOLE = re.compile(r"[*(\[{\s]*([A-Za-z])[*)\]}.:\s]*")
_LED = re.compile(r"[*(\[]*([A-Z])(?:[)\].:]|\s*[-–—]\s)[*)\]]*\s*(\S.*)?", re.DOTALL)
_ENCLOSED = re.compile(r"[(\[]([A-Z])[)\]]")


@implements(Choice)
class ChoiceVerifier(_Compares):
    """The same letter. Found where it is marked as the answer, stands alone, leads the text ("B) …"), is the only
    one in brackets, or by the text of its choice. An answer that states two letters names none."""

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        assert isinstance(self._settings, Choice)
        texts = record.metadata.get(self._settings.choices)
        choices = [str(t) for t in texts] if isinstance(texts, Sequence) and not isinstance(texts, str) else []
        letters = self._settings.letters[: len(choices)] if choices else self._settings.letters
        right = {self._reference(text, letters, choices) for text in known} - {None}
        if not right:
            return self.cannot_judge(f"the reference {shown(known[0])} is none of {letters[0]} to {letters[-1]}")
        letter = chosen(said, letters, choices)
        if letter is None:
            return self.reject(f"{shown(said)} chooses none of {letters[0]} to {letters[-1]}, or more than one")
        wanted = " or ".join(sorted(str(r) for r in right))
        return self.accept(f"chose {letter}") if letter in right else self.reject(f"chose {letter}, not {wanted}")

    def _reference(self, text: str, letters: str, choices: list[str]) -> str | None:
        text = text.strip()
        if text.isdigit() and text not in choices:
            return letters[int(text)] if int(text) < len(letters) else None
        return chosen(text, letters, choices)


def chosen(text: str, letters: str, choices: Sequence[str] = ()) -> str | None:
    """The letter that a text chooses; None where it chooses none, or leaves it open."""
    said = clean(marked(text) or text)
    whole = _WHOLE.fullmatch(said)
    if whole:
        return whole[1].upper() if whole[1].upper() in letters else None
    plain = [" ".join(c.split()).casefold().rstrip(".") for c in choices]
    led = _LED.fullmatch(said)
    rest = " ".join((led[2] or "").split()).casefold().rstrip(".") if led else ""
    if (
        led
        and led[1] in letters
        and not _ENCLOSED.search(led[2] or "")
        and not (rest in plain and rest != plain[letters.index(led[1])])
    ):
        return led[1]
    same = [i for i, choice in enumerate(plain) if choice == said.casefold().rstrip(".")]
    if len(same) == 1:
        return letters[same[0]]
    stated = {m[1].upper() for m in _STATED.finditer(said) if m[1].isupper()} or set(_ENCLOSED.findall(said))
    # "It is not (B)" chooses nothing.
    denied = re.search(r"\b(?:not|neither|nor|or|wrong|incorrect|isn['’]t)\b", said)
    return stated.pop() if len(stated) == 1 and stated <= set(letters) and not denied else None
