"""Planted losses: does the verdict name the planted damage, and does it accuse undamaged students?

    python -m benchmarks.planted --json [--plantings 40]
    python -m benchmarks.planted --json --real --plantings 5
    python -m benchmarks.planted --json --only undamaged --plantings 200 --seed 20000

Targets are drawn from a true distribution over 200 tokens. Teacher and student know it up to small noise, each with
noise of its own, as two seeds of one training do: an undamaged student is as good as its teacher. The damage: logits of
rare tokens lowered; all logits sharpened or flattened; more noise on all logits, or on those of one value of a column
of the data; the logit of one of six classes lowered. What is computed per target is what an evaluation computes; no
model is trained. With `--real` the true distributions are those of SmolLM2-135M-Instruct over its 49,152 tokens on web
text, 100 groups of 10.

Beside these losses stand those of measures with questions of their own (exposure, memorisation, safety, judged, tasks),
and of words, which are damaged one by one as well: `benchmarks/planted_asked.py`. The verdict is on all together.

`found` is how often the planted loss is named; `named first`, how often it is the first that is named, of the stated
strength and of the strong one; `accused`, how often any loss of an undamaged student is named, all measures together,
with which loss it was. `--only` plants what has this in its name alone (`undamaged`, `undamaged students of classes`,
`rare tokens`), and `--seed` draws other students.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.planted_asked import PLANTINGS, asked_losses
from potstill.evaluate.fidelity import with_columns
from potstill.evaluate.measures.base import Draws, Table
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import Size, summarise
from potstill.measures import Loss, Measures
from potstill.objectives import token_statistics
from potstill.recipe.measures import Tails, default_measures
from potstill.registry import build
from potstill.signals import Dense
from potstill.tasks import SPECS

VOCAB, GROUPS, PER_GROUP = 200, 150, 20
NOISE = 0.3
"""Standard deviation of what a model does not know of the true logits."""
TEACHERS = 1_000_000
"""Seeds of teachers' noise begin here."""
OTHERS = 10_000
"""Seeds of students that stay undamaged begin here."""
Logits = NDArray[np.floating]
World = tuple[Logits, NDArray[np.int64], NDArray[np.int64]]


def world(seed: int) -> World:
    """The true logits [N,V], the targets [N], and how often each token is a target in training [V]."""
    rng = np.random.default_rng(seed)
    zipf = -1.1 * np.log(np.arange(1, VOCAB + 1))
    logits = zipf + rng.normal(0, 2.0, (GROUPS * PER_GROUP, VOCAB))
    uniform = rng.gumbel(size=logits.shape)
    targets = (logits + uniform).argmax(-1)
    counts = np.bincount(rng.choice(targets, 20 * len(targets)), minlength=VOCAB)
    return logits, targets, counts


@cache
def _real_logits() -> NDArray[np.float32]:
    """Log-probabilities of a real model on web text [1,000, V]."""
    from benchmarks.signal_store import Teacher

    (piece,) = Teacher().pieces(1000)
    found: NDArray[np.float32] = piece.log_p[:1000].numpy()
    return found


@cache
def _cumulated() -> NDArray[np.float32]:
    """The cumulated probabilities of `_real_logits` [1,000, V]."""
    found: NDArray[np.float32] = np.exp(_real_logits()).cumsum(-1)
    return found


def real_world(seed: int) -> World:
    """As `world`, of a real model's distributions. Training has as many tokens as are needed to know what is rare."""
    rng = np.random.default_rng(seed)
    logits, below = _real_logits(), _cumulated()

    def drawn(row: NDArray[np.float32]) -> int:
        return min(int(np.searchsorted(row, rng.random() * row[-1])), len(row) - 1)

    targets = np.array([drawn(row) for row in below])
    others = np.array([drawn(row) for row in below[::5] for _ in range(20)])
    return logits, targets, np.bincount(np.concatenate([others, targets]), minlength=logits.shape[1])


