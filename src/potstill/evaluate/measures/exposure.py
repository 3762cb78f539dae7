"""The exposure gap: how much farther a student is from its teacher on text that it writes itself than on its teacher's.

A student learns on text of others and goes on from its own; its errors lead to places that training never showed.
Every model continues the held-out prompts, drawn at temperature 1. Both texts are read by both models, and
KL(teacher ‖ model) is compared between them: a model that differs from its teacher by noise alone is as far from it on
either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from potstill.data import Tokenized
from potstill.data.tokenize import IGNORE
from potstill.evaluate.answers import room_behind, write_answers, writer_of
from potstill.evaluate.bootstrap import NOT_NEGATIVE, Floats, Statistic, mean_of, within
from potstill.evaluate.fidelity import Batches, TeacherRows, measure, measure_teacher
from potstill.evaluate.held_out import of_tokens, prompts_to_ask
from potstill.evaluate.measures.base import Asked, AsksAlone, Draws, Found, Pass, Setting, Table
from potstill.measures import MODELS, Figures, Interval, Loss, MetricSpec
from potstill.recipe.measures import Exposure
from potstill.registry import implements

_SECTION = "exposure"
_TEMPERATURE = 1.0
_REVERSE = "reverse_kl"


@implements(Exposure)
class ExposureMeasure(AsksAlone):
    """KL on a model's own text, less that on its teacher's."""

    def __init__(self, settings: Exposure) -> None:
        self.settings = settings

    def begin(self, setting: Setting) -> Pass:
        """The held-out prompts. Raises as `OwnText`."""
        return OwnText(self.settings, setting)


@dataclass
class Read:
    """A text that one model has read: its batches, and the model's response to each."""

    batches: Batches
    rows: TeacherRows


