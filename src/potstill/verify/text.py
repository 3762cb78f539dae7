"""Verifiers that compare an answer with a reference as text, as a number, or as a choice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

from potstill.recipe.verify import Choice, Exact, Numeric, ReferenceSettings
from potstill.registry import implements
from potstill.types import Record, Verdict
from potstill.verify.answer_extraction import (
    last_sentence,
    leads_to_value,
    locate,
    without_reasoning,
)
from potstill.verify.asked import of_another
from potstill.verify.base import BaseVerifier, question_text, references, shown
from potstill.verify.surroundings import is_taken_back, known_words
from potstill.verify.values import (
    DECIMAL_COMMA,
    Value,
    answer_value,
    clean,
    names_in_passing,
    other_unit,
    read_value,
    reference_value,
    with_points,
)

R = TypeVar("R", bound=ReferenceSettings)


class _Compares(BaseVerifier[R]):
    """Base of the three. Without a reference they cannot judge."""

    contract = 7

    def judge(self, record: Record, completion: str) -> Verdict:
        known = references(record, self._settings.reference)
        if not known:
            return self.cannot_judge(f"the record has no metadata[{self._settings.reference!r}]")
        return self.against(known, without_reasoning(completion), record)

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        """Judge a text without reasoning against at least one reference."""
        raise NotImplementedError


@implements(Exact)
class ExactVerifier(_Compares[Exact]):
    """Equality of texts after Unicode composition (NFC), with runs of white space as one space."""

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        whole = self._settings.answer == "whole"
        found = None if whole else locate(said)
        said = said if found is None else found.text
        answer = self._plain(said)
        if not answer:
            return self.reject("no answer")
        answers = {answer, self._plain(bold[1])} if (bold := _BOLD.fullmatch(said.strip())) else {answer}
        for text in known:
            if self._plain(text) in answers:
                return self.accept(f"the same text as {shown(text)}")
        if not whole and found is None and any(_among(self._plain(text), answer) for text in known):
            return self.cannot_judge(f"{shown(said)} has the answer among other words")
        return self.reject(f"{shown(said)} is not {shown(known[0])}")

    def _plain(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if self._settings.ignore_case:
            text = text.casefold()
        if self._settings.ignore_punctuation:
            text = "".join(
                " " if _is_punctuation(text[at - 1 : at], sign, text[at + 1 : at + 2]) else sign
                for at, sign in enumerate(text)
            )
        return " ".join(text.split())


def _among(text: str, answer: str) -> bool:
    """Whether a text is among the words of an answer."""
    return bool(text) and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer) is not None


_BOLD = re.compile(r"\*\*([^*\n]+)\*\*\.?")
"""An answer that is in bold as a whole."""


def _is_punctuation(before: str, sign: str, after: str) -> bool:
    """Whether a sign is only punctuation. Most signs beside a digit belong to the number: `.5`, `5%`, `5!`, `-5`."""
    if not unicodedata.category(sign).startswith("P") or sign in "%‰-−_#@&*/\\§¶" or after.isdigit():
        return False
    return not before.isdigit() or sign in ".,;:)]}\"'’”"


@implements(Numeric)
class NumericVerifier(_Compares[Numeric]):
    """Equality of numbers, computed with fractions, within a tolerance: `|answer − reference| ≤ absolute +
    relative·|reference|`. A percentage is a hundredth; units are compared if both have one."""

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        readable = [(text, reference_value(text)) for text in known]
        if not any(r.number is not None for _, r in readable):
            return self.cannot_judge(f"the reference {shown(known[0])} is no number")
        asked = question_text(record)
        question, said = known_words(asked), with_points(said, asked)
        answer = answer_value(said, question) if self._settings.answer == "final" else read_value(said, question)
        if answer is not None and answer.kind == "unclear":
            return self.cannot_judge(f"what surrounds the number is not known to be harmless: {shown(said[-60:])}")
        if answer is not None and answer.number is None and DECIMAL_COMMA.match(answer.text):
            return self.cannot_judge(f"{shown(answer.text)}: a comma between digits may be a decimal one")
        if answer is None or answer.number is None:
            return self.reject(f"{shown(said[-60:])} gives no number")
        for text, reference in readable:
            if (unit := other_unit(reference, answer, asked)) is not None:
                return self.cannot_judge(f"{shown(answer.text)}: the question does not ask for {unit}")
            if self._near(reference, answer):
                other = of_another(asked, said)
                if other is not None:
                    return self.cannot_judge(f"the answer speaks of {shown(other)}, and the question asks for another")
                return self.accept(f"{shown(answer.text)} is {shown(text)}")
        if any(r.number is not None and names_in_passing(said, r.number) for _, r in readable):
            return self.cannot_judge(f"{shown(answer.text)} was read, and the last line has {shown(known[0])} too")
        return self.reject(f"{shown(answer.text)} is not {shown(known[0])}")

    def _near(self, reference: Value, answer: Value) -> bool:
        if reference.number is None or answer.number is None:
            return False
        if reference.unit and answer.unit and reference.unit != answer.unit:
            return False
        if reference.of and answer.of and reference.of != answer.of:
            return False
        relative = Fraction(str(self._settings.relative_tolerance)) * abs(reference.number)
        within = Fraction(str(self._settings.absolute_tolerance)) + relative
        return abs(reference.number - answer.number) <= within


@implements(Choice)
class ChoiceVerifier(_Compares[Choice]):
    """Equality of chosen letters: marked as the answer, alone, at the start ("B) …"), the only one in its sentence, or
    given by the text of its choice. An answer that names two letters, denies one, or says something else about one,
    chooses none."""

    def against(self, known: list[str], said: str, record: Record) -> Verdict:
        letters, choices, right = right_letters(self._settings, known, record)
        if not right:
            return self.cannot_judge(f"the reference {shown(known[0])} is none of {letters[0]} to {letters[-1]}")
        found = chosen(said, letters, choices, known_words(question_text(record)))
        if found.letter is None:
            reason = f"{shown(said[-60:])} chooses none of {letters[0]} to {letters[-1]}, or more than one"
            return self.cannot_judge(reason) if found.doubtful else self.reject(reason)
        wanted = " or ".join(sorted(right))
        if found.letter in right:
            return self.accept(f"chose {found.letter}")
        return self.reject(f"chose {found.letter}, not {wanted}")


def right_letters(settings: Choice, known: Sequence[str], record: Record) -> tuple[str, list[str], frozenset[str]]:
    """The letters of a record's choices, the texts of the choices if they are known, and the letters that its reference
    answers name: none if a reference is none of the choices."""
    texts = record.metadata.get(settings.choices)
    choices = [str(t) for t in texts] if isinstance(texts, Sequence) and not isinstance(texts, str) else []
    choices = choices or _choices_in(question_text(record), settings.letters, known)
    letters = settings.letters[: len(choices)] if choices else settings.letters
    right = {_letter_of(text.strip(), letters, choices) for text in known}
    return letters, choices, frozenset(letter for letter in right if letter is not None)


def _letter_of(text: str, letters: str, choices: list[str]) -> str | None:
    if text in choices and text not in letters:
        return letters[choices.index(text)] if choices.index(text) < len(letters) else None
    if text.isdigit():
        return letters[int(text)] if int(text) < len(letters) else None
    return chosen(text, letters, choices).letter


_LISTED = re.compile(r"^[ \t]*[(\[*]*([A-Z])[)\].:]+[ \t]*(\S[^\n]*)$", re.MULTILINE)


def _choices_in(question: str, letters: str, known: Sequence[str]) -> list[str]:
    """The texts of the choices that a question lists, one a line, by letters from the first on ("A) Oxygen"); none
    where it lists none, or fewer than a reference names."""
    listed = [(m[1], m[2].strip()) for m in _LISTED.finditer(question[-4_000:])]
    marks = "".join(letter for letter, _ in listed)
    named = [text.strip() for text in known if len(text.strip()) == 1 and text.strip() in letters]
    if len(marks) < 2 or marks != letters[: len(marks)] or any(letter not in marks for letter in named):
        return []
    texts = [text for _, text in listed]
    return texts if len(set(map(_plain, texts))) == len(texts) else []


class Chosen(NamedTuple):
    """The letter that a text chooses; without one, whether it names letters nevertheless."""

    letter: str | None
    doubtful: bool = False


_WHOLE = re.compile(r"[*(\[{\s]*([A-Za-z])[*)\]}.:\s]*")
_LED = re.compile(
    r"(?:(?:option|choice|answer)\s+)?[*(\[]*([A-Z])(?:[)\].:]|\s[-–—]\s)[*)\]]*\s*(\S.*)?", re.DOTALL | re.I
)
_NAMED_AFTER = re.compile(r"([^()]+?)\s*\(([A-Z])\)[.\s]*")
_LETTER = re.compile(r"(?<![\w'’!-])[*(\[]*([A-Z])[*)\]]*(?![\w'’]|-(?!\s))")
_PRAISE = re.compile(
    r"\s*is\s+(?:the\s+|my\s+)?(?:most\s+)?(?:(?:correct|right|best|final|true|only)\s*)+(?:answer|choice|option|one)?"
    r"|\s*is\s+(?:the\s+|my\s+)(?:answer|choice|one)"
)
_LEADS_TO_LETTER = re.compile(
    r"(?:\b(?:(?:it|that)['’]s|options?|choices?|answer|letter|is|be|choose|chose|pick|picked|select|selected|with|so|thus|hence|therefore)"
    r"|[:,=])[\s*($]*$",
    re.IGNORECASE,
)
_REASON = re.compile(r"[,;]?\s+(?:because|since|as\s+(?:it|this|the)|which)\b.*", re.DOTALL)
_PLAIN = re.compile(r"[\s*)\]}.:,;!$\"'”’]+|\\\)|\\\]")


def chosen(text: str, letters: str, choices: Sequence[str] = (), known: frozenset[str] = frozenset()) -> Chosen:
    """The letter that a text chooses.

    Args:
        letters: of the choices, in order.
        choices: the texts of the choices, if they are known.
        known: base forms of the question's words.
    """
    found = locate(text, known)
    if found is not None and not found.text:
        return Chosen(None, doubtful=True)
    said = clean(found.text if found is not None else text)
    plain = [_plain(c) for c in choices]
    if found is not None and not found.delimited and _ends_with_another(text, said, letters, plain):
        return Chosen(None, doubtful=True)
    whole = _WHOLE.fullmatch(said)
    if whole:
        return Chosen(whole[1].upper()) if whole[1].upper() in letters else Chosen(None)
    if plain.count(_plain(said)) == 1:
        return Chosen(letters[plain.index(_plain(said))])
    named_after = _NAMED_AFTER.fullmatch(said)
    if (
        named_after
        and named_after[2] in letters
        and plain
        and _plain(named_after[1]) == plain[letters.index(named_after[2])]
    ):
        return Chosen(named_after[2])
    sentence = clean(last_sentence(text) or "") if found is None else said
    ended = _NAMED_AFTER.fullmatch(sentence)
    if (
        ended
        and ended[2] in letters
        and plain
        and _states(ended[1], plain, letters.index(ended[2]))
        and leads_to_value(ended[1], known | known_words(" ".join(choices)), strict=True)
    ):
        return Chosen(ended[2])
    led = _LED.fullmatch(said)
    if led and led[1] in letters:
        return _led(led[1], led[2] or "", letters, plain)
    named = [m for m in _LETTER.finditer(sentence) if m[1] in letters and not _is_article(sentence, m)]
    if named:
        names = {m[1] for m in named}
        mark = named[0]
        if len(names) > 1 or len(named) > 1:
            return Chosen(None, doubtful=True)
        before, after = sentence[: mark.start()], sentence[mark.end() :]
        told = _REASON.sub("", _PRAISE.sub("", after))
        own = not _PLAIN.sub("", told) or _plain(told.lstrip(" ,;:(–—")) == (
            plain[letters.index(mark[1])] if plain else None
        )
        led_to = not before.strip(" *($") or _LEADS_TO_LETTER.search(before) is not None
        led_to = led_to and _labels_an_answer(before, known)
        if own and led_to and not is_taken_back(after) and leads_to_value(before, known, strict=True):
            return Chosen(mark[1])
        return Chosen(None, doubtful=True)
    claimed = re.fullmatch(r"(?P<before>.*\b(?:is|are|was|were|:))\s*(?P<choice>[^:]+)", sentence, re.DOTALL)
    if (
        claimed
        and plain.count(_plain(claimed["choice"])) == 1
        and leads_to_value(claimed["before"], known, strict=False)
    ):
        return Chosen(letters[plain.index(_plain(claimed["choice"]))])
    return Chosen(None, doubtful=bool(claimed))


def _states(before: str, plain: Sequence[str], at: int) -> bool:
    """Whether words end with the text of a choice and name no other: "Plants absorb carbon dioxide"."""
    said = _plain(before)
    others = (other for number, other in enumerate(plain) if number != at and other)
    return bool(plain[at]) and said.endswith(plain[at]) and not any(other in said for other in others)


_LABEL = re.compile(r"([^\W\d_]+)[\s*_]*[:,=][\s*($]*$")
_LABELS = frozenset(
    """answer answers option choice letter solution result conclusion selection response final correct so thus hence
    therefore then finally overall""".split()
)


def _labels_an_answer(before: str, known: frozenset[str]) -> bool:
    """Whether the word before a colon or comma refers to an answer or the question: in "Grade: C" it does not."""
    label = _LABEL.search(before)
    return label is None or label[1].lower() in _LABELS or bool(known_words(label[1]) & known)


def _ends_with_another(text: str, said: str, letters: str, plain: Sequence[str]) -> bool:
    """Whether the text after a marked letter ends by naming another choice ("Answer: A. On reflection, Venus.")."""
    lone = re.match(r"[(\[*]*([A-Z])(?![A-Za-z])", said)
    if lone is None or lone[1] not in letters:
        return False
    last = _plain(last_sentence(text) or "")
    others = [p for at, p in enumerate(plain) if p and letters[at] != lone[1]]
    return any(re.search(rf"(?:^|[,;:]|\b(?:is|be))\s*(?:the\s+)?{re.escape(other)}$", last) for other in others)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().strip(" .*:)")


def _led(letter: str, rest: str, letters: str, plain: Sequence[str]) -> Chosen:
    """ "B) cod": the letter, unless what follows is another choice, another letter, or a retraction."""
    told = _plain(rest.split("\n", 1)[0])
    if plain and told == plain[letters.index(letter)]:
        return Chosen(letter) if not is_taken_back(rest[len(told) :]) else Chosen(None, doubtful=True)
    others = {m[1] for m in _LETTER.finditer(rest) if m[1] in letters and not _is_article(rest, m)} - {letter}
    denied = re.match(r"\s*(?:is|isn['’]t|are|or|and|not|nor|but|no)\b", rest, re.IGNORECASE)
    ruled_out = not plain and _RULED_OUT.search(rest) is not None
    if others or denied or ruled_out or is_taken_back(rest) or (told in plain):
        return Chosen(None, doubtful=True)
    return Chosen(letter)


_RULED_OUT = re.compile(
    r"\b(?:ruled\s+out|eliminat\w*|exclud\w*|discard\w*|reject\w*|crossed\s+out|can(?:not|['’]t)\s+be|unlikely|false)\b",
    re.IGNORECASE,
)


def _is_article(text: str, found: re.Match[str]) -> bool:
    """Whether a letter is the article "A" or the pronoun "I": not in brackets, and followed by a word in lower case."""
    if found[1] not in "AI" or found.group() != found[1]:
        return False
    return (
        bool(re.match(r"\s+(?!is\b|because\b|since\b|or\b|and\b|nor\b)[a-z]", text[found.end() :])) or found[1] == "I"
    )
