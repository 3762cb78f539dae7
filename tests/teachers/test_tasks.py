"""Local teachers beyond causal language models, ensembles of them, and the cache of what they gave."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.errors import CapabilityError, ModelError, TokenizerMismatch
from potstill.models.plain import build_module, save_module
from potstill.recipe.teachers import EnsembleTeacher, LocalTeacher
from potstill.registry import build
from potstill.signals import Ask, Batch, Dense, ImageView, View
from potstill.teachers import Ensemble, LocalModel
from potstill.teachers import local as local_module
from potstill.teachers.ensemble import average
from potstill.types import Request, Sampling
from tiny_models import (
    ENCODER_VOCAB,
    make_tiny_causal_lm,
    make_tiny_classifier,
    make_tiny_convnet,
    make_tiny_encoder,
    make_tiny_masked_lm,
    tiny_encoder,
)

RESPONSE = Ask(response=True)
STATES = frozenset({"hidden.2", "queries.1"})


def settings_of(folder: Path, **more: Any) -> LocalTeacher:
    return LocalTeacher(model=str(folder), **{"dtype": "float32", "device": "cpu"} | more)


def open_teacher(folder: Path, **more: Any) -> LocalModel:
    made: LocalModel = build(settings_of(folder, **more))
    return made


def texts(*lengths: int, width: int = 9, seed: int = 0, targets: list[int] | None = None) -> Batch:
    """A batch of random texts; targets are all examples unless said otherwise. Equal arguments, equal texts: a row
    depends on its place and the seed alone, not on the width."""
    rows = [
        torch.randint(5, ENCODER_VOCAB, (64,), generator=torch.Generator().manual_seed(seed + n))
        for n in range(len(lengths))
    ]
    segments = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    view = View(torch.stack(rows)[:, :width] * segments, torch.arange(width).expand(len(lengths), -1), segments)
    at = torch.tensor(list(range(len(lengths))) if targets is None else targets)
    return Batch(view, view, torch.zeros_like(at), {"student": at, "teacher": at}, "examples")


def images(count: int, seed: int = 0) -> Batch:
    view = ImageView(torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    at = torch.arange(count)
    return Batch(view, view, torch.zeros_like(at), {"student": at, "teacher": at}, "examples")


# ---- one model ---------------------------------------------------------------------------------------------------


def test_a_classifier_of_texts_is_a_teacher(tmp_path: Path) -> None:
    teacher, batch = open_teacher(make_tiny_classifier(tmp_path / "m")), texts(9, 5)
    signals = teacher.signals(batch, Ask(True, STATES))
    view = batch.text("teacher")
    own = tiny_encoder("bert", "sequence_classification")(input_ids=view.input_ids, attention_mask=view.attention_mask)
    assert signals.dense is not None and torch.equal(signals.dense.logits, own.logits)
    assert not any(t.requires_grad for t in (signals.dense.logits, *signals.taps.values()))
    assert teacher.labels == ("ale", "malt", "rye") and teacher.dims.vocab == 3 and teacher.tokenizer is not None


def test_an_encoder_and_a_masked_language_model_are_teachers(tmp_path: Path) -> None:
    encoder, masked = open_teacher(make_tiny_encoder(tmp_path / "e")), open_teacher(make_tiny_masked_lm(tmp_path / "m"))
    assert set(encoder.signals(texts(9, 5), Ask(taps=STATES)).taps) == STATES
    head = masked.signals(texts(9, 5, targets=[1, 3]), RESPONSE).head
    assert head is not None and head.logits().shape == (2, ENCODER_VOCAB)
    assert encoder.labels is None and masked.labels is None


@pytest.mark.parametrize("kind", ["convnet", "module"])
def test_a_classifier_of_images_is_a_teacher_that_reads_no_text(kind: str, tmp_path: Path) -> None:
    if kind == "convnet":
        folder = make_tiny_convnet(tmp_path / "m")
    else:
        code = (
            "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 3))\n"
        )
        (tmp_path / "net.py").write_text(code)
        folder = tmp_path / "m"
        save_module(build_module(f"{tmp_path}/net.py:net", {}), folder)
    teacher = open_teacher(folder)
    teacher.model.train()
    signals = teacher.signals(images(4), RESPONSE)
    assert signals.dense is not None and signals.dense.logits.shape == (4, 3)
    assert not any(module.training for module in teacher.model.modules())
    assert teacher.tokenizer is None and teacher.task == "image_classification" and teacher.identity["digest"]


def test_only_a_causal_language_model_writes(tmp_path: Path) -> None:
    teacher = open_teacher(make_tiny_encoder(tmp_path / "m"))
    with pytest.raises(CapabilityError, match="m writes no text: it is a model for sentence_embedding"):
        teacher.generate([Request(Sampling(max_new_tokens=1), prompt="x")], seed=0)


def test_who_it_is_does_not_hang_on_a_template_and_loads_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_module, "load_model", lambda *a, **k: pytest.fail("weights were loaded"))
    one, other = (open_teacher(make_tiny_classifier(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert one.identity["digest"] != other.identity["digest"]
    assert one.identity != open_teacher(tmp_path / "0", dtype="bfloat16").identity
    assert one.labels == ("ale", "malt", "rye")


# ---- ensembles ---------------------------------------------------------------------------------------------------


def ensemble(*folders: Path, **more: Any) -> Ensemble:
    made: Ensemble = build(EnsembleTeacher(members=tuple(settings_of(folder) for folder in folders), **more))
    return made


def test_averages_are_those_worked_by_hand() -> None:
    one, other = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(9), 0.0]])  # (1/4, 3/4), (9/10, 1/10)
    arithmetic = average([one, other], "probabilities").exp()
    torch.testing.assert_close(arithmetic, torch.tensor([[0.575, 0.425]]))
    geometric = average([one, other], "logits").softmax(-1)
    # √(1/4·9/10) : √(3/4·1/10) = √3 : 1
    torch.testing.assert_close(geometric, torch.tensor([[math.sqrt(3), 1.0]]) / (1 + math.sqrt(3)))


@pytest.mark.parametrize("how", ["logits", "probabilities"])
def test_an_ensemble_gives_the_average_of_its_members(how: Any, tmp_path: Path) -> None:
    folders = [make_tiny_classifier(tmp_path / str(seed), seed=seed) for seed in range(3)]
    made, batch = ensemble(*folders, average=how), texts(9, 5, 7, targets=[2, 0])
    alone: list[Tensor] = []
    for folder in folders:
        dense = open_teacher(folder).signals(batch, RESPONSE).dense
        assert dense is not None
        alone.append(dense.logits)
    dense = made.signals(batch, RESPONSE).dense
    assert dense is not None
    if how == "logits":
        torch.testing.assert_close(dense.logits, sum(alone) / 3)
    else:
        torch.testing.assert_close(dense.logits.exp(), sum(z.softmax(-1) for z in alone) / 3)  # type: ignore[arg-type]
    assert made.dims.vocab == 3 and made.labels == ("ale", "malt", "rye") and made.tokenizer is not None


def test_an_ensemble_of_language_models_makes_whole_logits(tmp_path: Path) -> None:
    folders = [make_tiny_masked_lm(tmp_path / str(seed), seed=seed) for seed in range(2)]
    batch = texts(9, 5, targets=[1, 3])
    dense = ensemble(*folders).signals(batch, RESPONSE).dense
    assert dense is not None and dense.logits.shape == (2, ENCODER_VOCAB)


def test_an_ensemble_has_no_inside_and_writes_nothing(tmp_path: Path) -> None:
    made = ensemble(*(make_tiny_classifier(tmp_path / str(seed), seed=seed) for seed in range(2)))
    with pytest.raises(CapabilityError, match=r"an ensemble has no hidden\.2"):
        made.signals(texts(9), Ask(taps=frozenset({"hidden.2"})))
    with pytest.raises(CapabilityError, match="writes no text"):
        made.generate([], seed=0)
    assert made.capabilities == {"dense"}


def test_members_of_other_classes_or_tokens_are_refused(tmp_path: Path) -> None:
    first = make_tiny_classifier(tmp_path / "first")
    renamed = make_tiny_classifier(tmp_path / "renamed", labels=("ale", "oats", "rye"))
    with pytest.raises(ModelError, match=r"class 1 of member 1 is 'oats', and of the first 'malt'"):
        ensemble(first, renamed).signals(texts(9), RESPONSE)
    fewer = make_tiny_classifier(tmp_path / "fewer", labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(ModelError, match="member 1 of the ensemble gives 2 logits, and the first 3"):
        ensemble(first, fewer).signals(texts(9), RESPONSE)
    with pytest.raises(TokenizerMismatch):
        _ = ensemble(first, make_tiny_causal_lm(tmp_path / "causal")).tokenizer


def test_an_ensemble_is_another_teacher_when_anything_in_it_is(tmp_path: Path) -> None:
    a, b, c = (make_tiny_classifier(tmp_path / str(seed), seed=seed) for seed in range(3))
    who = [ensemble(a, b), ensemble(b, a), ensemble(a, c), ensemble(a, b, average="probabilities")]
    assert len({str(made.identity) for made in who}) == 4


def test_the_dense_logits_of_an_ensemble_are_in_fp32() -> None:
    assert average([torch.zeros(1, 2, dtype=torch.bfloat16)] * 2, "logits").dtype == torch.float32
    assert Dense(average([torch.zeros(1, 2)] * 2, "probabilities")).logits.logsumexp(-1).item() == pytest.approx(0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_tiny_causal_lm, {"generate", "head", "dense", "taps"}),
        (make_tiny_masked_lm, {"head", "dense", "taps"}),
        (make_tiny_classifier, {"dense", "taps"}),
        (make_tiny_encoder, {"taps"}),
    ],
)
def test_a_teacher_gives_what_its_model_is_made_for(make: Any, expected: set[str], tmp_path: Path) -> None:
    teacher = build(LocalTeacher(model=str(make(tmp_path / "model")), device="cpu"))
    assert teacher.capabilities == expected


def test_an_ensemble_of_encoders_without_a_head_gives_no_logits(tmp_path: Path) -> None:
    made = ensemble(*(make_tiny_encoder(tmp_path / str(seed), seed=seed) for seed in range(2)))
    assert made.capabilities == frozenset()
