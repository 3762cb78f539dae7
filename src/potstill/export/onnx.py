"""Export to ONNX graphs, opened in ONNX Runtime and compared with the student there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import ModelError
from potstill.export.base import Student, check_possible, write_card
from potstill.export.end_tokens import write_end_tokens
from potstill.export.huggingface import copy_companions
from potstill.models.folder import check_folder, is_module
from potstill.recipe.export import OnnxExport
from potstill.registry import implements
from potstill.tasks import SPECS

if TYPE_CHECKING:
    from potstill.export.comparison import Comparison

TOLERANCE = {"float32": 1e-4, "int8": 1.0}
"""Largest mean KL(student ‖ graph) in nats per token or example; for embeddings, largest 1 − cos."""


@implements(OnnxExport)
class Onnx:
    """Exporter of kind `onnx`."""

    def __init__(self, settings: OnnxExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write `model.onnx` and `model_int8.onnx`, whichever are asked for, with the student's configuration and
        tokenizer, and the card.

        Raises:
            ModelError: the student cannot be traced, or a graph is not the student in ONNX Runtime.
            MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        """
        from potstill.export import comparison, onnx_file

        check_folder(student.model)
        check_possible(self.settings, student.task)
        spec = SPECS[student.task]
        if is_module(student.model) and self.settings.image_shape is None:
            raise ModelError(
                "a module of your own does not say what images it reads",
                where="export.image_shape",
                fix="set `image_shape` of this export to channels, height and width",
            )
        whole = work.path / "model.onnx"
        files = {kind: whole if kind == "float32" else work.path / f"model_{kind}.onnx" for kind in self.settings.types}
        with console.task("export to onnx", total=len(files) + 1, unit="graphs") as task:
            model = comparison.open_student(student.model, student.task, trust_remote_code=student.trust_remote_code)
            onnx_file.write_onnx(model, spec, whole, self.settings.image_shape)
            task.advance(1)
            for kind, file in files.items():
                if kind == "int8":
                    onnx_file.quantise(whole, file)
                task.advance(1)
        compared = self._compare(student, files, console)
        comparison.refuse_far(compared, work.path)
        if whole not in files.values():
            whole.unlink()
            whole.with_name("model.onnx_data").unlink()
        copy_companions(student, work.path)
        if spec.writes:
            write_end_tokens(work.path)
        work.facts["check"] = comparison.as_facts(compared)
        sizes = {file.name: size_of(file) for file in files.values()}
        work.count("bytes of weights", sum(sizes.values()))
        section = comparison.check_section(compared, sizes=sizes, asked=self.settings.check_prompts)
        write_card(student, work.path, section, card=self.settings.model_card)

    def _compare(self, student: Student, files: Mapping[Any, Path], console: Console) -> dict[str, Comparison]:
        from potstill.export import comparison
        from potstill.export.onnx_runtime import opened

        wanted = self.settings.tolerance
        engines = {file.name: opened(file) for file in files.values()}
        tolerances = {file.name: wanted if wanted is not None else TOLERANCE[kind] for kind, file in files.items()}
        if SPECS[student.task].writes:
            return comparison.compare(
                student.model,
                engines,
                tolerances,
                count=self.settings.check_prompts,
                most_new=self.settings.check_tokens,
                console=console,
                trust_remote_code=student.trust_remote_code,
            )
        return comparison.compare_outputs(
            student.model,
            student.task,
            engines,
            tolerances,
            count=self.settings.check_prompts,
            image_shape=self.settings.image_shape,
            console=console,
            trust_remote_code=student.trust_remote_code,
        )


def size_of(file: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    data = file.with_name(f"{file.name}_data")
    return file.stat().st_size + (data.stat().st_size if data.is_file() else 0)
