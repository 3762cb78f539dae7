"""The input and the interface of an exporter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import MissingExtra, ModelError
from potstill.markdown import escape_markdown
from potstill.recipe import ExportSettings, Pooling
from potstill.recipe.export import SAME_GRID
from potstill.recipe.train import Quantize
from potstill.tasks import Task


@dataclass(frozen=True)
class Student:
    """A trained student to export.

    Args:
        model: folder with configuration, safetensors and (for text) tokenizer, adapters merged; or a plain module with
            its Python file.
        card: its model card, if there is one.
        licences: licence texts that must accompany its weights.
        trust_remote_code: whether the recipe trusts Python code in the folder.
        task: the recipe's task.
        adapter: folder of its adapter, not merged; None if it was trained without one.
        base: the model that it began with, and its name for others; None if there is no such model.
        pooling: how an encoder's states become one vector.
        name: its name, with the beginning that a licence asks for.
        terms: lines of Markdown: licences and terms, duties, what was overridden. The report's card has them too.
        notes: sentences for the card about what this export does to the weights.
    """

    model: Path
    card: Path | None
    licences: Sequence[Path]
    trust_remote_code: bool
    task: Task = "causal_lm"
    adapter: Path | None = None
    base: tuple[Path, str] | None = None
    pooling: Pooling = "mean"
    name: str = "student"
    terms: Sequence[str] = ()
    notes: Sequence[str] = ()


class Exporter(Protocol):
    """Built by `registry.build(settings)`."""

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write the student into `work.path`; counts and warnings go into `work`."""
        ...


def check_possible(settings: ExportSettings, task: Task) -> None:
    """Refuse an export that a student of a task cannot have, or whose packages are missing.

    Raises:
        ModelError: students of this task have no such export.
        MissingExtra: a package is missing.
    """
    why = settings.why_not(task)
    if why is not None:
        raise ModelError(why, where=f"export: {settings.kind}", fix="use kind: huggingface")
    for package, extra in settings.packages().items():
        if find_spec(package) is None:
            raise MissingExtra(package, extra, f"the export of kind {settings.kind}")


def second_rounding(settings: ExportSettings, quantize: Quantize | None) -> str | None:
    """A sentence about an export that rounds weights again which `train.quantize` has rounded, or None."""
    again = settings.rounds_again(quantize.weights) if quantize is not None else ()
    if quantize is None or not again:
        return None
    learned = "was trained through" if quantize.learned else "was rounded by"
    exact = {"gguf": f"types: [{SAME_GRID[quantize.weights]}]", "huggingface": "dtype: keep"}
    stored = exact.get(settings.kind, "float32")
    return (
        f"The student {learned} {quantize.weights} (train.quantize), and this export rounds its weights again "
        f"({', '.join(again)}): they are not those that were trained and measured. {stored} stores these as they are."
    )


def write_card(student: Student, folder: Path, section: str, *, card: bool) -> None:
    """Write `README.md`: the student's card, else its name and its licences and terms, with its notes and a section
    about these files; and copy the licences."""
    if card and student.card is not None:
        before = student.card.read_text(encoding="utf-8").rstrip() + "\n"
    else:
        terms = ["", "## Licences and terms", "", *student.terms] if student.terms else []
        before = "\n".join([f"# {escape_markdown(student.name)}", *terms, ""])
    notes = "".join(f"\n{escape_markdown(note)}\n" for note in student.notes)
    (folder / "README.md").write_text(before + notes + section, encoding="utf-8")
    copy_licences(student, folder)


def copy_licences(student: Student, folder: Path) -> None:
    """Copy the licence texts that lay beside the weights that the student began with."""
    for licence in student.licences:
        shutil.copyfile(licence, folder / licence.name)
