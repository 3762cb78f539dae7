"""Images of a NumPy file (`.npz`)."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from potstill.artifacts import file_digest
from potstill.data.images import ImagePart, ImageSet
from potstill.data.source import existing
from potstill.data.split import Side
from potstill.errors import DataError, did_you_mean
from potstill.recipe.data import ArrayData
from potstill.registry import implements

if TYPE_CHECKING:
    import numpy as np

_TORN = (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises on a damaged file, on one of Python objects, and on a lone `.npy`, which is no archive."""

_PREFIXES: dict[Side, str] = {"train": "", "held_out": "test_"}


@implements(ArrayData)
class ArraySource:
    """Arrays `images` and `labels`, and perhaps `test_images`, `test_labels` and `names`."""

    def __init__(self, settings: ArrayData) -> None:
        self.path = settings.path.expanduser()

    def images(self) -> ImageSet:
        """Everything; with a test side, both sides.

        Raises:
            DataError: no such file, torn, an array is missing, or one holds Python objects (which are never unpickled).
        """
        arrays = self._arrays()
        tested = any(name.startswith("test_") for name in arrays)
        parts = []
        for side, prefix in _PREFIXES.items():
            if prefix and not tested:
                continue
            images, labels = (self._array(arrays, f"{prefix}{name}") for name in ("images", "labels"))
            where = f"{self.path} ({prefix}images, {prefix}labels)"
            parts.append(ImagePart(images, labels, where, side if tested else ""))
        names = arrays.get("names")
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
            raise DataError(f"names are {names.dtype} {list(names.shape)}, not a list of texts", where=str(self.path))
        return ImageSet(tuple(parts), tuple(map(str, names)) if names is not None else ())

    def digests(self) -> dict[str, str]:
        """SHA-256 of the file, by name."""
        return {f"data/{self.path.name}": file_digest(existing(self.path))}

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        existing(self.path)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return dict(file)
        except _TORN as error:
            raise DataError(
                f"not a whole .npz file of plain arrays: {error}",
                where=str(self.path),
                fix="write it with numpy.savez(path, images=…, labels=…)",
            ) from error

    def _array(self, arrays: dict[str, np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
        if name not in arrays:
            raise DataError(f"no array {name!r}{did_you_mean(name, arrays)}", where=str(self.path))
        return arrays[name]
