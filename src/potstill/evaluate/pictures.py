"""Arrays as PNG files, so that a page can show an image. No torch, and nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2
"""Colour types of the format (PNG specification, §11.2.2)."""


def png_of(pixels: NDArray[np.uint8]) -> str | None:
    """An image [H,W], [H,W,1] or [H,W,3] of 0 to 255 as a PNG, in base64. None if it has another shape: nobody knows
    how it looks."""
    image = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3) or 0 in image.shape:
        return None
    height, width = image.shape[:2]
    kind = _GREY if image.ndim == 2 else _COLOUR
    # Every row begins with the number of its filter: 0, none.
    rows = b"".join(b"\0" + np.ascontiguousarray(row, dtype=np.uint8).tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return base64.b64encode(_SIGNATURE + b"".join(_chunk(name, data) for name, data in parts)).decode()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
