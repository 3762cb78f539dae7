"""One exception family. Each error says what is wrong, where, and the fix.

The command line prints these without a traceback and exits with `exit_code`; anything else that reaches
it is a defect of ours and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PotstillError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: what is wrong, one sentence, in the user's words.
        where: the file, key, line or row, if there is one.
        fix: what to do about it, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [f"{where}: {what}" if where else what]
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class UserError(PotstillError):
    """A mistake that the person at the keyboard can fix."""

    exit_code = 2


class RecipeError(UserError):
    """The recipe cannot be read, or asks for something impossible."""


class DataError(UserError):
    """A data source is missing, malformed or empty."""


class ModelError(UserError):
    """A model cannot be found, is not whole, or is of a kind that cannot be used."""


class CapabilityError(UserError):
    """An objective needs what the teacher cannot give."""


class TokenizerMismatch(UserError):
    """Student and teacher do not speak the same tokens, or not through the same template."""


class RunError(UserError):
    """A run folder cannot be used: of another recipe, incomplete, unwritable, or its disk is full."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            fix=f'pip install "potstill[{extra}]"',
        )


class RefusedError(PotstillError):
    """A gate said no (licence, terms, budget, probe)."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, else the list of known names, else nothing."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(choices)}" if choices else ""
