"""A `transformers` folder as one GGUF file: metadata, tokenizer, chat template and weights, under the names of
llama.cpp's own converter (specification: ggml, docs/gguf.md).

Only what is known to open is written. A family, a kind of rotary embedding or a way of splitting text that is not in
the tables below is refused, since llama.cpp would open the file and compute something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Stored
from gguf import LlamaFileType as FileType
from jaxtyping import Float
from safetensors import safe_open
from tokenizers import Tokenizer

from potstill.errors import ModelError
from potstill.models.folder import read_config, stated_licence
from potstill.recipe.export import GgufType


@dataclass(frozen=True)
class _Family:
    """A family of models in llama.cpp.

    Attributes:
        architecture: its name there.
        pairs: whether llama.cpp rotates neighbouring pairs of dimensions, where transformers rotates the two halves.
    """

    architecture: gguf.MODEL_ARCH
    pairs: bool


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "mistral": _Family(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": _Family(gguf.MODEL_ARCH.QWEN2, pairs=False),
    "qwen3": _Family(gguf.MODEL_ARCH.QWEN3, pairs=False),
}
"""By `model_type` of `config.json`."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    ("digits", _GPT2): "smollm",
    (_QWEN2,): "qwen2",
    (_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),): "llama-bpe",
}
"""llama.cpp's name for how a byte-level tokenizer splits text before merging (`tokenizer.ggml.pre`)."""

_QUANTISED: Mapping[GgufType, tuple[Stored, FileType]] = {
    "f32": (Stored.F32, FileType.ALL_F32),
    "f16": (Stored.F16, FileType.MOSTLY_F16),
    "q8_0": (Stored.Q8_0, FileType.MOSTLY_Q8_0),
    "q4_0": (Stored.Q4_0, FileType.MOSTLY_Q4_0),
}
_FALL_BACK = Stored.Q8_0
"""The type of the output layer in a file of 4 bits: it decides every token, and llama.cpp stores it finer too."""


def write_gguf(model: Path, file: Path, kind: GgufType, *, end_tokens: Sequence[int], name: str) -> None:
    """Write a model's folder as a GGUF file. Matrices are stored as `kind`, vectors in fp32. In `q4_0` the output
    layer, and the embeddings where they are the same, are stored in `q8_0`; rows that are no multiple of a block of 32
    in float16.

    Args:
        model: folder with `config.json`, safetensors, `tokenizer.json`.
        end_tokens: ids at which generation stops. llama.cpp has one end of text and one end of turn.
        name: of the model, for people.

    Raises:
        ModelError: this module does not know how llama.cpp stores such a model.
    """
    config = read_config(model)
    family = _family_of(config, model)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family.architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if licence := stated_licence(model):
        writer.add_license(licence)
    writer.add_file_type(_QUANTISED[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config, model)
    _add_tokenizer(writer, model, config, end_tokens)
    names = gguf.get_tensor_name_map(family.architecture, config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings"))
    for tensor, values in _tensors(model):
        module, _, part = tensor.rpartition(".")
        if tied and module == "lm_head":
            continue
        if (stored_name := names.get_name(module)) is None:
            raise ModelError(f"llama.cpp has no place for the weight {tensor}", where=str(model), fix=_OTHER)
        if family.pairs and (heads := _heads_of(module, config)) is not None:
            values = _in_pairs(values, heads)
        output = stored_name in ("output", "token_embd") if tied else stored_name == "output"
        stored = _stored_as(_QUANTISED[kind][0], values.shape, output)
        data = values if stored == Stored.F32 else gguf.quants.quantize(values, stored)
        writer.add_tensor(f"{stored_name}.{part}", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_OTHER = "use kind: huggingface, and llama.cpp's own converter"


def _family_of(config: Mapping[str, Any], model: Path) -> _Family:
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise ModelError(
            f"a model of the family {kind!r} cannot be written as GGUF; known: {', '.join(FAMILIES)}",
            where=str(model / "config.json"),
            fix=_OTHER,
        )
    rope = str(_rope(config).get("rope_type", "default"))
    if rope != "default":
        raise ModelError(
            f"a rotary embedding of the kind {rope!r} cannot be written as GGUF", where=str(model), fix=_OTHER
        )
    return FAMILIES[kind]


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any], model: Path) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ModelError("attention in a sliding window cannot be written as GGUF", where=str(model), fix=_OTHER)


# ---- weights -----------------------------------------------------------------------------------------------------


def _tensors(model: Path) -> Iterator[tuple[str, Float[np.ndarray, ...]]]:
    """Every weight of a folder in fp32, one at a time."""
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name).to(torch.float32).numpy()


