"""Export to ONNX graphs, opened in ONNX Runtime and compared with the student there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.artifacts import Work
from potstill.console import Console
from potstill.export.base import Student
from potstill.recipe.export import OnnxExport
from potstill.registry import implements

if TYPE_CHECKING:
    from potstill.export.graph import Graph

TOLERANCE = {"float32": 1e-4, "int8": 1.0}
"""As in `GraphFile`."""


@implements(OnnxExport)
class Onnx:
    """Exporter of kind `onnx`."""

    def __init__(self, settings: OnnxExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write `model.onnx` and `model_int8.onnx`, whichever are asked for. Raises as `export_graphs` does."""
        from potstill.export import onnx_file
        from potstill.export.graph import GraphFile, export_graphs

        make = {"float32": _keep, "int8": onnx_file.quantise}
        names = {"float32": "model.onnx", "int8": "model_int8.onnx"}
        graphs = [GraphFile(names[kind], make[kind], opened, TOLERANCE[kind]) for kind in self.settings.types]
        export_graphs(self.settings, graphs, student, work, console)


def _keep(source: Path, target: Path) -> None:
    """The graph itself, which names the file of its weights. Copied: onnx opens no file that has a second link."""
    shutil.copyfile(source, target)
    shutil.copyfile(source.with_name("model.onnx_data"), target.with_name("model.onnx_data"))


@contextmanager
def opened(file: Path) -> Iterator[Graph]:
    """The graph open in ONNX Runtime, on the processor, with as many threads as torch has."""
    import onnxruntime
    import torch

    from potstill.export.graph import Graph

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    yield Graph(
        f"onnxruntime {metadata.version('onnxruntime')}",
        {value.name: value.shape for value in session.get_inputs()},
        lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)),
    )