class OwnText:
    """The continuations of all models, and how far each is from the teacher on them.

    Raises:
        DataError: there are fewer than two groups of prompts.
    """

    def __init__(self, settings: Exposure, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.prompts = prompts_to_ask(setting.held_out, setting.chat, settings.prompts, settings.kind)
        self.by_teacher: Sequence[Sequence[int]] = ()
        self.read: dict[str, list[tuple[Read, Read | None]]] = {}
        self.own: dict[str, list[tuple[NDArray[Any], list[str]]]] = {}
        self.theirs: dict[str, list[tuple[NDArray[Any], list[str]]]] = {}
        self.nll_by_teacher: dict[str, list[tuple[NDArray[Any], list[str]]]] = {}
        self.notes: list[str] = []

    @property
    def identity(self) -> Any:
        """The prompts, in tokens, and how they are continued."""
        asked = [list(prompt.ids) for prompt in self.prompts]
        return ["exposure 1", asked, self.settings.max_new_tokens, self.setting.recipe.seed]

    def ask(self, asked: Asked) -> list[list[int]] | None:
        """The continuations of one model, in tokens. What a student wrote, and what its teacher wrote, is read by it
        here, while it is open."""
        model = writer_of(asked.model)
        if model is None:
            self.notes.append(f"The text of the {asked.name} was not read: it is no single model that writes.")
            return None
        if asked.name == "untrained":
            return None
        written = self._written(model, asked)
        if asked.name == "teacher":
            return written
        if any(written):
            number = len(self.read.setdefault(asked.name, []))
            folder = self.setting.folder / f"exposure-{asked.name}-{number}"
            theirs = self._read(asked, self.by_teacher, folder / "teacher") if any(self.by_teacher) else None
            self.read[asked.name].append((self._read(asked, written, folder / "own"), theirs))
        return written

    def _written(self, model: PreTrainedModel, asked: Asked) -> list[list[int]]:
        prompts, label = [prompt.ids for prompt in self.prompts], asked.name.replace("_", " ")
        room = room_behind(prompts, self.settings.max_new_tokens, asked.positions)
        if room < 1:
            self.notes.append(f"The {label} wrote nothing: the longest prompt leaves it no room.")
            return [[] for _ in self.prompts]
        with self.setting.console.task(f"text of {label}", len(self.prompts), "prompts") as task:
            answers = write_answers(
                model,
                prompts,
                self.setting.chat,
                max_new_tokens=room,
                advance=task.advance,
                temperature=_TEMPERATURE,
                seed=self.setting.recipe.seed,
            )
        return [list(answer.ids) for answer in answers]

    def _read(self, asked: Asked, written: Sequence[Sequence[int]], folder: Path) -> Read:
        """One model's response to continuations."""
        rows = [
            Tokenized([*prompt.ids, *ids], [*[IGNORE] * len(prompt.ids), *ids], group=prompt.group)
            for prompt, ids in zip(self.prompts, written, strict=True)
            if ids
        ]
        longest = max(map(len, rows))
        held_out = of_tokens([], rows, self.setting.chat.pad_id, longest)
        batches = Batches(held_out, self.setting.recipe.required_evaluate.tokens_per_batch)
        with self.setting.console.task(f"reading of {asked.name}", batches.targets, "tokens") as task:
            _, kept = measure_teacher(asked.model, batches, folder, task.advance)
        return Read(batches, kept)

    def take(self, name: str, answers: Sequence[Sequence[int]]) -> None:
        """What a model wrote; the teacher's is read by the others."""
        if name == "teacher":
            self.by_teacher = answers

    def reread(self, teacher: Asked) -> None:
        """The teacher reads what every model wrote, beside that model."""
        for name, seeds in self.read.items():
            for own, theirs in seeds:
                for read, into in ((own, self.own), (theirs, self.theirs)):
                    if read is None:
                        continue
                    groups = read.batches.held_out.target_groups
                    label = f"teacher reads {name.replace('_', ' ')}"
                    with self.setting.console.task(label, read.batches.targets, "tokens") as task:
                        # The model's rows stand where a teacher's do: the reverse KL from them is KL(teacher ‖ model).
                        scores = measure(teacher.model, read.batches, read.rows, task.advance, "teacher", [_REVERSE])
                    into.setdefault(name, []).append((scores.more[_REVERSE], groups))
                    if read is own and scores.nll is not None:
                        self.nll_by_teacher.setdefault(name, []).append((scores.nll, groups))
        self.read = {}

    def found(self, draws: Draws, table: Table) -> Found:
        """KL on both texts, and their difference, paired by group of prompts."""
        names = [name for name in MODELS if name in self.own and name in self.theirs]
        if "student" not in names:
            return Found(
                notes=(*self.notes, "The exposure gap was not measured: there is no teacher to read the texts.")
            )
        on_own = {name: _mean(self.own[name], draws) for name in names}
        on_theirs = {name: _mean(self.theirs[name], draws) for name in names}
        gaps = {name: gap_of(self.own[name], self.theirs[name], draws) for name in names}
        nll = {name: _mean(self.nll_by_teacher[name], draws) for name in names}
        figures = Figures(
            "On its own text",
            f"{len(self.prompts)} held-out prompts, continued by each model by draws at temperature 1 (at most "
            f"{self.settings.max_new_tokens} tokens). The exposure gap is the difference of the two KLs.",
            _SECTION,
            (
                (_spec("exposure_gap", "Exposure gap"), gaps),
                (_spec("kl_on_own", "KL from the teacher on its own text"), on_own),
                (_spec("kl_on_teachers", "KL on the teacher’s text"), on_theirs),
                (_spec("nll_by_teacher", "NLL of its text by the teacher"), nll),
            ),
        )
        control = f" (the control’s {gaps['text_only'].value:.2f})" if "text_only" in gaps else ""
        loss = Loss(
            _SECTION,
            f"goes astray on its own text: its KL from the teacher is {on_own['student'].value:.2f} nats there, and "
            f"{on_theirs['student'].value:.2f} on the teacher’s text, a gap of {gaps['student'].value:.2f}{control}",
            gaps["student"],
            "train on text that the student writes",
        )
        return Found((figures,), (loss,), tuple(self.notes))

    def save(self, out: Path) -> None:
        """Nothing: the figures are in the measures."""


def _spec(name: str, label: str) -> MetricSpec:
    return MetricSpec(name, label, label, "nats", False, "token")


Valued = tuple[NDArray[Any], Sequence[str]]
"""A value per token [N], and its group."""


def _mean(seeds: Sequence[Valued], draws: Draws) -> Interval:
    """The mean over the tokens of each seed, and over the seeds."""
    values, groups, of_seed = _joined(seeds)
    return draws.of(groups).interval(
        [within(mean_of(values, NOT_NEGATIVE), of_seed == seed) for seed in range(len(seeds))]
    )


def gap_of(own: Sequence[Valued], theirs: Sequence[Valued], draws: Draws) -> Interval:
    """The mean of one value over some tokens less its mean over others, paired by group, with an interval over groups
    and seeds.

    Args:
        own: of each seed.
        theirs: of each seed.
        draws: of groups, which both sides have.
    """
    (a, of_a, own_seed), (b, of_b, their_seed) = _joined(own), _joined(theirs)
    values, of_seed = np.concatenate([a, b]), np.concatenate([own_seed, their_seed])
    inside = np.concatenate([np.ones(len(a)), np.zeros(len(b))])
    columns = np.stack([values * inside, inside, values * (1 - inside), 1 - inside], -1)

    def of(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3])

    several = [within(Statistic(columns, of), of_seed == seed) for seed in range(len(own))]
    return draws.of([*of_a, *of_b]).interval(several)


def _joined(seeds: Sequence[Valued]) -> tuple[NDArray[np.float64], list[str], NDArray[np.int64]]:
    """The values of all seeds [N], their groups, and the seed of each."""
    values = np.concatenate([np.asarray(v, dtype=np.float64) for v, _ in seeds])
    of_seed = np.repeat(np.arange(len(seeds)), [len(v) for v, _ in seeds])
    return values, [group for _, groups in seeds for group in groups], of_seed
