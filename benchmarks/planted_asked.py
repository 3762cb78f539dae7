"""Planted losses for measures that put questions of their own (exposure, judged, written tasks), and for words.

What models would answer is drawn, and what the measure makes of the answers is its own code; no model is trained.
`python -m benchmarks.planted` runs these beside the others. A loss counts as found where its interval lies on the bad
side of none; an undamaged student is accused where the same happens to it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.accuracies import accuracies_of, mcnemar
from potstill.evaluate.measures.base import Draws, Table
from potstill.evaluate.measures.exposure import gap_of
from potstill.evaluate.measures.judged import Pair, figures_of
from potstill.evaluate.scores import Scores
from potstill.measures import Bands, Loss
from potstill.recipe.measures import Tails
from potstill.registry import build
from potstill.tasks import SPECS

DRAWS = Draws(300, 0.95, 0)
Floats = NDArray[np.float64]
Planting = Callable[[int, float], bool]
"""From a seed and the size of the damage (0: none) to whether a loss is found."""

TOKENS, PROMPTS, WRITTEN = 40, 100, 40


def exposure(seed: int, size: float) -> bool:
    """Teacher and student are chains over 40 tokens, equal up to noise. Of a damaged student 8 tokens lead astray: from
    there it knows the next token badly, and it goes there `size` times as often as its teacher does."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 1.5, (TOKENS, TOKENS))
    truth[:, :8] -= 2.5  # where the teacher seldom goes
    teacher = truth + random.normal(0, 0.15, truth.shape)
    student = truth + random.normal(0, 0.15, truth.shape)
    if size:
        student[:8] += random.normal(0, 1.5, (8, TOKENS))
        student[:, :8] += np.log(size)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (teacher, student))
    kl = (p * np.log(p / q)).sum(-1)
    sides = []
    for chain in (q, p):
        at, values = random.integers(8, TOKENS, PROMPTS), []
        for _ in range(WRITTEN):
            values.append(kl[at])
            at = (chain[at].cumsum(-1) > random.random((PROMPTS, 1))).argmax(-1)
        sides.append((np.stack(values, -1).ravel(), [f"g{n}" for n in range(PROMPTS) for _ in range(WRITTEN)]))
    own, theirs = sides
    return Loss("exposure", "", gap_of([own], [theirs], DRAWS)).beyond_noise(DRAWS.confidence)


def judged(seed: int, size: float) -> bool:
    """A judge that marks 100 pairs of answers in both orders, with an error of one and a half marks, and half a mark
    for the first place. A damaged student's answers are worth `size` marks less."""
    random = np.random.default_rng(seed)
    worth = random.normal(6, 1.5, (PROMPTS, 2)) - np.array([size, 0.0])  # of the student's answer, of the teacher's

    def marks(of: Floats, first: float) -> NDArray[np.int64]:
        return np.clip(np.rint(of + first + random.normal(0, 1.5, PROMPTS)), 1, 10).astype(np.int64)

    orders = [(marks(worth[:, 0], 0.5), marks(worth[:, 1], 0.0)), (marks(worth[:, 0], 0.0), marks(worth[:, 1], 0.5))]
    said = [np.where(mine == theirs, 0.5, mine > theirs) for mine, theirs in orders]
    means = [(orders[0][side] + orders[1][side]) / 2 for side in (0, 1)]
    longer = random.normal(0, 0.3, PROMPTS)
    pairs = [
        Pair(n, (float(said[0][n]), float(said[1][n])), (float(means[0][n]), float(means[1][n])), float(longer[n]))
        for n in range(PROMPTS)
    ]
    found, refused = figures_of(pairs, DRAWS.of([f"g{n}" for n in range(PROMPTS)]))
    return not refused and found["share_of_marks"].high < 1


