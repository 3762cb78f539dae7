"""Tiny random models, made offline, that behave like real ones where tests look: causal ones here, encoders and
image classifiers at the end.

Each causal one comes with a byte-level tokenizer (so any text can be encoded, and decodes to itself) and a ChatML
template. The pad token **is** the end-of-turn token, on purpose: a loss that masks padding by token id would
never teach such a model to stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CohereConfig,
    ConvNextConfig,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)
from transformers.models.auto.modeling_auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from potstill.heads import MedusaHeads
from potstill.models.anatomy import effective_head

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
        _spread(model, spread)
    return model.eval()


@torch.no_grad()
def random_heads(model: PreTrainedModel, count: int, tokens: torch.Tensor | None = None, seed: int = 0) -> MedusaHeads:
    """Medusa heads of a tiny model that differ from each other and from its output layer."""
    head = effective_head(model)
    assert head is not None
    heads = MedusaHeads(head.weight.shape[1], model.config.vocab_size, count, tokens).to(head.weight.dtype)
    heads.start_from(head.weight, head.scale)
    draws = torch.Generator().manual_seed(seed)
    for block in heads.blocks:
        weight = block.layers[0].weight  # type: ignore[union-attr,index]
        weight.copy_(0.1 * torch.randn(weight.shape, generator=draws))  # type: ignore[operator,arg-type]
    return heads.requires_grad_(False)


@torch.no_grad()
def _spread(model: PreTrainedModel, spread: float) -> None:
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, spread)
        elif name.endswith("bias"):
            weight.normal_(0.0, 0.05)
        else:  # norms: near their identity, and no two alike
            weight.add_(0.1 * torch.randn_like(weight))


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


# ---- encoders ----------------------------------------------------------------------------------------------------

EncoderFamily = Literal["bert", "distilbert", "roberta"]
ENCODERS: tuple[EncoderFamily, ...] = get_args(EncoderFamily)

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-"
_WORDS = ("the", "of", "and", "to", "in", "is", "it", "that", "was", "for", "with", "on", "this", "are", "not", "from")
ENCODER_VOCAB = 5 + len(_WORDS) + 2 * len(_LETTERS)
"""Five special tokens (pad is 0, mask is 4), some words, and every letter at the start and inside of a word."""


def make_tiny_wordpiece() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer as BERT's: `[CLS] … [SEP]`, pad 0, unknown 1, cls 2, sep 3, mask 4."""
    tokens = (PAD, UNKNOWN, CLS, SEP, MASK, *_WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=[(CLS, 2), (SEP, 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        model_max_length=128,
    )


def tiny_encoder_config(
    family: EncoderFamily = "bert", *, layers: int = 4, hidden: int = 32, heads: int = 4, **changes: Any
) -> PreTrainedConfig:
    """The configuration of one tiny encoder, without dropout; `changes` are that family's own keys."""
    shared: dict[str, Any] = {
        "vocab_size": ENCODER_VOCAB,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 136,
        "pad_token_id": 0,
    }
    common = {"intermediate_size": 2 * hidden, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    match family:
        case "bert":
            return BertConfig(**shared | common | changes)
        case "roberta":
            return RobertaConfig(**shared | common | {"type_vocab_size": 1} | changes)
        case "distilbert":
            own = {"hidden_dim": 2 * hidden, "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
            return DistilBertConfig(**shared | own | changes)


_HEADS: dict[str, Any] = {
    "sentence_embedding": AutoModel,
    "masked_lm": AutoModelForMaskedLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "image_classification": AutoModelForImageClassification,
}


def tiny_encoder(
    family: EncoderFamily = "bert",
    task: Literal["sentence_embedding", "masked_lm", "sequence_classification"] = "sentence_embedding",
    *,
    seed: int = 0,
    spread: float = 0.2,
    labels: tuple[str, ...] = ("ale", "malt", "rye"),
    **shape: Any,
) -> PreTrainedModel:
    """A tiny encoder in fp32 and eval mode, with the head of a task; `labels` name the classes of a classifier."""
    config = tiny_encoder_config(family, **shape)
    return _made(_HEADS[task], config, seed, spread, labels if task == "sequence_classification" else ())


def tiny_convnet(
    *, seed: int = 0, spread: float = 0.2, labels: tuple[str, ...] = ("ale", "malt", "rye"), channels: int = 1
) -> PreTrainedModel:
    """A tiny ConvNeXt for images [B, channels, 8, 8] and the like, in fp32 and eval mode."""
    config = ConvNextConfig(
        num_channels=channels, patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=8
    )
    return _made(_HEADS["image_classification"], config, seed, spread, labels)


def _made(opener: Any, config: PreTrainedConfig, seed: int, spread: float, labels: tuple[str, ...]) -> PreTrainedModel:
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = opener.from_config(config, dtype=torch.float32)
        _spread(model, spread)
    return model.eval()


def make_tiny_encoder(folder: str | Path, family: EncoderFamily = "bert", **shape: Any) -> Path:
    """Save a tiny encoder without head, and its WordPiece tokenizer; `shape` goes to `tiny_encoder`."""
    return _save_encoder(tiny_encoder(family, "sentence_embedding", **shape), Path(folder))


def make_tiny_masked_lm(folder: str | Path, family: EncoderFamily = "bert", **shape: Any) -> Path:
    """Save a tiny masked language model, and its WordPiece tokenizer; `shape` goes to `tiny_encoder`."""
    return _save_encoder(tiny_encoder(family, "masked_lm", **shape), Path(folder))


def make_tiny_classifier(folder: str | Path, family: EncoderFamily = "bert", **shape: Any) -> Path:
    """Save a tiny classifier of texts (by default of ale, malt and rye), and its WordPiece tokenizer; `shape` goes to
    `tiny_encoder`."""
    return _save_encoder(tiny_encoder(family, "sequence_classification", **shape), Path(folder))


def make_tiny_convnet(folder: str | Path, **shape: Any) -> Path:
    """Save a tiny ConvNeXt; `shape` goes to `tiny_convnet`."""
    tiny_convnet(**shape).save_pretrained(folder)
    return Path(folder)


def _save_encoder(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tiny_wordpiece().save_pretrained(folder)
    return folder
