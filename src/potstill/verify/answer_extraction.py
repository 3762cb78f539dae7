r"""Locates the final answer in a model's text.

No function raises on any text, and every function takes time linear in its length. A marked answer (`\boxed{…}`,
`<answer>…</answer>`, "the answer is …", `#### …`) is returned with the words of its sentence on both sides, because
"half of \boxed{16}" does not answer 16. `surroundings.py` decides whether those words are harmless.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from potstill.verify.numbers import NUMBER_WORDS
from potstill.verify.surroundings import (
    CLAIMS,
    MEASURED,
    all_harmless,
    is_doubt,
    is_harmless,
    is_name,
    is_operation,
    is_taken_back,
    words_in,
)

MOST_SENTENCE = 2_000
"""Maximum length of a sentence that is read, in characters; no answer is found in a longer one."""

_MARKED = re.compile(
    r"\b(?:(?:answer|result)\s{0,3}(?:(?:is|was|would\s+be|should\s+be)\b\s{0,3}:?|[:=])|solution\s+is\b:?)"
    r"|(?:^|\n)[ \t]{0,8}(?:\#{4}(?!\#)|A\s?:)",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_OPENERS = re.compile(r"(?:[\s$*_&>]|\\\[|\\\(|\\[,;:! ]|\\q?quad|\\displaystyle)+$")
_LEADS = re.compile(
    r"(?:[:,.;!]|(?<![!<>≠\\])=|\\(?:implies|Rightarrow|Longrightarrow|rightarrow|to|therefore)|⇒|→|∴)$"
)
_CLOSERS = re.compile(r"(?:[\s$*_]|\\\]|\\\)|\\[,;:! ]|\\q?quad)+")
_SUFFIX = re.compile(r"\s*(?:\\?%|\^\{?\\circ\}?|°)")
_REASON = re.compile(r"[,;]?\s\(?(?:because|since|as\s+(?:we|it|there|this))\b.*", re.DOTALL | re.IGNORECASE)
_PUNCTUATION = re.compile(r"[\s.,;:!'’\"“”*_()\[\]$-]|\\[()\[\],;: ]|\\q?quad")
_CONDITIONS = frozenset("if unless whether when suppose supposing assume assuming say pretend imagine".split())
_OTHERWISE_MEANT = frozenset("modulo mod rounded rounding ignoring neglecting excluding counting disregarding".split())
"""Words that begin a clause under which the answer would be another: "Modulo 9, the answer is 5"."""
_HEADINGS = frozenset(
    """step case question problem part section chapter figure table exercise example item stage phase attempt try
    method approach hint note page line equation eq lemma theorem""".split()
)
"""Words whose number is a label, not an answer, unless the question asks for one: "Step 7"."""
_CHANGES = frozenset({"by", "from"})
"""Words before the size or the start of a change, not its result: "it grows by 200"."""
_CONNECTIVES = frozenset("so thus hence therefore then and but".split())
_PARTING = re.compile(
    r"(?:i\s+)?(?:hope|let\s+me\s+know|please|feel\s+free|good\s+luck|thank|happy\s+\w+ing|have\s+a\s+\w+\s+(?:day|time|one))\b[^\d]*$",
    re.IGNORECASE,
)
_YES = re.compile(r"(yes|no|true|false)\b\s*(?:[,.;:!–—-]\s*|$)", re.IGNORECASE)
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)(.*)")


class Located(NamedTuple):
    """The text of a final answer; empty if the surrounding text denies, doubts or changes the answer."""

    text: str
    delimited: bool
    """Whether marks on both sides delimit it."""


def without_reasoning(text: str) -> str:
    """The text after the last `</think>` and before an unclosed `<think>`. A stray mark does not restore the
    reasoning."""
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` (or `\fbox`, or `\boxed 5`) whose braces close; None without one."""
    span = _last_box(text)[0]
    return text[span[1] : span[2]].strip() if span is not None else None


