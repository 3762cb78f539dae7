"""One exception family. Each error says what is wrong, where, and the fix.

The command line prints these without a traceback and exits with `exit_code`. Any other exception is a defect of
potstill and exits with 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline; with ESC begin all terminal escapes
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # reorder text, or break lines
    "\ud800-\udfff"  # halves of surrogate pairs: cannot be encoded
    "\U000e0000-\U000e007f]"  # tags: never shown
)


def printable(text: str) -> str:
    """The text, safe for a terminal: characters that could move the cursor, start an escape sequence, reorder the text
    or fail to encode are written as `\\x1b` or `\\u202e`. Tabs and newlines stay.

    Everything that potstill prints goes through here (see `console.py`): it may quote a model, a server or a file.
    """
    return _UNPRINTABLE.sub(_escaped, text.replace("\r\n", "\n"))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
        super().__init__(printable("\n".join(lines)))


class UserError(PotstillError):
    """A mistake that the person at the keyboard can fix."""

    exit_code = 2


class RecipeError(UserError):
    """The recipe cannot be read, or asks for something impossible."""


class DataError(UserError):
    """A data source is missing, malformed or empty."""


class ModelError(UserError):
    """A model cannot be found, is incomplete, or is of a kind that cannot be used."""


class CapabilityError(UserError):
    """An objective needs what the teacher cannot give."""


class TokenizerMismatch(UserError):
    """Student and teacher have different tokenizers or chat templates."""


class RunError(UserError):
    """A run folder cannot be used: it belongs to another recipe, is incomplete or unwritable, or its disk is full."""


class OutputError(UserError):
    """Standard output cannot be written: its disk is full, or its device failed."""


class OutputClosed(PotstillError):
    """The reader of standard output is gone (`potstill show runs/x | head -1`). No message is printed."""

    exit_code = 141  # 128 + SIGPIPE, as other programs in a pipe


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            fix=f'pip install "potstill[{extra}]"',
        )


class RefusedError(PotstillError):
    """The gate on licences and terms refuses to go on."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, else the list of known names, else nothing."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(choices)}" if choices else ""


def missing_run(run: Path) -> RunError:
    """The error for a run's folder that does not exist; it names the nearest folder."""
    return RunError(
        f"there is no such run{did_you_mean_path(run)}", where=str(run), fix="name a folder such as runs/<name>"
    )


def did_you_mean_path(path: Path, base: Path | None = None) -> str:
    """`"; did you mean 'x'?"` for the nearest path that exists: of a missing one, the first part that is missing is
    replaced by the nearest name beside it. Nothing if there is none.

    Args:
        path: the path that is missing.
        base: the suggestion is relative to this folder; by default to the last folder of the path that exists.
    """
    missing = path
    while not missing.parent.is_dir():
        if missing.parent == missing:
            return ""
        missing = missing.parent
    folder = missing.parent
    try:
        near = difflib.get_close_matches(missing.name, [found.name for found in folder.iterdir()], n=1, cutoff=0.7)
    except OSError:
        return ""
    if not near:
        return ""
    whole = folder / near[0] / path.relative_to(missing)
    found = whole if whole.exists() else folder / near[0]
    return f"; did you mean {str(found.relative_to(base if base is not None else folder))!r}?"
