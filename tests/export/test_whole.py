"""Exports through the stage, from what the train stage leaves: names, bases, pooling and terms reach the exporter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from potstill.artifacts import Work, read_artifact, write_artifact
from potstill.console import Console
from potstill.export.stage import stage
from potstill.recipe import parse_recipe
from potstill.stage import Context
from tiny_models import make_tiny_causal_lm, make_tiny_encoder, make_tiny_tokenizer


def exported(run: Path, **document: Any) -> tuple[Path, Work]:
    whole = {"name": "half", "teacher": {"kind": "local", "model": str(run / "base")}} | document
    recipe = parse_recipe(whole | {"data": {"kind": "jsonl", "path": "x.jsonl"}}, base=Path("/"))
    made, train = stage(recipe, 0), read_artifact(run / "train")
    assert train is not None
    with write_artifact(run, made.name, "1" * 64, settings={}, inputs={}, seed=0) as work:
        made.write(Context(recipe, run, {"train": train}, work, Console("quiet")))
    return run / made.name, work


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    base = make_tiny_causal_lm(tmp_path / "base", tied=False)
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for weight in (weight for name, weight in model.named_parameters() if "lora_B" in name):
            weight.normal_(std=0.1)
    with write_artifact(tmp_path, "train", "0" * 64, settings={}, inputs={}, seed=0) as work:
        model.save_pretrained(str(work.path / "adapter"))
        model.merge_and_unload().save_pretrained(work.path / "model")
        make_tiny_tokenizer().save_pretrained(work.path / "model")
    return tmp_path


def student_of(run: Path) -> dict[str, Any]:
    return {"student": {"kind": "existing", "model": str(run / "base"), "lora": {"r": 2}}, "train": {}}


def test_an_adapter_is_exported_for_the_model_that_the_student_began_with(adapted: Path) -> None:
    settings = {"kind": "adapter", "check_prompts": 2, "check_tokens": 4}
    folder, work = exported(adapted, **student_of(adapted), export=[settings])
    assert work.facts["check"]["adapter_model.safetensors"]["kl"] < 1e-6
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert str(adapted) not in (folder / "README.md").read_text()


def test_a_second_rounding_stands_on_the_card_and_in_the_warnings(adapted: Path) -> None:
    document = {
        "student": {"kind": "existing", "model": str(adapted / "base")},
        "train": {"quantize": {"weights": "int4"}},
    }
    halved, work = exported(adapted, **document, export=[{"kind": "huggingface", "dtype": "bfloat16"}])
    (text,) = (warning for warning in work.warnings if "rounds its weights again" in warning)
    assert "trained through int4" in text and "rounds its weights again" in (halved / "README.md").read_text()


def test_a_file_on_the_grid_of_the_training_has_no_such_note(adapted: Path) -> None:
    document = {
        "student": {"kind": "existing", "model": str(adapted / "base")},
        "train": {"quantize": {"weights": "int4"}},
    }
    kept, work = exported(adapted, **document, export=[{"kind": "huggingface"}])
    assert "rounds" not in (kept / "README.md").read_text() and not any("rounds" in text for text in work.warnings)


def test_a_card_without_a_report_has_the_gates_section(adapted: Path) -> None:
    stated = {"id": "exaone-1.1-nc", "attested_by": "Ada", "on": "2026-01-02", "why": "Their repository says so."}
    policy = {
        "purpose": ["commercial"],
        "overrides": [{"source": stated["id"], "by": "Ada", "on": "2026-01-02", "reason": "LG allowed it by letter."}],
    }
    document = student_of(adapted)
    document["student"]["licence"] = stated
    folder, _ = exported(adapted, **document, export=[{"kind": "gguf", "check_prompts": 0}], policy=policy)
    text = (folder / "README.md").read_text()
    assert text.startswith("# half\n\n## Licences and terms\n") and "| What | Used for |" in text
    overridden = "**Overridden**: `exaone-1.1-nc`, by Ada on 2026-01-02: LG allowed it by letter."
    assert text.index(overridden) < text.index("Files, and how they were checked")


@pytest.mark.needs("sentence-transformers")
def test_the_pooling_of_training_goes_along(tmp_path: Path) -> None:
    encoder = make_tiny_encoder(tmp_path / "base")
    with write_artifact(tmp_path, "train", "0" * 64, settings={}, inputs={}, seed=0) as work:
        make_tiny_encoder(work.path / "model")
    folder, work = exported(
        tmp_path,
        task="sentence_embedding",
        student={"kind": "existing", "model": str(encoder)},
        train={"objectives": [{"kind": "rkd_distance", "pooling": "first"}]},
        export=[{"kind": "sentence_transformers", "check_prompts": 2}],
    )
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"] is True
    assert work.facts["check"]["farthest"] < 1e-6