def _last_box(text: str) -> tuple[tuple[int, int, int, int] | None, bool]:
    """Start of the last closed box, start and end of its content, end of the box; and whether an unclosed box follows
    it. One pass over the braces."""
    openings = list(_BOX.finditer(text))
    if not openings:
        return None, False
    closes: dict[int, int] = {}
    stack: list[int] = []
    for brace in _BRACES.finditer(text, openings[0].end()):
        if brace.group() == "{":
            stack.append(brace.start())
        elif brace.group() == "}" and stack:
            closes[stack.pop()] = brace.start()
    cut_short = False
    for opening in reversed(openings):
        start = opening.end()
        if text[start : start + 1] == "{":
            if start in closes:
                return (opening.start(), start + 1, closes[start], closes[start] + 1), cut_short
            cut_short = True
        elif text[start : start + 1].strip():
            return (opening.start(), start, start + 1, start + 1), cut_short
        else:
            cut_short = True
    return None, cut_short


def locate(text: str, known: frozenset[str] = frozenset()) -> Located | None:
    r"""The answer that is marked as final: the last `\boxed{…}`, else the last `<answer>…</answer>`, else the sentence
    after the last "the answer is" or `####`. None without a mark.

    Args:
        known: base forms of the question's words (`surroundings.known_words`), which are harmless around a value.
    """
    text = _BOX_IN_BOX.sub(r"\1", text)
    span, cut_short = _last_box(text)
    if cut_short:
        return Located("", True)
    if span is not None:
        content = _in_sentence(text, *span, known)
        return Located("" if _names_another(text[span[3] :], content, known) else content, True)
    closing = text.lower().rfind("</answer>")
    opening = text.lower().rfind("<answer>", 0, max(closing, 0))
    if opening >= 0:
        content, following = text[opening + len("<answer>") : closing].strip(), text[closing + len("</answer>") :]
        another = is_taken_back(following) or _names_another(following, content, known)
        return Located("" if another else content, True)
    marks = list(_MARKED.finditer(text))
    if not marks:
        return None
    mark = marks[-1]
    if not re.fullmatch(r"\s*(?:\#{4}|A\s?:)", mark.group()):
        before = text[max(0, mark.start() - MOST_SENTENCE) : mark.start()]
        if not _introduces(_last_sentence(before), known):
            return Located("", False)
    following = text[mark.end() : mark.end() + 2 * MOST_SENTENCE].lstrip(" \t\n*:")
    phrase = sentence(following.split("\n", 1)[0].replace("**", "").replace("__", "").strip())
    if len(phrase) > MOST_SENTENCE:
        return Located("", False)
    rest = text[mark.end() :].lstrip(" \t\n*:")[len(phrase) :]
    if is_taken_back(rest) or _goes_on(following[len(phrase) :], phrase):
        return Located("", False)
    if "\n" in rest and _names_another(rest[rest.index("\n") :], phrase, known):
        return Located("", False)
    return Located(phrase, False) if phrase else None


_BOX_IN_BOX = re.compile(r"\\boxed\s*\{\s*(\\boxed\s*\{[^{}]*\})\s*\}")
_NUMBER = re.compile(r"\d+(?:[.,/]\d+)*")
_LONE_CHOICE = re.compile(r"[(\[*]*[A-Z](?:[)\].:]|\s*$)")
_LONE_LETTER = re.compile(r"[\s*(\[]*([A-Z])[\s*)\].]*")


def _names_another(following: str, content: str, known: frozenset[str]) -> bool:
    """Whether the text after a marked answer ends in another, unmarked value: "\\boxed{5}" followed by a line "20". A
    last sentence that repeats the answer ("check: 2 · 5 = 10") does not count."""
    line = following.strip(" \t\n$*.,;:!)]\\")
    if not line or not content:
        return False
    last = last_sentence(following)
    if last is None:
        return False
    letter = _LONE_LETTER.fullmatch(last)
    if letter:
        return letter[1] != content.strip(" ()[]*.$")
    region = region_of(last)
    if region is None or not any(sign.isalnum() for sign in region.text):
        return False
    numbers = _NUMBER.findall(last)
    if set(_NUMBER.findall(content)) & set(numbers):
        return False
    _, after = with_unit(region)
    return leads_to_value(region.before, known, strict=True) and follows_value(after, known)


