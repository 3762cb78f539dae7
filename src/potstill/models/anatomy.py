"""Where the layers, the head and the inner model are. One mechanism for all model families.

No family is named here. Differences between families are read from `transformers` conventions (`get_decoder`,
`base_model`, `get_output_embeddings`, `num_hidden_layers`) and from the configuration keys that describe what is done
to the logits. `potstill.models.live.check_head` detects a family for which this goes wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import ModelError
from potstill.models.facts import POSITION_TABLES
from potstill.models.tasks import is_causal, is_plain, spec_of
from potstill.models.tasks import unwrap as unwrap
from potstill.signals import ModelDims

_MULTIPLIES = ("logit_scale", "lm_head_multiplier")
_DIVIDES = ("logits_scaling",)
_SOFTCAP = "final_logit_softcapping"
_ATTENTION_SOFTCAP = "attn_logit_softcapping"


@dataclass(frozen=True)
class HeadParts:
    """The parts of an output layer. Its logits are `softcap·tanh(scale·(hidden @ weightᵀ + bias) / softcap)`.

    `weight` and `bias` are *effective*: an adapter on the head is merged in, differentiably, at every call; without an
    adapter the weight is the parameter itself (tied or not).
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None
    scale: float


class _CannotTakeApart(Exception):
    """The head is not a linear map with one weight; the message says why."""


def text_config(model: nn.Module) -> Any:
    """The configuration that describes the layers."""
    return unwrap(model).config.get_text_config(decoder=True)


def inner_decoder(model: nn.Module) -> nn.Module:
    """The decoder without output layer: token ids in, `last_hidden_state` after the final norm out.

    Raises:
        ModelError: the model has no output layer.
    """
    inner = unwrap(model)
    decoder = inner.get_decoder()
    if decoder is inner:  # the base model's attribute is not the one its class declares (Llama 4)
        decoder = next((part for part in inner.children() if isinstance(part, PreTrainedModel)), None)
    if decoder is None:
        raise ModelError(
            f"{type(inner).__name__} is no causal language model with a decoder inside",
            fix="use a model that AutoModelForCausalLM opens",
        )
    assert isinstance(decoder, nn.Module)
    return decoder


