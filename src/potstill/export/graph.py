"""A model as a graph: traced once, written for a runtime, opened there and compared; with a cache if it writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import ModelError
from potstill.export import comparison, onnx_file
from potstill.export.base import Student, check_possible, write_card
from potstill.export.end_tokens import write_end_tokens
from potstill.export.huggingface import copy_companions
from potstill.models.folder import check_folder, is_module
from potstill.recipe.export import OnnxExport, OpenVinoExport
from potstill.tasks import SPECS


class Graph:
    """A graph, open in a runtime, as an engine of a comparison.

    Args:
        title: name and version of the runtime.
        inputs: the shape of each input by name; free sizes are any value.
        run: gives the outputs by name, in the graph's order, for inputs by name.
    """

    def __init__(
        self,
        title: str,
        inputs: Mapping[str, Sequence[Any]],
        run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    ) -> None:
        self.title, self._inputs, self._run = title, inputs, run

    def tokenize(self, text: str) -> None:
        """It reads ids."""
        return

    def logits(self, ids: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Logits after each token: half of the text at once, the rest behind its cache, so that both ways are seen."""
        half = max(1, len(ids) // 2)
        first, cache = self._read(ids[:half], self._empty())
        if half == len(ids):
            return first
        rest, _ = self._read(ids[half:], cache)
        return np.concatenate([first, rest])

    def write(self, ids: Sequence[int], most_new: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy text, token by token."""
        logits, cache = self._read(ids, self._empty())
        written = [int(logits[-1].argmax())]
        while len(written) < most_new and written[-1] not in stop_ids:
            logits, cache = self._read(written[-1:], cache)
            written.append(int(logits[-1].argmax()))
        return written

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output for a batch, for models that write no text."""
        return next(iter(self._run(self._known(inputs)).values()))

    def _known(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value for name, value in inputs.items() if name in self._inputs}

    def _empty(self) -> dict[str, np.ndarray]:
        caches = {name: shape for name, shape in self._inputs.items() if name.startswith("past_key_values")}
        return {name: np.zeros((1, s[1], 0, s[3]), np.float32) for name, s in caches.items()}

    def _read(
        self, ids: Sequence[int], cache: Mapping[str, np.ndarray]
    ) -> tuple[Float[np.ndarray, "T V"], dict[str, np.ndarray]]:
        past = next(iter(cache.values())).shape[2]
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, past + len(ids)), np.int64),
            "position_ids": np.arange(past, past + len(ids))[None],
        }
        found = self._run({**self._known(inputs), **cache})
        grown = {f"past_key_values{name.removeprefix('present')}": v for name, v in found.items() if name != "logits"}
        return found["logits"][0], grown


@dataclass(frozen=True)
class GraphFile:
    """One file of an export.

    Attributes:
        name: its name in the folder.
        make: writes it (second argument) from the traced graph, an ONNX file in fp32.
        opened: opens it in the runtime that it is for.
        tolerance: largest mean KL(student ‖ graph) in nats per token or example; for embeddings, largest 1 − cos.
    """

    name: str
    make: Callable[[Path, Path], None]
    opened: Callable[[Path], AbstractContextManager[Graph]]
    tolerance: float


def export_graphs(
    settings: OnnxExport | OpenVinoExport, graphs: Sequence[GraphFile], student: Student, work: Work, console: Console
) -> None:
    """Trace a student, write its graphs with its configuration and tokenizer, compare each with the student in the
    runtime that it is for, and write the card.

    Raises:
        ModelError: the student cannot be traced, or a graph is not the student.
        MissingExtra: a package is missing.
    """
    check_folder(student.model)
    check_possible(settings, student.task)
    spec = SPECS[student.task]
    if is_module(student.model) and settings.image_shape is None:
        raise ModelError(
            "a module of your own does not say what images it reads",
            where="export.image_shape",
            fix="set `image_shape` of this export to channels, height and width",
        )
    traced = work.path / "traced" / "model.onnx"
    traced.parent.mkdir()
    with console.task(f"export to {settings.kind}", total=len(graphs) + 1, unit="graphs") as task:
        model = comparison.open_student(student.model, student.task, trust_remote_code=student.trust_remote_code)
        onnx_file.write_onnx(model, spec, traced, settings.image_shape)
        task.advance(1)
        for graph in graphs:
            graph.make(traced, work.path / graph.name)
            task.advance(1)
    shutil.rmtree(traced.parent)
    compared = _compare(settings, graphs, student, work.path, console)
    comparison.refuse_far(compared, work.path)
    copy_companions(student, work.path)
    if spec.writes:
        write_end_tokens(work.path)
    work.facts["check"] = comparison.as_facts(compared)
    sizes = {graph.name: size_of(work.path / graph.name) for graph in graphs}
    work.count("bytes of weights", sum(sizes.values()))
    section = comparison.check_section(compared, sizes=sizes, asked=settings.check_prompts)
    write_card(student, work.path, section, card=settings.model_card)


def _compare(
    settings: OnnxExport | OpenVinoExport,
    graphs: Sequence[GraphFile],
    student: Student,
    folder: Path,
    console: Console,
) -> dict[str, comparison.Comparison]:
    wanted = settings.tolerance
    engines = {graph.name: graph.opened(folder / graph.name) for graph in graphs}
    tolerances = {graph.name: wanted if wanted is not None else graph.tolerance for graph in graphs}
    if SPECS[student.task].writes:
        return comparison.compare(
            student.model,
            engines,
            tolerances,
            count=settings.check_prompts,
            most_new=settings.check_tokens,
            console=console,
            trust_remote_code=student.trust_remote_code,
        )
    return comparison.compare_outputs(
        student.model,
        student.task,
        engines,
        tolerances,
        count=settings.check_prompts,
        image_shape=settings.image_shape,
        console=console,
        trust_remote_code=student.trust_remote_code,
    )


def size_of(file: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    beside = (file, file.with_name(f"{file.name}_data"), file.with_suffix(".bin"))
    return sum(part.stat().st_size for part in beside if part.is_file())
