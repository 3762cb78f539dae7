"""An adapter that is exported is the student when peft puts it on its base, and names that base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import ModelError, RecipeError
from potstill.export.adapter import Adapter
from potstill.export.base import Student
from potstill.recipe import AdapterExport, Recipe, parse_recipe
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer

BASE = "acme/base"


@pytest.fixture
def student(tmp_path: Path) -> Student:
    """As the train stage leaves it: an adapter, and the same merged."""
    from transformers import AutoModelForCausalLM

    base = make_tiny_causal_lm(tmp_path / "base", tied=False)
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(str(tmp_path / "train" / "adapter"))
    model.merge_and_unload().save_pretrained(tmp_path / "train" / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "train" / "model")
    trained = tmp_path / "train"
    return Student(trained / "model", None, [], False, adapter=trained / "adapter", base=(base, BASE))


def exported(student: Student, out: Path) -> Work:
    out.mkdir()
    work = Work(out, resumed=False)
    Adapter(AdapterExport(check_prompts=3, check_tokens=6)).export(student, work, Console("quiet"))
    return work


def test_peft_opens_it_on_its_base_and_gives_the_student(student: Student, tmp_path: Path) -> None:
    found = exported(student, tmp_path / "out").facts["check"]["adapter_model.safetensors"]
    assert found["kl"] < 1e-6 and found["same_texts"] == 3
    assert found["engine"].startswith("peft ")


def test_it_names_its_base_and_no_path_of_this_machine(student: Student, tmp_path: Path) -> None:
    exported(student, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE
    text = "".join(f.read_text() for f in (tmp_path / "out").iterdir() if f.suffix in (".json", ".md", ".jinja"))
    assert str(tmp_path) not in text
    assert f"`{BASE}`" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_adapter_that_is_not_the_students_is_refused(student: Student, tmp_path: Path) -> None:
    file = tmp_path / "train" / "adapter" / "adapter_model.safetensors"
    save_file({name: -weight for name, weight in load_file(file).items()}, file)
    # A product of two negated factors is the same: negate one of them.
    save_file({n: w if "lora_A" in n else -w for n, w in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="nats per token away"):
        exported(student, tmp_path / "out")


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ({"kind": "existing", "model": BASE}, "set student.lora"),
        ({"kind": "from_teacher", "lora": {}}, "nobody else has"),
    ],
)
def test_students_without_an_adapter_for_others_are_refused_while_parsing(
    student: dict[str, object], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe_of(student)


def test_a_student_with_an_adapter_on_an_existing_model_may_have_one() -> None:
    assert recipe_of({"kind": "existing", "model": BASE, "lora": {"r": 4}}).export


def recipe_of(student: dict[str, object]) -> Recipe:
    return parse_recipe(
        {
            "name": "x",
            "teacher": {"kind": "local", "model": "acme/teacher"},
            "student": student,
            "data": {"kind": "jsonl", "path": "x.jsonl"},
            "train": {},
            "export": [{"kind": "adapter"}],
        },
        base=Path("/"),
    )
