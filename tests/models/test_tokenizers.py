"""Rule 6: equal size is not equal vocabulary. What moves a token is found, and what does not is let pass."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.errors import TokenizerMismatch
from potstill.models.load import load_tokenizer
from potstill.models.tokenizers import check_same_tokenizer, check_saved_tokenizer
from tiny_models import CHATML, make_tiny_tokenizer


def saved(folder: Path, change: Callable[[Any], None] = lambda tokenizer: None, template: str | None = CHATML) -> Path:
    tokenizer = make_tiny_tokenizer(template)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def as_is(folder: Path) -> Any:
    return folder


def loaded(folder: Path) -> Any:
    return load_tokenizer(folder)


@pytest.fixture(params=[as_is, loaded], ids=["folders", "loaded"])
def given(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """Both forms in which tokenizers come."""
    opened: Callable[[Path], Any] = request.param
    return opened


def refusal(teacher: Any, student: Any) -> str:
    with pytest.raises(TokenizerMismatch) as caught:
        check_same_tokenizer(teacher, student)
    return str(caught.value)


def swap_two_tokens(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    return folder


def test_equal_tokenizers_pass(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    check_same_tokenizer(given(saved(tmp_path / "a")), given(saved(tmp_path / "b")))


def test_equal_size_is_not_equal_vocabulary(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    teacher, student = saved(tmp_path / "a"), swap_two_tokens(saved(tmp_path / "b"))
    assert len(load_tokenizer(teacher)) == len(load_tokenizer(student))
    said = refusal(given(teacher), given(student))
    assert "2 tokens differ, of 259 and 259" in said and "'a'" in said
    assert "sequence level" in said and "cross-tokenizer" in said, "the choices are named"


def test_an_added_token_is_a_difference(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    more = saved(tmp_path / "b", lambda t: t.add_tokens(["<more>"]))
    said = refusal(given(saved(tmp_path / "a")), given(more))
    assert "1 token differs, of 259 and 260" in said and "the teacher lacks it, the student has it as 259" in said


@pytest.mark.parametrize("part", ["pre-tokenizer", "normalizer"])
def test_one_vocabulary_reached_in_two_ways_is_a_difference(
    part: str, tmp_path: Path, given: Callable[[Path], Any]
) -> None:
    def change(tokenizer: Any) -> None:
        if part == "pre-tokenizer":
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        else:
            tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()

    assert "cut text differently" in refusal(given(saved(tmp_path / "a")), given(saved(tmp_path / "b", change)))


def test_templates_that_render_differently_are_a_difference(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    other = CHATML.replace("assistant\\n", "assistant:\\n")
    said = refusal(given(saved(tmp_path / "a")), given(saved(tmp_path / "b", template=other)))
    assert "different chat templates" in said and "assistant:" in said
    check_same_tokenizer(tmp_path / "a", tmp_path / "b", templates=False)


def test_templates_that_are_written_differently_and_render_alike_pass(
    tmp_path: Path, given: Callable[[Path], Any]
) -> None:
    other = "{#- the same, with a comment #}" + CHATML
    check_same_tokenizer(given(saved(tmp_path / "a")), given(saved(tmp_path / "b", template=other)))


def test_a_template_that_refuses_system_turns_differs_from_one_that_does_not(tmp_path: Path) -> None:
    refusing = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{%- endif %}" + CHATML
    assert "refused: no system turn" in refusal(saved(tmp_path / "a"), saved(tmp_path / "b", template=refusing))
    check_same_tokenizer(tmp_path / "b", saved(tmp_path / "c", template=refusing))


def test_a_template_on_one_side_alone_is_a_difference(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    said = refusal(given(saved(tmp_path / "a")), given(saved(tmp_path / "b", template=None)))
    assert "the teacher has a chat template and the student has none" in said and "copy chat_template.jinja" in said


def test_folders_are_compared_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from potstill.models.tokenizers import check_same_tokenizer\n"
        "check_same_tokenizer(*map(Path, sys.argv[1:])); print({'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(saved(tmp_path / "a")), str(saved(tmp_path / "b"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_padding_and_cutting_that_a_file_asks_for_move_no_token(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    def padded(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.enable_padding(length=128)
        tokenizer.backend_tokenizer.enable_truncation(max_length=128)

    check_same_tokenizer(given(saved(tmp_path / "a", padded)), given(saved(tmp_path / "b")))


@pytest.mark.parametrize(
    ("what", "addition"),
    [
        ("tools", "{%- if tools %}{{ tools | length }} tools.{%- endif %}"),
        ("reasoning", "{%- for m in messages %}{{ m.reasoning_content or '' }}{%- endfor %}"),
        ("a long conversation", "{%- if messages | length > 20 %}{{ 'long' }}{%- endif %}"),
        (
            "reasoning in an earlier turn",
            "{%- for m in messages %}{%- if not loop.last %}{{ m.reasoning_content or '' }}{%- endif %}{%- endfor %}",
        ),
        ("a tool's answer", "{%- for m in messages if m.role == 'tool' %}{{ m.content }}{%- endfor %}"),
        ("a tool call", "{%- for m in messages %}{{ m.tool_calls | default([]) | length or '' }}{%- endfor %}"),
        ("a system turn", "{%- if messages[0].role == 'system' %}{{ 'S' }}{%- endif %}"),
        ("a question", "{%- if add_generation_prompt %}{{ '<think>' }}{%- endif %}"),
    ],
)
def test_templates_that_part_in_one_branch_alone_are_a_difference(what: str, addition: str, tmp_path: Path) -> None:
    teacher, student = saved(tmp_path / "a"), saved(tmp_path / "b", template=CHATML + addition)
    assert f"different chat templates: of {what} " in refusal(teacher, student)


def test_another_end_token_is_a_difference(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    def change(tokenizer: Any) -> None:
        tokenizer.eos_token = "<|endoftext|>"

    teacher, student = saved(tmp_path / "a"), saved(tmp_path / "b", change)
    text = refusal(given(teacher), given(student))
    assert "the teacher with '<|im_end|>', the student with '<|endoftext|>'" in text and "eos_token" in text
    check_same_tokenizer(given(teacher), given(student), templates=False)


def test_a_pad_token_of_its_own_is_no_difference(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    def change(tokenizer: Any) -> None:
        tokenizer.pad_token = "<|endoftext|>"

    check_same_tokenizer(given(saved(tmp_path / "a")), given(saved(tmp_path / "b", change)))


def test_an_added_token_that_takes_the_space_beside_it_is_a_difference(
    tmp_path: Path, given: Callable[[Path], Any]
) -> None:
    def adding(**how: Any) -> Callable[[Any], None]:
        return lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", normalized=False, **how)])

    text = refusal(given(saved(tmp_path / "a", adding())), given(saved(tmp_path / "b", adding(lstrip=True))))
    assert "cut text differently (their added tokens differ)" in text


def test_one_pipeline_written_in_two_ways_is_no_difference(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    def change(tokenizer: Any) -> None:
        own = tokenizer.backend_tokenizer
        own.pre_tokenizer = pre_tokenizers.Sequence([own.pre_tokenizer])

    check_same_tokenizer(given(saved(tmp_path / "a")), given(saved(tmp_path / "b", change)))


def test_a_tokenizer_that_saving_changes_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "a")
    check_saved_tokenizer(folder)
    own = PreTrainedTokenizerFast.save_pretrained

    def changing(self: Any, folder: Any, **settings: Any) -> Any:
        own(self, folder, **settings)
        swap_two_tokens(Path(folder))

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", changing)
    with pytest.raises(TokenizerMismatch, match="another one once it is saved and opened again"):
        check_saved_tokenizer(folder)
