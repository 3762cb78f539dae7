"""What the person at the terminal types and sees."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from potstill.chat.speaker import Speaker
from potstill.console import emit, emit_piece, emit_styled
from potstill.errors import printable
from potstill.types import Sampling

COLUMNS_FROM = 80
"""Characters of a line from which on two texts are set in columns; below, one follows the other."""
HELP = "Enter sends · /new forgets the conversation · Ctrl-C stops an answer · /quit or Ctrl-D ends"


def talk(speakers: Sequence[Speaker], sampling: Sampling, seed: int) -> None:
    """Ask for texts and show the answers, until the person ends it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and keys to edit a line
    emit(HELP)
    for turn, text in enumerate(_typed()):
        if text == "/new":
            for speaker in speakers:
                speaker.forget()
            emit("a new conversation")
            continue
        try:
            show(speakers, text, sampling, seed + turn)
        except KeyboardInterrupt:
            emit("\n(stopped)")


def _typed() -> Iterator[str]:
    """The texts that are typed; empty ones are left out."""
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            emit("")
            return
        if text in ("/quit", "/exit"):
            return
        if text:
            yield whole_characters(text)


def whole_characters(text: str) -> str:
    """The text with `?` for what is no character (bytes of another encoding), which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


def show(speakers: Sequence[Speaker], text: str, sampling: Sampling, seed: int) -> None:
    """Show the answers to a text while they are written: two in columns where the terminal is wide enough. Where
    standard output is no terminal, whole answers, one after the other."""
    if len(speakers) > 1 and sys.stdout.isatty() and _width() >= COLUMNS_FROM:
        _in_columns(speakers, text, sampling, seed)
        return
    for speaker in speakers:
        if len(speakers) > 1:
            emit(f"{speaker.role}:")
        for piece in speaker.answer(text, sampling, seed):
            emit_piece(piece)
        emit("" if speaker is speakers[-1] else "\n")


def _width() -> int:
    from rich.console import Console

    return Console(file=sys.stdout).width


def _in_columns(speakers: Sequence[Speaker], text: str, sampling: Sampling, seed: int) -> None:
    """While they are written, the last lines that fit the screen; then the whole texts, which scroll."""
    from rich.console import Console
    from rich.live import Live

    out = Console(file=sys.stdout, highlight=False)
    texts = {speaker.role: "" for speaker in speakers}
    going = {speaker.role: speaker.answer(text, sampling, seed) for speaker in speakers}
    try:
        with Live(console=out, refresh_per_second=8, transient=True) as live:
            while going:
                for role, pieces in list(going.items()):
                    try:
                        texts[role] += next(pieces)
                    except StopIteration:
                        del going[role]
                live.update(_columns(texts, out, last=max(1, out.height - 4)))
    finally:
        for pieces in going.values():
            pieces.close()
        with out.capture() as drawn:
            out.print(_columns(texts, out))
        emit_styled(drawn.get().rstrip("\n"))


def _columns(texts: dict[str, str], out: Any, last: int | None = None) -> Any:
    """The texts as columns of equal width; of each the last lines, or all."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*texts, box=None, expand=True, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.ratio = 1
    width = out.width // len(texts) - 2
    wrapped = [Text(printable(text)).wrap(out, width) for text in texts.values()]
    table.add_row(*(Text("\n").join(lines[-last:] if last is not None else lines) for lines in wrapped))
    return table
