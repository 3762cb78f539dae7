"""A GGUF file is the student: llama.cpp reads the same tokens, gives the same probabilities, writes the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.artifacts import Work
from potstill.check import check_recipe
from potstill.console import Console
from potstill.errors import MissingExtra, ModelError
from potstill.export import base, gguf_file
from potstill.export.base import Student
from potstill.export.comparison import Comparison, prompts, refuse_far
from potstill.export.gguf import Gguf
from potstill.models.rounding import Bits, round_weights
from potstill.recipe import GgufExport, parse_recipe
from potstill.recipe.export import GgufType
from tiny_models import VOCAB, Family, make_tiny_causal_lm

NEEDS_LLAMA_CPP = pytest.mark.needs("llama.cpp")


def student(folder: Path, family: Family = "llama", **shape: Any) -> Path:
    """A tiny model whose tokenizer has one merge: llama.cpp opens no file without any."""
    make_tiny_causal_lm(folder, family, vocab=VOCAB + 1, seed=3, **shape)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["th"] = VOCAB
    tokenizer["model"]["merges"] = [["t", "h"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def exported(model: Path, out: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    """The folder that the exporter writes, and the facts of its comparison."""
    out.mkdir()
    work = Work(out, resumed=False)
    settings = {"check_prompts": 3, "check_tokens": 8} | settings
    Gguf(GgufExport(**settings)).export(Student(model, None, [], False), work, Console("quiet"))
    return out, work.facts.get("check", {})


@NEEDS_LLAMA_CPP
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_computes_the_student(family: Family, tied: bool, tmp_path: Path) -> None:
    model = student(tmp_path / "model", family, tied=tied)
    _, found = exported(model, tmp_path / "out", types=("f32",))
    one = found["model-F32.gguf"]
    assert one["kl"] < 1e-4 and one["same_ids"] is True
    # llama.cpp's cache is in float16, which may break a tie the other way.
    assert one["same_texts"] == 3 or one["gap"] < 0.01


@NEEDS_LLAMA_CPP
def test_a_file_in_fewer_bits_is_smaller_and_farther_away(tmp_path: Path) -> None:
    model = student(tmp_path / "model", hidden=256, spread=0.05)
    out, found = exported(model, tmp_path / "out", types=("f16", "q8_0", "q4_0"))
    away = [found[f"model-{kind}.gguf"]["kl"] for kind in ("F16", "Q8_0", "Q4_0")]
    sizes = [(out / f"model-{kind}.gguf").stat().st_size for kind in ("F16", "Q8_0", "Q4_0")]
    assert away == sorted(away) and away[0] < away[-1]
    assert sizes == sorted(sizes, reverse=True)


@NEEDS_LLAMA_CPP
def test_llama_cpp_writes_a_k_quant(tmp_path: Path) -> None:
    model = student(tmp_path / "model", hidden=256, spread=0.05)
    out, found = exported(model, tmp_path / "out", types=("q6_k",))
    assert found["model-Q6_K.gguf"]["kl"] < 0.1
    assert sorted(f.name for f in out.glob("*.gguf")) == ["model-Q6_K.gguf"]


@NEEDS_LLAMA_CPP
def test_a_wrong_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated pairs in the order of transformers: the file opens, and computes another model."""
    model = student(tmp_path / "model")
    monkeypatch.setattr(gguf_file, "_in_pairs", lambda weight, heads: weight)
    with pytest.raises(ModelError, match="nats per token away from the student"):
        exported(model, tmp_path / "out", types=("f32",))


@NEEDS_LLAMA_CPP
def test_a_tokenizer_that_splits_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(tmp_path / "model")
    whole = gguf_file._vocabulary
    swapped = {"!": '"', '"': "!"}
    monkeypatch.setattr(gguf_file, "_vocabulary", lambda *a: ([swapped.get(t, t) for t in whole(*a)[0]], whole(*a)[1]))
    # Not every prompt has such a mark; the 50 do.
    with pytest.raises(ModelError, match="as other tokens"):
        exported(model, tmp_path / "out", types=("f32",), check_prompts=50, check_tokens=1)


