"""What `speculate` writes and `report` reads: `speculation.json`, as frozen records. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from potstill.errors import RunError
from potstill.measures import Interval

FORMAT = 2
FILE = "speculation.json"

_CONFIG = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

Author = Literal["prompt", "draft", "target"]


@dataclass(frozen=True, config=_CONFIG)
class Costs:
    """Medians in seconds, of one batch.

    Attributes:
        batch_size: rows.
        verify: of the target's reading 1, 2, … tokens a row.
        draft: of drafting 1, 2, … tokens a row.
        other: of a round besides, with 0, 1, … drafted tokens.
        prefill: of the target's reading the prompts.
        draft_prefill: of the draft's.
    """

    batch_size: int
    verify: tuple[float, ...]
    draft: tuple[float, ...]
    other: tuple[float, ...]
    prefill: float
    draft_prefill: float

    @property
    def c(self) -> float:
        """Time of one drafted token, relative to one token of the target."""
        return self.draft[-1] / len(self.draft) / self.verify[0]

    def v(self, n: int) -> float:
        """Time of reading n tokens, relative to reading one."""
        return self.verify[n - 1] / self.verify[0]


@dataclass(frozen=True, config=_CONFIG)
class Forecast:
    """Expected result of one gamma: tokens per row and round, and the speed-up over the target alone."""

    gamma: int
    tokens_per_round: float
    speedup: Interval


@dataclass(frozen=True, config=_CONFIG)
class Advice:
    """The forecast at one temperature and batch size.

    Attributes:
        temperature: 0 is greedy.
        batch_size: rows.
        threshold: at which the draft stops; 0 never.
        forecasts: one per gamma, ascending.
        best: the gamma with the best forecast.
        use: whether a speed-up is expected: the whole interval of the best is above 1.
        reason: a sentence.
        needed_alpha: the acceptance per token from which the best gamma gains; None if none does.
        needed_c: the draft's cost per token below which it gains with this acceptance; None if none does.
    """

    temperature: float
    batch_size: int
    threshold: float
    forecasts: tuple[Forecast, ...]
    best: int
    use: bool
    reason: str
    needed_alpha: float | None
    needed_c: float | None

    @property
    def at_best(self) -> Forecast:
        """The forecast of the best gamma."""
        return next(forecast for forecast in self.forecasts if forecast.gamma == self.best)


@dataclass(frozen=True, config=_CONFIG)
class Trial:
    """What was measured end to end, with the target alone in turn, one row at a time.

    Attributes:
        speedup: seconds per token of the target alone ÷ with the draft.
        predicted: the forecast of the same gamma.
        accepted: rounds by the number of drafted tokens that stood: 0, 1, …
        draft_seconds, verify_seconds, other_seconds: of a round, means.
    """

    temperature: float
    gamma: int
    threshold: float
    speedup: Interval
    predicted: Interval
    tokens_per_second: float
    alone_per_second: float
    accepted: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float
    other_seconds: float

    @property
    def tokens_per_round(self) -> float:
        """Mean number of accepted tokens per round, plus the target's own token."""
        return 1 + sum(i * count for i, count in enumerate(self.accepted)) / max(sum(self.accepted), 1)


@dataclass(frozen=True, config=_CONFIG)
class Piece:
    """A piece of a text, and who wrote it."""

    text: str
    author: Author


@dataclass(frozen=True, config=_CONFIG)
class Exported:
    """An exported draft: its folder below the artifact, and the acceptance of one token measured through its files,
    beside that of the draft in memory."""

    folder: str
    alpha: float
    alpha_in_memory: float
    gamma: int
    note: str = ""


@dataclass(frozen=True, config=_CONFIG)
class Speculation:
    """A draft's worth to its target, on this machine.

    Attributes:
        target: its name.
        draft: in words.
        dtype: of both.
        alphas: acceptance of one drafted token by temperature (Σ min(p, q); a share of agreements if greedy).
        by_position: the same by position in the text, at the first temperature: means over prompts.
        costs: one per batch size.
        advice: one per temperature and batch size.
        trials: what was measured.
        text: one answer, coloured by who wrote it.
        exported: None if nothing was.
        accuracies: of what drafts trees, by temperature: of each depth (of each Medusa head), the share of rounds at
            which the choice of each rank was the text's token; of a model, among rounds whose best choices were right
            up to there.
        nodes: of the tree by temperature, best first, by their ranks from the root; none where a chain is better.
    """

    target: str
    draft: str
    dtype: str
    prompts: int
    tokens: int
    alphas: Mapping[str, Interval]
    by_position: tuple[float, ...]
    costs: tuple[Costs, ...]
    advice: tuple[Advice, ...]
    trials: tuple[Trial, ...] = ()
    text: tuple[Piece, ...] = ()
    exported: Exported | None = None
    notes: tuple[str, ...] = ()
    accuracies: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    nodes: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    format: int = field(default=FORMAT)


_ADAPTER = TypeAdapter(Speculation)


def save_speculation(found: Speculation, folder: Path) -> None:
    """Write `speculation.json`."""
    (folder / FILE).write_bytes(_ADAPTER.dump_json(found, indent=1) + b"\n")


def load_speculation(folder: Path) -> Speculation:
    """Read `speculation.json`.

    Raises:
        RunError: it is missing or of another version.
    """
    file = folder / FILE
    try:
        return _ADAPTER.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            "what was measured of the draft cannot be read", where=str(file), fix="run `potstill speculate --force`"
        ) from error
