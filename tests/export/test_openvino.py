"""A graph in OpenVINO is the student: with a cache and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import MissingExtra, ModelError
from potstill.export import base, onnx_file
from potstill.export.base import Student
from potstill.export.openvino import OpenVino
from potstill.models.plain import build_module, save_module
from potstill.recipe import OpenVinoExport
from potstill.tasks import Task
from tiny_models import make_tiny_causal_lm, make_tiny_wordpiece, tiny_encoder

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
    OpenVino(OpenVinoExport(**settings)).export(Student(model, None, [], False, task), work, Console("quiet"))
    return out, work.facts["check"]


@pytest.mark.slow
@pytest.mark.needs("openvino")
def test_a_causal_graph_grows_an_empty_cache_and_writes_the_students_text(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model", layers=2, seed=3)
    out, found = exported(model, tmp_path / "out", types=("float16", "float32"))
    half, whole = found["openvino_model.xml"], found["openvino_model_float32.xml"]
    assert whole["kl"] < 1e-6 and whole["same_texts"] == 3
    assert whole["kl"] < half["kl"] < 1e-3
    assert {file.name for file in out.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "openvino_model.bin",
        "openvino_model.xml", "openvino_model_float32.bin", "openvino_model_float32.xml", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.needs("openvino")
@pytest.mark.parametrize("task", ["sequence_classification", "sentence_embedding"])
def test_an_encoder_gives_the_same_in_openvino(task: Task, tmp_path: Path) -> None:
    tiny_encoder("bert", task, layers=2).save_pretrained(tmp_path / "model")
    make_tiny_wordpiece().save_pretrained(tmp_path / "model")
    _, found = exported(tmp_path / "model", tmp_path / "out", task, types=("float32",))
    assert found["openvino_model.xml"]["kl"] < 1e-6 and found["openvino_model.xml"]["same_best"] == 1.0


@pytest.fixture
def module_folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    save_module(build_module("net.py:net", {"width": 8}, tmp_path), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.needs("openvino")
def test_a_module_of_ones_own_gives_the_same_in_openvino(module_folder: Path, tmp_path: Path) -> None:
    _, found = exported(module_folder, tmp_path / "out", "image_classification", image_shape=(1, 8, 8))
    assert found["openvino_model.xml"]["kl"] < 1e-6


@pytest.mark.needs("openvino")
def test_a_graph_that_computes_something_else_is_refused(
    module_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx_file.write_onnx

    def damaged(opened: Any, *rest: Any) -> None:
        opened[3].weight.data.mul_(-1)
        write(opened, *rest)

    monkeypatch.setattr(onnx_file, "write_onnx", damaged)
    with pytest.raises(ModelError, match="away from the student"):
        exported(module_folder, tmp_path / "out", "image_classification", image_shape=(1, 8, 8))


def test_without_it_the_error_has_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"potstill\[openvino\]"):
        exported(make_tiny_causal_lm(tmp_path / "model"), tmp_path / "out")


SIGNALLED = """
import faulthandler, os, signal, sys, threading
from pathlib import Path
import numpy as np
import openvino
import openvino.opset13 as operations
from potstill.export.openvino import opened

faulthandler.enable()  # as under pytest: its stack for signal handlers is the one that OpenVINO replaces
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(True))
given = operations.parameter([1, 4], np.float32)
openvino.save_model(openvino.Model([operations.relu(given)], [given], "tiny"), sys.argv[1])
with opened(Path(sys.argv[1])) as graph:
    kept = [graph]
del graph
ending = threading.Thread(target=kept.clear)
ending.start()
ending.join()
os.kill(os.getpid(), signal.SIGUSR1)
print("heard" if heard else "not heard")
"""


@pytest.mark.needs("openvino")
def test_signals_are_still_handled_when_a_graph_ended_in_another_thread(tmp_path: Path) -> None:
    """A data loader handles the end of its processes; a garbage collector may run in any thread."""
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "tiny.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
