"""Tails: where the student's excess loss over its teacher is concentrated, by rarity of the target and by slices. No
torch.

A mean hides rare knowledge: an excess that is 0 on common targets and large on rare ones is small on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from potstill.errors import DataError, MissingExtra
from potstill.evaluate.bootstrap import Floats, PairedBootstrap, Statistic, mean_of
from potstill.evaluate.measures.base import Found, Metric, Table, Texts
from potstill.evaluate.scores import Scores
from potstill.evaluate.smoothing import smooth
from potstill.evaluate.temperatures import nll_at, part_of, temperature_of
from potstill.measures import (
    Band,
    Bands,
    Curve,
    Example,
    Examples,
    Figures,
    Finding,
    Interval,
    Loss,
    MetricSpec,
    Place,
)
from potstill.recipe.measures import Tails
from potstill.registry import implements
from potstill.tasks import TaskSpec

_SECTION = "tails"
_FALSE_DISCOVERIES = 0.05
"""Expected share of false discoveries among reported slices (Benjamini and Hochberg 1995)."""

_FEW = 20
"""Minimum groups of a slice."""

_CURVED = 5
"""Minimum different frequencies for a curve."""

_READ = 20
"""Examples that are shown."""

_ZIPF = (
    ("rarer than 1 in a million", -1.0, 3.0),
    ("1 in a million to 1 in 100,000", 3.0, 4.0),
    ("to 1 in 10,000", 4.0, 5.0),
    ("to 1 in 1,000", 5.0, 6.0),
    ("more common", 6.0, 10.0),
)
"""Bands of words, from and to a frequency on Zipf's scale."""

_RARER = 0.5
"""Targets are rare if they occur at most this often in the mean, as a share of how often the others do: the smaller of
two classes of nearly equal size is no tail."""

_RARE_WORD = 4.0
"""Words below this are rare: less than once in 100,000."""

Mask = NDArray[np.bool_]