def _goes_on(following: str, phrase: str) -> bool:
    """Whether the line after an answer states another one ("No, 25."), or ends with another number."""
    line = following.split("\n", 1)[0].lstrip(" .,;:!*_$)")
    if re.match(r"(?:no|nope|or|not|make that|minus|plus|times)\b", line, re.IGNORECASE):
        return True
    if _LONE_CHOICE.match(phrase):
        return False  # a choice's explanation may hold numbers
    numbers = _NUMBER.findall(line)
    return bool(numbers) and numbers[-1] not in _NUMBER.findall(phrase)


def marked(text: str) -> str | None:
    """The text of the answer that is marked as final; None without a mark, empty if it is denied or withdrawn."""
    found = locate(text)
    return found.text if found is not None else None


def _in_sentence(text: str, start: int, opens: int, closes: int, end: int, known: frozenset[str]) -> str:
    """The content of a box, with a percent or degree sign after it; empty if its sentence changes it."""
    content = text[opens:closes].strip()
    before = _last_sentence(text[max(0, start - MOST_SENTENCE) : start])
    after = text[end : end + MOST_SENTENCE]
    suffix = _SUFFIX.match(after)
    if suffix:
        content, after = content + suffix.group().strip(), after[suffix.end() :]
    closers = _CLOSERS.match(after)
    after = after[closers.end() :] if closers else after
    line = after.split("\n", 1)[0]
    rest = text[end:]
    if closers is not None and "\n" in closers.group():
        line = ""
    line = sentence(line)
    lead = _OPENERS.sub("", before)
    if _multiplied(text[max(0, start - MOST_SENTENCE) : start], text[end : end + MOST_SENTENCE]):
        return ""
    if lead and not lead[-1].isalpha() and not _LEADS.search(lead) and lead[-1] not in ")'\"”’":
        return ""
    command = re.search(r"\\([A-Za-z]+)$", lead)
    if command and not _LEADS.search(lead):
        return ""
    if line and not (line[0].isalpha() or line[0] in ".,;:()\"'”’"):
        return ""
    if not leads_to_value(lead, known, strict=False) or not follows_value(line, known) or is_taken_back(rest):
        return ""
    if re.match(r"[\s.,;:!*_$)]*(?:no|nope|or|not|make that)\b", rest, re.IGNORECASE):
        return ""
    unit = " ".join(words_in(_REASON.sub("", line)))
    return f"{content} {unit}" if unit and re.search(r"\d$", content) and _is_unit(unit) else content


_BESIDE_BEFORE = re.compile(r"(?:(?<![\\A-Za-z])[A-Za-z]|\\(?:pi|theta|alpha|beta|sqrt\{[^{}]*\})|[\d)}])\s*$")
_BESIDE_AFTER = re.compile(
    r"\s*(?:[A-Za-z](?![A-Za-z])|\\(?:pi|theta|alpha|beta|sqrt|frac|cdot|times)(?![A-Za-z])|[\d(!^_])"
)


def _multiplied(before: str, after: str) -> bool:
    """Whether a box inside a formula is a factor or has an exponent: `$x\\boxed{5}$`, `$\\boxed{5}i$`."""
    line_before, line_after = before.rpartition("\n")[2], after.partition("\n")[0]
    inside = line_before.count("$") % 2 == 1 or line_before.rfind("\\(") > line_before.rfind("\\)")
    if not inside:
        return False
    formula = re.split(r"\$|\\\(", line_before)[-1]
    rest = re.split(r"\$|\\\)", line_after)[0]
    return bool(_BESIDE_BEFORE.search(formula) or _BESIDE_AFTER.match(rest))


