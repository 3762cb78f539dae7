"""Export to OpenVINO's format, opened in OpenVINO and compared with the student there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.artifacts import Work
from potstill.console import Console
from potstill.export.base import Student
from potstill.recipe.export import OpenVinoExport
from potstill.registry import implements

if TYPE_CHECKING:
    from potstill.export.graph import Graph

TOLERANCE = {"float32": 1e-4, "float16": 1e-3}
"""As in `GraphFile`."""


@implements(OpenVinoExport)
class OpenVino:
    """Exporter of kind `openvino`."""

    def __init__(self, settings: OpenVinoExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write `openvino_model.xml` of the first type, with its weights in `openvino_model.bin`, and
        `openvino_model_<type>.xml` of another. Raises as `export_graphs` does."""
        from potstill.export.graph import GraphFile, export_graphs

        first = self.settings.types[0]
        graphs = [
            GraphFile(
                "openvino_model.xml" if kind == first else f"openvino_model_{kind}.xml",
                partial(convert, half=kind == "float16"),
                opened,
                TOLERANCE[kind],
            )
            for kind in self.settings.types
        ]
        export_graphs(self.settings, graphs, student, work, console)


def convert(source: Path, target: Path, *, half: bool) -> None:
    """Write an ONNX graph in OpenVINO's format, its weights in fp16 if asked. OpenVINO's own converter calls home
    (`openvino-telemetry`); its reader does not."""
    import openvino

    openvino.save_model(_core().read_model(str(source)), str(target), compress_to_fp16=half)


@cache
def _core() -> Any:
    """OpenVINO, once a process. It gives the thread that makes it a stack for signal handlers, and unmaps that stack
    when it ends, in whichever thread that is: the next signal with a handler, such as the end of a data loader's
    process, would end ours."""
    import openvino

    return openvino.Core()


@contextmanager
def opened(file: Path) -> Iterator[Graph]:
    """The graph open in OpenVINO, on the processor, with as many threads as torch has. It computes in fp32: where a
    processor has bf16 instructions OpenVINO takes those by default, whatever the file holds."""
    import torch

    from potstill.export.graph import Graph

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled: Any = _core().compile_model(str(file), "CPU", settings)
    yield Graph(
        f"openvino {metadata.version('openvino')}",
        {
            one.any_name: [None if d.is_dynamic else d.get_length() for d in one.partial_shape]
            for one in compiled.inputs
        },
        lambda inputs: {one.any_name: value for one, value in compiled(inputs).items()},
    )
