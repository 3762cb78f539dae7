"""Where the final answer stands in what was written."""

from __future__ import annotations

import re

_MARKED = re.compile(
    r"""(?:\b(?:final\s+)?(?:answer|result)\s*(?:is|:|=|would\s+be|should\s+be|is\s*:)\s*:?
        |(?:^|\n)\s*(?:\#{4}|A\s*:)\s*)""",
    re.IGNORECASE | re.VERBOSE,
)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_OPENINGS = re.compile(r"\\(?:boxed|fbox)\s*")
_UNSURE = re.compile(
    r"\b(?:not|never|unknown|unclear|unsure|cannot|neither|nor|wrong|incorrect|undecided|maybe|perhaps|possibly|might"
    r"|either|or|about|around|approximately|roughly|nearly|almost|between|at\s+least|at\s+most|more\s+than|less\s+than"
    r"|fewer\s+than|over|under|whether|if|unless|doubt|false|guess|suppose|probably|could|would|wait|actually|but)\b"
    r"|n['’]t\b|[?≈≤≥<>≠]|\\(?:approx|neq?|leq?|geq?)\b",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|scratch\s+that|correction|(?:is|was|be)\s+(?:wrong|incorrect|not)|isn['’]t|wasn['’]t|mistaken"
    r"|not\s+(?:correct|right|true)|made\s+an?\s+(?:mistake|error)|never\s+mind)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\bnot|\bnever|n['’]t|\bneither|\bnor|≠|\\neq?)(?:\s+(?:equal\s+to|be))?[\s:*$(]*(?:\\\(|\\\[)?\s*$",
    re.IGNORECASE,
)
_MONTHS = "(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]*\\.?"
_VALUES = re.compile(
    r"\$(?P<math>[^$]+)\$|\\\((?P<inline>.+?)\\\)|\\\[(?P<display>.+?)\\\]"
    rf"|\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|{_MONTHS}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTHS},?\s+\d{{4}}"
    r"|\d{1,2}:\d{2}(?::\d{2})?(?:\s*[aApP]\.?\s?[mM]\b\.?)?|\d+(?:\s*:\s*\d+)+"
    r"|[(\[{]\s*[-+−]?\d[^()\[\]{}]*,[^()\[\]{}]*[)\]}]"
    r"|(?<![\w.])[-+−–]?[$€£]?\s?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+|\s*\^\s*\{?-?\d+\}?)*"
    r"(?:\s*(?:\\?%|percent\b|hundred\b|thousand\b|million\b|billion\b|dozen\b))?"
)
_NOT_COUNTED = re.compile(
    r"\b(?:step|part|case|question|problem|equation|figure|option|day)\s+\d+\b|\b\d+(?:st|nd|rd|th)\b(?!\s+[A-Z])",
    re.IGNORECASE,
)
_COMPLEMENT = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),?\s+)?(?:the|it|this|that|its|his|her|their|our)\b[^,;:]*?"
    r"\b(?:is|are|was|were)\s+(?P<said>[^,;:]{1,40})",
    re.IGNORECASE,
)
_PARTING = re.compile(r"(?:i\s+)?(?:hope|let\s+me\s+know|please|feel\s+free|good\s+luck|thank)\b[^\d]*$", re.IGNORECASE)
_YES = re.compile(r"(yes|no|true|false)\b\s*[,.:;!–—-]", re.IGNORECASE)