def _is_unit(text: str) -> bool:
    from potstill.verify.units import is_known, unit_of

    unit = unit_of(text)
    return unit is not None and is_known(unit)


def _introduces(before: str, known: frozenset[str]) -> bool:
    """Whether the beginning of a sentence may precede "answer is"."""
    words = words_in(before)
    if any(word.lower() in _CONDITIONS for word in words):
        return False
    if any(w.lower() in _OTHERWISE_MEANT and w.lower() not in known for w in words) or re.search(
        r"\bin base\b", before, re.IGNORECASE
    ):
        return False
    clause = words_in(re.split(r"[,;:–—]", before)[-1])
    if not clause or clause[0].lower() in _CONNECTIVES or clause[0].lower() in ("the", "our", "my", "final"):
        words = [w for w in clause if w.lower() not in _CONNECTIVES]
    return all_harmless([w for w in words if w.lower() not in ("wait", "ok", "okay", "great", "right")], known)


def leads_to_value(before: str, known: frozenset[str], *, strict: bool) -> bool:
    """Whether the words of a sentence before its value leave the value unchanged.

    Words before "is" or "=" may describe a computation ("half of 16 is"); words between "is" and the value may not.

    Args:
        strict: reject unknown words before "is" too. A box is explicit enough without this.
    """
    text = re.sub(r"\$[^$]*\$?|\\\(.*?\\\)|\\[a-zA-Z]+\{[^{}]*\}|\\[a-zA-Z]+", lambda m: _math_words(m.group()), before)
    if re.search(r"[?~±≈≠≤≥<>]|(?:^|\s)[.,]\s*$", text):
        return False
    words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|=", text)
    if any(is_doubt(word) for word in words if word.lower() != "but"):
        return False
    claims = [at for at, word in enumerate(words) if word.lower() in CLAIMS]
    tail = words[claims[-1] + 1 :] if claims else words
    head = words[: claims[-1]] if claims else []
    if tail and tail[-1].lower() in _HEADINGS and tail[-1].lower() not in known:
        return False
    if tail and tail[-1].lower() in _CHANGES and tail[-1].lower() not in known:
        return False
    if re.search(r"\bup\s+to\s*$", text, re.IGNORECASE):
        return False
    if tail and tail[-1].lower() == "of" and not (len(tail) > 1 and _is_measured(tail[-2])):
        return False
    if any(is_operation(word) for word in tail):
        return False
    apart = text.rstrip().endswith((",", ":", ";"))
    if tail and not apart and not (is_harmless(tail[-1], known) or is_name(tail[-1])):
        return False
    if not strict:
        return True
    return all_harmless(tail, known) and all(
        is_harmless(w, known) or is_name(w) or is_operation(w) or w == "=" or len(w) == 1 or w.lower() in NUMBER_WORDS
        for w in head
    )


def _math_words(math: str) -> str:
    """What a formula adds to the words of its sentence: its last equality sign, and any word of doubt."""
    signs = "".join(s for s in ("~", "±", "≈") if s in math)
    doubt = re.search(r"\\(?:approx|sim|neq?|leq?|geq?|pm|not)\b", math)
    return f" {'≈' if doubt else signs} {'=' if math.rstrip('$ ').endswith('=') else ''} "


def _is_measured(word: str) -> bool:
    return word.lower() in MEASURED or word.lower().removesuffix("s") in MEASURED


def follows_value(after: str, known: frozenset[str]) -> bool:
    """Whether the rest of a sentence leaves the value before it unchanged. A reason ("because …") may contain anything
    but a retraction."""
    main = re.sub(r"\bleft[ -]over\b", "left", _REASON.sub("", f" {after}"))
    if re.search(r"\bat (?:best|worst|max|(?:the )?(?:most|least|latest|earliest))\b", main):
        return False
    if is_taken_back(after) or not all_harmless(words_in(main), known):
        return False
    return not _PUNCTUATION.sub("", re.sub(r"[^\W\d_]", "", main))


