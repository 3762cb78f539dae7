"""The section on speculative decoding: whether the draft pays, what a round gives and costs, and who wrote a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report import figures
from potstill.report.charts import NARROW, WIDE, Figure, finished
from potstill.report.palette import INK, LOOKS, RULE, SOFT
from potstill.report.sections import Table
from potstill.report.svg import draw
from potstill.speculation import Advice, Piece, Speculation, Trial

_COLOURS = (LOOKS["student"].colour, LOOKS["text_only"].colour, LOOKS["untrained"].colour, SOFT)
_PARTS = {"draft": LOOKS["student"].colour, "verify": LOOKS["teacher"].colour, "other": LOOKS["text_only"].colour}


@dataclass(frozen=True)
class Drafting:
    """What the page shows of a draft."""

    title: str
    verdicts: Sequence[tuple[str, str]]
    forecasts: Table
    tree: Table | None
    trials: Table | None
    figures: Sequence[Figure]
    text: Sequence[Piece]
    notes: Sequence[str]


def drafting_of(found: Speculation) -> Drafting:
    """The section of a draft."""
    drawn = [_speedup_figure(found)]
    if found.trials:
        drawn += [_accepted_figure(found), _time_figure(found)]
    notes = list(found.notes)
    if found.exported is not None and found.exported.folder:
        notes.append(
            f"Through the exported files {figures.percent(found.exported.alpha, 1)} of single tokens are accepted, in "
            f"memory {figures.percent(found.exported.alpha_in_memory, 1)}."
        )
    return Drafting(
        f"{found.draft}, drafting for {found.target} in {found.dtype}",
        [(_called(a), a.reason) for a in found.advice],
        _forecasts(found),
        _tree(found) if found.accuracies else None,
        _trials(found.trials) if found.trials else None,
        drawn,
        found.text,
        notes,
    )


def _mode(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _called(advice: Advice) -> str:
    return f"{_mode(advice.temperature)}, batch {advice.batch_size}"


def _times(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _forecasts(found: Speculation) -> Table:
    head = ("speed-up by gamma", *(str(forecast.gamma) for forecast in found.advice[0].forecasts))
    rows = [(_called(a), *(f"{f.speedup.value:.2f}" for f in a.forecasts)) for a in found.advice]
    return Table(head, rows)


def _tree(found: Speculation) -> Table:
    """By depth and rank, how often a choice is the target's token, and how many of the choices are in the tree."""
    choices = max(len(ranks) for depths in found.accuracies.values() for ranks in depths)
    rows = []
    for mode, depths in found.accuracies.items():
        nodes = found.nodes.get(mode, ())
        for depth, ranks in enumerate(depths, 1):
            drafted = sum(len(node) == depth for node in nodes)
            rows.append((f"{mode}, token {depth}", *(figures.percent(share, 1) for share in ranks), str(drafted)))
    return Table(("share by rank", *map(str, range(1, choices + 1)), "nodes"), rows)


def _trials(trials: Sequence[Trial]) -> Table:
    head = ("trial", "speed-up, measured", "speed-up, forecast", "tokens a round", "tokens/s", "tokens/s, target alone")
    rows = [
        (
            f"{_mode(t.temperature)}, gamma {t.gamma}",
            _times(t.speedup.value, t.speedup.low, t.speedup.high),
            _times(t.predicted.value, t.predicted.low, t.predicted.high),
            f"{t.tokens_per_round:.2f}",
            figures.rate(t.tokens_per_second),
            figures.rate(t.alone_per_second),
        )
        for t in trials
    ]
    return Table(head, rows)


def _both(title: str, caption: str, chart: Any, label: str) -> Figure:
    return Figure(title, caption, draw(chart(WIDE), label), draw(chart(NARROW), label))


