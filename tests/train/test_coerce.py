"""Training that would go wrong without a word is refused, or does not go wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.small import arguments, conversations, trainer, weights_of
from train.test_tasks import Net, classifier, images, made, texts
from transformers import AutoModelForCausalLM

from potstill.errors import ModelError, TokenizerMismatch, UserError
from potstill.models.live import live_signals
from potstill.objectives import total_loss
from potstill.recipe import HiddenMSE
from potstill.registry import build
from potstill.signals import Batch
from potstill.train import DistillTrainer
from tiny_models import make_tiny_tokenizer, tiny_model

KL = {"kind": "forward_kl"}


# ---- a teacher that learns along ---------------------------------------------------------------------------------


def same_parameter(student: Any, teacher: Any) -> None:
    teacher.model.embed_tokens.weight = student.model.embed_tokens.weight


def same_memory(student: Any, teacher: Any) -> None:
    teacher.model.layers[0].mlp.up_proj.weight = nn.Parameter(student.model.layers[0].mlp.up_proj.weight.detach())


def a_view(student: Any, teacher: Any) -> None:
    weight = student.model.layers[1].mlp.down_proj.weight
    teacher.model.layers[0].mlp.down_proj.weight = nn.Parameter(weight.detach().view(-1).view_as(weight))


@pytest.mark.parametrize("share", [same_parameter, same_memory, a_view])
def test_a_teacher_that_shares_weights_which_the_student_trains_is_refused(
    share: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    student, teacher = tiny_model(layers=2, seed=1), tiny_model(layers=2, seed=2)
    share(student, teacher)
    with pytest.raises(UserError, match=r"shares .* with the student .*: it would learn along") as error:
        trainer(tmp_path, student=student, teacher=teacher)
    assert error.value.fix is not None and "deepcopy" in error.value.fix


def test_a_frozen_weight_may_be_shared(tmp_path: Path) -> None:
    student, teacher = tiny_model(layers=2, seed=1), tiny_model(layers=2, seed=2)
    same_parameter(student, teacher)
    student.get_input_embeddings().requires_grad_(False)
    before = weights_of(teacher)
    trainer(tmp_path, student=student, teacher=teacher, max_steps=2).train()
    assert all(torch.equal(before[name], now) for name, now in weights_of(teacher).items())


# ---- what a look at the gradients changes ------------------------------------------------------------------------


class Normalised(Net):
    """A small network of images with batch normalisation."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__(channels, seed)
        self.insert(1, nn.BatchNorm2d(channels))


def test_logging_gradient_norms_leaves_running_statistics_alone(tmp_path: Path) -> None:
    def statistics(log: bool) -> dict[str, Tensor]:
        student = Normalised(4, 1)
        two, settings = (KL, {"kind": "hard_ce"}), {"log_gradient_norms": log}
        made(tmp_path, student, Normalised(4, 2), two, images(12), trainer_settings=settings).train()
        return {name: buffer.clone() for name, buffer in student.named_buffers()}

    plain, logged = statistics(False), statistics(True)
    assert plain["1.num_batches_tracked"] > 0
    for name, buffer in plain.items():
        assert torch.equal(buffer, logged[name]), name


# ---- packed rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rkd_distance", "rkd_angle", "similarity_preserving"])
def test_relations_among_the_records_of_packed_rows_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"happen to fit: set train\.packing: false"):
        trainer(tmp_path, objectives=[KL, {"kind": kind}], trainer_settings={"packing": True})
    trainer(tmp_path, objectives=[KL, {"kind": kind}], trainer_settings={"packing": False})


# ---- projectors that never train ---------------------------------------------------------------------------------


