"""Claims about Medusa heads: from a recipe to what an engine reads, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_speculation import recipe
from transformers import AutoModelForCausalLM

from potstill.console import Console
from potstill.errors import ModelError, PotstillError
from potstill.heads import load_heads
from potstill.pipeline import plan, run_recipe
from potstill.recipe import Recipe
from potstill.speculate import export
from potstill.speculate.traces import Text, accuracies, head_ranks
from potstill.speculation import load_speculation
from potstill.stage import stage_names
from tiny_models import random_heads, tiny_model

ARGS = {"max_steps": 3, "use_cpu": True, "per_device_train_batch_size": 2, "learning_rate": 0.01}
HEADS = {"kind": "medusa", "heads": 3, "frequent": 100}


def heads(folder: Path, train: dict[str, Any] | None = None, **draft: Any) -> Recipe:
    asked = {"objectives": [HEADS], "max_length": 64, "args": ARGS} if train is None else train
    speculate = {"draft": {"kind": "medusa", "ranks": 3, **draft}, "train": asked, "train_anyway": True, "most": 5}
    return recipe(folder, {key: value for key, value in speculate.items() if value != {}})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a recipe whose target is frozen."""
    folder = tmp_path_factory.mktemp("medusa")
    made = heads(folder)
    assert stage_names(made) == ["speculate.advice", "speculate.train", "speculate", "report"]
    run_recipe(made, folder / "run", console=Console("quiet"))
    assert {status.state for status in plan(made, folder / "run")} == {"fresh"}
    return folder


def test_heads_are_measured_trained_and_measured_again_and_the_target_is_as_it_was(ran: Path) -> None:
    before, after = (load_speculation(ran / "run" / name) for name in ("speculate.advice", "speculate"))
    assert "not trained" in before.draft and after.draft.startswith("3 Medusa heads, trained")
    assert all(len(depths) == 3 and {*map(len, depths)} == {3} for depths in after.accuracies.values())
    assert 0 < len(after.nodes["greedy"]) <= 5 and [f.gamma for f in after.advice[0].forecasts] == [1, 2, 3, 4, 5]
    assert after.trials and after.alphas and after.exported is not None
    own = load_file(ran / "teacher" / "model.safetensors")
    kept = load_file(ran / "run" / "speculate.train" / "model" / "model.safetensors")
    assert all(torch.equal(weight, kept[name]) for name, weight in own.items())
    history = (ran / "run" / "speculate.train" / "history.jsonl").read_text()
    assert "head_3_accuracy" in history
    assert "Medusa heads" in (ran / "run" / "report" / "report.html").read_text()


def test_the_exported_heads_are_the_trained_ones_by_the_names_that_vllm_reads(ran: Path) -> None:
    """`load_weights` of vllm/model_executor/models/medusa.py keeps what is in `named_parameters()`, and `token_map`."""
    out = ran / "run" / "speculate"
    exported = load_speculation(out).exported
    assert exported is not None and exported.folder == "medusa" and exported.alpha == exported.alpha_in_memory
    assert json.loads((out / "vllm.json").read_text()) == {
        "method": "medusa",
        "model": "medusa",
        "num_speculative_tokens": 3,
    }
    weights, config = (
        load_file(out / "medusa" / "model.safetensors"),
        json.loads((out / "medusa" / "config.json").read_text()),
    )
    hidden, vocab, known = config["hidden_size"], config["vocab_size"], config["truncated_vocab_size"]
    assert config["model_type"] == "medusa" and config["num_hidden_layers"] == 1 and config["num_heads"] == 3
    assert config["architectures"] == ["MedusaModel"] and not config["medusa_fc_bias"]
    of_loader = {f"blocks.{i}.layers.0.weight": (hidden, hidden) for i in range(3)}
    of_loader |= {f"lm_heads.{i}.weight": (known, hidden) for i in range(3)} | {"token_map": (known,)}
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == of_loader
    assert known == 100 < vocab and weights["token_map"].dtype == torch.int64
    trained = load_file(ran / "run" / "speculate.train" / "projectors.safetensors")
    assert all(torch.equal(weight, trained[f"medusa.{name}"]) for name, weight in weights.items())
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if name.startswith("blocks"))


def test_exported_heads_draft_again_without_training(ran: Path, tmp_path: Path) -> None:
    made = heads(tmp_path, {}, weights=str(ran / "run" / "speculate" / "medusa"))
    assert stage_names(made) == ["speculate", "report"]
    run_recipe(made, tmp_path / "run", console=Console("quiet"), verb="speculate")
    before, after = (load_speculation(folder / "run" / "speculate") for folder in (ran, tmp_path))
    assert before.accuracies == after.accuracies


def test_a_lookup_may_come_before_heads(ran: Path, tmp_path: Path) -> None:
    then = {"kind": "medusa", "ranks": 3, "weights": str(ran / "run" / "speculate" / "medusa")}
    made = recipe(tmp_path, {"draft": {"kind": "chained", "then": then}, "most": 5})
    run_recipe(made, tmp_path / "run", console=Console("quiet"), verb="speculate")
    found = load_speculation(tmp_path / "run" / "speculate")
    assert found.draft.startswith("a lookup in the text, then 3 Medusa heads") and found.trials and found.nodes
    assert found.accuracies == load_speculation(ran / "run" / "speculate").accuracies
    assert found.exported is not None and "no lookup" in found.exported.note


