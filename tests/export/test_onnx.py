"""An ONNX graph is the student: with a cache and without, of texts, classes, embeddings and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import MissingExtra, ModelError
from potstill.export import base, onnx_file
from potstill.export.base import Student
from potstill.export.onnx import Onnx
from potstill.models.plain import build_module, save_module
from potstill.recipe import OnnxExport
from potstill.tasks import Task
from tiny_models import make_tiny_causal_lm, make_tiny_wordpiece, tiny_convnet, tiny_encoder

NET = """
from torch import nn


def net(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))
"""


def exported(model: Path, out: Path, task: Task = "causal_lm", **settings: Any) -> tuple[Path, dict[str, Any]]:
    """The folder that the exporter writes, and the facts of its comparison."""
    out.mkdir()
    work = Work(out, resumed=False)
    settings = {"check_prompts": 3, "check_tokens": 8} | settings
    student = Student(model, None, [], False, task)
    Onnx(OnnxExport(**settings)).export(student, work, Console("quiet"))
    return out, work.facts.get("check", {})


@pytest.mark.slow
def test_a_causal_graph_grows_an_empty_cache_and_writes_the_students_text(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model", layers=2, seed=3)
    out, found = exported(model, tmp_path / "out", types=("float32", "int8"))
    one, rounded = found["model.onnx"], found["model_int8.onnx"]
    assert one["kl"] < 1e-6 and one["same_texts"] == 3
    assert one["kl"] < rounded["kl"] < 1.0
    session = onnxruntime.InferenceSession(out / "model.onnx")
    names = {value.name for value in session.get_inputs()} | {value.name for value in session.get_outputs()}
    assert {"input_ids", "attention_mask", "position_ids", "past_key_values.1.value", "present.0.key"} < names
    files = {file.name for file in out.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", "model.onnx_data", "README.md"} < files


@pytest.mark.slow
@pytest.mark.parametrize("task", ["masked_lm", "sequence_classification", "sentence_embedding"])
def test_an_encoder_gives_the_same_in_onnx_runtime(task: Task, tmp_path: Path) -> None:
    model = tiny_encoder("bert", task, layers=2)
    model.save_pretrained(tmp_path / "model")
    make_tiny_wordpiece().save_pretrained(tmp_path / "model")
    out, found = exported(tmp_path / "model", tmp_path / "out", task)
    assert found["model.onnx"]["kl"] < 1e-6 and found["model.onnx"]["same_best"] == 1.0
    assert (out / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_classifier_of_images_gives_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    tiny_convnet().save_pretrained(tmp_path / "model")
    _, found = exported(tmp_path / "model", tmp_path / "out", "image_classification")
    assert found["model.onnx"]["kl"] < 1e-6


def module_folder(folder: Path) -> Path:
    (folder / "net.py").write_text(NET)
    save_module(build_module("net.py:net", {"width": 8}, folder), folder / "model")
    return folder / "model"


def test_a_module_of_ones_own_gives_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    model = module_folder(tmp_path)
    _, found = exported(model, tmp_path / "out", "image_classification", image_shape=(1, 8, 8))
    assert found["model.onnx"]["kl"] < 1e-6 and found["model.onnx"]["prompts"] == 3


def test_a_module_must_say_what_images_it_reads(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not say what images it reads"):
        exported(module_folder(tmp_path), tmp_path / "out", "image_classification")


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module_folder(tmp_path)
    write = onnx_file.write_onnx

    def damaged(opened: Any, *rest: Any) -> None:
        opened[3].weight.data.mul_(-1)
        write(opened, *rest)

    monkeypatch.setattr(onnx_file, "write_onnx", damaged)
    with pytest.raises(ModelError, match="away from the student"):
        exported(model, tmp_path / "out", "image_classification", image_shape=(1, 8, 8))


def test_without_onnx_the_error_has_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"potstill\[onnx\]"):
        exported(make_tiny_causal_lm(tmp_path / "model"), tmp_path / "out")