@implements(Tails)
class TailsMeasure:
    """Excess loss by training frequency of the target, and by slices of the held-out targets."""

    columns = ("probability", "hit")

    def __init__(self, settings: Tails) -> None:
        self.settings = settings

    def metrics(self, task: TaskSpec) -> tuple[Metric, ...]:
        """None."""
        return ()

    def findings(self, table: Table) -> Found:
        """Bands of frequency, the share of the lost nats on the rarest targets, slices, words, what the teacher alone
        gets right; and losses on the rarest, on the worst slice, on rare words, and everywhere else."""
        if "teacher" not in table.scores:
            return Found(notes=("Where the loss is was not measured: there is no teacher to lose against.",))
        excess = {name: _excess(table, name) for name in ("student", "text_only") if name in table.scores}
        rare, rare_words = rarest(table.frequency, self.settings.rare), np.zeros(len(table.ids), dtype=np.bool_)
        bootstrap, losses, notes = table.draws.of(table.groups), [], []
        found: list[Finding] = [self._bands(table, excess)]
        if is_tail(table.frequency, rare):
            figures, loss = _on_rare(table, bootstrap, excess, rare)
            found += [*_along_frequency(table, excess), *figures]
            losses.append(loss)
        else:
            notes.append("All held-out targets are about equally common in training: there are no rare ones.")
            rare = np.zeros_like(rare)
        notes += _without_slices(table, self.settings.columns)
        slices, worst = self._slices(table, excess["student"])
        found += slices
        if self.settings.words is not None and table.texts is not None and table.task.has_vocabulary:
            zipf = zipf_of(table.texts.words(), self.settings.words)
            found.append(_by_words(table, excess, zipf))
            rare_words = zipf < _RARE_WORD
            losses += _on_rare_words(bootstrap, excess, rare_words)
        found += self._missed(table)
        weak = {f"rare {_kind(table)}": rare, "rare words": rare_words}
        if worst is not None:
            losses.append(worst.loss)
            weak[worst.name] = worst.inside
        losses += _everywhere(table, {name: inside for name, inside in weak.items() if inside.any()})
        return Found(tuple(found), tuple(losses), tuple(notes))

    def _missed(self, table: Table) -> tuple[Figures | Examples, ...]:
        """What the teacher gets right and every student of all seeds gets wrong: how much, and the worst to read."""
        teacher = _right(table.scores["teacher"][0])
        missed = {
            name: teacher & ~np.any([right for one in seeds if (right := _right(one)) is not None], axis=0)
            for name, seeds in table.scores.items()
            if name in ("student", "text_only") and teacher is not None and _right(seeds[0]) is not None
        }
        if "student" not in missed or not missed["student"].any():
            return ()
        seeds = len(table.scores["student"])
        by_all = f"by all {seeds} students" if seeds > 1 else "by the student"
        bootstrap = table.draws.of(table.groups)
        spec = MetricSpec("missed", f"Missed {by_all}, not by the teacher", "missed", "share", False, "targets")
        share = Figures(
            "What the teacher alone gets right",
            f"The share of the targets that are the teacher’s first choice, and are missed {by_all}; "
            "of the control the same."
            + (" What every seed misses is not chance of one training." if seeds > 1 else ""),
            _SECTION,
            ((spec, {name: bootstrap.mean(mask) for name, mask in missed.items()}),),
        )
        if table.texts is None:
            return (share,)
        lost = np.where(missed["student"], np.mean(_excess(table, "student"), axis=0), -np.inf)
        worst = np.argsort(-lost, kind="stable")[: min(_READ, int(missed["student"].sum()))]
        examples = Examples(
            f"To read: missed {by_all}",
            "Of these targets, those with the largest loss against the teacher.",
            _SECTION,
            tuple(_example(table, table.texts, int(index)) for index in worst),
        )
        return (share, examples)

    def _bands(self, table: Table, excess: dict[str, list[Floats]]) -> Bands:
        parts = table.bands(self.settings.rare)
        rows = [band for name, inside in parts.items() if (band := _band(table, name, inside, excess)) is not None]
        spec = MetricSpec("nll", "NLL", "NLL", "nats", False, per="target")
        return Bands(
            "By frequency",
            "NLL of the held-out targets, by how often the target occurs among the targets of training, and what the "
            "student loses against its teacher there.",
            _SECTION,
            spec,
            "targets",
            tuple(rows),
        )

    def _slices(self, table: Table, excess: list[Floats]) -> tuple[tuple[Bands, ...], _Worst | None]:
        """Slices with more excess loss than the rest: selected on one half of the groups, tested on the other; and of
        the classes and the values of columns, the one that costs most on the first half, as a loss of the other."""
        look, report = table.halves
        looking, reporting = table.within(look), table.within(report)
        if looking is None or reporting is None:
            return (), None
        averaged = np.mean(excess, axis=0)
        suspected: list[tuple[str, Mask, Statistic]] = []
        for name, inside in slices_of(table, self.settings.columns).items():
            if min(_groups(table, inside & half) for half in (look, report)) < _FEW:
                continue
            first = _gap(averaged[look], inside[look])
            if looking.value(first) > looking.error(first):
                suspected.append((name, inside, _gap(averaged[report], inside[report])))
        tested = [_p_value(reporting, gap) for _, _, gap in suspected]
        adjusted = benjamini_hochberg(tested)
        known = named_slices(table, self.settings.columns)
        costs = {n: looking.value(concentrated_in(averaged[look], m[look])) for n, m, _ in suspected if n in known}
        worst = None
        if costs:
            name = max(costs, key=costs.__getitem__)
            inside = known[name][report]
            several = [one[report] for one in excess]
            more = reporting.interval([_gap(one, inside) for one in several])
            loss = Loss(
                _SECTION,
                f"loses most on {name}: {more.value:.2f} nats more than on the other {table.task.scored_unit}, "
                "looked for on one half of the groups and measured on the other",
                reporting.interval([concentrated_in(one, inside) for one in several]),
                "train on more records of that kind",
            )
            worst = _Worst(name, known[name], loss)
        rows = []
        for (name, inside, _), p in zip(suspected, adjusted, strict=True):
            band = _band(table, name, inside & report, {"student": excess})
            if p <= _FALSE_DISCOVERIES and band is not None:
                rows.append(Band(band.name, band.targets, band.values, band.excess, None, p))
        if not rows:
            return (), worst
        rows.sort(key=lambda band: -(band.excess.value if band.excess is not None else 0.0))
        bands = Bands(
            "Slices that lose more than the rest",
            f"Looked for on one half of the groups; figures and tests are of the other half. Of such slices at most "
            f"{100 * _FALSE_DISCOVERIES:.0f} % are chance (Benjamini and Hochberg).",
            _SECTION,
            MetricSpec("nll", "NLL", "NLL", "nats", False, per="target"),
            "targets",
            tuple(rows),
        )
        return (bands,), worst


@dataclass(frozen=True)
class _Worst:
    """The class, or the value of a column, on which most is lost: its name, its targets [N], and the loss."""

    name: str
    inside: Mask
    loss: Loss


# ---- losses --------------------------------------------------------------------------------------------------------


