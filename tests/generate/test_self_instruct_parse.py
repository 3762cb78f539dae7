"""What teachers write is read as it was meant, and what is left out is left out for the published reasons."""

from __future__ import annotations

import pytest

from potstill.generate.self_instruct import fault_of_example, fault_of_examples, fault_of_instruction
from potstill.generate.self_instruct_text import (
    InstructionTask,
    Unreadable,
    read_examples,
    read_instructions,
    read_tasks,
    says_yes,
    tasks_prompt,
)
from potstill.recipe import SelfInstructProgram

ALPACA, SELF_INSTRUCT = SelfInstructProgram(), SelfInstructProgram(style="self_instruct")
BIRDS, FIX = (
    InstructionTask("Name two birds.", "", "Wren, crow"),
    InstructionTask("Fix the grammar.", "he go", "He goes."),
)
GOES_ON = """ Name two birds.
4. Input:
<noinput>
4. Output:
Wren, crow
###
5. Instruction: Fix the grammar.
5. Input:
he go
5. Output:
He goes.
###
"""


@pytest.mark.parametrize(
    "text",
    [
        GOES_ON,
        f"4. Instruction:{GOES_ON}",
        f"Sure! Here are the tasks:\n\n###\n4. Instruction:{GOES_ON}",
        "**4. Instruction:** Name two birds.\n**4. Output:** Wren, crow\n\n"
        "**5. Instruction:** Fix the grammar.\n**5. Input:** he go\n**5. Output:** He goes.",
    ],
)
def test_tasks_are_read_whether_the_answer_goes_on_or_begins_again(text: str) -> None:
    assert read_tasks(text, 4) == [BIRDS, FIX]


def test_what_is_shown_is_read_back() -> None:
    shown = tasks_prompt([BIRDS, FIX], 20).partition("###\n")[2].removesuffix("3. Instruction:")
    assert read_tasks(shown, 1) == [BIRDS, FIX]


def test_an_output_may_hold_a_line_that_looks_like_a_mark() -> None:
    (task,) = read_tasks(" Show the form.\n4. Input:\nx\n4. Output:\nInput: a\nOutput: b", 4)
    assert task == InstructionTask("Show the form.", "x", "Input: a\nOutput: b")


def test_what_is_not_in_the_form_is_unreadable_and_takes_nothing_with_it() -> None:
    found = read_tasks(f"4. Instruction: No output.\n4. Input:\nx\n5. Instruction:{GOES_ON.replace('5.', '6.')}", 4)
    assert isinstance(found[0], Unreadable) and "No output." in found[0].text
    assert isinstance(read_tasks("I cannot help with that.", 4)[0], Unreadable)


def test_instructions_are_read_one_a_number() -> None:
    expected = ["Name two birds.", "Fix the grammar.", "Say why."]
    assert read_instructions(" Name two birds.\nTask 10: Fix the\n grammar.\n\n11. Say why.") == expected
    assert read_instructions("Here they are:\n\nTask 9: Name two birds.\nTask 10: Fix the grammar.") == expected[:2]


def test_examples_are_whole_pairs_in_either_order() -> None:
    text = " one\nOutput: 1\n\nExample 2\nInput: two\nOutput: 2\n\nTask: Another.\nExample 1\nInput: three\nOutput: 3"
    assert read_examples(text, output_first=False) == [("one", "1"), ("two", "2"), ("three", "3")]
    assert read_examples(" yes\nInput: a\nExample 2\nOutput: no", output_first=True) == [("a", "yes")]
    assert read_examples(" <noinput>\nOutput: 42", output_first=False) == [("", "42")]
    assert says_yes(" Yes.") and not says_yes("No") and not says_yes("")


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Name three birds", "instruction too short"),  # 3 < words
        ("Name three small birds", None),
        ("word " * 150, None),
        ("word " * 151, "instruction too long"),
        ("Write a program that adds two numbers", "unwanted opening"),
        ("- Write about the sea today", "instruction begins with punctuation"),
        ("Écris un poème sur la mer", "instruction begins outside ASCII"),
        ("Describe the image that you see", "asks for what a language model cannot do"),
        ("Tell me how to go to the station", "asks for what a language model cannot do"),
        ("Explain what a pictureless mapping profile is", None),  # whole words only
    ],
)
def test_instructions_are_left_out_as_published(instruction: str, reason: str | None) -> None:
    for settings in (ALPACA, SELF_INSTRUCT):
        fault = fault_of_instruction(instruction.strip(), settings)
        assert (fault and fault[0]) == reason


@pytest.mark.parametrize("word", "video audio music flowchart diagram".split())
def test_alpaca_has_five_more_words(word: str) -> None:
    instruction = f"Tell me about this {word} in short"
    assert fault_of_instruction(instruction, SELF_INSTRUCT) is None
    assert fault_of_instruction(instruction, ALPACA) == ("asks for what a language model cannot do", word)


def test_examples_are_left_out_as_published() -> None:
    assert fault_of_example("a", " ") == "empty output"
    assert fault_of_example("same ", "same") == "output equals input"
    assert fault_of_example("", "As follows:") == "example breaks off at a colon"
    assert fault_of_example("a", "b") is None
    assert fault_of_examples([("a", "1"), ("b", "2"), ("a", "3")]) == "same input with different outputs"
    assert fault_of_examples([("", "1"), ("", "2"), ("a", "3"), ("a", "3")]) is None  # only a stated input


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks_per_call": 3}, "nothing is asked for"),
        ({"demonstrations": 2, "generated": 2}, "leave at least one to the seeds"),
        ({"least_words": 9, "most_words": 8}, "is below least_words"),
        ({"style": "self_instruct", "cut_off": "last"}, "cut_off: last is for style: alpaca"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SelfInstructProgram.model_validate(settings)
