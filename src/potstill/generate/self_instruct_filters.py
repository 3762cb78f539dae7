"""Why an instruction or an example is left out: the heuristics of Self-Instruct (§2.2 there, and its code)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache

from potstill.recipe.programs import SelfInstructProgram


def fault_of_instruction(instruction: str, settings: SelfInstructProgram) -> tuple[str, str] | None:
    """Reason and detail, or None for an instruction that may be kept."""
    words = len(instruction.split())
    if words < settings.least_words:
        return "instruction too short", f"{words} words"
    if words > settings.most_words:
        return "instruction too long", f"{words} words"
    if instruction[0] in string.punctuation:
        return "instruction begins with punctuation", instruction[0]
    if settings.ascii_start and not instruction[0].isascii():
        return "instruction begins outside ASCII", instruction[0]
    for opening in settings.without_openings:
        # Such instructions leave open whether the program is to be written or its result to be given.
        if instruction.lower().startswith(opening.lower()):
            return "unwanted opening", opening
    for word in settings.blacklist:
        if _whole_word(word).search(instruction):
            return "asks for what a language model cannot do", word
    return None


def fault_of_example(given: str, output: str) -> str | None:
    """Why one input with its output is left out, if it is."""
    if not output.strip():
        return "empty output"
    if given.strip() == output.strip():
        return "output equals input"
    if given.strip().endswith(":") or output.strip().endswith(":"):
        return "example breaks off at a colon"
    return None


def fault_of_examples(examples: Sequence[tuple[str, str]]) -> str | None:
    """Why all examples of one instruction are left out, if they are: then no output is to be trusted."""
    outputs: dict[str, str] = {}
    for given, output in examples:
        if given and outputs.setdefault(given, output) != output:
            return "same input with different outputs"
    return None


@cache
def _whole_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