def _kind(table: Table) -> str:
    return "classes" if table.task.has_classes else "tokens"


def _on_rare(
    table: Table, bootstrap: PairedBootstrap, excess: dict[str, list[Floats]], rare: Mask
) -> tuple[tuple[Figures, ...], Loss]:
    """What the rarest targets carry of all that is lost (nothing where no loss is shown), and what they lose beyond
    the others."""
    shares = {}
    for name, several in excess.items():
        lost = bootstrap.interval([mean_of(e) for e in several])
        if lost.low > 0:  # without a shown loss there is no share
            shares[name] = bootstrap.interval([share_of(e, rare) for e in several])
    percent = 100 * float(rare.mean())
    carried = "lose more than the others"
    if "student" in shares:
        part = shares["student"].value
        carried = f"carry {100 * part:.0f} % of its lost nats"
        if part > 1:  # others improve on the teacher
            carried = f"carry all of its lost nats, {part:.1f} times over"
    if len(shares) == 2:
        carried += f" (of the control’s {100 * shares['text_only'].value:.0f} %)"
    loss = Loss(
        _SECTION,
        f"loses most on rare {_kind(table)}: the rarest {percent:.0f} % of the targets {carried}",
        bootstrap.interval([concentrated_in(e, rare) for e in excess["student"]]),
        f"train on more text with rare {_kind(table)}, or longer",
    )
    if not shares:
        return (), loss
    spec = MetricSpec("share_of_lost", "Share of the lost nats", "share of the lost", "share", False)
    figures = Figures(
        "What the rarest targets carry",
        f"The rarest {percent:.0f} % of the held-out targets, by their count in training, carry this share of what a "
        "model loses against its teacher.",
        _SECTION,
        ((spec, shares),),
    )
    return (figures,), loss


def _by_words(table: Table, excess: dict[str, list[Floats]], zipf: Floats) -> Bands:
    """Bands of the frequency of the word that a target is in."""
    parts = {
        "of no word": np.isnan(zipf),
        **{name: (zipf >= low) & (zipf < high) for name, low, high in _ZIPF},
    }
    rows = [band for name, inside in parts.items() if (band := _band(table, name, inside, excess)) is not None]
    return Bands(
        "By frequency of the word",
        "NLL by how common the word of a target is in the language at large (Zipf’s scale of the package wordfreq: 6 "
        "is once in a thousand words, 3 once in a million), not in the training data.",
        _SECTION,
        MetricSpec("nll", "NLL", "NLL", "nats", False, per="target"),
        "words",
        tuple(rows),
    )


def _on_rare_words(bootstrap: PairedBootstrap, excess: dict[str, list[Floats]], rare: Mask) -> list[Loss]:
    """What targets in rare words lose beyond the others; none where all words are rare, or none is."""
    if not 0 < rare.sum() < len(rare):
        return []
    more = bootstrap.value(_gap(np.mean(excess["student"], axis=0), rare))
    return [
        Loss(
            _SECTION,
            f"loses most on rare words: {more:.2f} nats more than on others, in words that occur less than once in "
            "100,000",
            bootstrap.interval([concentrated_in(e, rare) for e in excess["student"]]),
            "train on more text with rare words, or longer",
        )
    ]


def _everywhere(table: Table, weak: dict[str, Mask]) -> list[Loss]:
    """What is lost outside of all weak spots that are losses of their own, with each model at its best temperature:
    none of the other losses of held-out targets explains it. Temperatures are fitted on one half of the groups, and
    the loss is of the other.

    Args:
        table: of the held-out targets.
        weak: by name, the targets [N] of each weak spot.
    """
    outside = ~np.any([np.zeros(len(table.ids), dtype=np.bool_), *weak.values()], axis=0)
    fit_on, report_on = (half & outside for half in table.halves)
    fitting, reporting = table.within(fit_on), table.within(report_on)
    if fitting is None or reporting is None:
        return []

    def at_best(scores: Scores) -> Floats:
        reported = part_of(scores, report_on)
        if not scores.nll_at:  # calibration is not measured
            return np.array(reported.nll, dtype=np.float64)
        return nll_at(reported, fitting.value(temperature_of(part_of(scores, fit_on))))

    teacher = at_best(table.scores["teacher"][0])
    lost = {
        name: reporting.interval([mean_of(at_best(one) - teacher) for one in table.scores[name]])
        for name in ("student", "text_only")
        if name in table.scores
    }
    control = f" (the control’s by {lost['text_only'].value:.2f})" if "text_only" in lost else ""
    but = f"outside of {' and of '.join(weak)}, too, " if weak else ""
    return [
        Loss(
            _SECTION,
            f"loses everywhere: {but}its NLL is above its teacher’s by {lost['student'].value:.2f}{control}, each "
            "at its best temperature",
            lost["student"],
            "train longer or on more text, or take a larger student",
        )
    ]


