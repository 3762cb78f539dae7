"""Judged quality: what another model says of the student's answers beside its teacher's.

Every pair is judged in both orders, since judges prefer a place (Zheng et al. 2023, arXiv 2306.05685, § 3.3). How often
the judge contradicts itself when the answers change places is shown too. Shares are given only if that is shown to be
less often than by chance, chance being a judge that says "neither" as often, and otherwise tosses a coin.

Judges prefer long answers too. The length-controlled figure is the intercept of a regression on log(length of the
answer ÷ length of the teacher's): what would be said of answers as long as the teacher's (after Dubois et al. 2024,
arXiv 2404.04475, who fit a logistic one).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.answering.base import Answering
from potstill.answering.journal import FILE_NAME, Journal
from potstill.answering.opening import open_teachers
from potstill.evaluate.answers import room_behind, write_answers, writer_of
from potstill.evaluate.bootstrap import Floats, PairedBootstrap, Statistic, mean_of, ratio_of, within
from potstill.evaluate.held_out import prompts_to_ask
from potstill.evaluate.measures.base import Asked, AsksAlone, Draws, Found, Pass, Setting, Table
from potstill.measures import MODELS, Figures, Interval, Loss, MetricSpec
from potstill.recipe.measures import Judged
from potstill.registry import implements
from potstill.teachers.origin import judges_itself
from potstill.types import Request, Sampling, digest
from potstill.verify.judge import marks_in, pair_request, preference_in

_SECTION = "judged"
_FEW = 10
"""Minimum pairs that were judged in both orders."""


@dataclass(frozen=True)
class Pair:
    """One answer beside the teacher's, in both orders.

    Attributes:
        prompt: number of the prompt.
        preferred: 1 (the answer), 0.5 (neither) or 0 (the teacher's), in the order answer–teacher's and in the other;
            None where the judge gave no verdict.
        marks: of the answer and of the teacher's, means of both orders; None in pairs without marks.
        longer: log(length of the answer ÷ length of the teacher's), in characters.
    """

    prompt: int
    preferred: tuple[float | None, float | None]
    marks: tuple[float, float] | None
    longer: float


@implements(Judged)
class JudgedMeasure(AsksAlone):
    """What a judge prefers, and how often it contradicts itself."""

    def __init__(self, settings: Judged) -> None:
        self.settings = settings

    def begin(self, setting: Setting) -> Pass:
        """The held-out prompts. Raises as `Answers`."""
        return Answers(self.settings, setting)


class Answers:
    """The answers of all models to the held-out prompts, and what the judge says of them.

    Raises:
        DataError: there are fewer than two groups of prompts.
    """

    def __init__(self, settings: Judged, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.prompts = prompts_to_ask(setting.held_out, setting.chat, settings.prompts, settings.kind)
        self.written: dict[str, list[Sequence[str]]] = {}
        self.pairs: dict[str, list[list[Pair]]] = {}
        self.notes: list[str] = []

    @property
    def identity(self) -> Any:
        """The prompts, in tokens, and how long answers are."""
        return ["judged 1", [list(prompt.ids) for prompt in self.prompts], self.settings.answer_tokens]

    def ask(self, asked: Asked) -> list[str] | None:
        """The greedy answers of one model."""
        if asked.name == "untrained":
            return None
        model = writer_of(asked.model)
        if model is None:
            self.notes.append(f"Answers of the {asked.name} were not judged: it is no single model that writes.")
            return None
        prompts = [prompt.ids for prompt in self.prompts]
        room = room_behind(prompts, self.settings.answer_tokens, asked.positions)
        if room < 1:
            self.notes.append(f"Answers of the {asked.name} were not judged: the longest prompt leaves it no room.")
            return None
        with self.setting.console.task(f"answers of {asked.name} for the judge", len(self.prompts), "prompts") as task:
            written = write_answers(
                model,
                prompts,
                self.setting.chat,
                max_new_tokens=room,
                advance=task.advance,
            )
        return [answer.text for answer in written]

    def take(self, name: str, answers: Sequence[str]) -> None:
        """Answers of a model."""
        self.written.setdefault(name, []).append(answers)

    def settle(self) -> None:
        """Put all pairs to the judge, through the run's journal: what it said before a kill, or before its server went
        down, is not asked again."""
        teacher = next(iter(self.written.get("teacher", ())), None)
        if teacher is None:
            return
        settings, recipe = self.settings, self.setting.recipe
        others = {name: seeds for name, seeds in self.written.items() if name != "teacher"}
        requests = [
            request for seeds in others.values() for answers in seeds for request in self._requests(answers, teacher)
        ]
        with (
            Journal(self.setting.run / FILE_NAME) as journal,
            open_teachers(
                recipe,
                settings.asked,
                journal,
                budget=settings.budget,
                token_budget=None,
                batch_size=8,
                scope=f"judged-{digest([settings.key_fields()])[:16]}",
                where=lambda name: "evaluate.measures judged",
                console=self.setting.console,
            ) as judge,
        ):
            replies = iter(self._replies(judge, requests))
            for name, seeds in others.items():
                for answers in seeds:
                    self.pairs.setdefault(name, []).append(
                        [
                            self._pair(i, answers, teacher, next(replies), next(replies))
                            for i in range(len(self.prompts))
                        ]
                    )
            self.setting.work.facts["judge"] = dict(judge.identity) | judge.facts()

    def _requests(self, answers: Sequence[str], teacher: Sequence[str]) -> list[Request]:
        """The questions about all pairs, each in both orders."""
        settings = self.settings
        sampling = Sampling(settings.max_new_tokens, settings.temperature)
        marks = settings.marks if settings.form == "rubric" else None
        return [
            pair_request(prompt.text, first, second, rubric=settings.rubric, marks=marks, sampling=sampling)
            for prompt, mine, theirs in zip(self.prompts, answers, teacher, strict=True)
            for first, second in ((mine, theirs), (theirs, mine))
        ]

    def _replies(self, judge: Answering, requests: Sequence[Request]) -> list[str]:
        """The judge's reply to each question; empty where there is none, or it was cut short."""
        with self.setting.console.task("judging", len(requests), "questions") as task:
            found = []
            for answered in judge.answers(requests):
                task.advance(1)
                whole = answered.answer is not None and answered.answer.finish == "stop"
                found.append(answered.answer.text if whole and answered.answer is not None else "")
        return found

    def _pair(self, number: int, answers: Sequence[str], teacher: Sequence[str], first: str, second: str) -> Pair:
        longer = float(np.log((1 + len(answers[number])) / (1 + len(teacher[number]))))
        if self.settings.form == "pairwise":
            one, other = preference_in(first), preference_in(second)
            return Pair(number, (one, None if other is None else 1 - other), None, longer)
        a, b = marks_in(first, self.settings.marks), marks_in(second, self.settings.marks)
        orders = (None if a is None else _preferred(*a), None if b is None else _preferred(b[1], b[0]))
        if a is None or b is None:
            return Pair(number, orders, None, longer)
        return Pair(number, orders, ((a[0] + b[1]) / 2, (a[1] + b[0]) / 2), longer)

    # ---- all of them ---------------------------------------------------------------------------------------------

    def found(self, draws: Draws, table: Table) -> Found:
        """Preferences and shares of the teacher's marks, of pairs judged in both orders, over groups of prompts."""
        rows: dict[str, dict[str, Interval]] = {}
        notes, losses = list(self.notes), []
        if self.pairs and (own := judges_itself(self.setting.recipe, self.settings.judge)) is not None:
            notes.append(f"The judge is {own}’s own model, and models prefer what they write themselves.")
        for name in (name for name in MODELS if name in self.pairs):
            judged = [[pair for pair in seed if None not in pair.preferred] for seed in self.pairs[name]]
            asked, both = sum(map(len, self.pairs[name])), [pair for seed in judged for pair in seed]
            label = name.replace("_", " ")
            if len(both) < asked:
                notes.append(f"Of {asked} pairs of the {label} the judge gave no verdict on {asked - len(both)}.")
            groups = [self.prompts[pair.prompt].group for pair in both]
            of_seed = np.repeat(np.arange(len(judged)), [len(seed) for seed in judged])
            if len(both) < _FEW or len(set(groups)) < 2:
                notes.append(f"Too few pairs of the {label} were judged in both orders: nothing is said of it.")
                continue
            found, refused = figures_of(both, draws.of(groups), of_seed)
            for metric, interval in found.items():
                rows.setdefault(metric, {})[name] = interval
            if name == "student" and not refused:
                losses.append(loss_of(found))
            if refused:
                notes.append(
                    f"Of the {label} no share is given: the judge contradicts itself in "
                    f"{100 * found['contradicts'].value:.0f} % of pairs when the answers change places, and is not "
                    f"shown to do so less often than by chance ({100 * found['chance'].value:.0f} %)."
                )
        if not rows:
            missing = () if self.pairs else ("Nothing was judged: there are no answers of a teacher to compare with.",)
            return Found(notes=(*notes, *missing))
        specs = [(spec, rows[spec.name]) for spec in _SPECS if spec.name in rows]
        text = (
            f"{len(self.prompts)} held-out prompts, answered greedily and judged by {self.settings.judge} beside the "
            "teacher’s answer, in both orders. A judge is a model: it prefers places, lengths and styles."
        )
        figures = Figures("Judged beside the teacher", text, _SECTION, tuple(specs))
        return Found((figures,), tuple(losses), tuple(notes))

    def save(self, out: Path) -> None:
        """Write `judged.jsonl`: a line per prompt, with all answers and what the judge preferred."""
        with (out / "judged.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            for i, prompt in enumerate(self.prompts):
                answers = {name: seeds[0][i] for name, seeds in self.written.items()}
                judged: Mapping[str, Any] = {
                    name: {"preferred": seeds[0][i].preferred, "marks": seeds[0][i].marks}
                    for name, seeds in self.pairs.items()
                }
                line = {"group": prompt.group, "prompt": prompt.text, "answers": answers, "judged": judged}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _spec(name: str, label: str, unit: str = "share") -> MetricSpec:
    return MetricSpec(name, label, label, "share" if unit == "share" else "number", True, "pairs")


_SPECS = (
    _spec("preferred", "Preferred to the teacher’s (a tie is half)"),
    _spec("preferred_controlled", "Preferred, length-controlled"),
    _spec("share_of_marks", "Share of the teacher’s marks"),
    _spec("share_controlled", "The same, length-controlled"),
    _spec("marks", "Mean mark", "number"),
    _spec("ties", "Ties"),
    _spec("contradicts", "Judge contradicts itself"),
    _spec("chance", "Contradictions by chance"),
)


# ---- statistics ----------------------------------------------------------------------------------------------------


def figures_of(
    pairs: Sequence[Pair], bootstrap: PairedBootstrap, of_seed: NDArray[np.int64] | None = None
) -> tuple[dict[str, Interval], bool]:
    """Figures by name, and whether shares are left out since the judge contradicts itself as often as by chance.
    What is said of students has intervals over prompts and seeds; what is said of the judge, over prompts.

    Args:
        pairs: judged in both orders.
        bootstrap: over the groups of their prompts.
        of_seed: the training seed of each pair [N]; None for a single one.
    """
    seeds = [np.ones(len(pairs), np.bool_)] if of_seed is None else [of_seed == seed for seed in np.unique(of_seed)]

    def over_seeds(statistic: Statistic) -> Interval:
        return bootstrap.interval([within(statistic, inside) for inside in seeds])

    orders = np.array([pair.preferred for pair in pairs], dtype=np.float64)
    contradicts = orders[:, 0] != orders[:, 1]
    found = {
        "contradicts": bootstrap.mean(contradicts),
        "chance": bootstrap.interval(contradictions_by_chance(orders)),
    }
    if bootstrap.interval(below_chance(orders)).low <= 0:
        return found, True
    score, longer = orders.mean(1), np.array([pair.longer for pair in pairs])
    found["preferred"] = over_seeds(mean_of(score, (0.0, 1.0)))
    found["preferred_controlled"] = over_seeds(at_equal_length(score, longer))
    found["ties"] = bootstrap.mean(score == 0.5)
    marks = [pair.marks for pair in pairs if pair.marks is not None]
    if len(marks) == len(pairs):
        mine, theirs = np.array(marks, dtype=np.float64).T
        found["marks"] = over_seeds(mean_of(mine))
        found["share_of_marks"] = over_seeds(ratio_of(mine, theirs))
        found["share_controlled"] = over_seeds(at_equal_length(mine, longer, theirs))
    return found, False


def loss_of(found: Mapping[str, Interval]) -> Loss:
    """What is lost of the half of comparisons that an equal student would win.

    Args:
        found: figures of the student, with shares.
    """
    preferred = found["preferred"]
    share = Interval(*(1 - 2 * end for end in (preferred.value, preferred.high, preferred.low)))
    return Loss(
        _SECTION,
        f"is judged worse than its teacher: its answers are preferred in {100 * preferred.value:.1f} % of comparisons, "
        f"{100 * found['preferred_controlled'].value:.1f} % at equal length",
        share,
        "train longer, or on more answers of the teacher",
        "the half that an equal would win",
        "share",
    )


def _preferred(mine: int, theirs: int) -> float:
    return 0.5 if mine == theirs else float(mine > theirs)


def _of_orders(orders: Floats) -> Floats:
    """Ties of both orders, whether they differ, and 1, of each pair [N, 3]."""
    columns = [(orders == 0.5).sum(1), orders[:, 0] != orders[:, 1], np.ones(len(orders))]
    return np.stack(columns, -1).astype(np.float64)


def _chance(sums: Floats) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ties = sums[..., 0] / (2 * sums[..., 2])
    return np.asarray(1 - ties**2 - (1 - ties) ** 2 / 2)


def contradictions_by_chance(orders: Floats) -> Statistic:
    """How often a judge contradicts itself that says "neither" as often, with share t, and otherwise tosses a coin:
    1 − t² − (1 − t)²/2, a half without ties.

    Args:
        orders: what it says in each order, 1, 0.5 or 0 [N, 2].
    """
    return Statistic(_of_orders(orders), _chance, bounds=(0.0, 1.0))


def below_chance(orders: Floats) -> Statistic:
    """Contradictions by chance minus actual ones."""

    def of(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(_chance(sums) - sums[..., 1] / sums[..., 2])

    return Statistic(_of_orders(orders), of)


def at_equal_length(score: Floats, longer: Floats, against: Floats | None = None) -> Statistic:
    """The intercept of a regression of the score on `longer`: the score of an answer as long as the teacher's. With
    `against`, the teacher's own score, 1 + the intercept of (score − against) ÷ the mean of `against`.

    Args:
        score: [N].
        longer: log ratio of the lengths [N].
        against: [N].
    """
    y = score if against is None else score - against
    base = np.zeros_like(score) if against is None else against
    columns = np.stack([np.ones_like(y), longer, y, longer * y, longer**2, base], -1)

    def of(sums: Floats) -> Floats:
        n, x, total, xy, xx, whole = np.moveaxis(sums, -1, 0)
        spread = xx - x**2 / n
        # Answers that are all as long as the teacher's tell nothing of length.
        slope = np.where(spread > 1e-9 * np.maximum(xx, 1e-300), (xy - x * total / n) / np.maximum(spread, 1e-300), 0.0)
        intercept = (total - slope * x) / n
        return np.asarray(intercept if against is None else 1 + intercept / (whole / n))

    return Statistic(columns, of)
