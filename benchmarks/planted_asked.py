"""Planted losses for measures that put questions of their own (exposure, memorisation, safety, judged, tasks), and for
words.

What models would answer is drawn, and what the measure makes of the answers is its own code; no model is trained.
`python -m benchmarks.planted` puts the losses of all of them beside those of held-out targets, as an evaluation does:
the verdict is on all together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.accuracies import losses_of
from potstill.evaluate.bootstrap import mean_of
from potstill.evaluate.measures import memorisation as memorised
from potstill.evaluate.measures.base import Draws, Table
from potstill.evaluate.measures.exposure import gap_of
from potstill.evaluate.measures.judged import Pair, figures_of, loss_of
from potstill.evaluate.measures.safety import Prompt, refusal_losses
from potstill.evaluate.scores import Scores
from potstill.measures import Loss
from potstill.recipe.measures import Tails
from potstill.registry import build
from potstill.tasks import SPECS

DRAWS = Draws(300, 0.95, 0)
Floats = NDArray[np.float64]
Planting = Callable[[int, float], tuple[Loss, ...]]
"""From a seed and the size of the damage (0: none) to the losses that the verdict may name."""

TOKENS, PROMPTS, WRITTEN = 40, 100, 40


def exposure(seed: int, size: float) -> tuple[Loss, ...]:
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
    return (Loss("exposure", "goes astray on its own text", gap_of([own], [theirs], DRAWS)),)


def judged(seed: int, size: float) -> tuple[Loss, ...]:
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
    return () if refused else (loss_of(found),)


def refusals(seed: int, size: float) -> tuple[Loss, ...]:
    """Teacher and student refuse most of 60 harmful prompts and few of 60 harmless ones; their log-odds of refusing
    differ by noise. Those of a damaged student are lower by `size` on harmful prompts."""
    random = np.random.default_rng(seed)
    prompts = [Prompt((1,), f"g{n}", "", n % 2 == 0, "") for n in range(120)]
    harmful = np.array([prompt.harmful for prompt in prompts])
    truth = random.normal(0, 1.5, 120) + np.where(harmful, 2.0, -2.0)
    teacher, student = (truth + random.normal(0, 0.5, 120) for _ in range(2))
    student -= size * harmful
    scores = {
        name: [Scores(more={"margin": margin, "refuses": margin > 0})]
        for name, margin in (("teacher", teacher), ("student", student))
    }
    return refusal_losses(prompts, scores, DRAWS)


def memorisation(seed: int, size: float) -> tuple[Loss, ...]:
    """Two hundred trained texts and as many new ones, with losses that differ by noise from a teacher's. A damaged
    student is `size` nats nearer to its teacher on the trained ones."""
    random = np.random.default_rng(seed)
    groups, drawn = [f"g{n // 10}" for n in range(2000)], []
    for nearer in (0.0, size):
        excess = random.normal(0.3 - nearer, 0.7, 2000) + np.repeat(random.normal(0, 0.15, 200), 10)
        drawn.append(DRAWS.of(groups).interval(mean_of(excess)))
    return (Loss("memorisation", "has memorised", memorised.gap_of(*drawn)),)


def task_of(what: str, chance: float, able: float, seed: int, size: float) -> tuple[Loss, ...]:
    """Three hundred questions, of which the teacher knows a share. A damaged student no longer knows a share `size` of
    those; both guess the others."""
    random = np.random.default_rng(seed)
    known = random.random(300) < able
    lucky = random.random((300, 2)) < chance
    theirs, mine = known | lucky[:, 0], (known & (random.random(300) >= size)) | lucky[:, 1]
    told = {"chance": np.full(300, chance)}
    scores = {name: [Scores(correct=right, more=told)] for name, right in (("teacher", theirs), ("student", mine))}
    return losses_of(what, "capability", scores, DRAWS.of([f"g{n}" for n in range(300)]))


def written(seed: int, size: float) -> tuple[Loss, ...]:
    """Problems of which the teacher solves seven tenths, and that are hardly guessed."""
    return task_of("problems of sums", 0.05, 0.7, seed, size)


def choices(seed: int, size: float) -> tuple[Loss, ...]:
    """Questions with four choices, of which the teacher knows six tenths."""
    return task_of("questions of facts", 0.25, 0.6, seed, size)


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


def words(seed: int, size: float) -> tuple[Loss, ...]:
    """A thousand words in 100 texts, with losses that differ by noise from a teacher's. A damaged student loses `size`
    nats more on rare ones."""
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
    losses = build(Tails(words="en")).findings(table).losses
    return tuple(loss for loss in losses if "rare words" in loss.text.partition(":")[0])


PLANTINGS: dict[str, tuple[Planting, str, tuple[float, float, float]]] = {
    "exposure": (exposure, "goes astray", (2.0, 4.0, 8.0)),
    "memorisation": (memorisation, "has memorised", (0.1, 0.15, 0.3)),
    "refusals": (refusals, "refuses less", (0.5, 1.0, 3.0)),
    "judged": (judged, "is judged worse", (0.75, 1.5, 2.5)),
    "written tasks": (written, "fewer problems of sums", (0.05, 0.15, 0.3)),
    "tasks of choice": (choices, "fewer questions of facts", (0.2, 0.4, 0.6)),
    "words": (words, "most on rare words", (0.2, 0.4, 0.8)),
}
"""What is planted, what the loss that should be named first says, and the size of the damage: weak, stated, strong."""


def asked_losses(seed: int, damaged: str | None = None, size: float = 0.0) -> tuple[Loss, ...]:
    """The losses of all these measures, of a student that is damaged in one way or none."""
    several = [of(seed, size if name == damaged else 0.0) for name, (of, _, _) in PLANTINGS.items()]
    return tuple(loss for losses in several for loss in losses)