# ---- statistics ----------------------------------------------------------------------------------------------------


def _along_frequency(table: Table, excess: dict[str, list[Floats]]) -> tuple[Curve, ...]:
    """What is lost along the frequency of the target, as a curve with a band; none where too few frequencies differ."""
    x = np.log10(1.0 + table.frequency)
    if len(np.unique(x)) < _CURVED:
        return ()
    bootstrap = table.draws.of(table.groups)
    curves = {
        name: tuple(Place(10**at, value) for at, value in smooth(x, several, bootstrap))
        for name, several in excess.items()
    }
    if not curves.get("student"):
        return ()
    return (
        Curve(
            "Along the frequency of the target",
            "What a model loses against its teacher on a target, by how often that target occurs in training (a "
            "line is fitted to the targets near each place).",
            _SECTION,
            MetricSpec("excess", "Loss against the teacher", "loss against the teacher", "nats", False, per="target"),
            "occurrences in training, and 1",
            {name: curve for name, curve in curves.items() if curve},
            log=True,
        ),
    )


def rarest(frequency: NDArray[np.int64], share: float) -> Mask:
    """The targets [N] with the smallest frequencies: at least `share` of them, including ties with the last."""
    return frequency <= np.quantile(frequency, share, method="higher")


def is_tail(frequency: NDArray[np.int64], rare: Mask) -> bool:
    """Whether some targets [N] occur much less often in training than the others."""
    return bool(0 < rare.sum() < len(rare) and frequency[rare].mean() <= _RARER * frequency[~rare].mean())


def share_of(excess: Floats, inside: Mask) -> Statistic:
    """Σ of the excess inside ÷ Σ of the total excess, which must be positive."""
    columns = np.stack([excess * inside, excess], -1)

    def of(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[..., 0] / sums[..., 1])

    return Statistic(columns, of)


def concentrated_in(excess: Floats, inside: Mask) -> Statistic:
    """The part of the mean excess that would vanish if the inside had the mean of the outside, or none where the
    outside gains on the teacher: share × (inside − max(outside, 0)). A model that gains everywhere, and less on the
    inside, has lost nothing there."""
    outside = ~inside
    columns = np.stack([excess * inside, inside, excess * outside, outside], -1).astype(np.float64)

    def of(sums: Floats) -> Floats:
        within, without = np.maximum(sums[..., 1], 1), np.maximum(sums[..., 3], 1)
        gap = sums[..., 0] / within - np.maximum(sums[..., 2] / without, 0)
        return np.asarray(gap * within / (within + without))

    return Statistic(columns, of)


def _gap(excess: Floats, inside: Mask) -> Statistic:
    """Mean excess inside minus mean excess outside."""
    outside = ~inside
    columns = np.stack([excess * inside, inside, excess * outside, outside], -1).astype(np.float64)

    def of(sums: Floats) -> Floats:
        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1) - sums[..., 2] / np.maximum(sums[..., 3], 1))

    return Statistic(columns, of)


