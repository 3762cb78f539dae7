"""A student as an ONNX graph, traced by the exporters of `transformers` (torch's, for a module of the user's own).

Inputs and outputs have the names that Optimum and Transformers.js look for: `input_ids`, `attention_mask`,
`position_ids`, `past_key_values.0.key` …, `present.0.key` …; `pixel_values`; `logits`, `last_hidden_state`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.errors import ModelError
from potstill.export.comparison import image_shape_of
from potstill.models.quiet import quiet_loading
from potstill.models.tasks import is_plain
from potstill.tasks import TaskSpec

_PAST, _NEW = 7, 5
"""Lengths of the traced example: they differ, and are neither 0 nor 1, which a tracer takes as constants."""


def write_onnx(model: nn.Module, spec: TaskSpec, file: Path, image_shape: tuple[int, ...] | None = None) -> None:
    """Write a model in fp32: the graph into `file`, its weights beside it, into `<name>_data`. Batch and lengths are
    free; a causal model takes a cache, which may be empty, and returns it with the new tokens.

    Args:
        image_shape: channels, height and width of what an image classifier reads.

    Raises:
        ModelError: the model cannot be traced, or this version of `transformers` has no exporters.
    """
    import onnx_ir

    if is_plain(model):
        if image_shape is None:
            raise ValueError("a module of the user's own does not say what images it reads")
        with _quiet(), _explained():
            rows = {0: torch.export.Dim.DYNAMIC}
            program: Any = torch.onnx.export(
                model,
                (torch.randn(2, *image_shape),),
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes=(rows,),
                dynamo=True,
            )
        graph = program.model
    else:
        if find_spec("transformers.exporters") is None:
            raise ModelError(
                "this version of transformers has no ONNX exporter", fix='pip install --upgrade "potstill[onnx]"'
            )
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        with _quiet(), _explained():
            traced: Any = model
            exported = OnnxExporter().export(traced, _example(model, spec, image_shape), OnnxConfig(dynamic=True))
        graph = exported.program
        for value in (*graph.graph.inputs, *graph.graph.outputs):
            value.name = _name(str(value.name))
            # The tracer writes a fixed size as text, which is a free one to who reads the file.
            if value.shape is not None:
                sizes = [getattr(size, "value", size) for size in value.shape]
                value.shape = onnx_ir.Shape([int(s) if str(s).isdigit() else s for s in sizes])
    onnx_ir.save(graph, str(file), external_data=f"{file.name}_data")


def quantise(source: Path, target: Path) -> None:
    """Write a graph with its matrices in int8, one scale per channel; activations are rounded as they come
    (onnxruntime's dynamic quantisation). Weights that are no matrices stay in fp32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(str(source), str(target), per_channel=True, weight_type=QuantType.QInt8)


def _example(model: Any, spec: TaskSpec, image_shape: tuple[int, ...] | None) -> dict[str, Any]:
    if spec.reads_images:
        return {"pixel_values": torch.randn(2, *(image_shape or image_shape_of(model.config)))}
    ids = torch.arange(2 * _NEW).view(2, _NEW) + 5
    if not spec.writes:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        past = model(torch.arange(2 * _PAST).view(2, _PAST) + 5, use_cache=True).past_key_values
    return {
        "input_ids": ids,
        "attention_mask": torch.ones(2, _PAST + _NEW, dtype=torch.long),
        "position_ids": torch.arange(_PAST, _PAST + _NEW).repeat(2, 1),
        "past_key_values": past,
        "use_cache": True,
    }


def _name(name: str) -> str:
    """`input.past_key_values.layers.3.keys` → `past_key_values.3.key`; `output.…` → `present.3.key`."""
    match name.split("."):
        case ["input", "past_key_values", "layers", layer, part]:
            return f"past_key_values.{layer}.{part.removesuffix('s')}"
        case ["output", "past_key_values", "layers", layer, part]:
            return f"present.{layer}.{part.removesuffix('s')}"
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracers, which print their stages and warn of what does not concern a user (torchvision, their own
    deprecations)."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_loading(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"the model cannot be traced into an ONNX graph: {type(error).__name__}: {first}",
            where="export: onnx",
            fix="use kind: huggingface",
        ) from error
