"""Claims about drafts measured, and heads trained, from a signal store: what the live target gives, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from small_speculation import recipe

from potstill.artifacts import Work
from potstill.console import Console
from potstill.data import ChatTokenizer
from potstill.decoding.cached_model import CachedModel
from potstill.errors import PotstillError
from potstill.models.live import live_signals
from potstill.pipeline import plan, run_recipe
from potstill.recipe import LocalTeacher, Recipe
from potstill.speculate import speculating
from potstill.speculate.opening import Target, open_target
from potstill.speculate.stored import StoredTexts
from potstill.speculate.traces import agreement, sampler_of
from potstill.speculation import load_speculation
from tiny_models import tiny_model

STORES: dict[str, dict[str, Any]] = {
    "hidden": {"kind": "hidden", "dtype": "float32"},
    "threshold": {"kind": "threshold", "bytes_per_token": 40},
    "sampled": {"kind": "sampled", "draws": 8},
    "topk": {"kind": "topk", "k": 4},
}
DRAFT = {"kind": "layers", "layers": 2}


def stored(
    folder: Path,
    capture: dict[str, Any],
    temperature: float = 1.0,
    speculate: dict[str, Any] | None = None,
    **more: Any,
) -> Recipe:
    """A recipe whose target writes at a temperature, is captured, and is to be made faster."""
    asked = {"draft": DRAFT, "texts": "stored", "temperatures": [temperature], "export": False, **(speculate or {})}
    generate = {"kind": "sequence", "max_new_tokens": 12, "temperature": temperature}
    changes: dict[str, Any] = {"generate": generate, "capture": capture, **more}
    return recipe(folder, asked, **changes)


def run(made: Recipe, folder: Path, *verbs: Any) -> None:
    """Some stages of a recipe."""
    for verb in verbs:
        run_recipe(made, folder, console=Console("quiet"), verb=verb)


def target_of(folder: Path) -> Target:
    return open_target(LocalTeacher(model=str(folder / "teacher"), device="cpu"), "float32", Console("quiet"))


def texts_of(folder: Path, target: Target, most: int = 6) -> StoredTexts:
    chat = ChatTokenizer.from_transformers(target.tokenizer)
    work = Work(folder, resumed=False)
    records, store = folder / "generate" / "records.parquet", folder / "capture" / "store"
    return StoredTexts(store, records, chat, most=most, longest=8, captured=1024, target=target, work=work)


@pytest.mark.parametrize("kind", STORES)
def test_acceptance_from_a_store_is_that_of_the_live_target(tmp_path: Path, kind: str) -> None:
    made = stored(tmp_path, STORES[kind])
    run(made, tmp_path / "run", "generate", "capture")
    target, reader = target_of(tmp_path), CachedModel(tiny_model(seed=0, spread=0.19))
    texts = texts_of(tmp_path / "run", target)
    assert len(texts.texts) == 6 and all(0 < len(text.written) <= 8 for text in texts.texts)
    for number, text in enumerate(texts.texts):
        live = agreement(target.cached, reader, text, sampler_of(1.0), target.device)
        found = texts.agreement(number, reader, sampler_of(1.0))
        # log p of the text's token is kept in steps of 0.008 nats.
        near: dict[str, float] = {"atol": 1e-5} if kind == "hidden" else {"rtol": 0.005}
        np.testing.assert_allclose(found.accept, live.accept, **near)
        np.testing.assert_allclose(found.alpha, live.alpha if kind == "hidden" else live.accept, **near)
        np.testing.assert_allclose(found.sure, live.sure, atol=1e-6)


def test_a_store_of_whole_distributions_serves_any_temperature(tmp_path: Path) -> None:
    made = stored(tmp_path, STORES["hidden"], 0.7)
    run(made, tmp_path / "run", "generate", "capture")
    target, reader = target_of(tmp_path), CachedModel(tiny_model(seed=0, spread=0.19))
    texts = texts_of(tmp_path / "run", target)
    for sampler in (sampler_of(0.7), sampler_of(0.7, 0.9)):
        live = agreement(target.cached, reader, texts.texts[0], sampler, target.device)
        np.testing.assert_allclose(texts.agreement(0, reader, sampler).alpha, live.alpha, atol=1e-5)


@pytest.mark.parametrize(("kind", "temperature"), [("threshold", 1.0), ("sampled", 0.0)])
def test_advice_from_a_store_does_not_have_the_target_write_or_read(
    tmp_path: Path, kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(*given: Any, **named: Any) -> None:
        raise AssertionError("the target runs")

    monkeypatch.setattr(speculating, "write_text", runs)
    monkeypatch.setattr(speculating, "agreement", runs)
    made = stored(tmp_path, STORES[kind], temperature)
    run(made, tmp_path / "run", "generate", "capture", "speculate")
    found = load_speculation(tmp_path / "run" / "speculate")
    assert any("signal store" in note for note in found.notes) and found.prompts == 3
    assert len(found.alphas) == 1 and all(0 < value.value < 1 for value in found.alphas.values())
    assert found.trials and {status.state for status in plan(made, tmp_path / "run")} <= {"fresh", "missing"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generate": None}, "section generate of kind sequence"),
        ({"capture": None}, "section capture"),
        ({"capture": {"kind": "threshold", "temperature": 0.7}, "temperature": 0.7}, "kind: hidden"),
        ({"speculate": {"temperatures": [0.0, 1.0]}}, r"temperatures: \[1\]"),
        ({"speculate": {"top_p": 0.9}}, "top_p: 1"),
        ({"speculate": {"texts": "sorted"}}, "stored"),
        ({"generate": {"kind": "sequence", "temperature": 1.0, "top_k": 5}}, "top_k"),
    ],
)
def test_texts_that_are_not_the_targets_or_not_stored_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"capture": STORES["hidden"], **changes}
    with pytest.raises(PotstillError, match=said):
        stored(tmp_path, **given)


def test_a_store_that_a_drafts_objective_cannot_use_is_refused(tmp_path: Path) -> None:
    train = {"objectives": [{"kind": "acceptance"}]}
    with pytest.raises(PotstillError, match="acceptance needs more of its teacher than a store of kind 'threshold'"):
        stored(tmp_path, STORES["threshold"], speculate={"train": train})


# ---- heads -----------------------------------------------------------------------------------------------------

# Adam would turn the rounding of small gradients into whole steps, and bf16 round live states.
ARGS = {
    "max_steps": 3,
    "use_cpu": True,
    "per_device_train_batch_size": 2,
    "learning_rate": 1.0,
    "optim": "sgd",
    "bf16": False,
}
HEADS = {"kind": "medusa", "heads": 2, "frequent": 100}


def heads(folder: Path, **objective: Any) -> Recipe:
    train = {"objectives": [HEADS | objective], "max_length": 64, "args": ARGS}
    asked = {"draft": {"kind": "medusa"}, "texts": None, "train": train, "train_anyway": True}
    return stored(folder, STORES["hidden"], speculate=asked)


def test_heads_learn_from_stored_states_what_they_learn_from_live_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(heads(tmp_path), tmp_path / "live", "generate", "capture", "speculate")

    def measured(model: Any, *given: Any) -> Any:
        assert not model.training, "the target runs"
        return live_signals(model, *given)

    monkeypatch.setattr("potstill.train.module.live_signals", measured)
    run(heads(tmp_path, states="stored"), tmp_path / "stored", "generate", "capture", "speculate")
    live, found = (
        load_file(tmp_path / name / "speculate.train" / "projectors.safetensors") for name in ("live", "stored")
    )
    assert live.keys() == found.keys()
    for name, weight in live.items():
        np.testing.assert_allclose(found[name], weight, atol=2e-5, err_msg=name)
    assert max(float(weight.abs().max()) for name, weight in live.items() if "blocks" in name) > 0.01, "they learned"
    assert load_speculation(tmp_path / "stored" / "speculate").exported is None


def test_stored_states_without_a_store_of_states_are_refused(tmp_path: Path) -> None:
    train = {"objectives": [HEADS | {"states": "stored"}]}
    asked = {"draft": {"kind": "medusa"}, "train": train}
    with pytest.raises(PotstillError, match=r"add a section capture, \{kind: hidden\}"):
        recipe(tmp_path, asked)
    with pytest.raises(PotstillError, match="medusa needs more of its teacher than a store of kind 'topk'"):
        recipe(tmp_path, asked, capture=STORES["topk"])
    both = {"objectives": [{"kind": "forward_kl"}, HEADS | {"states": "stored"}]}
    with pytest.raises(PotstillError, match="a target that stays as it is"):
        recipe(tmp_path, {"draft": {"kind": "medusa"}, "train": both}, capture=STORES["hidden"])
