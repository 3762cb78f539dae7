"""How often intervals of held-out figures hold the truth, by the number of groups.

    python -m benchmarks.coverage --json [--draws 1000]

Groups are of unequal size, and targets of one group are alike. Losses are skewed; differences are of two models on the
same targets; shares are of yes and no. The truth is the mean over 200,000 groups, weighted by their targets. Three
worlds differ in what losses and sizes follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.claims import Aim, claims_of, command_line
from potstill.evaluate.bootstrap import PairedBootstrap, Statistic, difference_of, mean_of

Floats = NDArray[np.float64]
Random = np.random.Generator
GROUPS = (10, 30, 100, 1000)
_TRUTH_IN, _TRUTH_OF = 20, 10_000
"""The truth is of so many parts, of so many groups each."""


@dataclass(frozen=True)
class Targets:
    """The group of each target, the losses of two models, and whether something holds of the first [N each]."""

    groups: NDArray[np.int64]
    mine: Floats
    other: Floats
    holds: NDArray[np.bool_]


def log_normal(groups: int, rng: Random) -> Targets:
    """Log-normal losses in groups of 1 to some 60 targets. Longer texts have larger losses, as where a group's size
    tells something."""
    sizes = 1 + rng.geometric(0.12, groups)
    of = np.repeat(np.arange(groups), sizes)
    common, own = rng.normal(0, 1, (groups, 2))[of], rng.normal(0, 1, (len(of), 2))
    mine = 0.6 * common[:, 0] + 0.8 * own[:, 0] + 0.02 * sizes[of]
    other = 0.9 * mine + 0.3 * common[:, 1] + 0.3 * own[:, 1]
    return Targets(of, np.exp(mine), np.exp(other), mine > 1.5)


def heavy(groups: int, rng: Random) -> Targets:
    """Absolute values of Student's t with five degrees of freedom, in groups of 1 to 1,000 targets, of which as many
    have 1 to 10 as have 100 to 1,000."""
    sizes = np.exp(rng.uniform(0, np.log(1001), groups)).astype(np.int64)
    of = np.repeat(np.arange(groups), sizes)
    common, own = rng.standard_t(5, (groups, 2))[of], rng.standard_t(5, (len(of), 2))
    mine, noise = (0.7 * common + own).T
    return Targets(of, np.abs(mine), np.abs(mine + 0.5 * noise), mine > 1.5)


def gamma(groups: int, rng: Random) -> Targets:
    """Gamma losses, many of them near 0, in groups of 1 to 300 targets (log-normal)."""
    sizes = np.clip(rng.lognormal(2, 0.8, groups), 1, 300).astype(np.int64)
    of = np.repeat(np.arange(groups), sizes)
    common, own = rng.gamma(0.7, 1 / 0.7, groups)[of], rng.gamma(0.7, 1 / 0.7, (len(of), 2))
    mine = 0.5 * common + 0.5 * own[:, 0]
    return Targets(of, mine, 0.5 * common + 0.3 * own[:, 0] + 0.2 * own[:, 1], mine > 2)


WORLDS: dict[str, Callable[[int, Random], Targets]] = {"log-normal": log_normal, "heavy": heavy, "gamma": gamma}
STATISTICS: dict[str, Callable[[Targets], Statistic]] = {
    "loss": lambda targets: mean_of(targets.mine),
    "difference": lambda targets: difference_of(mean_of(targets.mine), mean_of(targets.other)),
    "share": lambda targets: mean_of(targets.holds),
}


def _name(world: str, statistic: str, groups: int) -> str:
    return f"coverage: {world} {statistic}, {groups} groups"


AIMS = [
    Aim(_name(world, statistic, groups), "share", least=0.93, most=0.97)
    for world in WORLDS
    for statistic in STATISTICS
    for groups in GROUPS
    if groups > 10
]


def truth_of(world: str) -> dict[str, float]:
    """The statistics of all groups."""
    rng = np.random.default_rng(0)
    sums: dict[str, Any] = dict.fromkeys(STATISTICS, 0.0)
    for _ in range(_TRUTH_IN):
        targets = WORLDS[world](_TRUTH_OF, rng)
        for name, of in STATISTICS.items():
            sums[name] = sums[name] + np.asarray(of(targets).columns).sum(0)
    return {name: float(total[0] / total[1]) for name, total in sums.items()}


def run(draws: int) -> dict[str, Any]:
    """Coverage of nominal 95 % by world, statistic and number of groups."""
    values = dict[str, float | None]()
    for world, draw in WORLDS.items():
        truth, rng = truth_of(world), np.random.default_rng(1)
        for groups in GROUPS:
            held = dict.fromkeys(STATISTICS, 0)
            tries = draws if groups < 1000 else max(1, draws // 2)
            for seed in range(tries):
                targets = draw(groups, rng)
                names = list(map(str, targets.groups.tolist()))
                bootstrap = PairedBootstrap(names, resamples=400, confidence=0.95, seed=seed)
                for name, of in STATISTICS.items():
                    found = bootstrap.interval(of(targets))
                    held[name] += found.low <= truth[name] <= found.high
            for name, count in held.items():
                values[_name(world, name, groups)] = count / tries
                print(f"{world}, {groups} groups, {name}: {100 * count / tries:.1f} %", flush=True)
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
