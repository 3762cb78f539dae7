"""One trainer for encoders, classifiers and any module, which does not know which is which."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from train.small import Gradients, arguments, largest_difference, weights_of

from potstill.errors import ModelError, UserError
from potstill.train import DistillTrainer
from potstill.train.rows import rows_of
from tiny_models import make_tiny_wordpiece, tiny_convnet, tiny_encoder

NAMES = ("ale", "malt", "rye")
KL = {"kind": "forward_kl", "temperature": 2.0}
CE = {"kind": "hard_ce"}


def texts(n: int) -> list[dict[str, Any]]:
    """Short texts of unequal lengths, whose class is in them."""
    return [{"text": f"{NAMES[i % 3]} {'still ' * (i % 4)}runs {i}", "label": NAMES[i % 3]} for i in range(n)]


def images(n: int) -> list[dict[str, Any]]:
    """Noise whose mean is its class."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": (torch.randn(1, 8, 8, generator=generator) + i % 3).numpy(), "label": i % 3} for i in range(n)
    ]


class Net(nn.Sequential):
    """A plain convolutional net."""

    def __init__(self, channels: int, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(4 * channels, 3),
        )  # fmt: skip


def made(
    folder: Path, student: nn.Module, teacher: Any, objectives: Sequence[dict[str, Any]], rows: Any, **changes: Any
) -> DistillTrainer:
    settings = changes.pop("trainer_settings", {})
    return DistillTrainer(
        model=student,
        teacher=teacher,
        args=arguments(folder, **changes),
        objectives=objectives,
        train_dataset=rows,
        eval_dataset=rows[:6],
        processing_class=None if "pixel_values" in rows[0] else make_tiny_wordpiece(),
        **settings,
    )


def classifier(layers: int, seed: int, **shape: Any) -> nn.Module:
    return tiny_encoder(task="sequence_classification", layers=layers, seed=seed, **shape)


def encoder(layers: int, seed: int, **shape: Any) -> nn.Module:
    return tiny_encoder(task="sentence_embedding", layers=layers, seed=seed, **shape)


def masked(layers: int, seed: int) -> nn.Module:
    return tiny_encoder(task="masked_lm", layers=layers, seed=seed)


TRIPLE = (KL, CE, {"kind": "hidden_cosine", "over": "tokens"})
LAYERS = ({"kind": "hidden_mse", "layers": "uniform", "over": "tokens"}, {"kind": "attention_scores"})
HINT = {"kind": "hint", "modules": {"student": "0", "teacher": "0"}}
TRANSFER = {"kind": "attention_transfer", "modules": ({"student": "0", "teacher": "0"},)}
RKD = ({"kind": "rkd_distance", "weight": 1.0}, {"kind": "rkd_angle", "weight": 2.0})
WORLDS: dict[str, tuple[Any, Any, Sequence[dict[str, Any]], Any]] = {
    "classifier": (lambda: classifier(2, 1), lambda: classifier(4, 2), TRIPLE, texts),
    "classifier, layers": (lambda: classifier(2, 1), lambda: classifier(4, 2), LAYERS, texts),
    "narrower classifier": (lambda: classifier(2, 1, hidden=16), lambda: classifier(4, 2), TRIPLE, texts),
    "masked model": (lambda: masked(2, 1), lambda: masked(4, 2), TRIPLE, texts),
    "embedding": (lambda: encoder(2, 1), lambda: encoder(4, 2), RKD, texts),
    "embedding, relation heads": (
        lambda: encoder(2, 1),
        lambda: encoder(4, 2),
        ({"kind": "minilm_v2", "relation_heads": 8, "teacher_layer": -2},),
        texts,
    ),
    "plain module": (lambda: Net(4, 1), lambda: Net(9, 2), (KL, CE, HINT, TRANSFER), images),
    "convnet of transformers": (lambda: tiny_convnet(seed=1), lambda: tiny_convnet(seed=2), (KL, CE), images),
}


@pytest.mark.parametrize("world", WORLDS)
def test_every_task_trains_and_moves_towards_its_objectives(world: str, tmp_path: Path) -> None:
    student, teacher, objectives, rows = WORLDS[world]
    trainer = made(
        tmp_path,
        student(),
        teacher(),
        objectives,
        rows(24),
        num_train_epochs=8,
        learning_rate=3e-3,
        optim="adamw_torch",
    )

    trainer.train()

    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    epoch = len(losses) // 8
    assert sum(losses[-epoch:]) < 0.9 * sum(losses[:epoch])
    assert trainer.evaluate()["eval_loss"] >= 0
    assert all(torch.isfinite(p).all() for p in trainer.module.parameters())


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "embedding"])
def test_splitting_a_step_changes_no_gradient(world: str, tmp_path: Path) -> None:
    student, teacher, objectives, rows = WORLDS[world]

    def gradient(batch: int, parts: int) -> dict[str, Any]:
        kept = Gradients()
        shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        trainer = made(tmp_path, student(), teacher(), objectives, rows(12), **shape)
        trainer.add_callback(kept)
        trainer.train()
        # A shift of all keys changes no attention: the gradient of their bias is rounding alone.
        return {name: g for name, g in kept.steps[0].items() if "key.bias" not in name}

    assert largest_difference(gradient(12, 1), gradient(3, 4)) < 1e-6