def _last_sentence(text: str) -> str:
    """The part of a text after its last full stop or line break."""
    line = text.rpartition("\n")[2]
    stops = list(re.finditer(r"[.!?:]\s+(?=[A-Z\\$(*])", line))
    while stops and line[stops[-1].start()] == ":":
        stops.pop()
    return line[stops[-1].end() :] if stops else line


def sentence(line: str) -> str:
    """The text before the first full stop that ends a sentence. Those in `1.5`, `a.m.` and `Dr. X` end none."""
    for stop in re.finditer(r"[.!](?=\s+[A-Z\\$(]|\s*$)", line):
        before = line[max(0, stop.start() - 8) : stop.start()]
        at_end = stop.end() == len(line.rstrip())
        if re.search(r"\.$|\b[A-Za-z]\.[A-Za-z]$", before):
            continue
        if at_end or not re.search(r"\b(?:Mr|Mrs|Ms|Dr|St|No|vs|[A-Z])$", before):
            return line[: stop.start()].strip()
    return line.strip()


def final_answer(text: str) -> str:
    """The final answer: the marked one, else the whole text (without reasoning)."""
    said = without_reasoning(text)
    found = marked(said)
    return found if found is not None else said


_CHECK = re.compile(r"[*_#\s]*(?:quick\s+)?(?:check|verification)\b[*_\s]*:", re.IGNORECASE)
_CHEERS = " 🎉🎊😊🙂😄👍🚀✨✅✓✔\ufe0f"


def _checks(line: str, before: str) -> bool:
    """Whether a line verifies the result at the end of the line before ("Check: 36 + 12 = 48") without expressing
    doubt."""
    if len(line) > MOST_SENTENCE or not _CHECK.match(line):
        return False
    results = _NUMBER.findall(before[-MOST_SENTENCE:])
    doubted = (
        re.search(r"[≠?]|[.!;]\s+\S|\bshould\b", line)
        or is_taken_back(line)
        or any(is_doubt(word) for word in words_in(line))
    )
    return bool(results) and results[-1] in _NUMBER.findall(line) and not doubted


def last_sentence(text: str) -> str | None:
    """The last sentence of a text, without closing greetings; None if there is none or it is too long."""
    lines = [line.strip() for line in without_reasoning(text).splitlines() if line.strip()]
    if not lines:
        return None
    while len(lines) > 1 and _PARTING.match(lines[-1][:MOST_SENTENCE]):
        lines.pop()
    while len(lines) > 1 and _checks(lines[-1], lines[-2]):
        lines.pop()
    last = lines[-1].rstrip(_CHEERS)
    if len(last) > MOST_SENTENCE:
        return None
    last = last.replace("**", "").replace("__", "")
    sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\\$(*])", last) if s.strip()]
    while len(sentences) > 1 and _PARTING.match(sentences[-1]):
        sentences.pop()
    return sentences[-1].strip() if sentences else last


_REASON_FIRST = re.compile(r"(?:since|because)\s[^,;]*,\s+", re.IGNORECASE)
_SO = re.compile(r".*[,;]\s+(?:and\s+)?(?:so|thus|therefore|hence)\s+", re.IGNORECASE | re.DOTALL)


def conclusion(sentence_: str) -> str:
    """The conclusion of a sentence: "Lia has 20" of "Ben has 10, so Lia has 20". The whole sentence if it expresses any
    doubt."""
    reason = _REASON_FIRST.match(sentence_)
    rest = sentence_[reason.end() :] if reason else ""
    if rest and "?" not in rest and not any(is_doubt(word) for word in words_in(rest)):
        return rest
    found = _SO.match(sentence_)
    if found is None or "?" in sentence_ or any(is_doubt(word) for word in words_in(sentence_)):
        return sentence_
    return sentence_[found.end() :]


@dataclass(frozen=True)
class Region:
    """A part of a sentence that may be a value, and the words on both sides of it."""

    text: str
    before: str
    after: str
    several: bool
    """Whether the sentence has another value before "is"."""


