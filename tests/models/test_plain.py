"""Modules of the user's own: built from a file, saved with it, and of no use without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models.folder import ModelSource
from potstill.models.labels import labels_of, name_classes
from potstill.models.load import load_model
from potstill.models.plain import build_module, load_module, load_weights, origin_of_module, save_module
from potstill.models.resolve import locate, resolve
from potstill.models.saving import save_model
from tiny_models import make_tiny_encoder, tiny_encoder

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.out = nn.Linear(width * 36, classes)

    def forward(self, pixels):
        return self.out(self.body(pixels).flatten(1))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

def seven():
    return 7
"""
PIXELS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


def source_of(folder: Path) -> ModelSource:
    return ModelSource(folder, folder.name, "", "", "")


def test_a_saved_module_stands_on_its_own(file: Path, tmp_path: Path) -> None:
    module = build_module(f"{file}:Net", {"width": 5})
    module(PIXELS)  # its running statistics are saved too
    name_classes(module, ["ale", "malt", "rye"])
    save_module(module.eval(), tmp_path / "saved")
    expected = module(PIXELS)
    file.unlink()
    again = load_module(tmp_path / "saved")
    assert torch.equal(again(PIXELS), expected) and not again.training
    assert labels_of(again) == ("ale", "malt", "rye")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["model.safetensors", "module.json", "nets.py"]
    # And in another process, and from where it was loaded from.
    save_module(again, tmp_path / "copied")
    code = (
        "import sys; from pathlib import Path; from potstill.models.plain import load_module\n"
        "print(load_module(Path(sys.argv[1])).out.weight.sum().item())"
    )
    said = subprocess.run([sys.executable, "-c", code, tmp_path / "copied"], capture_output=True, text=True, check=True)
    assert float(said.stdout) == pytest.approx(module.out.weight.sum().item())  # type: ignore[union-attr]


def test_it_can_be_saved_into_its_own_folder_again(file: Path, tmp_path: Path) -> None:
    save_module(build_module(f"{file}:Net", {}), tmp_path / "saved")
    module = load_module(tmp_path / "saved")
    with torch.no_grad():
        module.out.bias.fill_(3.0)  # type: ignore[union-attr,operator]
    save_module(module, tmp_path / "saved")
    assert float(load_module(tmp_path / "saved").out.bias[0]) == 3.0  # type: ignore[union-attr,index]


def test_tied_weights_are_saved_once_and_stay_tied(file: Path, tmp_path: Path) -> None:
    save_module(build_module(f"{file}:Tied", {}), tmp_path / "saved")
    again = load_module(tmp_path / "saved")
    assert again.one.weight is again.two.weight  # type: ignore[union-attr]


def test_code_that_has_changed_or_is_gone_is_not_run(file: Path, tmp_path: Path) -> None:
    save_module(build_module(f"{file}:Net", {}), tmp_path / "saved")
    copied = tmp_path / "saved" / "nets.py"
    copied.write_text(CODE.replace("ReLU", "GELU") + "\nraise SystemExit('it ran')\n")
    with pytest.raises(ModelError, match="the code of this module has changed since the module was made"):
        load_module(tmp_path / "saved")
    copied.unlink()
    with pytest.raises(ModelError, match="the code of this module is gone"):
        load_module(tmp_path / "saved")


def test_a_module_is_not_saved_with_other_code_than_it_was_made_of(file: Path, tmp_path: Path) -> None:
    module = build_module(f"{file}:Net", {})
    file.write_text(CODE + "\n# edited while it trained\n")
    with pytest.raises(ModelError, match="has changed"):
        save_module(module, tmp_path / "saved")
    assert not (tmp_path / "saved" / "nets.py").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("Nett", {}, "no class or function 'Nett'; did you mean 'Net'"),
        ("Net", {"wide": 3}, r"Net\(wide=3\) fails: .*unexpected keyword argument 'wide'"),
        ("seven", {}, "seven gives no torch.nn.Module but a int"),
    ],
)
def test_what_cannot_be_built_is_said(file: Path, name: str, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_module(f"{file}:{name}", arguments)


def test_a_file_that_is_not_there_or_does_not_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        build_module("nets.py:Net", {}, base=tmp_path)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ModelError, match="cannot be run: ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        build_module("broken.py:Net", {}, base=tmp_path)


def test_weights_of_another_shape_are_refused(file: Path, tmp_path: Path) -> None:
    save_module(build_module(f"{file}:Net", {"width": 5}), tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    load_weights(build_module(f"{file}:Net", {"width": 5}), weights)
    with pytest.raises(ModelError, match="these weights are not those of Net"):
        load_weights(build_module(f"{file}:Net", {"width": 4}), weights)
    with pytest.raises(ModelError, match="there are no weights"):
        load_weights(nn.Linear(2, 2), tmp_path / "none.safetensors")


def test_a_module_built_elsewhere_is_saved_without_code_and_says_how_to_open_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert origin_of_module(module) is None
    save_module(module, tmp_path / "saved")
    with pytest.raises(ModelError, match=r"the code of this module .*Sequential.* was not saved with it") as caught:
        load_module(tmp_path / "saved")
    assert "safetensors.torch.load_model" in str(caught.value)
    again = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    load_weights(again, tmp_path / "saved" / "model.safetensors")
    assert torch.equal(again(PIXELS), module(PIXELS))


def test_save_and_load_take_whatever_model_there_is(file: Path, tmp_path: Path) -> None:
    encoder = tiny_encoder("bert", "sequence_classification")
    save_model(encoder, tmp_path / "encoder")
    again = load_model(source_of(tmp_path / "encoder"), device="cpu")
    assert type(again) is type(encoder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))
    module = build_module(f"{file}:Net", {})
    save_model(module, tmp_path / "module")
    opened = load_model(source_of(tmp_path / "module"), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}
    assert torch.equal(opened.out.bias, module.out.bias.bfloat16())  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("kind", ["module", "encoder"])
def test_the_student_of_another_run_is_found_whatever_it_is(kind: str, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "half" / "train" / "model"
    if kind == "module":
        save_module(build_module(f"{file}:Net", {}), folder)
    else:
        make_tiny_encoder(folder)
    found = resolve(f"run:{tmp_path}/runs/half", console=Console("quiet"))
    assert found == locate(f"run:{tmp_path}/runs/half") and found.path == folder and found.name == "run:half"
    assert isinstance(load_model(found, device="cpu"), nn.Module)
    edited = next(folder.glob("nets.py" if kind == "module" else "config.json"))
    edited.write_text(edited.read_text() + "\n")
    os.utime(edited, (1, 1))
    assert locate(f"run:{tmp_path}/runs/half").digest != found.digest  # type: ignore[union-attr]


def test_a_module_whose_labels_are_others_is_refused(file: Path, tmp_path: Path) -> None:
    module = build_module(f"{file}:Net", {})
    name_classes(module, ["ale", "malt", "rye"])
    save_module(module, tmp_path / "saved")
    load_model(source_of(tmp_path / "saved"), labels=["ale", "malt", "rye"], device="cpu")
    with pytest.raises(ModelError, match=r"class 1 of the model is 'malt', and of the data 'rye'"):
        load_model(source_of(tmp_path / "saved"), labels=["ale", "rye", "malt"], device="cpu")
    document = json.loads((tmp_path / "saved" / "module.json").read_text())
    assert document["labels"] == ["ale", "malt", "rye"] and document["arguments"] == {}