def _p_value(bootstrap: PairedBootstrap, statistic: Statistic) -> float:
    """Two-sided p-value against 0, by the jackknife's standard error and Student's distribution."""
    error = bootstrap.error(statistic)
    if error <= 0:
        return 1.0
    return float(2 * t.sf(abs(bootstrap.value(statistic)) / error, bootstrap.groups - 1))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those ≤ q bounds the expected share of false discoveries by q."""
    count = len(p_values)
    order = np.argsort(p_values)
    found = np.empty(count)
    least = 1.0
    for rank in range(count, 0, -1):
        place = int(order[rank - 1])
        least = min(least, p_values[place] * count / rank)
        found[place] = least
    return [float(p) for p in found]


def slices_of(table: Table, columns: Sequence[str] = ()) -> dict[str, Mask]:
    """Quarters of the targets by the teacher's probability, place, length of the row, and size of the group; and
    `named_slices`. Raises as these."""
    features: dict[str, NDArray[np.floating] | NDArray[np.int64]] = {}
    teacher = table.scores["teacher"][0]
    if teacher.probability is not None:
        features["teacher’s confidence"] = teacher.probability
    if table.task.has_vocabulary:
        features["place in the text"] = table.positions
        features["length of the answer"] = table.lengths
    features["targets of its group"] = np.bincount(table.group_numbers)[table.group_numbers].astype(np.int64)
    found: dict[str, Mask] = {}
    for name, values in features.items():
        edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
        for low, high in pairwise(edges):
            last = high == edges[-1]
            inside = (values >= low) & ((values <= high) if last else (values < high))
            if 0 < inside.sum() < len(inside):
                found[f"{name} {low:.3g} to {high:.3g}"] = inside
    return found | named_slices(table, columns)


def named_slices(table: Table, columns: Sequence[str] = ()) -> dict[str, Mask]:
    """Each class, and each value of some columns of the data that is in enough groups.

    Raises:
        DataError: no record has one of the columns.
    """
    found: dict[str, Mask] = {}
    if table.task.has_classes and "label" not in columns:
        found |= {f"class {name}": table.ids == number for number, name in enumerate(table.names)}
    if table.texts is not None:
        for column in columns:
            values = table.texts.column(column)
            found |= {f"{column}: {_line(value)}": values == value for value in _frequent(table, values)}
    return {name: inside for name, inside in found.items() if 0 < inside.sum() < len(inside)}


def _frequent(table: Table, values: NDArray[np.object_]) -> list[str]:
    """The values [N] that occur in enough groups to be looked at. (A column may have a value of its own per record.)"""
    names, numbers = np.unique(values, return_inverse=True)
    pairs = np.unique(np.stack([numbers, table.group_numbers]), axis=1)
    enough = np.bincount(pairs[0], minlength=len(names)) >= 2 * _FEW
    return [name for name in names[enough].tolist() if name]


def _without_slices(table: Table, columns: Sequence[str]) -> list[str]:
    """A note for each column of which no value is in enough groups."""
    if table.texts is None:
        return []
    return [
        f"No value of {name} is in {2 * _FEW} groups or more, so losses are not sliced by it."
        for name in columns
        if not _frequent(table, table.texts.column(name))
    ]


def _line(value: str) -> str:
    """A value of the data for a name: on one line, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)


def zipf_of(words: Sequence[str], language: str) -> Floats:
    """The frequency of each word [N] on Zipf's scale, log10 of its occurrences in a billion words; NaN for no word, 0
    for an unknown one.

    Raises:
        MissingExtra: the package `wordfreq` is missing.
        DataError: it does not know the language.
    """
    try:
        from wordfreq import zipf_frequency
    except ImportError as error:
        raise MissingExtra("wordfreq", "words", "tails by word frequency") from error
    known: dict[str, float] = {"": np.nan}
    try:
        known |= {word: zipf_frequency(word, language) for word in set(words) if word}
    except LookupError as error:
        raise DataError(
            f"wordfreq does not know the language {language!r}",
            where="evaluate.measures tails",
            fix="give words: en, or another language of wordfreq; or drop words",
        ) from error
    return np.array([known[word] for word in words], dtype=np.float64)


def _right(scores: Scores) -> Mask | None:
    """Whether the first choice is the target [N]."""
    return scores.hit if scores.hit is not None else scores.correct


def _example(table: Table, texts: Texts, index: int) -> Example:
    """One target with what each model loses on it."""
    text, target = texts.shown(index)
    nll = {
        name: float(np.mean([one.nll[index] for one in seeds if one.nll is not None]))
        for name, seeds in table.scores.items()
        if name != "untrained" and seeds[0].nll is not None
    }
    return Example(text, target, nll)


def _excess(table: Table, name: str) -> list[Floats]:
    """NLL of a model minus that of its teacher [N], by seed."""
    teacher = table.scores["teacher"][0].nll
    found = [one.nll for one in table.scores[name]]
    return [n.astype(np.float64) - teacher for n in found if n is not None and teacher is not None]


def _band(table: Table, name: str, inside: Mask, excess: dict[str, list[Floats]]) -> Band | None:
    """One subset of the targets; None if it has too few groups for an interval."""
    bootstrap = table.within(inside)
    if bootstrap is None:
        return None
    values: dict[str, Interval] = {}
    for model, seeds in table.scores.items():
        nll = [mean_of(one.nll[inside]) for one in seeds if one.nll is not None]
        if nll and model != "untrained":
            values[model] = bootstrap.interval(nll)
    lost = {model: bootstrap.interval([mean_of(e[inside]) for e in several]) for model, several in excess.items()}
    return Band(name, int(inside.sum()), values, lost.get("student"), lost.get("text_only"))


def _groups(table: Table, inside: Mask) -> int:
    return len(np.unique(table.group_numbers[inside]))