_MATH = r"\$\$[^$]{1,400}\$\$|\$[^$\n]{1,400}\$|\\\([^\n]{1,400}?\\\)|\\\[[^\n]{1,400}?\\\]"
_MONTHS = "(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]{0,6}\\.?"
_PIECE = re.compile(
    r"(?P<when>\d+\s*(?:hours?|hrs?|h)[\s,]*(?:and\s+)?\d+\s*(?:minutes?|mins?|m)\b"
    rf"|{_MONTHS}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTHS},?\s+\d{{4}}"
    rf"|\d{{1,2}}(?::\d{{2}})?(?::\d{{2}})?\s?[aApP]\.?[mM]\b\.?)"
    rf"|(?P<math>{_MATH})|(?P<bracket>[(\[{{]\s*[-+−]?\d[^()\[\]{{}}\s]*,[^()\[\]{{}}]*[)\]}}])|(?P<token>\S+)"
)
_JOINS = frozenset({"and", "or", "to"})
_SIGNS = frozenset({"minus", "negative", "plus"})
_OPERATORS = frozenset({"=", "+", "-", "−", "–", "×", "*", "/", "÷", "·", "^"})
_SUFFIXES = frozenset({"percent", "%", r"\%", "hundred", "thousand", "million", "billion", "trillion", "dozen"})


def region_of(sentence_: str) -> Region | None:
    """The only value in a sentence, or the one after its last "is"; None if that is ambiguous."""
    pieces = [(m.lastgroup or "token", m.group(), m.start(), m.end()) for m in _PIECE.finditer(sentence_)]
    kinds = [_is_value(kind, text) for kind, text, *_ in pieces]
    for at, (_, text, *_) in enumerate(pieces):
        bare = text.strip(".,;:!()").lower()
        following = kinds[at + 1] if at + 1 < len(pieces) else False
        preceding = kinds[at - 1] if at else False
        if (
            (bare in _SIGNS and following)
            or (bare in _JOINS and preceding and (following or _article(pieces, kinds, at)))
            or (bare in ("a", "an") and following and (preceding or _is_scale(pieces, at + 1)))
            or (bare in _SUFFIXES and preceding)
        ):
            kinds[at] = True
    runs: list[tuple[int, int]] = []
    for at, value in enumerate(kinds):
        ended = at > 0 and pieces[at - 1][0] == "token" and re.search(r"(?<!\.)[.;:!]$", pieces[at - 1][1])
        if value and runs and runs[-1][1] == at - 1 and not ended:
            runs[-1] = (runs[-1][0], at)
        elif value:
            runs.append((at, at))
    if not runs:
        return None
    first, last = runs[-1]
    start, end = pieces[first][2], pieces[last][3]
    before = sentence_[:start]
    if len(runs) > 1:
        between = words_in(sentence_[pieces[runs[-2][1]][3] : start])
        if not any(word.lower() in ("is", "are", "was", "were", "equals") for word in between):
            return None
    text = sentence_[start:end]
    trimmed = re.sub(r"(?<!\.)\.$", "", text.rstrip(",;:!")).rstrip(",;:!")
    return Region(trimmed, before, text[len(trimmed) :] + sentence_[end:], len(runs) > 1)


def _article(pieces: list[tuple[str, str, int, int]], kinds: list[bool], at: int) -> bool:
    """Whether "and" is followed by "a half" or the like."""
    return at + 2 < len(pieces) and pieces[at + 1][1].lower() in ("a", "an") and kinds[at + 2]


def _is_scale(pieces: list[tuple[str, str, int, int]], at: int) -> bool:
    return pieces[at][1].strip(".,;:!").lower() in NUMBER_WORDS