def test_advice_is_stale_where_other_heads_would_be_measured(ran: Path) -> None:
    other = {"objectives": [{**HEADS, "heads": 2}], "max_length": 64, "args": ARGS}
    states = {status.stage: status.state for status in plan(heads(ran, other), ran / "run")}
    assert states["speculate.advice"] == "stale"


def test_an_export_that_mixed_up_its_heads_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = export.save_heads

    def mixed_up(made: Any, folder: Path) -> None:
        saving(made, folder)
        weights = load_file(folder / "model.safetensors")
        weights["token_map"] = weights["token_map"].roll(1)
        save_file(weights, folder / "model.safetensors")

    monkeypatch.setattr(export, "save_heads", mixed_up)
    with pytest.raises(ModelError, match="not those that were measured"):
        run_recipe(heads(tmp_path), tmp_path / "run", console=Console("quiet"), verb="speculate")


def test_a_target_that_is_trained_with_its_heads_is_another_model(tmp_path: Path) -> None:
    both = [
        {"name": "heads", "objectives": [HEADS]},
        {"name": "both", "objectives": [{"kind": "forward_kl"}, {**HEADS, "weight": 0.2}], "keep_projections": True},
    ]
    made = heads(tmp_path, {"stages": both, "max_length": 64, "args": ARGS})
    run_recipe(made, tmp_path / "run", console=Console("quiet"), verb="speculate")
    found = load_speculation(tmp_path / "run" / "speculate")
    assert "with the target" in found.draft and any("another model" in note for note in found.notes)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").state_dict()
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "speculate.train" / "model").state_dict()
    assert any(not torch.equal(weight, kept[name]) for name, weight in own.items())


def test_typical_acceptance_is_off_unless_asked_for_and_labelled_lossy(ran: Path, tmp_path: Path) -> None:
    assert not any("lossy" in note for note in load_speculation(ran / "run" / "speculate").notes)
    made = heads(tmp_path, {}, weights=str(ran / "run" / "speculate" / "medusa"), typical={"epsilon": 0.2})
    run_recipe(made, tmp_path / "run", console=Console("quiet"), verb="speculate")
    assert any("lossy" in note for note in load_speculation(tmp_path / "run" / "speculate").notes)


@torch.no_grad()
def test_ranks_are_those_of_the_states_before_the_last_token() -> None:
    """By hand: in the round that writes token t, the state behind token t − 2 is known."""
    model = tiny_model(seed=3, spread=0.3)
    own = random_heads(model, 2)
    text = Text((5, 9, 30), (7, 11, 2, 40))
    ranks = head_ranks(model, own, text, 5)
    states = model.model(torch.tensor([[*text.prompt, *text.written]])).last_hidden_state[0]
    for t in range(4):
        choices = own.choices(states[len(text.prompt) + t - 2][None], 5)[0]
        for head in range(2):
            best = choices[head].tolist()
            token = text.written[t + head] if t + head < 4 else None
            assert ranks[t, head] == (best.index(token) if token in best else 5)
    assert accuracies([np.array([[0, 1], [1, 2], [0, 2]])], 2) == ((2 / 3, 1 / 3), (0.0, 1 / 3))


@pytest.mark.parametrize(
    ("draft", "train", "said"),
    [
        ({}, {}, "either trained or read"),
        ({"weights": "teacher"}, None, "either trained or read"),
        ({}, {"objectives": [{"kind": "forward_kl"}]}, "say which heads"),
        ({}, {"objectives": [HEADS], "keep": "best"}, "use keep: last"),
        ({"ranks": 0}, None, "greater than or equal to 1"),
        ({"typical": {"epsilon": 2}}, None, "less than 1"),
    ],
)
def test_heads_that_cannot_be_are_refused_while_parsing(tmp_path: Path, draft: Any, train: Any, said: str) -> None:
    with pytest.raises(PotstillError, match=said):
        heads(tmp_path, train, **draft)


def test_a_folder_without_heads_is_refused(tmp_path: Path) -> None:
    made = heads(tmp_path, {}, weights=str(tmp_path / "teacher"))
    with pytest.raises(ModelError, match="no Medusa heads"):
        run_recipe(made, tmp_path / "run", console=Console("quiet"), verb="speculate")


@pytest.mark.parametrize(("file", "content"), [("config.json", b"[1]"), ("model.safetensors", b"\0" * 9)])
def test_files_that_are_no_heads_are_refused(tmp_path: Path, file: str, content: bytes) -> None:
    export.save_heads(random_heads(tiny_model(vocab=50), 1), tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match="no Medusa heads"):
        load_heads(tmp_path)


def test_missing_files_of_heads_are_named(tmp_path: Path) -> None:
    export.save_heads(random_heads(tiny_model(vocab=50), 1), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no Medusa heads: no model\.safetensors"):
        load_heads(tmp_path)


def test_heads_of_another_width_of_vocabulary_are_refused(tmp_path: Path) -> None:
    other = random_heads(tiny_model(vocab=50), 1)
    export.save_heads(other, tmp_path / "heads")
    assert load_heads(tmp_path / "heads").vocab == 50
    made = heads(tmp_path, {}, weights=str(tmp_path / "heads"))
    with pytest.raises(ModelError, match="of a model with vocab_size 50"):
        run_recipe(made, tmp_path / "run", console=Console("quiet"), verb="speculate")
