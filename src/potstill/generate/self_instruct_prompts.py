"""What a teacher is asked for new tasks: after Alpaca's prompt, and after those of Self-Instruct (tables 5-8 there), in
words of our own. Every prompt ends where the teacher goes on, so that models with and without a chat template can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NO_INPUT = "<noinput>"


@dataclass(frozen=True)
class Task:
    """An instruction, what it is to be done with (often nothing), and how it is done."""

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


def tasks_prompt(shown: Sequence[Task], count: int) -> str:
    """Alpaca: whole tasks at once, `count` of them with those shown."""
    lines = []
    for number, task in enumerate(shown, 1):
        lines.append(
            f"###\n{number}. Instruction: {task.instruction}\n{number}. Input:\n{task.input or NO_INPUT}\n"
            f"{number}. Output:\n{task.output}\n"
        )
    return _TASKS.format(count=count, no_input=NO_INPUT) + "".join(lines) + f"###\n{len(shown) + 1}. Instruction:"


def instructions_prompt(shown: Sequence[Task], count: int) -> str:
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


def examples_prompt(instruction: str, shown: Sequence[Task]) -> str:
    """Self-Instruct, input first: an example or more of a task that is no classification."""
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
    """Self-Instruct, output first: inputs made for each label, since a model that begins with the input tends to write
    all of them for one label."""
    return f"{_LABELLED}{instruction}\nExample 1\nOutput:"
