"""Signals of a live model: hidden rows and head parts instead of logits, and inner tensors by name.

For language models only the part before the head runs, never the projection to the vocabulary. Everything runs in the
caller's grad mode, so the same function serves the teacher (under `no_grad`) and the student inside the training
module's forward (rule 14).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.anatomy import (
    dims,
    effective_head,
    inner_decoder,
    inner_model,
    output_layer,
    scale_and_softcap,
    why_no_head,
)
from potstill.models.taps import tapped
from potstill.models.tasks import is_causal, is_plain, spec_of, unwrap
from potstill.models.unchanged import evaluating
from potstill.signals import Ask, Batch, Dense, Head, ImageView, Side, Signals, View

_CHECKED_ROWS, _CHECKED_TOKENS = 2, 16
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Relative tolerances of about ten roundings, by dtype."""


def live_signals(model: nn.Module, batch: Batch, side: Side, ask: Ask) -> Signals:
    """The requested tensors of one model for a batch, from that model's view.

    The response of a language model is `head`: hidden rows [N,H] and the effective output weight; or, if its head
    cannot be taken apart, `dense` with a warning that says why. The response of a classifier is `dense`: logits [N,V]
    of the examples that have a class. Taps are whole tensors, named as in `Signals`.

    Args:
        model: a model of `transformers` for any task, wrapped by peft or not, or any module that takes arrays. Its mode
            (training or not) and the grad mode are the caller's.
        batch: rows of the response are its targets, in order.
        side: whose view of the batch.
        ask: the tensors to return.

    Raises:
        ModelError: the model has no such tensor (the error lists those it has), or cannot take such a batch.
    """
    view, positions = batch.view(side), batch.target_positions[side]
    if isinstance(view, ImageView):
        return _of_arrays(model, view, positions, ask)
    spec = spec_of(model)
    if spec.writes:
        return _of_decoder(model, view, positions, ask)
    if spec.masks:
        return _of_masked(model, view, positions, ask)
    if spec.reads_images:
        raise ModelError(f"{type(model).__name__} takes arrays, and these data are texts", fix="see data.kind")
    if ask.response and not spec.has_response:
        raise ModelError(
            f"{type(unwrap(model)).__name__} has no head, and so no response: it gives states",
            fix="use objectives over states, or give it a head (task: sequence_classification, masked_lm)",
        )
    if not ask.response:
        return _inside_encoder(model, view, ask)
    with tapped(model, ask.taps) as taps:
        logits = _logits(_run_encoder(unwrap(model), view))
    return Signals(dense=Dense(logits.index_select(0, positions)), taps=taps, dims=dims(model))


def run_decoder(model: nn.Module, view: View) -> Float[Tensor, "B T H"]:
    """The last hidden state of a causal language model, after the final norm.

    Deliberately without attention mask and cache: padding is on the right, where causal attention does not look, and
    packed rows are kept apart by `position_ids` alone (with a mask or a cache, `transformers` would silently let their
    tokens see each other). Not for recurrent models, whose state crosses segments.
    """
    outputs = inner_decoder(model)(input_ids=view.input_ids, position_ids=view.position_ids, use_cache=False)
    last: Tensor = outputs.last_hidden_state
    return last


def run_inside(model: nn.Module, view: View) -> Float[Tensor, "B T H"]:
    """The last hidden state of any text model; its head does not run."""
    if spec_of(model).writes:
        return run_decoder(model, view)
    last: Tensor = _run_encoder(inner_model(model), view).last_hidden_state
    return last


# ---- by kind of model --------------------------------------------------------------------------------------------


def _of_decoder(model: nn.Module, view: View, positions: Int[Tensor, " N"], ask: Ask) -> Signals:
    with tapped(model, ask.taps) as taps:
        last = run_decoder(model, view)
    if not ask.response:
        return Signals(taps=taps, dims=dims(model))
    return _respond(model, last.flatten(0, 1).index_select(0, positions), taps)


def _inside_encoder(model: nn.Module, view: View, ask: Ask) -> Signals:
    """Taps only: the head runs only if one of them may be in it."""
    inner, whole = inner_model(model), False
    if paths := [name.removeprefix("module:") for name in ask.taps if name.startswith("module:")]:
        inside, parts = set(inner.modules()), dict(unwrap(model).named_modules())
        whole = any(parts.get(path) not in inside for path in paths)
    with tapped(model, ask.taps) as taps:
        _run_encoder(unwrap(model) if whole else inner, view)
    return Signals(taps=taps, dims=dims(model))


def _of_masked(model: nn.Module, view: View, positions: Int[Tensor, " N"], ask: Ask) -> Signals:
    """The output layer reads the output of other parts of the head (a dense layer and a norm, say). So the whole model
    runs, except the output layer, which only records its input."""
    if not ask.response:
        return _inside_encoder(model, view, ask)
    with tapped(model, ask.taps) as taps, _noting(output_layer(model), dims(model).vocab) as read:
        _run_encoder(unwrap(model), view)
    (rows_BTH,) = read
    return _respond(model, rows_BTH.flatten(0, 1).index_select(0, positions), taps)