def without_reasoning(text: str) -> str:
    """What stands after the last `</think>`, and before a `<think>` that never closes: the caller takes the reasoning
    away, and a stray mark must not give it back."""
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` (or `\fbox`, or `\boxed 5`) whose braces close; None without one."""
    span = _boxed_span(text)
    return text[span[1] : span[2]].strip() if span is not None else None


def _boxed_span(text: str) -> tuple[int, int, int, int] | None:
    """Where the last box begins, its content begins and ends, and the box ends."""
    found = None
    for opening in _OPENINGS.finditer(text):
        start = opening.end()
        if text[start : start + 1] != "{":
            found = (opening.start(), start, start + 1, start + 1) if text[start : start + 1].strip() else found
            continue
        depth = 0
        for at in range(start, len(text)):
            if text[at] in "{}" and text[at - 1] != "\\":
                depth += 1 if text[at] == "{" else -1
                if depth == 0:
                    found = (opening.start(), start + 1, at, at + 1)
                    break
    return found


def marked(text: str) -> str | None:
    r"""The answer that is marked as final: the last `\boxed{…}`, else the last `<answer>…</answer>`, else what follows
    the last "#### " or "the answer is". None without a mark; empty where it is denied ("not \boxed{12}") or taken back
    ("the answer is 12. No, wait")."""
    span = _boxed_span(text)
    if span is not None:
        denied = _DENIED.search(text[: span[0]]) or _TAKEN_BACK.search(text[span[3] :])
        return "" if denied else text[span[1] : span[2]].strip()
    tags = _TAG.findall(text)
    if tags:
        return str(tags[-1]).strip()
    marks = list(_MARKED.finditer(text))
    if not marks:
        return None
    following = text[marks[-1].end() :].lstrip(" \t\n*:")
    said = sentence(following.split("\n", 1)[0].replace("**", "").replace("__", "").strip())
    return "" if _TAKEN_BACK.search(following[len(said) :]) else said or None


def sentence(line: str) -> str:
    """Up to the first full stop that ends a sentence (one in `1.5`, `a.m.` or `Dr. X` ends none), without it."""
    for stop in re.finditer(r"[.!](?=\s+[A-Z\\$(]|\s*$)", line):
        before = line[: stop.start()]
        if not re.search(r"\b(?:[A-Za-z]\.[A-Za-z]|Mr|Mrs|Ms|Dr|St|No|vs|[A-Z])$", before):
            return before.strip()
    return line.strip()


def final_answer(text: str) -> str:
    """The final answer: what is marked as such, else all of it (without reasoning)."""
    said = without_reasoning(text)
    found = marked(said)
    return found if found is not None else said


def final_value(text: str) -> str | None:
    """What a text in sentences ends with, where it marks no answer: in its last sentence, the right side of the last
    `=`, the one value that is named, or what something "is". None where that leaves a doubt: a sentence that names two
    values, or says "not", "about", "or", "unknown"."""
    lines = [line.strip() for line in without_reasoning(text).splitlines() if line.strip()]
    if not lines:
        return None
    while len(lines) > 1 and _PARTING.match(lines[-1]):
        lines.pop()
    last = lines[-1].replace("**", "").replace("__", "")
    yes = _YES.match(last)
    if (
        yes
        and len(lines) == 1
        and not re.search(rf"\b(?:yes|no|true|false|{_UNSURE.pattern})\b", last[yes.end() :], re.I)
    ):
        return yes[1]
    sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\\$(*])", last) if s.strip()]
    end = sentences[-1] if sentences else last
    outside = re.sub(r"\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]", "", end)
    if _UNSURE.search(outside):
        return None
    spans = list(_VALUES.finditer(_NOT_COUNTED.sub(" ", end)))
    if len(spans) == 1:
        found = spans[0]
        return right_side(found["math"] or found["inline"] or found["display"] or found.group()).strip().rstrip(",")
    if "=" in end:
        left, _, right = end.rpartition("=")
        return None if re.search(r"\d[a-zA-Z]", left) else sentence(right.strip())
    complement = _COMPLEMENT.fullmatch(sentence(end))
    return complement["said"].strip() if complement and not spans else None


def right_side(text: str) -> str:
    """What stands after the last `=` of a chain of equations, where that is the value: "3 + 4 = 7", "Area = 7". All of
    an equation in unknowns, "2x + 1 = 7"."""
    left, equals, right = text.rpartition("=")
    if not equals or left.endswith(("\\", "<", ">", "!")):
        return text
    names = re.sub(r"\\[a-zA-Z]+|_\{?\w+\}?", " ", left)
    unknown = re.search(r"[a-zA-Z]", names) and re.search(r"\d", names)
    return text if unknown else right.strip()
