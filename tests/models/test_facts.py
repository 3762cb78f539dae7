"""What files alone say of a model: equal to what the opened model has, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from models.gguf_families import Family, Quantised, write_family

from potstill.console import Console
from potstill.models import resolve
from potstill.models.anatomy import dims
from potstill.models.facts import facts_of_folder, facts_of_gguf
from potstill.models.load import load_model
from tiny_models import FAMILIES, make_tiny_causal_lm
from tiny_models import Family as TinyFamily

QUIET = Console("quiet")


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_opened_model(family: TinyFamily, tmp_path: Path) -> None:
    folder = make_tiny_causal_lm(tmp_path / "model", family=family, layers=5)
    facts = facts_of_folder(folder)
    model = load_model(resolve(str(folder), console=QUIET))
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert (facts.layers, facts.hidden, facts.heads) == (5, dims(model).hidden, dims(model).heads)
    assert facts.context_length == 512 and facts.has_template and facts.conversion is None
    assert facts.stored_bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_students_size_is_known_before_it_is_made(family: TinyFamily, tmp_path: Path) -> None:
    teacher = facts_of_folder(make_tiny_causal_lm(tmp_path / "a", family=family, layers=5))
    student = facts_of_folder(make_tiny_causal_lm(tmp_path / "b", family=family, layers=3))
    assert teacher.parameters_of_layers([0, 2, 4]) == student.parameters


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "llama"])
def test_a_gguf_file_says_before_its_conversion_what_the_model_will_have(family: Family, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_family(file, family, layers=3, quantised=Quantised.Q8_0)
    facts = facts_of_gguf(file)
    assert facts.stored_bytes == file.stat().st_size and "Q8_0" in facts.stored_as and facts.has_template
    assert facts.conversion is not None and facts.conversion.bytes > 4 * facts.parameters
    model = load_model(resolve(str(file), console=QUIET))
    assert (facts.layers, facts.hidden, facts.heads) == (3, dims(model).hidden, dims(model).heads)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    two = facts.parameters_of_layers([0, 2])
    assert two is not None and facts.parameters - two == sum(p.numel() for p in model.model.layers[0].parameters())


def test_a_file_without_a_template_says_so(tmp_path: Path) -> None:
    write_family(tmp_path / "tiny.gguf", "llama", template=None)
    assert not facts_of_gguf(tmp_path / "tiny.gguf").has_template


def test_no_torch_is_loaded_for_it(tmp_path: Path) -> None:
    folder = make_tiny_causal_lm(tmp_path / "model")
    write_family(tmp_path / "tiny.gguf", "qwen2")
    code = (
        "import sys; from pathlib import Path; from potstill.models.facts import facts_of_folder, facts_of_gguf\n"
        "facts_of_folder(Path(sys.argv[1])), facts_of_gguf(Path(sys.argv[2]))\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "tiny.gguf")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