@NEEDS_LLAMA_CPP
def test_the_card_prints_engine_tolerance_and_figures(tmp_path: Path) -> None:
    model = student(tmp_path / "model")
    card = tmp_path / "card.md"
    card.write_text("# A student\n")
    (tmp_path / "out").mkdir()
    settings = GgufExport(check_prompts=2, check_tokens=4, tolerance=0.02)
    Gguf(settings).export(Student(model, card, [], False), Work(tmp_path / "out", False), Console("quiet"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("# A student\n")
    assert "| model-F16.gguf |" in text and "llama.cpp b" in text and "| 0.02 |" in text


def test_without_a_report_the_card_has_the_licences_terms_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    terms = ("| What | Used for |", "**Overridden**: `openai-api`, by Ada on 2026-01-02: we asked.")
    given = Student(student(tmp_path / "model"), None, [], False, name="Llama-half", terms=terms)
    Gguf(GgufExport(check_prompts=0)).export(given, Work(tmp_path / "out", False), Console("quiet"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("# Llama-half\n\n## Licences and terms\n") and terms[1] in text
    assert text.index(terms[1]) < text.index("## Files, and how they were checked")


@pytest.mark.parametrize(("bits", "kind"), [("int4", "q4_0"), ("int8", "q8_0")])
@pytest.mark.parametrize("tied", [True, False])
def test_a_student_that_is_rounded_already_keeps_its_weights_in_a_file_of_the_same_kind(
    bits: Bits, kind: GgufType, tied: bool, tmp_path: Path
) -> None:
    folder = student(tmp_path / "model", layers=2, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    round_weights(model, bits)
    model.save_pretrained(folder)
    stored = {}
    for of_kind in ("f32", kind):
        gguf_file.write_gguf(folder, tmp_path / of_kind, of_kind, end_tokens=[2], name="x")
        stored[of_kind] = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in gguf.GGUFReader(tmp_path / of_kind).tensors
        }
    assert stored[kind].keys() == stored["f32"].keys()
    assert all(np.array_equal(stored[kind][name], whole) for name, whole in stored["f32"].items())


def test_metadata_name_the_architecture_template_and_end_tokens(tmp_path: Path) -> None:
    model = student(tmp_path / "model", layers=2)
    out, _ = exported(model, tmp_path / "out", check_prompts=0)
    fields = gguf.GGUFReader(out / "model-F16.gguf").fields
    value = {name: field.contents() for name, field in fields.items()}
    assert value["general.architecture"] == "llama" and value["llama.block_count"] == 2
    assert value["tokenizer.ggml.pre"] == "gpt-2" and value["tokenizer.ggml.eos_token_id"] == 2
    assert value["tokenizer.chat_template"] == (model / "chat_template.jinja").read_text()
    assert value["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert "not opened and not compared" in (out / "README.md").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in (out / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gemma2"}, "family 'gemma2'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary embedding of the kind 'yarn'"),
        ({"sliding_window": 64}, "sliding window"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    model = student(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=says):
        gguf_file.write_gguf(model, tmp_path / "x.gguf", "f16", end_tokens=[2], name="x")


def test_an_unknown_way_of_splitting_text_is_refused(tmp_path: Path) -> None:
    model = student(tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="how it splits text is not known"):
        gguf_file.write_gguf(model, tmp_path / "x.gguf", "f16", end_tokens=[2], name="x")


def test_without_llama_cpp_the_error_has_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(tmp_path / "model")
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"potstill\[gguf\]"):
        exported(model, tmp_path / "out")


def test_pairs_of_a_head_lie_side_by_side() -> None:
    rows = np.arange(8)[:, None]  # two heads of four dimensions
    assert gguf_file._in_pairs(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_comparison_that_is_no_number_is_refused() -> None:
    found = Comparison("e", 1, 1, float("nan"), 0.0, 1.0, 1, None, None, 1.0)
    with pytest.raises(ModelError, match="away from the student"):
        refuse_far({"file": found}, Path("x"))


def test_there_are_fifty_different_prompts() -> None:
    assert len(set(prompts(50))) == 50


def test_a_check_names_the_missing_package_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    recipe = parse_recipe(
        {
            "name": "n",
            "teacher": {"kind": "local", "model": str(make_tiny_causal_lm(tmp_path / "teacher"))},
            "student": {"kind": "from_teacher"},
            "data": {"kind": "jsonl", "path": "x.jsonl"},
            "train": {},
            "export": [{"kind": "gguf"}],
        },
        base=tmp_path,
    )
    assert any("'cyllama'" in finding.text for finding in check_recipe(recipe, ["export"]).errors)


def test_an_encoder_has_no_gguf_file() -> None:
    with pytest.raises(ModelError, match="only causal language models"):
        base.check_possible(GgufExport(), "masked_lm")
