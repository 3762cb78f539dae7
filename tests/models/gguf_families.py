"""Tiny random models as GGUF files, with the tokenizers of three families as llama.cpp's converter writes them: pad
tokens, unused tokens, and a vocabulary that is filled up to the rows of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quantised
from gguf import TokenType
from transformers.convert_slow_tokenizer import bytes_to_unicode

Family = Literal["qwen2", "gemma3", "llama"]

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_HIDDEN, _HEADS, _KV_HEADS, _FFN, _PADDED = 32, 4, 2, 64, 5
_PIECES = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "é", "e", "1"]


@dataclass
class _Vocabulary:
    tokens: list[str]
    kinds: list[TokenType]

    def add(self, tokens: list[str], kind: TokenType) -> None:
        self.tokens += tokens
        self.kinds += [kind] * len(tokens)

    def fill(self) -> None:
        """Rows of the embeddings that stand for no token."""
        first = len(self.tokens)
        self.add([f"[PAD{number}]" for number in range(first, first + _PADDED)], TokenType.UNUSED)


def write_family(
    file: Path, family: Family, *, layers: int = 2, template: str | None = TEMPLATE, quantised: Quantised | None = None
) -> list[str]:
    """Write the file; gives the tokens of its vocabulary, those that fill it included."""
    writer = gguf.GGUFWriter(file, family)
    writer.add_license("mit")
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_FFN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if family == "gemma3":
        writer.add_key_length(_HIDDEN // _HEADS)
        writer.add_value_length(_HIDDEN // _HEADS)
        writer.add_sliding_window(64)
    vocabulary = _byte_level(writer) if family == "qwen2" else _sentencepiece(writer, family)
    if template is not None:
        writer.add_chat_template(template)
    _add_weights(writer, family, layers, len(vocabulary.tokens), quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return vocabulary.tokens


def _byte_level(writer: gguf.GGUFWriter) -> _Vocabulary:
    """Qwen2's: byte-level BPE. Its normaliser (NFC) is not in the file."""
    vocabulary = _Vocabulary([], [])
    vocabulary.add([*bytes_to_unicode().values(), "Ġa", "Ġb", "ab"], TokenType.NORMAL)
    vocabulary.add(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], TokenType.CONTROL)
    vocabulary.add(["<think>"], TokenType.USER_DEFINED)
    vocabulary.fill()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(["Ġ a", "Ġ b", "a b"])
    writer.add_eos_token_id(vocabulary.tokens.index("<|im_end|>"))
    writer.add_pad_token_id(vocabulary.tokens.index("<|endoftext|>"))
    writer.add_bos_token_id(vocabulary.tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    return vocabulary


def _sentencepiece(writer: gguf.GGUFWriter, family: Family) -> _Vocabulary:
    vocabulary = _Vocabulary([], [])
    if family == "gemma3":
        vocabulary.add(["<pad>", "<eos>", "<bos>"], TokenType.CONTROL)
        vocabulary.add(["<unk>"], TokenType.UNKNOWN)
        vocabulary.add(["<mask>"], TokenType.CONTROL)
        vocabulary.add(["<unused0>", "<unused1>"], TokenType.UNUSED)  # tokens of the tokenizer's own
        vocabulary.add(["<start_of_turn>", "<end_of_turn>"], TokenType.CONTROL)
    else:
        vocabulary.add(["<unk>"], TokenType.UNKNOWN)
        vocabulary.add(["<s>", "</s>"], TokenType.CONTROL)
    vocabulary.add([f"<0x{byte:02X}>" for byte in range(256)], TokenType.BYTE)
    vocabulary.add(_PIECES, TokenType.NORMAL)
    vocabulary.fill()
    tokens = vocabulary.tokens
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_bos_token_id(tokens.index("<bos>" if family == "gemma3" else "<s>"))
    writer.add_eos_token_id(tokens.index("<end_of_turn>" if family == "gemma3" else "</s>"))
    writer.add_pad_token_id(tokens.index("<pad>" if family == "gemma3" else "</s>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_add_bos_token(True)
    return vocabulary


def _add_weights(
    writer: gguf.GGUFWriter, family: Family, layers: int, vocabulary: int, quantised: Quantised | None
) -> None:
    draws = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = (0.2 * draws.standard_normal(shape)).astype(np.float32)
        if quantised is not None and len(shape) == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, values)

    keys = _HIDDEN // _HEADS * _KV_HEADS
    add("token_embd.weight", vocabulary, _HIDDEN)
    add("output_norm.weight", _HIDDEN)
    for layer in range(layers):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", _HIDDEN)
        add(f"{block}.ffn_norm.weight", _HIDDEN)
        for name, rows in {"q": _HIDDEN, "k": keys, "v": keys}.items():
            add(f"{block}.attn_{name}.weight", rows, _HIDDEN)
            if family == "qwen2":
                add(f"{block}.attn_{name}.bias", rows)
        add(f"{block}.attn_output.weight", _HIDDEN, _HIDDEN)
        if family == "gemma3":
            add(f"{block}.attn_q_norm.weight", _HIDDEN // _HEADS)
            add(f"{block}.attn_k_norm.weight", _HIDDEN // _HEADS)
            add(f"{block}.post_attention_norm.weight", _HIDDEN)
            add(f"{block}.post_ffw_norm.weight", _HIDDEN)
        add(f"{block}.ffn_gate.weight", _FFN, _HIDDEN)
        add(f"{block}.ffn_up.weight", _FFN, _HIDDEN)
        add(f"{block}.ffn_down.weight", _HIDDEN, _FFN)
