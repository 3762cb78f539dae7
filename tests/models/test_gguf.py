"""GGUF files: the converted model computes what the file's weights say, and a damaged file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import gguf
import pytest
import torch
from models.gguf_families import Family, write_family
from models.tiny_gguf import Quantised, write_gguf
from safetensors.torch import load_file

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models import locate, resolve
from potstill.models.anatomy import dims
from potstill.models.gguf_header import GgufHeader, StoredTensor, read_header
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
        (Quantised.Q8_0, "weights were stored as 99 % Q8_0, 1 % F32; 8.6 bits a weight"),
        (Quantised.Q4_1, "weights were stored as 99 % Q4_1, 1 % F32; 5.2 bits a weight"),
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


FAMILIES = get_args(Family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_tokenizer_is_what_its_file_says(family: Family, tmp_path: Path) -> None:
    write_family(tmp_path / "tiny.gguf", family)
    source = resolve(str(tmp_path / "tiny.gguf"), console=QUIET)
    stated = json.loads((source.path / "tokenizer.json").read_text())
    assert json.loads(load_tokenizer(source).backend_tokenizer.to_str()) == stated


@pytest.mark.parametrize("family", FAMILIES)
def test_a_students_saved_tokenizer_is_the_one_of_its_converted_teacher(family: Family, tmp_path: Path) -> None:
    write_family(tmp_path / "tiny.gguf", family)
    source = resolve(str(tmp_path / "tiny.gguf"), console=QUIET)
    student = tmp_path / "student"
    load_tokenizer(source).save_pretrained(student)
    (student / "config.json").write_text((source.path / "config.json").read_text())
    check_same_tokenizer(source.path, student)
    check_same_tokenizer(load_tokenizer(source), load_tokenizer(student))


def test_a_teacher_whose_file_says_less_than_is_used_is_the_same_as_its_student(tmp_path: Path) -> None:
    write_family(tmp_path / "tiny.gguf", "qwen2")
    source = resolve(str(tmp_path / "tiny.gguf"), console=QUIET)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    for folder in (teacher, student):
        load_tokenizer(source).save_pretrained(folder)
    file = teacher / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": None}))
    assert json.loads(load_tokenizer(teacher).backend_tokenizer.to_str())["normalizer"] == {"type": "NFC"}
    check_same_tokenizer(teacher, student)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_fill_a_vocabulary_are_no_tokens_and_unused_ones_of_the_tokenizer_are(
    family: Family, tmp_path: Path
) -> None:
    tokens = write_family(tmp_path / "tiny.gguf", family)
    source = resolve(str(tmp_path / "tiny.gguf"), console=QUIET)
    real = [token for token in tokens if not token.startswith("[PAD")]
    assert len(tokens) - len(real) == 5
    assert set(load_tokenizer(source).get_vocab()) == set(real)
    assert dims(load_model(source)).vocab == len(tokens), "the weights keep their rows; export trims them"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kinds_of_a_file_are_named_as_they_are_stored(family: Family, tmp_path: Path) -> None:
    write_family(tmp_path / "tiny.gguf", family, quantised=Quantised.Q8_0)
    header = read_header(tmp_path / "tiny.gguf")
    assert header.architecture == family and header.licence == "mit" and header.has_template
    assert header.storage.startswith("99 % Q8_0, 1 % F32; 8.")


def header_of(file_type: int | None, kinds: dict[str, tuple[int, int]]) -> GgufHeader:
    metadata = {} if file_type is None else {"general.file_type": file_type}
    return GgufHeader(
        Path("x.gguf"), metadata, tuple(StoredTensor(k, (n,), k, n * b // 8) for k, (n, b) in kinds.items())
    )


def test_a_mixture_is_called_what_its_file_calls_it_and_shown_by_its_parts() -> None:
    mixture = {"Q5_0": (600, 5), "Q8_0": (280, 8), "Q6_K": (119, 6), "F32": (1, 32)}
    assert header_of(15, mixture).storage == "Q4_K_M: 60 % Q5_0, 28 % Q8_0, 12 % Q6_K; 6.0 bits a weight"
    assert header_of(1024, mixture).storage == "60 % Q5_0, 28 % Q8_0, 12 % Q6_K; 6.0 bits a weight", "guessed"
    assert header_of(None, mixture).storage == "60 % Q5_0, 28 % Q8_0, 12 % Q6_K; 6.0 bits a weight"
    assert header_of(1, {"F16": (100, 16)}).storage == "F16, 16.0 bits a weight"
    assert not header_of(1, {"F16": (100, 16)}).is_quantised and header_of(15, mixture).is_quantised


def test_its_size_is_that_of_the_file_that_was_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_family(file, "qwen2", quantised=Quantised.Q8_0)
    source = resolve(str(file), console=QUIET)
    assert source.weight_bytes == file.stat().st_size < sum(f.stat().st_size for f in source.path.glob("*.safetensors"))


@pytest.mark.parametrize("cut", [30, 200, 3000])
def test_a_header_that_is_cut_short_is_an_error_for_the_user(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_family(file, "llama")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="this GGUF file cannot be read"):
        read_header(file)