def _heads_of(module: str, config: Mapping[str, Any]) -> int | None:
    """The number of heads of a query or key projection; None for other modules."""
    heads: int = config["num_attention_heads"]
    match module.rpartition(".")[2]:
        case "q_proj":
            return heads
        case "k_proj":
            return config.get("num_key_value_heads") or heads
    return None


def _in_pairs(weight: Float[np.ndarray, "R ..."], heads: int) -> Float[np.ndarray, "R ..."]:
    """The rows of a rotated projection (or its bias) in llama.cpp's order: dimension i of a head's first half beside
    dimension i of its second."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))


def _stored_as(wanted: Stored, shape: Sequence[int], output: bool) -> Stored:
    if len(shape) == 1 or wanted == Stored.F32:
        return Stored.F32
    if output and wanted == Stored.Q4_0:
        wanted = _FALL_BACK
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else Stored.F16


# ---- tokenizer ---------------------------------------------------------------------------------------------------


def _add_tokenizer(writer: gguf.GGUFWriter, model: Path, config: Mapping[str, Any], end_tokens: Sequence[int]) -> None:
    document = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    split = _split_of(document, model)
    tokens, kinds = _vocabulary(document, config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]])
    tokenizer = Tokenizer.from_str(json.dumps(document))
    ids = {role: tokenizer.token_to_id(_text(settings.get(f"{role}_token")) or "") for role in ("bos", "eos", "pad")}
    if ids["bos"] is not None:
        writer.add_bos_token_id(ids["bos"])
    writer.add_add_bos_token(ids["bos"] is not None and tokenizer.encode("a").ids[:1] == [ids["bos"]])
    ends = [ids["eos"]] if ids["eos"] is not None else []
    ends += [token for token in end_tokens if token not in ends]
    if ends:
        writer.add_eos_token_id(ends[0])
        writer.add_eot_token_id(ends[-1])
    if ids["pad"] is not None:
        writer.add_pad_token_id(ids["pad"])
    template = model / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)


def _vocabulary(document: Mapping[str, Any], rows: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Text and kind of every id. Ids without token, which pad the output layer, are unused."""
    added = {token["id"]: token for token in document["added_tokens"]}
    vocabulary = document["model"]["vocab"] | {token["content"]: number for number, token in added.items()}
    text_of = {number: text for text, number in vocabulary.items()}
    tokens, kinds = [], []
    for number in range(max(rows, max(text_of) + 1)):
        tokens.append(text_of.get(number, f"[PAD{number}]"))
        if number not in text_of:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            special = added[number]["special"]
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    return tokens, kinds


def _split_of(document: Mapping[str, Any], model: Path) -> str:
    """llama.cpp's name for the tokenizer's way of splitting text.

    Raises:
        ModelError: the tokenizer is no byte-level BPE, or splits in a way that is not in the table.
    """
    steps = document["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    found: list[str] = []
    for step in steps:
        match step:
            case {"type": "Digits", "individual_digits": True}:
                found.append("digits")
            case {"type": "Split", "pattern": {"Regex": pattern}, "invert": False}:
                found.append(pattern)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                found += [_GPT2] if step.get("use_regex", True) else []
            case _:
                found.append(str(step.get("type")))
    if document["model"]["type"] != "BPE" or document["model"].get("byte_fallback") or tuple(found) not in _SPLITS:
        raise ModelError(
            "this tokenizer cannot be written as GGUF: llama.cpp's name for how it splits text is not known",
            where=str(model / "tokenizer.json"),
            fix=_OTHER,
        )
    return _SPLITS[tuple(found)]


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token
