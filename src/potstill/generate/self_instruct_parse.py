"""What a teacher wrote, read as tasks, instructions or examples. Pure functions of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.generate.self_instruct_prompts import Task

_BOLD = r"[*_#]{0,3}[ \t]*"
_TASK_MARK = re.compile(
    rf"^[ \t]*{_BOLD}(?:(?P<number>\d+)[ \t]*[.):][ \t]*)?{_BOLD}"
    r"(?P<field>Instruction|Input|Output)[*_]{0,3}[ \t]*:[*_]{0,3}",
    re.MULTILINE,
)
_EXAMPLE_MARK = re.compile(rf"^[ \t]*{_BOLD}(?P<field>Input|Output)[*_]{{0,3}}[ \t]*:[*_]{{0,3}}", re.MULTILINE)
_NUMBERED = re.compile(rf"^[ \t]*{_BOLD}(?:Task[ \t]*)?\d+[ \t]*[.:)]{_BOLD}", re.MULTILINE)
_SEPARATOR = re.compile(r"\s*^[ \t]*(?:#{3,}|-{3,}|={3,})\s*\Z", re.MULTILINE)
_NEXT = re.compile(rf"^[ \t]*{_BOLD}(?:Example[ \t]*\d+|Task:).*", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Unreadable:
    """A piece of an answer that is not in the form that was asked for."""

    text: str


def read_tasks(text: str, first: int) -> list[Task | Unreadable]:
    """Whole tasks, in order. Words before the first one ("Sure, here are 17 tasks") are no task.

    Args:
        text: an answer to `tasks_prompt`: it goes on behind its last words, or begins with them again.
        first: the number of the first task that was asked for.
    """
    marks = list(_TASK_MARK.finditer(text))
    begins = next((m.start() for m in marks if m["field"] == "Instruction"), len(text))
    if any(m["field"] == "Output" and m.start() < begins for m in marks) or not marks:
        text = f"{first}. Instruction:{text}"
        marks = list(_TASK_MARK.finditer(text))
    if any(m["number"] for m in marks):
        # An output may well hold a line "Input: …"; the marks of the tasks have numbers.
        marks = [m for m in marks if m["number"]]
    starts = [index for index, m in enumerate(marks) if m["field"] == "Instruction"]
    tasks: list[Task | Unreadable] = []
    for start, stop in zip(starts, [*starts[1:], len(marks)], strict=True):
        own = marks[start:stop]
        end = marks[stop].start() if stop < len(marks) else len(text)
        fields = _fields(text, own, end)
        if [m["field"] for m in own] in (["Instruction", "Input", "Output"], ["Instruction", "Output"]):
            given = _input(fields.get("Input", ""))
            tasks.append(Task(_line(fields["Instruction"]), given, fields["Output"]))
        else:
            tasks.append(Unreadable(text[own[0].start() : end].strip()))
    return tasks


def read_instructions(text: str) -> list[str]:
    """Numbered instructions, in order, each on one line. An answer to `instructions_prompt` goes on behind "Task 9:",
    or begins with it again; words before that are none of them."""
    marks = list(_NUMBERED.finditer(text))
    before = text[: marks[0].start()] if marks else text
    # What goes on behind the number is one line; what leads in to a list ends with a colon.
    found = [before] if before.strip() and not before.rstrip().endswith((":", "!")) else []
    ends = [*(m.start() for m in marks[1:]), len(text)]
    found += [text[m.end() : end] for m, end in zip(marks, ends, strict=False)]
    return [_line(piece) for piece in found if _line(piece)]


def read_examples(text: str, *, output_first: bool) -> list[tuple[str, str]]:
    """Pairs of input and output, in order; what is not a whole pair is left out.

    Args:
        text: an answer to `examples_prompt`, or with `output_first` to `labelled_examples_prompt`.
    """
    order = ("Output", "Input") if output_first else ("Input", "Output")
    marks = list(_EXAMPLE_MARK.finditer(text))
    if not marks or marks[0]["field"] == order[1]:
        text = f"{order[0]}:{text}"
        marks = list(_EXAMPLE_MARK.finditer(text))
    pairs = []
    index = 0
    while index + 1 < len(marks):
        if (marks[index]["field"], marks[index + 1]["field"]) != order:
            index += 1
            continue
        end = marks[index + 2].start() if index + 2 < len(marks) else len(text)
        fields = {
            name: _NEXT.sub("", value).strip() for name, value in _fields(text, marks[index : index + 2], end).items()
        }
        pairs.append((_input(fields["Input"]), fields["Output"]))
        index += 2
    return pairs


def says_yes(text: str) -> bool:
    """Whether an answer to `classification_prompt` says that it is one."""
    return text.strip(" \t\n*_.:\"'").lower().startswith("yes")


def _fields(text: str, marks: Sequence[re.Match[str]], end: int) -> dict[str, str]:
    ends = [*(m.start() for m in marks[1:]), end]
    return {m["field"]: _SEPARATOR.sub("", text[m.end() : stop]).strip() for m, stop in zip(marks, ends, strict=True)}


def _input(text: str) -> str:
    return "" if text.strip("<>()[]. \n").lower() in ("noinput", "no input", "none", "n/a") else text


def _line(text: str) -> str:
    return " ".join(_SEPARATOR.sub("", text).split()).strip("*_ ")