def test_an_optimizer_without_the_projectors_is_refused(tmp_path: Path) -> None:
    student = tiny_model(layers=2, seed=1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    given = trainer(tmp_path, student=student, trainer_settings={"optimizers": (optimizer, None)})
    with pytest.raises(UserError, match="trains no projector") as error:
        given.train()
    assert error.value.where == "optimizers"


def test_an_optimizer_of_the_users_may_train_everything_or_be_told_what_it_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = tiny_model(layers=2, seed=1)
    optimizer = torch.optim.SGD(student.model.layers.parameters(), lr=0.1)
    given = trainer(
        tmp_path, student=student, objectives=[KL], trainer_settings={"optimizers": (optimizer, None)}, max_steps=1
    )
    with caplog.at_level(logging.WARNING):
        given.train()
    assert "leaves" in caplog.text and "embed_tokens" in caplog.text


# ---- plug-ins by file --------------------------------------------------------------------------------------------


def test_a_plugin_by_file_with_a_projector_trains_and_is_logged_by_its_short_name(tmp_path: Path) -> None:
    plugin = tmp_path / "mapped.py"
    plugin.write_text(PLUGIN)
    given = trainer(tmp_path / "out", objectives=[KL, {"kind": f"{plugin}:Mapped"}], max_steps=1)
    given.train()
    logged = given.state.log_history[0]
    assert {"mapped/value", "mapped/count", "mapped/weight"} <= logged.keys()
    assert not [key for key in logged if str(tmp_path) in key]
    assert [name for name, _ in given.module.projectors.named_parameters()] == ["mapped.weight"]


PLUGIN = """
from typing import Literal

from torch import nn

from potstill.objectives import TappedObjective, hidden_mse
from potstill.objectives.base import tap
from potstill.recipe import Needs, ObjectiveSettings
from potstill.registry import implements


class Mapped(ObjectiveSettings):
    kind: Literal["mapped"] = "mapped"

    def needs(self):
        return Needs(teacher=(frozenset({"taps"}),), student=frozenset({"states"}))


@implements(Mapped)
class MappedLoss(TappedObjective[Mapped]):
    def names(self, dims):
        return ("hidden.1",), ("hidden.1",)

    def build(self, dims):
        return nn.Linear(dims.student.hidden, dims.teacher.hidden, bias=False)

    def values(self, student, teacher, batch, module):
        at = batch.positions("targets", "student")
        ours, theirs = (
            tap(signals, "hidden.1", side).flatten(0, 1)[at]
            for signals, side in ((student, "student"), (teacher, "teacher"))
        )
        return hidden_mse(module(ours), theirs)
"""


# ---- precision ---------------------------------------------------------------------------------------------------


def test_learned_projections_are_in_fp32_under_autocast(tmp_path: Path) -> None:
    given = trainer(tmp_path, objectives=[{"kind": "hidden_mse"}], rows=conversations(6))
    inputs = given._inputs_of(given.train_rows[:4])
    batch = Batch.from_inputs(inputs)
    student = given.module.student
    objective = build(HiddenMSE())
    projector = given.module.projectors["hidden_mse"]
    with torch.no_grad():
        signals = live_signals(student, batch, "student", given.module.asks["student"])
        taught = given.module.teacher.signals(batch, given.module.asks["teacher"])
        plain = total_loss([objective], signals, taught, batch, objective.count(batch)[None], [projector])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = total_loss([objective], signals, taught, batch, objective.count(batch)[None], [projector])
    assert torch.equal(plain.total, under.total)


# ---- outputs that stand for other things --------------------------------------------------------------------


def test_rows_that_are_token_ids_are_no_excuse_for_another_tokenizer(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]} for _ in range(6)]
    folders = []
    for name, words in (("student", None), ("teacher", "permuted")):
        folder = tmp_path / name
        tiny_model(layers=2, seed=1).save_pretrained(folder)
        tokenizer = make_tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        if words is not None:
            permute(folder / "tokenizer.json")
        folders.append(folder)
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    with pytest.raises(TokenizerMismatch):
        DistillTrainer(
            model=student, teacher=teacher, args=arguments(tmp_path / "out"), objectives=[KL], train_dataset=rows
        )


def permute(file: Path) -> None:
    """Exchange the ids of two ordinary tokens of the same vocabulary."""
    read = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = read["model"]["vocab"]
    special = {token["content"] for token in read["added_tokens"]}
    one, other = [token for token in vocabulary if token not in special][-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(read), encoding="utf-8")


def test_tokenizers_that_nobody_knows_are_said_not_to_have_been_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]} for _ in range(6)]
    student, teacher = tiny_model(layers=2, seed=1), tiny_model(layers=3, seed=2)
    with caplog.at_level(logging.WARNING, logger="potstill"):
        DistillTrainer(model=student, teacher=teacher, args=arguments(tmp_path), objectives=[KL], train_dataset=rows)
    assert "the two models' tokenizers were not compared" in caplog.text


def test_classes_without_names_are_said_not_to_have_been_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = classifier(4, 2)
    teacher.config.id2label = {number: f"LABEL_{number}" for number in range(teacher.config.num_labels)}
    with caplog.at_level(logging.WARNING, logger="potstill"):
        made(tmp_path, classifier(2, 1), teacher, (KL,), texts(6))
    assert "the classes of the teacher have no names" in caplog.text


def test_another_number_of_unnamed_classes_is_refused(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    teacher(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match="gives 5 classes and the student 3"):
        made(tmp_path, Net(4, 1), teacher, (KL,), images(6))