def inner_model(model: nn.Module) -> nn.Module:
    """The model without its head: tokens or pixels in, `last_hidden_state` out.

    Raises:
        ModelError: the model has a causal head and no decoder inside.
    """
    if spec_of(model).writes:
        return inner_decoder(model)
    inner = unwrap(model)
    base = inner.base_model  # the model itself, if it has no head
    assert isinstance(base, nn.Module)
    return base


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a model has learned embeddings for; None if it has none (rotary and relative positions have
    no such end)."""
    for name, part in model.named_modules():
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(part, nn.Embedding):
            before = getattr(part, "offset", 0) or (0 if part.padding_idx is None else part.padding_idx + 1)
            return part.num_embeddings - int(before)  # rows that no position uses (RoBERTa, OPT)
    return None


def model_layers(model: nn.Module) -> nn.ModuleList:
    """The model's layers, first to last: the module list that is `num_hidden_layers` long.

    Raises:
        ModelError: there is none (layers of several kinds, as in most convolutional nets, or one layer used
        repeatedly).
    """
    inner = inner_model(model)
    count = getattr(text_config(model), "num_hidden_layers", None)
    lists = [m for m in inner.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        what = f"no list of {count} layers was found in" if count else "there is no list of like layers in"
        raise ModelError(f"{what} {type(inner).__name__}", fix="name its parts by their paths (module:<path>)")
    # Other lists (of experts, say) can have the same length; they are inside the layers, so take the largest.
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def output_layer(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits, adapters included.

    Raises:
        ModelError: there is none.
    """
    inner = unwrap(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output layer", fix="use a causal language model")
    assert isinstance(head, nn.Module)
    return head


def dims(model: nn.Module) -> ModelDims:
    """The sizes that an objective may need.

    `vocab` is the number of rows of the head, which may exceed the tokenizer's; for a classifier the number of
    classes; 0 without a head; for a user's own module the `out_features` of its last layer. Sizes that a family does
    not have are 0: a convolutional net has no single width and no like layers.
    """
    if is_plain(model):
        widths = [width for part in model.modules() if isinstance(width := getattr(part, "out_features", None), int)]
        return ModelDims(vocab=widths[-1] if widths else 0, hidden=0, layers=0, heads=0, kv_heads=0, causal=False)
    config, spec = text_config(model), spec_of(model)
    if spec.has_vocabulary:
        weight = output_layer(model).weight
        assert isinstance(weight, Tensor)
        vocab = weight.shape[0]
    elif not spec.has_classes or not _has_class_head(model):
        vocab = 0
    else:
        vocab = int(config.num_labels)
    heads = _size(config, "num_attention_heads")
    return ModelDims(
        vocab=vocab,
        hidden=_size(config, "hidden_size"),
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads") or heads,
        causal=is_causal(model),
        attention_softcap=getattr(config, _ATTENTION_SOFTCAP, None) or None,
    )


def _size(config: Any, key: str) -> int:
    value = getattr(config, key, None)
    return value if isinstance(value, int) else 0


def _has_class_head(model: nn.Module) -> bool:
    return unwrap(model).base_model is not unwrap(model)


def scale_and_softcap(model: nn.Module) -> tuple[float, float | None]:
    """The scale and the soft cap (None without one) that the model applies to the output of its head."""
    config = text_config(model)
    scale = 1.0
    for name in _MULTIPLIES:
        scale *= float(getattr(config, name, None) or 1.0)
    for name in _DIVIDES:
        scale /= float(getattr(config, name, None) or 1.0)
    softcap = getattr(config, _SOFTCAP, None)
    return scale, float(softcap) if softcap else None


def effective_head(model: nn.Module) -> HeadParts | None:
    """The head's effective weight, with scale and soft cap; None if it cannot be taken apart (see `why_no_head`)."""
    try:
        weight, bias = _linear_parts(output_layer(model))
    except _CannotTakeApart:
        return None
    scale, softcap = scale_and_softcap(model)
    return HeadParts(weight, bias, softcap, scale)


def why_no_head(model: nn.Module) -> str | None:
    """Why the head cannot be taken apart (whole logits, `Dense`, are then computed); None if it can."""
    try:
        _linear_parts(output_layer(model))
    except _CannotTakeApart as reason:
        return str(reason)
    return None


def _linear_parts(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(head, ModulesToSaveWrapper):
        trained = bool(head.active_adapters) and not head.disable_adapters
        return _linear_parts(head.modules_to_save[head.active_adapters[0]] if trained else head.original_module)
    if type(head) is LoraLinear:
        return _with_lora(head)
    # A quantised layer is also an nn.Linear by inheritance, but holds packed integers and has its own forward.
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise _CannotTakeApart(f"the output layer is a {type(head).__module__}.{type(head).__name__}")
    if head.weight.is_meta:
        raise _CannotTakeApart("the output layer's weight is not in memory (offloaded)")
    return head.weight, head.bias


def _with_lora(head: LoraLinear) -> tuple[Tensor, Tensor | None]:
    """W + Σ scaling·B·A over the active adapters, and the same for the bias. Hu et al. 2021, eq. 3."""
    weight, bias = _linear_parts(head.get_base_layer())
    if head.disable_adapters or head.merged:
        return weight, bias
    for name in head.active_adapters:
        if name not in head.lora_A:
            continue
        if name in head.lora_variant:
            raise _CannotTakeApart(f"the adapter on the output layer is a {type(head.lora_variant[name]).__name__}")
        dropout = head.lora_dropout[name]
        if head.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
            # Dropout applies to the adapter's input alone; no single weight has the same effect.
            raise _CannotTakeApart(f"the adapter on the output layer has dropout {dropout.p:g}")
        down, up = head.lora_A[name].weight, head.lora_B[name].weight
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        weight = weight + (head.scaling[name] * (up @ down)).to(weight.dtype)
        if head.lora_bias[name] and bias is not None:  # peft refuses lora_bias on a layer without bias
            bias = bias + (head.scaling[name] * head.lora_B[name].bias).to(bias.dtype)
    return weight, bias
