"""Planted losses: does the verdict name the planted damage, and does it accuse undamaged students?

    python -m benchmarks.planted --json [--plantings 40]
    python -m benchmarks.planted --json --real --plantings 5

Targets are drawn from a true distribution over 200 tokens. Teacher and student know it up to small noise, each with
noise of its own, as two seeds of one training do: an undamaged student is as good as its teacher. The damage: logits of
rare tokens lowered, or all logits sharpened or flattened. What is computed per target is what an evaluation computes;
no model is trained. With `--real` the true distributions are those of SmolLM2-135M-Instruct over its 49,152 tokens on
web text, 100 groups of 10.

`named first` is how often the verdict's first loss is the planted one, over all strengths; `accused` how often the
verdict names any loss of an undamaged student, all measures together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.claims import Aim, claims_of, command_line
from potstill.evaluate.fidelity import with_columns
from potstill.evaluate.measures.base import Draws, Table
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import Size, summarise
from potstill.measures import Measures
from potstill.objectives import token_statistics
from potstill.recipe.measures import default_measures
from potstill.registry import build
from potstill.signals import Dense
from potstill.tasks import SPECS

VOCAB, GROUPS, PER_GROUP = 200, 150, 20
NOISE = 0.3
"""Standard deviation of what a model does not know of the true logits."""
TEACHERS = 1_000_000
"""Seeds of teachers' noise begin here."""
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


def real_world(seed: int) -> World:
    """As `world`, of a real model's distributions. Training has as many tokens as are needed to know what is rare."""
    rng = np.random.default_rng(seed)
    logits = _real_logits()
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    others = (logits[::5] + rng.gumbel(size=(20, *logits[::5].shape))).argmax(-1).ravel()
    return logits, targets, np.bincount(np.concatenate([others, targets]), minlength=logits.shape[1])


def rare_tokens(targets: NDArray[np.int64], counts: NDArray[np.int64], share: float = 0.1) -> NDArray[np.bool_]:
    """Mask of the rarest tokens [V], up to a share of the targets."""
    return counts <= np.quantile(counts[targets], share, method="higher")


def student_of(
    logits: Logits, seed: int, *, rare: NDArray[np.bool_] | None = None, by: float = 0.0, scale: float = 1.0
) -> Logits:
    """The true logits with a little noise; rare tokens' lowered `by` so much; all multiplied by `scale`."""
    noisy = logits + np.random.default_rng(1000 + seed).normal(0, NOISE, logits.shape)
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


def measured(seed: int, of: Callable[[int], World] = world, **damage: float) -> Measures:
    """The measures of a student with a damage (`by`, `scale`), or none."""
    truth, targets, counts = of(seed)
    size = PER_GROUP if of is world else 10
    rare = rare_tokens(targets, counts) if "by" in damage else None
    teacher, student = student_of(truth, TEACHERS + seed), student_of(truth, seed, rare=rare, **damage)
    task = SPECS["causal_lm"]
    measures = [build(settings) for settings in default_measures(task)]
    columns = tuple(dict.fromkeys(column for measure in measures for column in measure.columns))
    scores = {
        "teacher": [scores_of(teacher, None, targets, columns)],
        "student": [scores_of(student, teacher, targets, columns)],
    }
    groups = [f"g{i // size:04}" for i in range(len(targets))]
    draws = Draws(300, 0.95, 0)
    places = np.arange(len(targets)) % size
    table = Table(task, groups, targets, (), places, np.full(len(targets), size), scores, draws, lambda: counts)
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


UNDAMAGED = 5
"""Undamaged students for each planting of a damage: a small share needs many."""

DAMAGES: dict[str, tuple[str, dict[str, float]]] = {
    "rare tokens, weak": ("tails", {"by": 0.25}),
    "rare tokens": ("tails", {"by": 0.5}),
    "rare tokens, strong": ("tails", {"by": 1.0}),
    "sharpened, weak": ("calibration", {"scale": 1.15}),
    "sharpened": ("calibration", {"scale": 1.3}),
    "sharpened, strong": ("calibration", {"scale": 1.6}),
    "flattened, weak": ("calibration", {"scale": 0.87}),
    "flattened": ("calibration", {"scale": 0.77}),
    "flattened, strong": ("calibration", {"scale": 0.62}),
}
"""The section that should be named first, and the damage."""

AIMS = [
    *(Aim(f"found: {name}", "share", least=0.95) for name in DAMAGES if not name.endswith("weak")),
    Aim("the planted loss is named first", "share", least=0.9),
    Aim("undamaged students accused, all measures together", "share", most=0.05),
]


def run(plantings: int, real: bool) -> dict[str, Any]:
    """Plant every damage `plantings` times."""
    of = real_world if real else world
    values: dict[str, float | None] = {}
    first = 0
    for name, (section, damage) in DAMAGES.items():
        named = [[loss.section for loss in measured(seed, of, **damage).named_losses] for seed in range(plantings)]
        values[f"found: {name}"] = sum(section in sections for sections in named) / plantings
        first += sum(sections[:1] == [section] for sections in named)
        first_here = [s[:1] for s in named].count([section])
        print(f"{name}: found {values[f'found: {name}']:.2f}, first {first_here}", flush=True)
    values["the planted loss is named first"] = first / (plantings * len(DAMAGES))
    accused = [bool(measured(10_000 + seed, of).named_losses) for seed in range(UNDAMAGED * plantings)]
    values["undamaged students accused, all measures together"] = sum(accused) / len(accused)
    return {
        "benchmark": "planted",
        "real": real,
        "plantings": plantings,
        "values": values,
        "claims": claims_of(AIMS, values),
    }


def main() -> None:
    parser = command_line("benchmarks.planted", __doc__)
    parser.add_argument("--plantings", type=int, default=40)
    parser.add_argument("--real", action="store_true", help="distributions of SmolLM2-135M-Instruct on web text")
    asked = parser.parse_args()
    result = run(asked.plantings, asked.real)
    for claim in result["claims"]:
        print(f"{claim['name']}: {claim['value']:.3f} (aim {claim['aim']}) {'met' if claim['met'] else 'NOT met'}")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
