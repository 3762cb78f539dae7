"""Prompts that request new tasks from a teacher, and parsers for its answers: tasks, instructions or examples.

Based on Alpaca's prompt and those of Self-Instruct (tables 5-8 there), in words of our own. Every prompt ends where
the teacher continues, so that models with and without a chat template can use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NO_INPUT = "<noinput>"


@dataclass(frozen=True)
class InstructionTask:
    """An instruction, its input (often empty), and its output."""

    instruction: str
    input: str = ""
    output: str = ""


_TASKS = """\
Make a varied set of {count} tasks for a language model, which will be judged by how well it carries them out.

1. Let no verb do for two instructions, and mix questions with orders.
2. Vary the kind of task: open questions, classification, rewriting, planning, extraction, arithmetic and so on.
3. A model that reads and writes nothing but text must be able to do it: nothing to see, hear, draw, open or remember.
4. Write in English. An instruction has one or two sentences.
5. Give an input where the instruction needs one: a realistic example, not a placeholder, of at most 100 words. \
Where it needs none, write {no_input}.
6. The output is a good and complete answer to instruction and input, of at most 100 words.

The {count} tasks:

"""


def tasks_prompt(shown: Sequence[InstructionTask], count: int) -> str:
    """Alpaca: whole tasks at once, `count` of them including those shown."""
    lines = []
    for number, task in enumerate(shown, 1):
        lines.append(
            f"###\n{number}. Instruction: {task.instruction}\n{number}. Input:\n{task.input or NO_INPUT}\n"
            f"{number}. Output:\n{task.output}\n"
        )
    return _TASKS.format(count=count, no_input=NO_INPUT) + "".join(lines) + f"###\n{len(shown) + 1}. Instruction:"


def instructions_prompt(shown: Sequence[InstructionTask], count: int) -> str:
    """Self-Instruct: instructions alone, up to task `count`."""
    lines = [f"Task {number}: {task.instruction}" for number, task in enumerate(shown, 1)]
    head = f"Come up with a series of {count} different tasks, one a line:\n\n"
    return head + "\n".join([*lines, f"Task {len(shown) + 1}:"])


_CLASSIFIED = (
    ("Say whether the review is positive or negative.", True),
    ("Write a short poem about the sea.", False),
    ("Which of these three words does not belong with the others?", True),
    ("Explain why the sky is blue.", False),
    ("Tell whether the sentence is a statement, a question or an order.", True),
    ("Translate the sentence into French.", False),
    ("Sort the message into one of these: work, family, advertisement.", True),
    ("Suggest three names for a bakery.", False),
)


def classification_prompt(instruction: str) -> str:
    """Self-Instruct: is the answer one of a few labels?"""
    lines = [f"Task: {task}\nClassification: {'Yes' if answer else 'No'}\n" for task, answer in _CLASSIFIED]
    head = "Is the task a classification with a small, fixed set of labels as outputs? Answer Yes or No.\n\n"
    return head + "\n".join([*lines, f"Task: {instruction}\nClassification:"])


def examples_prompt(instruction: str, shown: Sequence[InstructionTask]) -> str:
    """Self-Instruct, input first: one or more examples of a task that is no classification."""
    lines = [
        f"Task: {task.instruction}\nExample 1\nInput: {task.input or NO_INPUT}\nOutput: {task.output}\n"
        for task in shown
    ]
    head = (
        "Write examples of how each task is done, several where its inputs can differ. "
        f"A task that needs no input has {NO_INPUT} and one example.\n\n"
    )
    return head + "\n".join([*lines, f"Task: {instruction}\nExample 1\nInput:"])


_LABELLED = """\
Give each label of the classification task, and an input that belongs to it.

Task: Say whether the review is positive or negative.
Example 1
Output: positive
Input: The soup was hot, the staff were kind, and we will come again.
Example 2
Output: negative
Input: The handle broke on the second day, and nobody answers my letters.

Task: Tell whether the sentence is a statement, a question or an order.
Example 1
Output: question
Input: Have the trains been running since the storm?
Example 2
Output: order
Input: Leave the keys on the table.
Example 3
Output: statement
Input: The river is high this spring.

Task: """


def labelled_examples_prompt(instruction: str) -> str:
    """Self-Instruct, output first: inputs for each label, since a model that begins with the input tends to write all
    of them for one label."""
    return f"{_LABELLED}{instruction}\nExample 1\nOutput:"


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
    """A piece of an answer that is not in the requested form."""

    text: str


def read_tasks(text: str, first: int) -> list[InstructionTask | Unreadable]:
    """Whole tasks, in order. Words before the first one ("Sure, here are 17 tasks") are no task.

    Args:
        text: an answer to `tasks_prompt`: it continues the prompt, or repeats its last words first.
        first: the number of the first requested task.
    """
    marks = list(_TASK_MARK.finditer(text))
    begins = next((m.start() for m in marks if m["field"] == "Instruction"), len(text))
    if any(m["field"] == "Output" and m.start() < begins for m in marks) or not marks:
        text = f"{first}. Instruction:{text}"
        marks = list(_TASK_MARK.finditer(text))
    if any(m["number"] for m in marks):
        # An output may contain a line "Input: …"; the marks of tasks are numbered.
        marks = [m for m in marks if m["number"]]
    starts = [index for index, m in enumerate(marks) if m["field"] == "Instruction"]
    tasks: list[InstructionTask | Unreadable] = []
    for start, stop in zip(starts, [*starts[1:], len(marks)], strict=True):
        own = marks[start:stop]
        end = marks[stop].start() if stop < len(marks) else len(text)
        fields = _fields(text, own, end)
        if [m["field"] for m in own] in (["Instruction", "Input", "Output"], ["Instruction", "Output"]):
            given = _input(fields.get("Input", ""))
            tasks.append(InstructionTask(_line(fields["Instruction"]), given, fields["Output"]))
        else:
            tasks.append(Unreadable(text[own[0].start() : end].strip()))
    return tasks


def read_instructions(text: str) -> list[str]:
    """Numbered instructions, in order, each on one line. An answer to `instructions_prompt` continues "Task 9:", or
    repeats it first; words before that are none of them."""
    marks = list(_NUMBERED.finditer(text))
    before = text[: marks[0].start()] if marks else text
    # The continuation after the number is one line; an introduction to a list ends with a colon.
    found = [before] if before.strip() and not before.rstrip().endswith((":", "!")) else []
    ends = [*(m.start() for m in marks[1:]), len(text)]
    found += [text[m.end() : end] for m, end in zip(marks, ends, strict=False)]
    return [_line(piece) for piece in found if _line(piece)]


def read_examples(text: str, *, output_first: bool) -> list[tuple[str, str]]:
    """Pairs of input and output, in order; incomplete pairs are left out.

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
    """Whether an answer to `classification_prompt` says yes."""
    return text.strip(" \t\n*_.:\"'").lower().startswith("yes")


def _fields(text: str, marks: Sequence[re.Match[str]], end: int) -> dict[str, str]:
    ends = [*(m.start() for m in marks[1:]), end]
    return {m["field"]: _SEPARATOR.sub("", text[m.end() : stop]).strip() for m, stop in zip(marks, ends, strict=True)}


def _input(text: str) -> str:
    return "" if text.strip("<>()[]. \n").lower() in ("noinput", "no input", "none", "n/a") else text


def _line(text: str) -> str:
    return " ".join(_SEPARATOR.sub("", text).split()).strip("*_ ")
