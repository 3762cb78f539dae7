"""Tiny random causal language models, made offline, that behave like real ones where tests look.

Each comes with a byte-level tokenizer (so any text can be encoded, and decodes to itself) and a ChatML
template. The pad token **is** the end-of-turn token, on purpose: a loss that masks padding by token id would
never teach such a model to stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

Family = Literal["llama", "qwen2", "gemma2", "gpt2", "mistral", "cohere", "granite"]
FAMILIES: tuple[Family, ...] = get_args(Family)

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

VOCAB = len(SPECIAL_TOKENS) + 256
"""Three special tokens and the 256 bytes: 259."""


def make_tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 259 tokens; ids 0-2 are special, end of turn (2) is also end and pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=TURN_END,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = template
    return fast


def tiny_config(
    family: Family = "llama",
    *,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = VOCAB,
    tied: bool = True,
    **changes: Any,
) -> PreTrainedConfig:
    """The configuration of one tiny model; `changes` are that family's own keys (say `final_logit_softcapping`).

    GPT-2 and Cohere have no grouped key-value heads of their own here, so `kv_heads` is not used for GPT-2.
    """
    shared: dict[str, Any] = {
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    modern = shared | {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
    }
    match family:
        case "llama":
            return LlamaConfig(**modern | changes)
        case "qwen2":
            return Qwen2Config(**modern | changes)
        case "mistral":
            return MistralConfig(**modern | {"sliding_window": None} | changes)
        case "gemma2":
            # A small cap, so that a loss that forgets it is far off and not merely rounded.
            caps = {"head_dim": hidden // heads, "query_pre_attn_scalar": hidden // heads, "sliding_window": 64}
            return Gemma2Config(**modern | caps | {"final_logit_softcapping": 2.0} | changes)
        case "cohere":
            return CohereConfig(**modern | {"logit_scale": 0.25} | changes)
        case "granite":
            return GraniteConfig(**modern | {"logits_scaling": 4.0, "embedding_multiplier": 6.0} | changes)
        case "gpt2":
            gpt2 = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 512}
            no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2Config(**shared | gpt2 | no_dropout | changes)


def tiny_model(family: Family = "llama", *, seed: int = 0, spread: float = 0.2, **shape: Any) -> PreTrainedModel:
    """A tiny model in fp32 and eval mode, with weights that depend on `seed` alone.

    `spread` is the standard deviation of every weight. The usual 0.02 would make all distributions nearly
    uniform, and wrong losses nearly right.
    """
    config = tiny_config(family, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, spread)
                elif name.endswith("bias"):
                    weight.normal_(0.0, 0.05)
                else:  # norms: near their identity, and no two alike
                    weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def make_tiny_causal_lm(
    folder: str | Path,
    family: Family = "llama",
    *,
    layers: int = 4,
    tied: bool = True,
    seed: int = 0,
    template: str | None = CHATML,
    **shape: Any,
) -> Path:
    """Save a tiny model and its tokenizer to `folder`, which `from_pretrained` then opens; returns the folder.

    `shape` goes to `tiny_model`: hidden, heads, kv_heads, vocab (≥ 259), spread, and the family's own keys.
    """
    folder = Path(folder)
    model = tiny_model(family, layers=layers, tied=tied, seed=seed, **shape)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder)
    make_tiny_tokenizer(template).save_pretrained(folder)
    return folder
