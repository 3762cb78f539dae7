"""Signals of a live model: hidden rows and head parts instead of logits, and hidden states of the layers asked.

Only the inner decoder runs, never the output projection over the vocabulary. Everything happens under the caller's
grad mode, so that the same function serves the teacher (under `no_grad`) and the student inside the training
module's forward (rule 14).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.anatomy import (
    decoder_layers,
    dims,
    effective_head,
    inner_decoder,
    output_layer,
    scale_and_softcap,
    text_config,
    unwrap,
    why_no_head,
)
from potstill.signals import Ask, Batch, Dense, Head, Side, Signals, View

_CHECKED_ROWS, _CHECKED_TOKENS = 2, 16
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Relative differences that are some ten roundings, by dtype."""


def run_decoder(model: nn.Module, view: View) -> Float[Tensor, "B T H"]:
    """The last hidden state, after the final norm.

    There is no attention mask and no cache, on purpose: padding is on the right, where causal attention does not
    look, and packed rows are kept apart by `position_ids` alone (with a mask or a cache, `transformers` would let
    their tokens see each other without a word). Not for recurrent models, whose state crosses segments.
    """
    outputs = inner_decoder(model)(input_ids=view.input_ids, position_ids=view.position_ids, use_cache=False)
    last: Tensor = outputs.last_hidden_state
    return last


def live_signals(model: nn.Module, batch: Batch, side: Side, ask: Ask) -> Signals:
    """What is asked of one model for a batch, from its own view, under the caller's modes (training, grad).

    Raises:
        ModelError: the model has no such tensor; what it has is named.
    """
    states = [int(name.removeprefix("hidden.")) for name in ask.taps]
    want: Literal["head"] | None = "head" if ask.response else None
    return decoder_signals(model, batch.text(side), batch.target_positions[side], states, want)


def decoder_signals(
    model: nn.Module,
    view: View,
    positions: Int[Tensor, " N"],
    hidden_layers: Collection[int] | Literal["last"] = (),
    want: Literal["head", "dense"] | None = "head",
) -> Signals:
    """What one model gives for one view of a batch.

    Args:
        model: a causal language model, wrapped by peft or not. Its mode (training or not) and the grad mode are
            the caller's.
        view: ids and positions [B,T].
        positions: flat positions (b·T + t) of the rows wanted.
        hidden_layers: states to tap, 0 the embeddings, L (or `last`) the last one after the final norm. They
            come as `hidden.k` [B,T,H]; only those asked are kept.
        want: `head` gives hidden rows [N,H] with the effective head, or, where that head cannot be taken apart,
            `dense` and a warning that says why. `dense` gives logits [N,V]. None gives taps alone.

    Raises:
        ModelError: a layer that the model does not have.
    """
    layers = int(text_config(model).num_hidden_layers)
    asked = {layers} if hidden_layers == "last" else set(hidden_layers)
    if wrong := sorted(k for k in asked if not 0 <= k <= layers):
        raise ModelError(
            f"hidden state {wrong[0]} of a model with {layers} layers",
            mend=f"states are counted from 0 (the embeddings) to {layers} (the last, after the final norm)",
        )
    taps: dict[str, Tensor] = {}
    with _tapped(model, asked - {layers}, taps):
        last = run_decoder(model, view)
    if layers in asked:
        taps[f"hidden.{layers}"] = last
    if want is None:
        return Signals(taps=taps, dims=dims(model))
    rows = last.flatten(0, 1).index_select(0, positions)
    parts = effective_head(model) if want == "head" else None
    if parts is None:
        if want == "head":
            warnings.warn(f"whole logits are made for every target, which is slow: {why_no_head(model)}", stacklevel=2)
        return Signals(dense=Dense(_dense_logits(model, rows)), taps=taps, dims=dims(model))
    rows = rows.to(parts.weight.device)
    head = Head(rows, parts.weight, parts.bias, parts.softcap, parts.scale)
    return Signals(head=head, taps=taps, dims=dims(model))


