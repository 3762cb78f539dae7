"""Planted losses: does the verdict name the planted damage, and does it accuse undamaged students?

    python -m benchmarks.planted --json [--plantings 40]

Targets are drawn from a true distribution over 200 tokens. Teacher and student know it up to small noise, each with
noise of its own, as two seeds of one training do: an undamaged student is as good as its teacher. The damage: logits of
rare tokens lowered, or all logits sharpened or flattened. What is computed per target is what an evaluation computes;
no model is trained. `named first` is how often the verdict's first loss is the planted one, over all strengths;
`accused` how often the verdict names any loss of an undamaged student, all measures together.
"""

from __future__ import annotations

import json
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
Logits = NDArray[np.float64]


def world(seed: int) -> tuple[Logits, NDArray[np.int64], NDArray[np.int64]]:
    """The true logits [N,V], the targets [N], and how often each token is a target in training [V]."""
    rng = np.random.default_rng(seed)
    zipf = -1.1 * np.log(np.arange(1, VOCAB + 1))
    logits = zipf + rng.normal(0, 2.0, (GROUPS * PER_GROUP, VOCAB))
    uniform = rng.gumbel(size=logits.shape)
    targets = (logits + uniform).argmax(-1)
    counts = np.bincount(rng.choice(targets, 20 * len(targets)), minlength=VOCAB)
    return logits, targets, counts


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


def measured(seed: int, **damage: float) -> Measures:
    """The measures of a student with a damage (`by`, `scale`), or none."""
    truth, targets, counts = world(seed)
    rare = rare_tokens(targets, counts) if "by" in damage else None
    teacher, student = student_of(truth, TEACHERS + seed), student_of(truth, seed, rare=rare, **damage)
    task = SPECS["causal_lm"]
    measures = [build(settings) for settings in default_measures(task)]
    columns = tuple(dict.fromkeys(column for measure in measures for column in measure.columns))
    scores = {
        "teacher": [scores_of(teacher, None, targets, columns)],
        "student": [scores_of(student, teacher, targets, columns)],
    }
    groups = [f"g{i:04}" for i in range(GROUPS) for _ in range(PER_GROUP)]
    draws = Draws(300, 0.95, 0)
    places = np.tile(np.arange(PER_GROUP), GROUPS)
    table = Table(task, groups, targets, (), places, np.full(len(targets), PER_GROUP), scores, draws, lambda: counts)
    return summarise(
        scores,
        dict.fromkeys(scores, Size(10, 40, 1)),
        {},
        groups,
        records=GROUPS,
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


def run(plantings: int) -> dict[str, Any]:
    """Plant every damage `plantings` times."""
    values: dict[str, float | None] = {}
    first = 0
    for name, (section, damage) in DAMAGES.items():
        named = [[loss.section for loss in measured(seed, **damage).named_losses] for seed in range(plantings)]
        values[f"found: {name}"] = sum(section in sections for sections in named) / plantings
        first += sum(sections[:1] == [section] for sections in named)
        print(f"{name}: found {values[f'found: {name}']:.2f}, first {[s[:1] for s in named].count([section])}")
    values["the planted loss is named first"] = first / (plantings * len(DAMAGES))
    accused = [bool(measured(10_000 + seed).named_losses) for seed in range(UNDAMAGED * plantings)]
    values["undamaged students accused, all measures together"] = sum(accused) / len(accused)
    return {"benchmark": "planted", "plantings": plantings, "values": values, "claims": claims_of(AIMS, values)}


def main() -> None:
    parser = command_line("benchmarks.planted", __doc__)
    parser.add_argument("--plantings", type=int, default=40)
    asked = parser.parse_args()
    result = run(asked.plantings)
    for claim in result["claims"]:
        print(f"{claim['name']}: {claim['value']:.3f} (aim {claim['aim']}) {'met' if claim['met'] else 'NOT met'}")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
