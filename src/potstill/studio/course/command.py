"""`potstill learn run N`: the steps of a lab without a browser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.console import Console
from potstill.errors import UserError, did_you_mean
from potstill.studio.course.content import lab
from potstill.studio.course.labs import missing, run_steps
from potstill.studio.workspace import Workspace


def run_lab(
    runs: Path,
    number: int,
    keys: Sequence[str],
    fields: Mapping[str, str],
    console: Console,
    *,
    ask: Callable[[str], bool] | None,
) -> dict[str, Any]:
    """Do some steps of a lab (all that this version can do, by default); what came of each, by key.

    Args:
        ask: is asked whether to begin; None begins.

    Raises:
        UserError: a step or field is not known.
        PotstillError: what a step says is wrong.
    """
    text = lab(number)
    known = [step.key for step in text.steps]
    for key in keys:
        if key not in known:
            raise UserError(f"lab {number} has no step {key!r}{did_you_mean(key, known)}", where="--step")
    names = {field.name for step in text.steps for field in step.fields}
    for name in fields:
        if name not in names:
            raise UserError(f"lab {number} has no field {name!r}{did_you_mean(name, names)}", where="--set")
    wanted = [step for step in text.steps if (step.key in keys if keys else not missing(step))]
    for step in text.steps:
        if not keys and missing(step):
            console.warn(f"{step.title}: {missing(step)}")
    if ask is not None:
        listed = "\n".join(f"  {step.title} (about {step.seconds} s)" for step in wanted)
        if not ask(f"Lab {number}: {text.title}\n{listed}\nDo these steps?"):
            return {}
    came = run_steps(Workspace(runs), number, [step.key for step in wanted], fields, console)
    return {key: {"passed": o.passed, "says": o.says, "seconds": o.seconds} for key, o in came.items()}
