"""Claims about `potstill speculate`, from a recipe to what it writes, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.gguf_families import TEMPLATE, Quantised, write_family
from safetensors.torch import load_file
from small_speculation import SMALL, recipe
from transformers import AutoModelForCausalLM

from potstill.console import Console
from potstill.errors import ModelError, PotstillError, RecipeError, TokenizerMismatch
from potstill.pipeline import plan, run_recipe
from potstill.recipe import Recipe, parse_recipe
from potstill.speculate import export
from potstill.speculation import load_speculation
from potstill.stage import stage_names
from tiny_models import make_tiny_causal_lm


def speculate(made: Recipe, folder: Path) -> Path:
    run_recipe(made, folder / "run", console=Console("quiet"), verb="speculate")
    return folder / "run" / "speculate"


def test_a_draft_is_measured_advised_on_tried_and_exported(tmp_path: Path) -> None:
    out = speculate(recipe(tmp_path, {"draft": {"kind": "layers", "layers": 2, "frequent": 200}}), tmp_path)
    found = load_speculation(out)
    assert [(a.temperature, a.batch_size) for a in found.advice] == [(0.0, 1), (0.0, 2), (0.7, 1), (0.7, 2)]
    assert all([f.gamma for f in a.forecasts] == [1, 2, 3] for a in found.advice)
    assert {trial.temperature for trial in found.trials} == {0.0, 0.7}
    for trial in found.trials:
        assert trial.predicted.low <= trial.predicted.value <= trial.predicted.high
        assert sum(trial.accepted) > 0
    assert set(found.alphas) == {"greedy", "T=0.7"} and all(0 <= a.value <= 1 for a in found.alphas.values())
    assert [costs.batch_size for costs in found.costs] == [1, 2]
    assert {piece.author for piece in found.text} <= {"draft", "target"} and found.text
    assert found.exported is not None and found.exported.alpha == pytest.approx(found.exported.alpha_in_memory)
    vllm = json.loads((out / "vllm.json").read_text())
    assert vllm == {"method": "draft_model", "model": "draft", "num_speculative_tokens": found.advice[0].best}


def test_the_exported_draft_is_an_assistant_of_transformers(tmp_path: Path) -> None:
    out = speculate(recipe(tmp_path, {"draft": {"kind": "layers", "layers": 2}}), tmp_path)
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    draft = AutoModelForCausalLM.from_pretrained(out / "draft")
    assert draft.config.num_hidden_layers == 2
    made_from = {
        (use["role"], use["route"]) for use in json.loads((out / "draft" / "provenance.json").read_text())["uses"]
    }
    assert ("teachers.main", "weights") in made_from
    ids = torch.tensor([[5, 9, 30]])
    settings = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(target.generate(ids, **settings), target.generate(ids, assistant_model=draft, **settings))


def test_an_export_that_lost_its_embeddings_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = export.save_model

    def at_random(model: Any, folder: Path) -> None:
        saving(model, folder)
        other = AutoModelForCausalLM.from_pretrained(folder)
        torch.nn.init.normal_(other.get_input_embeddings().weight)
        other.save_pretrained(folder)

    monkeypatch.setattr(export, "save_model", at_random)
    made = recipe(tmp_path, {"draft": {"kind": "layers", "layers": 3}, "prompts": 6, "max_new_tokens": 16})
    with pytest.raises(ModelError, match="is not the one that was measured"):
        speculate(made, tmp_path)


def test_a_gguf_file_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    write_family(tmp_path / "teacher.gguf", "qwen2", layers=2, template=TEMPLATE, quantised=Quantised.Q8_0)
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"prompt": f"ab {n} ba {n}"}) for n in range(8)))
    asked = {
        "name": "gguf",
        "teacher": {"kind": "local", "model": "teacher.gguf", "device": "cpu"},
        "data": {"kind": "jsonl", "path": "data.jsonl", "format": "prompt", "held_out": 0.5},
        "speculate": {**SMALL, "draft": {"kind": "layers", "layers": 1}},
    }
    found = load_speculation(speculate(parse_recipe(asked, base=tmp_path), tmp_path))
    assert found.trials and found.exported is not None


def test_a_lookup_needs_no_model_and_exports_the_engines_own(tmp_path: Path) -> None:
    out = speculate(recipe(tmp_path, {"draft": {"kind": "lookup", "longest": 2}}), tmp_path)
    found = load_speculation(out)
    assert not found.alphas and found.exported is not None and not (out / "draft").exists()
    vllm = json.loads((out / "vllm.json").read_text())
    assert vllm["prompt_lookup_max"] == 2
    assert any(f"compares {vllm['prompt_lookup_min']} to 2 tokens" in note for note in found.notes)
    out = speculate(recipe(tmp_path, {"draft": {"kind": "lookup", "longest": 2, "shortest": 2}}), tmp_path)
    assert json.loads((out / "vllm.json").read_text())["prompt_lookup_min"] == 2
    assert not load_speculation(out).notes


def test_a_chained_draft_with_a_fitted_threshold_runs(tmp_path: Path) -> None:
    made = recipe(tmp_path, {"draft": {"kind": "chained", "then": {"kind": "layers", "layers": 2, "threshold": "fit"}}})
    assert load_speculation(speculate(made, tmp_path)).trials


def test_a_draft_is_measured_before_it_is_trained_and_after(tmp_path: Path) -> None:
    train = {"objectives": [{"kind": "forward_kl"}], "max_length": 64, "args": {"max_steps": 2, "use_cpu": True}}
    asked = {"draft": {"kind": "layers", "layers": 2}, "train": train, "train_anyway": True}
    made = recipe(tmp_path, asked)
    assert stage_names(made) == ["speculate.advice", "speculate.train", "speculate", "report"]
    run_recipe(made, tmp_path / "run", console=Console("quiet"))
    out = tmp_path / "run" / "speculate"
    before, after = load_speculation(tmp_path / "run" / "speculate.advice"), load_speculation(out)
    assert not before.trials and before.exported is None
    assert after.draft.endswith("trained") and after.alphas != before.alphas
    assert {status.state for status in plan(made, tmp_path / "run")} == {"fresh"}
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "Who wrote it" in page and 'class="by-target"' in page and page.count("<svg") >= 3


def test_a_draft_learns_the_tokens_that_it_drafts(tmp_path: Path) -> None:
    train = {"objectives": [{"kind": "forward_kl"}], "max_length": 64, "args": {"max_steps": 2, "use_cpu": True}}
    asked = {"draft": {"kind": "layers", "layers": 2, "frequent": 200}, "train": train, "train_anyway": True}
    run_recipe(recipe(tmp_path, asked), tmp_path / "run", console=Console("quiet"))
    trained = tmp_path / "run" / "speculate.train" / "model"
    tokens = json.loads((trained / "frequent_tokens.json").read_text())
    assert len(tokens) == 200
    before = load_file(tmp_path / "teacher" / "model.safetensors")["model.embed_tokens.weight"]
    head = AutoModelForCausalLM.from_pretrained(trained).get_output_embeddings().weight
    others = torch.ones(len(before), dtype=torch.bool)
    others[tokens] = False
    assert (head[tokens] != before[tokens]).any(1).all(), "these were learned"
    assert not head[others].any(), "an engine that drafts from all tokens has nothing of the others"
    found = load_speculation(tmp_path / "run" / "speculate")
    assert found.draft == "the target's first 2 layers, trained, 200 frequent tokens"
    assert json.loads((tmp_path / "run" / "speculate" / "draft" / "frequent_tokens.json").read_text()) == tokens


def test_a_draft_that_learns_from_samples_learns_all_tokens(tmp_path: Path) -> None:
    train = {"objectives": [{"kind": "forward_kl"}], "max_length": 64, "args": {"max_steps": 1, "use_cpu": True}}
    asked = {"draft": {"kind": "layers", "layers": 2, "frequent": 200}, "train": train, "train_anyway": True}
    of_samples = recipe(tmp_path, asked, capture={"kind": "threshold"}).draft_training.required_train
    of_states = recipe(tmp_path, asked, capture={"kind": "hidden"}).draft_training.required_train
    assert (of_samples.frequent, of_states.frequent) == (None, 200)


def test_a_store_of_what_a_training_reads_needs_a_training(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no train: name what is kept"):
        recipe(tmp_path, {}, capture={"kind": "hidden", "features": "asked"})


def test_tokens_that_nothing_drafts_are_not_learned_alone(tmp_path: Path) -> None:
    student = {"student": {"kind": "from_teacher", "layers": {"first": 2}}, "train": {"frequent": 200}}
    with pytest.raises(RecipeError, match="good as a draft of these"):
        recipe(tmp_path, {"draft": {"kind": "layers", "layers": 2}}, **student)
    with pytest.raises(RecipeError, match="samples of all tokens"):
        recipe(tmp_path, {"draft": {"kind": "student", "frequent": 200}}, **student, capture={"kind": "threshold"})
    with pytest.raises(RecipeError, match=r"use draft\.frequent"):
        recipe(tmp_path, {"draft": {"kind": "layers", "layers": 2}, "train": {"frequent": 200}})


def test_a_draft_learns_from_text_of_its_own(tmp_path: Path) -> None:
    """The recipe of the page: the draft writes, and its target teaches."""
    draft = {"kind": "local", "model": str(make_tiny_causal_lm(tmp_path / "draft", layers=2, seed=1)), "device": "cpu"}
    plain, args = recipe(tmp_path, {}), {"max_steps": 2, "use_cpu": True}
    asked = {
        "name": "own-text",
        "teachers": {"main": plain.teachers["main"].model_dump(mode="json"), "draft": draft},
        "student": {"kind": "existing", "model": draft["model"]},
        "data": {"kind": "jsonl", "path": str(tmp_path / "data.jsonl"), "held_out": 0.5},
        "generate": {"kind": "sequence", "teacher": "draft", "temperature": 0.7, "max_new_tokens": 8},
        "train": {"objectives": [{"kind": "acceptance"}], "max_length": 64, "args": args},
        "speculate": {**SMALL, "draft": {"kind": "student", "frequent": 200}},
    }
    made = parse_recipe(asked, base=tmp_path)
    run_recipe(made, tmp_path / "run", console=Console("quiet"))
    found = load_speculation(tmp_path / "run" / "speculate")
    assert found.draft.startswith("the student") and found.trials


def test_a_draft_that_cannot_gain_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.speculate.speculating.hopeless", lambda timing, most, heads: True)
    train = {"max_length": 64, "args": {"max_steps": 1, "use_cpu": True}}
    with pytest.raises(RecipeError, match="however well it is trained"):
        speculate(recipe(tmp_path, {"draft": {"kind": "layers", "layers": 2}, "train": train}), tmp_path)
    assert not (tmp_path / "run" / "speculate.train").exists()


def test_another_tokenizer_is_refused_with_what_differs_and_what_would_serve(tmp_path: Path) -> None:
    other = make_tiny_causal_lm(tmp_path / "other")
    file = other / "tokenizer.json"
    stated = json.loads(file.read_text())
    vocabulary = stated["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(stated))
    made = recipe(tmp_path, {"draft": {"kind": "model", "model": str(other)}})
    with pytest.raises(TokenizerMismatch, match="2 tokens differ") as refusal:
        speculate(made, tmp_path)
    assert "kind: lookup" in str(refusal.value)


def test_a_draft_with_a_shorter_context_drafts_as_far_as_it_goes(tmp_path: Path) -> None:
    short = make_tiny_causal_lm(tmp_path / "short", max_position_embeddings=40)
    made = recipe(tmp_path, {"draft": {"kind": "model", "model": str(short)}})
    found = load_speculation(speculate(made, tmp_path))
    assert any("context" in note for note in found.notes)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gamma": 0}, "greater than or equal to 1"),
        ({"gamma": 9, "most": 4}, "above most"),
        ({"max_new_tokens": 1}, "greater than or equal to 2"),
        ({"target": "other"}, "not among the teachers"),
        ({"draft": {"kind": "student"}}, "nothing trains one"),
        ({"draft": {"kind": "layer"}}, "did you mean 'layers'"),
        ({"draft": {"kind": "lookup"}, "train": {}}, "first layers"),
        ({"draft": {"kind": "chained", "then": {"kind": "lookup"}}}, "model draft"),
        ({"draft": {"kind": "lookup", "longest": 1, "shortest": 2}}, "above longest"),
        ({"draft": {"kind": "layers", "layers": 2, "threshold": 1.5}}, "threshold"),
        ({"temperatures": [0, 0]}, "once"),
    ],
)
def test_what_cannot_be_is_refused_while_parsing(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(PotstillError, match=said):
        recipe(tmp_path, asked)


def test_more_layers_than_the_target_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="layers"):
        speculate(recipe(tmp_path, {"draft": {"kind": "layers", "layers": 9}}), tmp_path)