def rare_tokens(targets: NDArray[np.int64], counts: NDArray[np.int64], share: float = 0.1) -> NDArray[np.bool_]:
    """Mask of the rarest tokens [V], up to a share of the targets."""
    return counts <= np.quantile(counts[targets], share, method="higher")


def student_of(
    logits: Logits, seed: int, *, rare: NDArray[np.bool_] | None = None, by: float = 0.0, scale: float = 1.0
) -> Logits:
    """The true logits with a little noise; rare tokens' lowered `by` so much; all multiplied by `scale`."""
    random = np.random.default_rng(1000 + seed)
    if logits.dtype == np.float32:  # a whole vocabulary: half the time, half the memory
        noisy: Logits = random.standard_normal(logits.shape, dtype=np.float32)
        noisy *= np.float32(NOISE)
        noisy += logits
    else:
        noisy = logits + random.normal(0, NOISE, logits.shape)
    if rare is not None:
        noisy[:, rare] -= by
    return scale * noisy


def scores_of(logits: Logits, teacher: Logits | None, targets: NDArray[np.int64], columns: tuple[str, ...]) -> Scores:
    """The values per target that an evaluation computes."""
    other = None if teacher is None else Dense(torch.from_numpy(teacher).float())
    found = token_statistics(Dense(torch.from_numpy(logits).float()), other, torch.from_numpy(targets), columns)
    own = Scores(found.nll_student.numpy())
    if found.kl is not None and found.top1_agree is not None:
        own = Scores(found.nll_student.numpy(), found.kl.numpy(), found.top1_agree.numpy())
    return with_columns(own, {name: values.numpy() for name, values in found.more.items()})


TOPICS = ("cats", "dogs")


class Topics:
    """Texts of targets with a column `topic`, the same for all targets of a group."""

    def __init__(self, groups: NDArray[np.int64]) -> None:
        self.topics = np.array(TOPICS, dtype=np.object_)[groups % len(TOPICS)]

    def column(self, name: str) -> NDArray[np.object_]:
        """The topics [N]."""
        return self.topics

    def words(self) -> list[str]:
        """No words."""
        return [""] * len(self.topics)

    def shown(self, index: int) -> tuple[str, str]:
        """A number."""
        return "", str(index)


def measured(seed: int, of: Callable[[int], World] = world, **damage: float) -> Measures:
    """The measures of held-out targets of a student with a damage (`by`, `scale`, `noise` on one topic, noise
    `everywhere`), or none."""
    truth, targets, counts = of(seed)
    size = PER_GROUP if of is world else 10
    group = np.arange(len(targets)) // size
    rare = rare_tokens(targets, counts) if "by" in damage else None
    noise, everywhere = damage.pop("noise", 0.0), damage.pop("everywhere", 0.0)
    teacher, student = student_of(truth, TEACHERS + seed), student_of(truth, seed, rare=rare, **damage)
    texts = Topics(group)
    if noise:
        inside = texts.topics == TOPICS[0]
        student[inside] += np.random.default_rng(2000 + seed).normal(0, noise, (int(inside.sum()), truth.shape[1]))
    if everywhere:
        student += np.random.default_rng(3000 + seed).normal(0, everywhere, truth.shape)
    task = SPECS["causal_lm"]
    settings = [Tails(columns=("topic",)) if one.kind == "tails" else one for one in default_measures(task)]
    measures = [build(one) for one in settings]
    columns = tuple(dict.fromkeys(column for measure in measures for column in measure.columns))
    scores = {
        "teacher": [scores_of(teacher, None, targets, columns)],
        "student": [scores_of(student, teacher, targets, columns)],
    }
    groups = [f"g{number:04}" for number in group]
    draws = Draws(300, 0.95, 0)
    places = np.arange(len(targets)) % size
    table = Table(task, groups, targets, (), places, np.full(len(targets), size), scores, draws, lambda: counts, texts)
    return summarise(
        scores,
        dict.fromkeys(scores, Size(10, 40, 1)),
        {},
        groups,
        records=len(set(groups)),
        draws=draws,
        notes=(),
        measures=measures,
        table=table,
    )


