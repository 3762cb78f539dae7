"""GGUF files: the converted model computes what the file's weights say, and a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from models.tiny_gguf import Quantised, write_gguf
from safetensors.torch import load_file

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models import locate, resolve
from potstill.models.load import load_model, load_tokenizer
from potstill.models.tokenizers import check_same_tokenizer

QUIET = Console("quiet")


def test_a_file_of_whole_numbers_gives_the_model_it_was_made_of(tiny_llama: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    assert locate(str(file)) is None, "it would have to be converted first"
    source = resolve(str(file), console=QUIET)
    assert (source.name, source.licence, source.notes) == ("tiny.gguf", "mit", ())
    ids = torch.arange(3, 60)[None]
    original = load_model(resolve(str(tiny_llama), console=QUIET))
    with torch.no_grad():
        assert torch.equal(load_model(source)(ids).logits, original(ids).logits)
    check_same_tokenizer(tiny_llama, source.path)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (Quantised.Q8_0, "weights were stored in 8 bits (Q8_0)"),
        (Quantised.Q4_1, "weights were stored in 4 bits (Q4_1)"),
    ],
)
def test_quantised_weights_are_kept_exactly_as_they_dequantise(
    kind: Quantised, note: str, tiny_llama: Path, tmp_path: Path
) -> None:
    source = resolve(str(write_gguf(tiny_llama, tmp_path / "tiny.gguf", kind)), console=QUIET)
    assert source.notes == (note,)
    for name, weight in load_file(tiny_llama / "model.safetensors").items():
        if weight.dim() == 2 and "q_proj" not in name and "k_proj" not in name:  # those lie in another order
            stored = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
            assert torch.equal(load_file(source.path / "model.safetensors")[name], torch.from_numpy(stored)), name


def test_a_file_is_converted_once_and_again_when_it_changes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    first = resolve(str(file), console=QUIET)
    assert locate(str(file)) == first
    write_gguf(tiny_llama, file, Quantised.Q8_0)
    assert locate(str(file)) is None
    assert resolve(str(file), console=QUIET).digest != first.digest


@pytest.mark.parametrize("damage", ["cut", "no gguf at all"])
def test_a_damaged_file_is_refused_and_leaves_nothing(
    damage: str, tiny_llama: Path, tmp_path: Path, cache: Path
) -> None:
    file = write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-4000] if damage == "cut" else b"no gguf at all, and long enough for a header")
    with pytest.raises(ModelError, match="this GGUF file cannot be read") as caught:
        resolve(str(file), console=QUIET)
    assert str(file) in str(caught.value) and "fetch it again" in str(caught.value)
    assert [p.name for p in (cache / "models").iterdir() if p.suffix != ".lock"] == []


def test_a_converted_model_saves_and_opens_again(tiny_llama: Path, tmp_path: Path) -> None:
    source = resolve(str(write_gguf(tiny_llama, tmp_path / "tiny.gguf", Quantised.Q8_0)), console=QUIET)
    load_model(source).save_pretrained(tmp_path / "again")
    load_tokenizer(source).save_pretrained(tmp_path / "again")
    again = resolve(str(tmp_path / "again"), console=QUIET)
    assert torch.equal(load_model(again).lm_head.weight, load_model(source).lm_head.weight)