def _speedup_figure(found: Speculation) -> Figure:
    alone = [advice for advice in found.advice if advice.batch_size == found.advice[0].batch_size]
    colour = {advice.temperature: _COLOURS[i % len(_COLOURS)] for i, advice in enumerate(alone)}
    lines = [
        {"gamma": f.gamma, "value": f.speedup.value, "low": f.speedup.low, "high": f.speedup.high}
        | {"colour": colour[a.temperature]}
        for a in alone
        for f in a.forecasts
    ]
    points = [{"gamma": t.gamma, "value": t.speedup.value, "colour": colour[t.temperature]} for t in found.trials]

    def chart(width: int) -> Any:
        import altair as alt

        gammas = alt.Scale(zero=False, nice=False, padding=12)
        x = alt.X("gamma:Q", title="drafted tokens a round", scale=gammas, axis=alt.Axis(format="d", tickMinStep=1))
        y = alt.Y("value:Q", title="speed-up over the target alone", scale=alt.Scale(zero=False, nice=True))
        paint = alt.Color("colour:N", scale=None)
        base = alt.Chart(alt.InlineData(values=lines)).encode(x=x, color=paint)
        even = alt.Chart(alt.InlineData(values=[{"at": 1}])).mark_rule(strokeDash=[4, 3]).encode(y="at:Q")
        layers = [
            even.encode(color=alt.value(RULE)),
            base.mark_rule(strokeWidth=1).encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y=y),
        ]
        if points:
            shown = alt.Chart(alt.InlineData(values=points)).mark_point(size=80, filled=True, opacity=1)
            layers.append(shown.encode(x=x, y=y, color=paint))
        return finished(alt.layer(*layers), width, 260)

    names = {LOOKS["student"].colour: "blue", LOOKS["text_only"].colour: "orange", LOOKS["untrained"].colour: "purple"}
    key = ", ".join(f"{_mode(a.temperature)} {names.get(colour[a.temperature], 'grey')}" for a in alone)
    best = "; ".join(f"{_mode(a.temperature)} best {a.at_best.speedup.value:.2f} at gamma {a.best}" for a in alone)
    caption = (
        f"Lines: forecast with its interval; points: measured. {key[:1].upper()}{key[1:]}. Batch {alone[0].batch_size}."
    )
    return _both("Speed-up by gamma", caption, chart, f"Speed-up by gamma: {best}")


def _best_trials(found: Speculation) -> list[Trial]:
    """Of each temperature the trial with the largest measured speed-up."""
    best: dict[float, Trial] = {}
    for trial in found.trials:
        if trial.temperature not in best or trial.speedup.value > best[trial.temperature].speedup.value:
            best[trial.temperature] = trial
    return list(best.values())


def _accepted_figure(found: Speculation) -> Figure:
    trials = _best_trials(found)
    values = [
        {"trial": f"{_mode(t.temperature)}, gamma {t.gamma}", "count": count, "share": rounds / sum(t.accepted)}
        for t in trials
        for count, rounds in enumerate(t.accepted)
    ]

    def chart(width: int) -> Any:
        import altair as alt

        base = alt.Chart(alt.InlineData(values=values))
        bars = base.mark_bar(size=12).encode(
            x=alt.X("count:O", title="drafted tokens that stood", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="share of rounds", axis=alt.Axis(format=".0%", tickCount=4)),
            xOffset=alt.XOffset("trial:N", sort=None),
            color=alt.Color(
                "trial:N",
                legend=None,
                scale=alt.Scale(
                    domain=[f"{_mode(t.temperature)}, gamma {t.gamma}" for t in trials],
                    range=[_COLOURS[i % len(_COLOURS)] for i in range(len(trials))],
                ),
            ),
        )
        return finished(bars, width, 220)

    means = "; ".join(
        f"{_mode(t.temperature)}, gamma {t.gamma}: {t.tokens_per_round:.2f} tokens a round" for t in trials
    )
    return _both("Tokens accepted per round", f"{means}.", chart, f"Tokens accepted per round: {means}")


def _time_figure(found: Speculation) -> Figure:
    trials = _best_trials(found)
    values = [
        {"trial": f"{_mode(t.temperature)}, gamma {t.gamma}", "part": part, "order": order}
        | {"ms": 1000 * float(getattr(t, f"{part}_seconds"))}
        for t in trials
        for order, part in enumerate(_PARTS)
    ]

    def chart(width: int) -> Any:
        import altair as alt

        scale = alt.Scale(domain=list(_PARTS), range=list(_PARTS.values()))
        axis = alt.Axis(ticks=False, domain=False, labelColor=INK, minExtent=66)
        stack = (
            alt.Chart(alt.InlineData(values=values))
            .mark_bar(size=18)
            .encode(
                x=alt.X("ms:Q", title="milliseconds a round"),
                y=alt.Y("trial:N", sort=None, title=None, axis=axis),
                color=alt.Color("part:N", scale=scale, legend=None),
                order=alt.Order("order:Q"),
            )
        )
        return finished(stack, width, 44 * len(trials) + 44)

    shares = "; ".join(
        f"{_mode(t.temperature)}: draft {1000 * t.draft_seconds:.1f}, verify {1000 * t.verify_seconds:.1f}, other "
        f"{1000 * t.other_seconds:.1f} ms"
        for t in trials
    )
    return _both(
        "Time of a round", f"From the left: draft, verify, other. {shares}.", chart, f"Time of a round: {shares}"
    )
