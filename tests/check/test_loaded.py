"""What only torch and transformers can judge is refused by the check too: devices, parts by name, unusual arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from potstill.check import Findings, check_recipe
from potstill.recipe import load_recipe
from tiny_models import make_tiny_causal_lm

Check = Callable[..., Findings]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("models") / "teacher", num_hidden_layers=4)


@pytest.fixture
def check(tmp_path: Path, teacher: Path) -> Check:
    def checked(**sections: Any) -> Findings:
        rows = [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n)} for n in range(40)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        document: dict[str, Any] = {
            "name": "checked",
            "student": {"kind": "from_teacher", "layers": {"first": 2}},
            "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.2},
            "train": {},
            **sections,
        }
        document["teacher"] = {"kind": "local", "model": str(teacher), **sections.get("teacher", {})}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
        return check_recipe(load_recipe(tmp_path / "recipe.yaml"))

    return checked


def only_error(findings: Findings) -> str:
    (error,) = findings.errors
    return str(error.error)


def lora(*targets: str) -> dict[str, Any]:
    return {"kind": "from_teacher", "layers": {"first": 2}, "lora": {"target_modules": list(targets)}}


def stage(**settings: Any) -> dict[str, Any]:
    return {"stages": [{"name": "a", "objectives": [{"kind": "hard_ce"}], **settings}]}


def hint(student: str, teacher: str) -> dict[str, Any]:
    return {"objectives": [{"kind": "hint", "modules": {"student": student, "teacher": teacher}}]}


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_a_device_that_is_not_here_is_refused(check: Check, device: str) -> None:
    assert "teachers.main.device" in only_error(check(teacher={"device": device}))
    assert "teachers.main.device_map" in only_error(check(teacher={"device_map": device}))


def test_patterns_of_parameters_must_match(check: Check) -> None:
    nearest = only_error(check(train=stage(freeze=["model.layers.*.mpl.*"])))
    assert "train.stages (a).freeze: 'model.layers.*.mpl.*' matches no parameter; did you mean" in nearest
    begins = only_error(check(train=stage(freeze=["bert.*"])))
    assert "names begin with model.embed_tokens, model.layers, model.norm" in begins
    gone = only_error(check(train=stage(initialise=["model.layers.3.*"])))  # of a student with two layers
    assert "train.stages (a).initialise" in gone
    assert not check(train=stage(freeze=["model.embed_tokens.*"], initialise=["model.layers.1.*"])).errors


def test_a_stage_in_which_nothing_learns_is_refused(check: Check) -> None:
    assert "every parameter is frozen" in only_error(check(train=stage(freeze=["*"])))


def test_a_stage_whose_objectives_reach_frozen_parameters_alone_is_refused(check: Check) -> None:
    def states(layer: int, *frozen: str) -> dict[str, Any]:
        compared = {"kind": "hidden_mse", "layers": [[layer, layer]], "over": "tokens"}
        return {"stages": [{"name": "a", "objectives": [compared], "freeze": list(frozen)}]}

    below = "*embed_tokens*", "*layers.0.*"
    assert "every parameter that the objectives reach is frozen" in only_error(check(train=states(1, *below)))
    assert not check(train=states(2, *below)).errors, "the last state is reached through the second layer"
    assert not check(train=states(1, "*embed_tokens*")).errors


def test_weights_that_float16_cannot_hold_are_refused_before_training(check: Check, tmp_path: Path) -> None:
    folder = make_tiny_causal_lm(tmp_path / "large", num_hidden_layers=4)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.0.mlp" in name)
    weights[name][0, 0] = 70_000.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def exported(dtype: str) -> Findings:
        return check(teacher={"model": str(folder)}, export=[{"kind": "huggingface", "dtype": dtype}])

    assert f"{name} has a weight of 7e+04, and float16 holds up to 65,504" in only_error(exported("float16"))
    assert not exported("bfloat16").errors


def test_an_adapter_must_find_every_module(check: Check) -> None:
    misspelt = only_error(check(student=lora("q_proj", "v_prj")))
    assert "no module of the student is called 'v_prj'; did you mean 'v_proj'?" in misspelt
    tied = only_error(check(student=lora("lm_head", "q_proj")))
    assert "the output layer is tied to the embeddings" in tied
    broken = {"kind": "from_teacher", "lora": {"target_modules": "q_proj("}}
    assert "is no regular expression" in only_error(check(student=broken))
    assert not check(student=lora("q_proj", "self_attn.v_proj")).errors


def test_an_adapter_as_wide_as_its_layers_is_warned_of(check: Check) -> None:
    def warned(rank: int, *targets: str) -> list[str]:
        student = lora(*targets)
        student["lora"]["r"] = rank
        return [finding.text for finding in check(student=student).warnings if "lora.r" in finding.text]

    (text,) = warned(16, "q_proj", "v_proj")  # of a student with 32 dimensions, and values of 16
    assert text.startswith("lora.r is 16, and 2 of the 4 layers that it adapts are no wider") and "v_proj: 16" in text
    assert not warned(15, "q_proj", "v_proj") and not warned(16, "q_proj")


def test_modules_that_objectives_compare_must_exist(check: Check) -> None:
    student = only_error(check(train=hint("model.layers.1.mpl", "model.layers.3.mlp")))
    assert "hint, the student: there is no module 'model.layers.1.mpl'; did you mean" in student
    assert "hint, the teacher" in only_error(check(train=hint("model.layers.1.mlp", "model.layers.9.mlp")))
    assert not check(train=hint("model.layers.1.mlp", "model.layers.3.mlp")).errors


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycle": 2}}, "num_cycle"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"report_to": "wand"}, "wand"),
        ({"dataloader_prefetch_factor": 2}, "correct or leave out dataloader_prefetch_factor"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "correct or leave out lr_scheduler_type"),
    ],
)
def test_arguments_that_transformers_refuses_are_refused(check: Check, args: dict[str, Any], expected: str) -> None:
    error = only_error(check(train={"args": args}))
    assert "train.args" in error
    assert expected in error


def test_unusual_arguments_that_work_pass(check: Check) -> None:
    args = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert not check(train={"args": args}).errors


def test_torch_is_loaded_only_where_it_is_needed(check: Check, tmp_path: Path) -> None:
    check(train={"args": {"learning_rate": 1e-3, "lr_scheduler_type": "linear", "report_to": "none"}})
    code = (
        "import sys; from potstill.check import check_recipe; from potstill.recipe import load_recipe\n"
        f"assert not check_recipe(load_recipe({str(tmp_path / 'recipe.yaml')!r})).errors\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