CLASSES, EXAMPLES = 6, 900


def classified(seed: int, by: float = 0.0) -> Measures:
    """The measures of a student of six classes, the logit of one of which is lowered."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 1.5, (EXAMPLES, CLASSES)) - 0.15 * np.arange(CLASSES)
    labels = (truth + random.gumbel(size=truth.shape)).argmax(-1)
    teacher, student = (truth + random.normal(0, NOISE, truth.shape) for _ in range(2))
    student[:, seed % CLASSES] -= by
    task = SPECS["sequence_classification"]
    # Fidelity has no loss that the verdict names, and needs more of classes than is drawn here.
    measures = [build(settings) for settings in default_measures(task) if settings.kind != "fidelity"]
    columns = tuple(dict.fromkeys(column for measure in measures for column in measure.columns))
    scores = {
        "teacher": [scores_of(teacher, None, labels, columns)],
        "student": [scores_of(student, teacher, labels, columns)],
    }
    groups, draws = [f"g{number:04}" for number in range(EXAMPLES)], Draws(300, 0.95, 0)
    counts, names = 5 * np.bincount(labels, minlength=CLASSES), [f"c{number}" for number in range(CLASSES)]
    places = np.zeros(EXAMPLES, dtype=np.int64)
    table = Table(task, groups, labels, names, places, places + 1, scores, draws, lambda: counts)
    return summarise(
        scores,
        dict.fromkeys(scores, Size(10, 40, 1)),
        {},
        groups,
        task="sequence_classification",
        records=EXAMPLES,
        draws=draws,
        notes=(),
        measures=measures,
        table=table,
    )


UNDAMAGED = 5
"""Undamaged students for each planting of a damage: a small share needs many."""

DAMAGES: dict[str, tuple[str, tuple[dict[str, float], dict[str, float], dict[str, float]]]] = {
    "one topic": (f"most on topic: {TOPICS[0]}", ({"noise": 0.7}, {"noise": 1.0}, {"noise": 1.5})),
    "rare tokens": ("most on rare tokens", ({"by": 0.25}, {"by": 0.5}, {"by": 1.0})),
    "sharpened": ("over-confident", ({"scale": 1.15}, {"scale": 1.3}, {"scale": 1.6})),
    "flattened": ("under-confident", ({"scale": 0.87}, {"scale": 0.77}, {"scale": 0.62})),
    "noise on all": ("loses everywhere", ({"everywhere": 0.5}, {"everywhere": 0.7}, {"everywhere": 1.0})),
}
"""What the loss that should be named first says, and the damage: weak, stated, strong."""

OF_CLASSES = (0.5, 1.0, 2.0)
STRENGTHS = (", weak", "", ", strong")

NAMES = [f"{name}{strength}" for name in (*DAMAGES, "one class", *PLANTINGS) for strength in STRENGTHS]
ACCUSED = "undamaged students accused, all measures together"
ACCUSED_OF_CLASSES = "undamaged students of classes accused"

AIMS = [
    *(Aim(f"found: {name}", "share", least=0.95) for name in NAMES if not name.endswith("weak")),
    Aim("the planted loss is named first", "share", least=0.9),
    Aim(ACCUSED, "share", most=0.05),
    Aim(ACCUSED_OF_CLASSES, "share", most=0.05),
]


def together(measures: Measures, seed: int, damaged: str | None = None, size: float = 0.0) -> Measures:
    """Measures of held-out targets, with the losses of measures that ask beside theirs."""
    return replace(measures, losses=(*measures.losses, *asked_losses(seed, damaged, size)))


Planted = tuple[str, str, Callable[[int], Measures]]
"""A damage with its strength, what the loss that should be named first says, and measures by seed."""


def planted_in(of: Callable[[int], World], undamaged: Callable[[int], Measures]) -> list[Planted]:
    """All damages of all strengths, in a world. (Of classes there are no measures that ask.)"""
    made: list[Planted] = []
    for name, (said, damages) in DAMAGES.items():
        for damage, strength in zip(damages, STRENGTHS, strict=True):
            made.append((f"{name}{strength}", said, partial(_on_targets, of, damage)))
    for name, (_, said, sizes) in PLANTINGS.items():
        for size, strength in zip(sizes, STRENGTHS, strict=True):
            made.append((f"{name}{strength}", said, partial(_on_questions, undamaged, name, size)))
    if of is world:
        for size, strength in zip(OF_CLASSES, STRENGTHS, strict=True):
            made.append((f"one class{strength}", "most on class", partial(classified, by=size)))
    return made


def _on_targets(of: Callable[[int], World], damage: Mapping[str, float], seed: int) -> Measures:
    return together(measured(seed, of, **damage), seed)


def _on_questions(undamaged: Callable[[int], Measures], name: str, size: float, seed: int) -> Measures:
    return together(undamaged(seed), seed, name, size)


def run(plantings: int, real: bool, only: str = "", first_seed: int = 0) -> dict[str, Any]:
    """Plant every damage `plantings` times, or those with `only` in their names."""
    of = real_world if real else world
    seeds = range(first_seed, first_seed + plantings)
    values: dict[str, float | None] = {}
    firsts: dict[bool, list[float]] = {True: [], False: []}
    undamaged = cache(partial(measured, of=of))
    for name, said, damaged in planted_in(of, undamaged):
        if only not in name:
            continue
        named = [[loss.text for loss in damaged(seed).named_losses] for seed in seeds]
        found = sum(any(said in text for text in texts) for texts in named)
        first = sum(said in texts[0] for texts in named if texts)
        firsts[name.endswith("weak")].append(first / plantings)
        values[f"found: {name}"] = found / plantings
        print(f"{name}: found {found}, first {first} of {plantings}", flush=True)
    for weak, shares in firsts.items():
        if shares:
            values[f"the planted loss is named first{', weak ones' * weak}"] = sum(shares) / len(shares)
    others: dict[str, Callable[[int], Measures]] = {ACCUSED: lambda seed: together(measured(seed, of), seed)}
    if not real:
        others[ACCUSED_OF_CLASSES] = classified
    accused_of: dict[str, dict[str, int]] = {}
    for name, student in others.items():
        if only in name:
            named_of = [
                student(OTHERS + seed).named_losses for seed in range(first_seed, first_seed + UNDAMAGED * plantings)
            ]
            values[name] = sum(map(bool, named_of)) / len(named_of)
            accused_of[name] = dict(Counter(_short(loss) for losses in named_of for loss in losses).most_common())
            print(f"{name}: {sum(map(bool, named_of))} of {len(named_of)}: {accused_of[name]}", flush=True)
    return {
        "benchmark": "planted",
        "real": real,
        "plantings": plantings,
        "only": only,
        "seed": first_seed,
        "values": values,
        "accused of": accused_of,
        "claims": claims_of([aim for aim in AIMS if aim.name in values], values),
    }


def _short(loss: Loss) -> str:
    """The loss without its figures: `safety: refuses less of what is harmful`."""
    return f"{loss.section}: {loss.text.partition(':')[0].rstrip('0123456789')}"


def main() -> None:
    parser = command_line("benchmarks.planted", __doc__)
    parser.add_argument("--plantings", type=int, default=40)
    parser.add_argument("--real", action="store_true", help="distributions of SmolLM2-135M-Instruct on web text")
    parser.add_argument("--only", default="", help="plant what has this in its name alone")
    parser.add_argument("--seed", type=int, default=0, help="of the first student")
    asked = parser.parse_args()
    result = run(asked.plantings, asked.real, asked.only, asked.seed)
    if not result["values"]:
        parser.error(
            f"--only {asked.only}: nothing is named so; there are {', '.join([*NAMES, ACCUSED, ACCUSED_OF_CLASSES])}"
        )
    for claim in result["claims"]:
        print(f"{claim['name']}: {claim['value']:.3f} (aim {claim['aim']}) {'met' if claim['met'] else 'NOT met'}")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