def test_a_classifier_is_measured_by_its_accuracy_too(tmp_path: Path) -> None:
    trainer = made(tmp_path, classifier(2, 1), classifier(2, 2), (KL,), texts(12))
    found = trainer.evaluate(texts(12))

    reading = rows_of(texts(12), trainer.reader)
    with torch.no_grad():
        inputs = trainer.collate(reading)
        mask = (inputs["segment_ids"] > 0).long()
        logits = trainer.student.eval()(input_ids=inputs["input_ids"], attention_mask=mask).logits
    right = (logits.argmax(-1) == inputs["classes"]).double().mean()
    assert found["eval_accuracy"] == pytest.approx(float(right))
    assert {"eval_kl", "eval_nll", "eval_top1_agreement"} <= found.keys()


def test_a_classifier_without_a_teacher_is_fine_tuned(tmp_path: Path) -> None:
    trainer = made(tmp_path, classifier(2, 1), None, (CE,), texts(24), num_train_epochs=20, learning_rate=3e-3,
                   optim="adamw_torch")  # fmt: skip

    trainer.train()

    found = trainer.evaluate(texts(24))
    assert found["eval_accuracy"] == 1.0 and "eval_kl" not in found


def test_an_embedding_is_measured_by_its_objectives(tmp_path: Path) -> None:
    found = made(tmp_path, encoder(2, 1), encoder(4, 2), RKD, texts(12)).evaluate()

    assert found["eval_loss"] == found["eval_objectives"] > 0
    assert "eval_nll" not in found


def test_a_text_is_masked_anew_in_every_epoch_and_alike_in_every_run(tmp_path: Path) -> None:
    def seen(folder: str) -> list[Any]:
        trainer = made(tmp_path / folder, masked(2, 1), masked(2, 2), (CE,), texts(8))
        batches = []
        loader = trainer.get_train_dataloader()
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            rows = {}
            for batch in loader:
                for ids, labels in zip(batch["input_ids"], batch["masked_labels"], strict=True):
                    whole = torch.where(labels >= 0, labels, ids)
                    rows[tuple(whole[whole > 0].tolist())] = labels[whole > 0].tolist()
            batches.append(rows)
        return batches

    first, second = seen("a")
    assert first.keys() == second.keys() and first != second
    assert [first, second] == seen("b")


@pytest.mark.parametrize(("norm", "accumulation", "said"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_it_is_said_where_splitting_a_step_changes_what_is_learned(
    norm: bool, accumulation: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net(4, 1)
    if norm:
        net.insert(1, nn.BatchNorm2d(4))
    trainer = made(tmp_path, net, Net(9, 2), (KL,), images(8), gradient_accumulation_steps=accumulation)
    with caplog.at_level(logging.WARNING, logger="potstill"):
        trainer.train()
    assert ("batch normalisation" in caplog.text) == said


def test_a_plain_module_resumes_from_its_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 5}
    whole = made(tmp_path / "whole", Net(4, 1), Net(9, 2), (KL, HINT), images(16), **changes)
    whole.train()

    resumed = made(tmp_path / "whole", Net(4, 5), Net(9, 2), (KL, HINT), images(16), **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))

    assert largest_difference(weights_of(whole.module), weights_of(resumed.module)) == 0


def test_a_plain_module_is_saved_without_pickles_and_without_projectors(tmp_path: Path) -> None:
    trainer = made(tmp_path, Net(4, 1), Net(9, 2), (KL, HINT), images(8))
    trainer.train()

    trainer.save_model(str(tmp_path / "student"))

    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert saved.keys() == trainer.student.state_dict().keys()
    assert not list((tmp_path / "student").glob("*.bin")) and not list((tmp_path / "student").glob("*.pt"))


def test_an_objective_that_a_student_cannot_have_is_refused_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set over: tokens"):
        made(tmp_path, classifier(2, 1), classifier(4, 2), ({"kind": "hidden_cosine"},), texts(6))
    with pytest.raises(UserError, match="use rkd_distance"):
        made(tmp_path, encoder(2, 1), encoder(4, 2), (KL,), texts(6))


def test_a_teacher_whose_classes_stand_in_another_order_is_refused(tmp_path: Path) -> None:
    other = tiny_encoder(task="sequence_classification", layers=4, labels=("malt", "ale", "rye"))

    with pytest.raises(ModelError, match="class 0 of the teacher is 'malt', and of the student 'ale'"):
        made(tmp_path, classifier(2, 1), other, (KL,), texts(6))
