"""Opening models and tokenizers: precision, device, completeness, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models import ModelSource, load, resolve
from potstill.models.load import has_fast_bf16, load_model, load_tokenizer, pick_device, pick_dtype

CPU = torch.device("cpu")


@pytest.fixture
def source(tiny_llama: Path, tmp_path: Path) -> ModelSource:
    """A copy that a test may damage."""
    return resolve(str(shutil.copytree(tiny_llama, tmp_path / "model")), console=Console("quiet"))


def configure(source: ModelSource, **changes: object) -> None:
    file = source.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_comes_in_evaluation_mode_with_its_own_weights(source: ModelSource) -> None:
    model = load_model(source)
    assert not any(module.training for module in model.modules())
    stored = load_file(source.path / "model.safetensors")
    for name, weight in model.state_dict().items():
        if name in stored:
            assert torch.equal(weight, stored[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_is_what_was_asked(dtype: str, source: ModelSource) -> None:
    assert {str(p.dtype) for p in load_model(source, dtype=dtype).parameters()} == {f"torch.{dtype}"}


@pytest.mark.parametrize(
    ("stored", "fast", "picked"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", True, torch.bfloat16),
        ("bfloat16", False, torch.float32),
        ("float16", True, torch.bfloat16),
    ],
)
def test_automatic_precision_is_the_stored_one_where_the_device_is_fast_in_it(
    stored: str, fast: bool, picked: torch.dtype, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "has_fast_bf16", lambda device: fast)
    configure(source, dtype=stored)
    assert pick_dtype("auto", source, CPU) == picked
    assert pick_dtype("float32", source, CPU) == torch.float32


@pytest.mark.parametrize(
    ("words", "fast"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx512f avx512bw", False),
    ],
)
def test_fast_bfloat16_is_read_from_the_processor(words: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: words)
    assert has_fast_bf16(CPU) is fast


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("cuda:99", "toaster", "meta"):
        with pytest.raises(ModelError, match=wrong) as caught:
            pick_device(wrong)
        assert "device: auto" in str(caught.value) and "cpu" in str(caught.value)


def test_weights_that_are_missing_are_an_error_and_no_random_numbers(source: ModelSource) -> None:
    file = source.path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(source)


def test_weights_of_another_shape_are_an_error(source: ModelSource) -> None:
    configure(source, intermediate_size=48)
    with pytest.raises(ModelError):
        load_model(source)


def test_what_cannot_be_used_is_refused_here_too(source: ModelSource) -> None:
    configure(source, vision_config={"depth": 2})
    with pytest.raises(ModelError, match="vision-language"):
        load_model(source)


def test_an_unknown_type_and_what_is_not_installed_are_said_without_a_traceback(source: ModelSource) -> None:
    with pytest.raises(ModelError, match="bnb_4bit needs bitsandbytes"):
        load_model(source, quantization="bnb_4bit")
    with pytest.raises(ModelError, match="cannot be opened") as caught:
        load_model(source, attn_implementation="flash_attention_2")
    assert "sdpa" in str(caught.value)
    configure(source, model_type="strange")
    with pytest.raises(ModelError, match="cannot be opened"):
        load_model(source)


def test_attention_is_what_was_asked(source: ModelSource) -> None:
    assert load_model(source, attn_implementation="eager").config._attn_implementation == "eager"


def test_a_device_map_is_followed(source: ModelSource) -> None:
    assert load_model(source, device_map="cpu").device == CPU


def test_loading_shows_no_bars_of_its_own(source: ModelSource, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(source)
    assert capfd.readouterr().err == ""


def test_a_damaged_tokenizer_is_named(source: ModelSource) -> None:
    assert load_tokenizer(source).chat_template == (source.path / "chat_template.jinja").read_text()
    (source.path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match="the tokenizer cannot be opened"):
        load_tokenizer(source)