def _respond(model: nn.Module, rows_NH: Tensor, taps: Mapping[str, Tensor]) -> Signals:
    parts = effective_head(model)
    if parts is None:
        warnings.warn(f"whole logits are made for every target, which is slow: {why_no_head(model)}", stacklevel=3)
        return Signals(dense=Dense(_dense_logits(model, rows_NH)), taps=taps, dims=dims(model))
    head = Head(rows_NH.to(parts.weight.device), parts.weight, parts.bias, parts.softcap, parts.scale)
    return Signals(head=head, taps=taps, dims=dims(model))


def _of_arrays(model: nn.Module, view: ImageView, positions: Int[Tensor, " N"], ask: Ask) -> Signals:
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), view.pixels.dtype)
    with tapped(model, ask.taps) as taps:
        pixels = view.pixels.to(floating)
        output = model(pixels) if is_plain(model) else unwrap(model)(pixel_values=pixels)
    if not ask.response:
        return Signals(taps=taps, dims=dims(model))
    logits = _logits(output)
    if logits.dim() != 2 or logits.shape[0] != view.pixels.shape[0]:
        raise ModelError(
            f"{type(model).__name__} gives logits of shape {list(logits.shape)} for {view.pixels.shape[0]} examples",
            fix="it should give one row of logits per example: [examples, classes]",
        )
    return Signals(dense=Dense(logits.index_select(0, positions)), taps=taps, dims=dims(model))


def _run_encoder(model: nn.Module, view: View) -> Any:
    """Run an encoder with padding masked, one text a row. Positions are the model's own (RoBERTa's begin at 2)."""
    if bool((view.segment_ids > 1).any()):
        raise ModelError(
            "packed rows were given to an encoder, whose tokens would see each other", fix="set train.packing: false"
        )
    return model(input_ids=view.input_ids, attention_mask=view.attention_mask)


def _logits(output: Any) -> Tensor:
    """The logits in a classifier's output: a tensor, an object with `logits`, or a tuple that begins with them."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, (tuple, list)):
        output = output[0]
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    if not isinstance(output, Tensor):
        raise ModelError("the model gives no logits", fix="return a tensor, or an output with the field `logits`")
    return output


@contextmanager
def _noting(head: nn.Module, vocab: int) -> Iterator[list[Tensor]]:
    """Record the input of the output layer instead of running it. The layer returns zeros of the shape of the logits,
    which take no memory."""
    read: list[Tensor] = []

    def note(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        read.append(hidden)
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], vocab)

    own = vars(head).get("forward")
    head.forward = note
    try:
        yield read
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


# ---- checks ------------------------------------------------------------------------------------------------------


def check_head(model: nn.Module, batch: Batch, side: Side = "student") -> float:
    """Compare the logits of `live_signals` with the model's own, on a few tokens (rule 14).

    Runs in evaluation mode without gradient, and restores the model's mode.

    Returns:
        The largest difference, as a share of the largest logit; 0 if the signals are the model's own logits.

    Raises:
        ModelError: they differ by more than rounding: the model changes its logits in an unknown way.
    """
    if not spec_of(model).has_vocabulary:
        return 0.0
    view, inner = batch.text(side), unwrap(model)
    part = (slice(_CHECKED_ROWS), slice(_CHECKED_TOKENS))
    few = View(view.input_ids[part], view.position_ids[part], view.segment_ids[part])
    positions = (few.segment_ids > 0).flatten().nonzero().squeeze(-1)
    asked = Batch(few, few, few.input_ids.flatten()[positions], {"student": positions, "teacher": positions})
    with torch.no_grad(), evaluating(model):
        signals = live_signals(model, asked, "student", Ask(response=True))
        found = _whole_logits(signals)
        if is_causal(model):
            whole = inner(input_ids=few.input_ids, position_ids=few.position_ids, use_cache=False).logits
        else:
            whole = _run_encoder(inner, few).logits
    own = whole.flatten(0, 1).index_select(0, positions.to(whole.device))
    if own.shape != found.shape:
        raise ModelError(
            f"{type(inner).__name__} gives {own.shape[-1]} logits per token, its output layer {found.shape[-1]}"
        )
    own64, found64 = own.double(), found.to(own.device).double()
    difference = float((own64 - found64).abs().max() / own64.abs().max().clamp_min(1e-30))
    if not difference <= _TOLERANCE.get(own.dtype, 1e-4):
        factor = float((own64 * found64).sum() / found64.square().sum().clamp_min(1e-30))
        raise ModelError(
            f"{type(inner).__name__} changes its logits in a way that potstill does not know: they differ from those "
            f"of its output layer by up to {difference:.1%} of the largest, and are {factor:.4g} times as large",
            fix="models of this family cannot be used with objectives over the vocabulary; please report it",
        )
    return difference


def check_packing(model: nn.Module, view: View) -> float:
    """Check that packed segments do not see each other: compare a few tokens as two segments of a row with each alone.

    In some families they silently do: families without positions (ALiBi), or with convolutions over neighbours. Runs
    in evaluation mode without gradient, and restores the model's mode.

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
            fix="set train.packing: false",
        )
    return difference


def _dense_logits(model: nn.Module, rows: Tensor) -> Tensor:
    """Logits computed by the output layer itself, with its wrappers."""
    scale, softcap = scale_and_softcap(model)
    logits: Tensor = output_layer(model)(rows) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _whole_logits(signals: Signals) -> Tensor:
    if signals.head is not None:
        return signals.head.logits()
    if signals.dense is not None:
        return signals.dense.logits
    raise ModelError("the model gives no logits", fix="use a model with a head")