def _is_value(kind: str, text: str) -> bool:
    if kind == "math":
        return bool(re.search(r"\d|\\(?:pi|infty|sqrt|emptyset)|=|[+*/^-]", text))
    if kind != "token":
        return True
    bare = text.strip(".,;:!\"'“”*_()").lower()
    if (
        bare in _OPERATORS
        or text in _OPERATORS
        or re.fullmatch(r"\.{2,}|…", text)
        or any(c.isdigit() for c in text)
        or "\\" in text
    ):
        return True
    if len(bare) == 1 and bare.isalpha() and bare not in "ai":
        return True
    if re.search(r"[^\w\s'’.,;:!()\"“”*-]", text):
        return True
    parts = bare.split("-")
    return all(part in NUMBER_WORDS for part in parts) and bool(bare)


def final_value(text: str, known: frozenset[str] = frozenset()) -> str | None:
    """The answer of a text without marks: "yes" or "no" at the start of its only line, the only value in its last
    sentence, or what something "is". None if that is ambiguous: two values, or words around the value that are not
    known to be harmless."""
    last = last_sentence(text)
    if last is None:
        return None
    only = without_reasoning(text).strip()
    yes = _YES.match(last)
    if yes and "\n" not in only and len(only) <= MOST_SENTENCE:
        following = only[yes.end() :]
        if not re.search(r"\b(?:yes|no|true|false)\b|\?", only[yes.end() :], re.I) and not any(
            is_doubt(w) for w in words_in(following)
        ):
            return yes[1]
    region = (None if _REASON_FIRST.match(last) else region_of(last)) or region_of(conclusion(last))
    if region is None:
        return _complement(last, known)
    value, after = with_unit(region)
    if _another_is_bold(without_reasoning(text), value):
        return None
    if not leads_to_value(region.before, known, strict=True) or not follows_value(after, known):
        return None
    return value


_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")


def _another_is_bold(text: str, value: str) -> bool:
    """Whether the last line has one number in bold, and it is none of the value's: "**15 %** of 80 is 12"."""
    lines = [line for line in text.splitlines() if line.strip()]
    bold = [numbers for m in _BOLD.finditer(lines[-1] if lines else "") if (numbers := _NUMBER.findall(m[1]))]
    return len(bold) == 1 and not set(bold[0]) & set(_NUMBER.findall(value))


def with_unit(region: Region) -> tuple[str, str]:
    """A value with the unit of measure that follows it, if any, and the rest of the sentence."""
    priced = region.text.startswith(("$", "\\$", "€", "£")) and not region.text.endswith("$")
    words = None if priced else re.match(r"(?:\s+[A-Za-z]+\.?(?:\^\{?[23]\}?|[²³])?){1,5}", region.after)
    parts = words.group().split(" ") if words else []
    for count in range(len(parts) - 1, 0, -1):
        unit = " ".join(parts[1 : count + 1])
        if _is_unit(unit) and (count == 1 or _is_unit(parts[1]) or parts[1] in ("square", "cubic")):
            return f"{region.text} {unit}", region.after[len(" ".join(parts[: count + 1])) :]
    return region.text, region.after


_SUBJECT = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),?\s+)?(?P<subject>(?:the|it|this|that|its|his|her|their|our|there)\b[^,;:]*?)"
    r"\b(?:is|are|was|were)\s+(?P<said>[^,;:]{1,60})",
    re.IGNORECASE,
)


def _complement(text: str, known: frozenset[str]) -> str | None:
    """`Bob` of "The winner is Bob."."""
    found = _SUBJECT.fullmatch(sentence(text)[:400])
    if found is None or any(is_doubt(w) for w in words_in(found["subject"])) or "?" in text:
        return None
    if not all_harmless(words_in(found["subject"]), known):
        return None
    return found["said"].strip()


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language (in lower case) and body of each closed fenced block. One pass over the lines."""
    blocks, fence, language, body = list[tuple[str, str]](), "", "", list[str]()
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if not fence:
            if found:
                fence, language, body = found[1], found[2].lower(), []
        elif found and found[1] == fence and not found[2] and not found[3].strip():
            blocks.append((language, "".join(body)))
            fence = ""
        else:
            body.append(line)
    return blocks
