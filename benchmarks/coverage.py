"""How often intervals of held-out figures hold the truth, by the number of groups.

    python -m benchmarks.coverage --json [--draws 1000]

Groups are of unequal size (1 to some 60 targets, skewed), and targets of one group are alike. Losses are skewed
(log-normal); differences are of two models on the same targets; shares are of yes and no. The truth is the mean over
all groups that could have been drawn, weighted by their targets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.claims import Aim, claims_of, command_line
from potstill.evaluate.bootstrap import PairedBootstrap, Statistic, difference_of, mean_of

Floats = NDArray[np.float64]
GROUPS = (10, 30, 100, 1000)
_WORLD = 200_000


class World:
    """All groups that could be drawn: their sizes, and what targets of one group have in common."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.sizes = 1 + rng.geometric(0.12, _WORLD)
        self.common = rng.normal(0, 1, (_WORLD, 2))

    def draw(self, groups: int, rng: np.random.Generator) -> tuple[list[str], Floats, Floats]:
        """The group of each target, and two values of each: of one model and of another."""
        chosen = rng.integers(0, _WORLD, groups)
        of = np.repeat(chosen, self.sizes[chosen])
        own = rng.normal(0, 1, (len(of), 2))
        # Longer texts have larger losses, as where a cluster's size tells something.
        mine = 0.6 * self.common[of, 0] + 0.8 * own[:, 0] + 0.02 * self.sizes[of]
        other = 0.9 * mine + 0.3 * self.common[of, 1] + 0.3 * own[:, 1]
        return [str(name) for name in np.repeat(np.arange(groups), self.sizes[chosen])], mine, other


def loss(mine: Floats, other: Floats) -> Statistic:
    """A skewed loss."""
    return mean_of(np.exp(mine))


def difference(mine: Floats, other: Floats) -> Statistic:
    """Two models on the same targets."""
    return difference_of(mean_of(np.exp(mine)), mean_of(np.exp(other)))


def share(mine: Floats, other: Floats) -> Statistic:
    """Yes or no."""
    return mean_of(mine > 1.5)


STATISTICS: dict[str, Callable[[Floats, Floats], Statistic]] = {"loss": loss, "difference": difference, "share": share}
AIMS = [
    Aim(f"coverage: {name}, {groups} groups", "share", least=0.93, most=0.97)
    for name in STATISTICS
    for groups in GROUPS
    if groups > 10
]


def run(draws: int) -> dict[str, Any]:
    """Coverage of nominal 95 % by statistic and number of groups."""
    world, values = World(), dict[str, float | None]()
    rng = np.random.default_rng(1)
    truth = {}
    names, mine, other = world.draw(_WORLD, rng)
    for name, of in STATISTICS.items():
        columns = np.asarray(of(mine, other).columns)
        truth[name] = float(of(mine, other).of(columns.sum(0)))
    for groups in GROUPS:
        held = dict.fromkeys(STATISTICS, 0)
        tries = draws if groups < 1000 else max(1, draws // 2)
        for seed in range(tries):
            names, mine, other = world.draw(groups, rng)
            bootstrap = PairedBootstrap(names, resamples=400, confidence=0.95, seed=seed)
            for name, of in STATISTICS.items():
                found = bootstrap.interval(of(mine, other))
                held[name] += found.low <= truth[name] <= found.high
        for name, count in held.items():
            values[f"coverage: {name}, {groups} groups"] = count / tries
            print(f"{groups} groups, {name}: {100 * count / tries:.1f} %", flush=True)
    return {"benchmark": "coverage", "draws": draws, "values": values, "claims": claims_of(AIMS, values)}


def main() -> None:
    parser = command_line("benchmarks.coverage", __doc__)
    parser.add_argument("--draws", type=int, default=1000)
    asked = parser.parse_args()
    result = run(asked.draws)
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