def check_head(model: nn.Module, view: View) -> float:
    """Compare the logits that `live_signals` stands for with the model's own, on a few tokens of a view (rule 14).

    Runs in evaluation mode without gradient, and leaves the model in the mode in which it found it.

    Returns:
        The largest difference, as a share of the largest logit.

    Raises:
        ModelError: they differ by more than rounding: the model does something to its logits that was not seen.
    """
    inner = unwrap(model)
    part = (slice(_CHECKED_ROWS), slice(_CHECKED_TOKENS))
    few = View(view.input_ids[part], view.position_ids[part], view.segment_ids[part])
    positions = (few.segment_ids > 0).flatten().nonzero().squeeze(-1)
    with torch.no_grad(), evaluating(model):
        signals = decoder_signals(model, few, positions)
        ours = signals.head.logits() if signals.head is not None else _logits_of(signals)
        whole = inner(input_ids=few.input_ids, position_ids=few.position_ids, use_cache=False).logits
    own = whole.flatten(0, 1).index_select(0, positions.to(whole.device))
    if own.shape != ours.shape:
        raise ModelError(
            f"{type(inner).__name__} gives {own.shape[-1]} logits per token, its output layer {ours.shape[-1]}"
        )
    own64, ours64 = own.double(), ours.to(own.device).double()
    difference = float((own64 - ours64).abs().max() / own64.abs().max().clamp_min(1e-30))
    if not difference <= _TOLERANCE.get(own.dtype, 1e-4):
        factor = float((own64 * ours64).sum() / ours64.square().sum().clamp_min(1e-30))
        raise ModelError(
            f"{type(inner).__name__} does something to its logits that was not understood: they differ from those "
            f"of its output layer by up to {difference:.1%} of the largest, and are {factor:.4g} times as large",
            mend="models of this family cannot be used with objectives over the vocabulary; please report it",
        )
    return difference


def check_packing(model: nn.Module, view: View) -> float:
    """Whether packed segments see each other: a few tokens of a view as two segments of one row, and each alone.

    In some families they do, without a word: those that take no positions (ALiBi), or that mix neighbours by
    convolution. Runs in evaluation mode without gradient, and leaves the model as it was.

    Returns:
        The relative difference (L2) of the last hidden states.

    Raises:
        ModelError: they differ by more than rounding.
    """
    real = view.input_ids[view.segment_ids > 0][: 2 * _CHECKED_TOKENS]
    halves = [half for half in real.tensor_split(2) if half.numel()]
    positions = [torch.arange(half.numel(), device=half.device) for half in halves]
    segments = [torch.full_like(half, number) for number, half in enumerate(halves, start=1)]
    with torch.no_grad(), evaluating(model):
        packed = run_decoder(
            model, View(torch.cat(halves)[None], torch.cat(positions)[None], torch.cat(segments)[None])
        )
        alone = [
            run_decoder(model, View(half[None], position[None], torch.ones_like(half)[None]))
            for half, position in zip(halves, positions, strict=True)
        ]
    expected = torch.cat(alone, dim=1).double()
    difference = float((packed.double() - expected).norm() / expected.norm().clamp_min(1e-30))
    if not difference <= _TOLERANCE.get(packed.dtype, 1e-4):
        raise ModelError(
            f"{type(unwrap(model)).__name__} lets packed records see each other: its states differ by {difference:.1%} "
            "from those of the records alone",
            mend="set train.packing: false",
        )
    return difference


def _dense_logits(model: nn.Module, rows: Tensor) -> Tensor:
    """Logits through the output layer as it is, whatever wraps it."""
    scale, softcap = scale_and_softcap(model)
    logits: Tensor = output_layer(model)(rows) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _logits_of(signals: Signals) -> Tensor:
    assert signals.dense is not None
    return signals.dense.logits


@contextmanager
def _tapped(model: nn.Module, states: Collection[int], taps: dict[str, Tensor]) -> Iterator[None]:
    """Keep the inputs of some layers: state k is what layer k reads.

    Hooks rather than `output_hidden_states`, which would keep all layers' states alive; gradient checkpointing
    recomputes inside the layers and so does not change what goes between them.
    """
    layers = decoder_layers(model) if states else nn.ModuleList()

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taps[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [layers[k].register_forward_pre_hook(keep(f"hidden.{k}"), with_kwargs=True) for k in sorted(states)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode in which it was found (rule 8)."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        # One by one: a frozen part may have been in evaluation mode inside a model that trains.
        for module, mode in training.items():
            module.training = mode