def written(seed: int, size: float) -> bool:
    """Three hundred problems, of which the teacher solves seven tenths. A damaged student no longer solves a share
    `size` of those; both solve some by luck."""
    random = np.random.default_rng(seed)
    able = random.random(300) < 0.7
    lucky = random.random((300, 2)) < 0.1
    theirs, mine = able | lucky[:, 0], (able & (random.random(300) >= size)) | lucky[:, 1]
    chance = np.zeros(300)
    scores = {n: [Scores(correct=c, more={"chance": chance})] for n, c in (("teacher", theirs), ("student", mine))}
    found = accuracies_of("sums", "", "capability", scores, DRAWS.of([f"g{n}" for n in range(300)]), DRAWS)
    (difference,) = (c.difference for c in found.values.comparisons if (c.model, c.against) == ("student", "teacher"))
    tested = mcnemar(int((theirs & ~mine).sum()), int((mine & ~theirs).sum()))
    return difference.high < 0 and tested < 1 - DRAWS.confidence


COMMON, RARE = ("the", "time", "people", "house"), ("vermilion", "quixotic", "sesquipedalian", "zeugma")


class Words:
    """Texts of targets that are words, a quarter of them rare."""

    def __init__(self, count: int) -> None:
        self.said = [(RARE if n % 4 == 0 else COMMON)[n // 4 % 4] for n in range(count)]

    def column(self, name: str) -> NDArray[np.object_]:
        """No column."""
        return np.array([""] * len(self.said), dtype=np.object_)

    def words(self) -> list[str]:
        """The words [N]."""
        return self.said

    def shown(self, index: int) -> tuple[str, str]:
        """The word alone."""
        return "", self.said[index]


def words(seed: int, size: float) -> bool:
    """A thousand words in 100 texts, with losses that differ by noise from a teacher's. A damaged student loses `size`
    nats more on rare ones. Found where the rarest band's interval lies above that of the most common one."""
    random, count = np.random.default_rng(seed), 1000
    rare, group = np.arange(count) % 4 == 0, np.arange(count) // 10
    teacher = random.exponential(2.0, count)
    student = teacher + random.normal(0.1, 0.7, count) + random.normal(0, 0.2, 100)[group] + size * rare
    right = np.ones(count, dtype=np.bool_)
    scores = {n: [Scores(nll=z.astype(np.float32), hit=right)] for n, z in (("teacher", teacher), ("student", student))}
    ids, places = np.arange(count) % 7, np.zeros(count, dtype=np.int64)
    groups, counts = [f"g{number}" for number in group], np.arange(1, 8) * 10
    texts = Words(count)
    task = SPECS["causal_lm"]
    table = Table(task, groups, ids, (), places, places + 10, scores, DRAWS, lambda: counts, texts)
    found = build(Tails(words="en")).findings(table).findings
    bands = next(one for one in found if isinstance(one, Bands) and one.of == "words").bands
    rarest, common = bands[0].excess, bands[-1].excess
    return rarest is not None and common is not None and rarest.low > common.high


PLANTINGS: dict[str, tuple[Planting, tuple[float, float, float]]] = {
    "exposure": (exposure, (2.0, 4.0, 8.0)),
    "judged": (judged, (0.5, 0.75, 1.5)),
    "written tasks": (written, (0.05, 0.1, 0.2)),
    "words": (words, (0.2, 0.4, 0.8)),
}
"""What is planted, and its size: weak, stated, strong."""


def found_of(plantings: int, undamaged: int) -> dict[str, float | None]:
    """The share found of each damage at each strength, and of undamaged students accused, by measure."""
    values: dict[str, float | None] = {}
    for name, (planted, sizes) in PLANTINGS.items():
        for size, strength in zip(sizes, (", weak", "", ", strong"), strict=True):
            values[f"found: {name}{strength}"] = sum(planted(seed, size) for seed in range(plantings)) / plantings
        accused = [planted(10_000 + seed, 0.0) for seed in range(undamaged)]
        values[f"undamaged students accused: {name}"] = sum(accused) / undamaged
        told = ", ".join(f"{value:.2f}" for key, value in values.items() if name in key and value is not None)
        print(f"{name}: found weak, stated, strong, accused: {told}", flush=True)
    return values
