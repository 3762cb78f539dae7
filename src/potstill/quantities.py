"""Counts and sizes for a reader: `1 run`, `2,824 records`, `8.42 kB`."""

from __future__ import annotations

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun: `1 run`, `9 runs`.

    Args:
        count: of them.
        noun: for one.
        plural: for none and several; by default the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def byte_size(count: float) -> str:
    """Bytes in decimal units, with three digits or more: `512 B`, `8.42 kB`, `538 MB`."""
    for unit_size, unit in _UNITS:
        # From 999.5 of a smaller unit on, that would be 1,000 of it.
        if count >= 0.9995 * unit_size:
            shown = count / unit_size
            return f"{shown:,.{2 if shown < 9.995 else 1 if shown < 99.95 else 0}f} {unit}"
    return f"{count:,.0f} B"
