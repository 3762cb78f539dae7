"""Sources of images: NumPy files, folders in the layout of MNIST, and scikit-learn's digits.

An IDX file (MNIST's layout) begins with two zero bytes, one byte for the number type (8: unsigned bytes) and one for
the number of dimensions. Four bytes for each dimension follow (big-endian), then the numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import struct
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from potstill.artifacts import file_digest
from potstill.data.images import ImagePart, ImageSet
from potstill.data.source import existing
from potstill.data.split import SplitSide
from potstill.errors import DataError, MissingExtra, did_you_mean
from potstill.recipe.data import ArrayData, DigitsData, IDXData
from potstill.registry import implements

if TYPE_CHECKING:
    import numpy as np

# ---- NumPy files -------------------------------------------------------------------------------------------------

_TORN = (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises for a damaged file, for Python objects, and for a lone `.npy`, which is no archive."""

_ARRAY_PREFIXES: dict[SplitSide, str] = {"train": "", "held_out": "test_"}


@implements(ArrayData)
class ArraySource:
    """Arrays `images` and `labels`, and optionally `test_images`, `test_labels` and `names`."""

    def __init__(self, settings: ArrayData) -> None:
        self.path = settings.path.expanduser()

    def images(self) -> ImageSet:
        """All images; with a test side, both sides.

        Raises:
            DataError: the file is missing or damaged, an array is missing, or one holds Python objects (never
            unpickled).
        """
        arrays = self._arrays()
        tested = any(name.startswith("test_") for name in arrays)
        parts = []
        for side, prefix in _ARRAY_PREFIXES.items():
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


# ---- the layout of MNIST -------------------------------------------------------------------------------------------

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts it."""

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_TEST_LABELS = "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"
"""SHA-256 of the 10,000 test labels: identifies the data set in any folder and compression."""

_UNSIGNED_BYTE = 8
_PIECE_BYTES = 2**24
_FILE_PREFIXES: dict[SplitSide, str] = {"train": "train", "held_out": "t10k"}


@implements(IDXData)
class IDXSource:
    """A folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`, `.gz` or not."""

    def __init__(self, settings: IDXData) -> None:
        self.folder = settings.path.expanduser()

    def images(self) -> ImageSet:
        """Both sides; for Fashion-MNIST with class names.

        Raises:
            DataError: a file is missing, torn or not IDX.
        """
        parts = [
            ImagePart(read_idx(images), read_idx(labels), f"{self.folder} ({prefix})", side)
            for side, prefix in _FILE_PREFIXES.items()
            for images, labels in [self._pair(prefix)]
        ]
        of_test = hashlib.sha256(parts[1].labels.tobytes()).hexdigest()
        return ImageSet(tuple(parts), _FASHION_CLASSES if of_test == _FASHION_TEST_LABELS else ())

    def digests(self) -> dict[str, str]:
        """SHA-256 of the four files, by name."""
        files = [file for prefix in _FILE_PREFIXES.values() for file in self._pair(prefix)]
        return {f"data/{file.name}": file_digest(file) for file in files}

    def _pair(self, prefix: str) -> tuple[Path, Path]:
        if self.folder == FASHION_MNIST and not self.folder.is_dir():
            raise DataError(
                "Fashion-MNIST is not installed",
                where=str(self.folder),
                fix="apt-get install dataset-fashion-mnist (Debian, Ubuntu), or set data.path to where its files are",
            )
        existing(self.folder, "folder")
        return self._file(f"{prefix}-images-idx3-ubyte"), self._file(f"{prefix}-labels-idx1-ubyte")

    def _file(self, name: str) -> Path:
        packed = self.folder / f"{name}.gz"
        return packed if packed.is_file() else existing(self.folder / name)


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """The array of an IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: the file is no IDX file, is cut short, or has bytes after its end.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with cast(IO[bytes], gzip.open(path) if packed else path.open("rb")) as file:
            return _read_idx(file)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"not a whole IDX file: {error}", where=str(path), fix="fetch the file again") from error


def _read_idx(file: IO[bytes]) -> np.ndarray[Any, Any]:
    import numpy as np

    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"it begins with {start.hex(' ') or 'nothing'}, not with two zero bytes")
    if start[2] != _UNSIGNED_BYTE:
        raise ValueError(f"its numbers are of kind 0x{start[2]:02x}, not unsigned bytes (0x08)")
    sizes = file.read(4 * start[3])
    if not start[3] or len(sizes) < 4 * start[3]:
        raise ValueError(f"it ends within its {start[3]} dimensions" if start[3] else "it has no dimension")
    shape = struct.unpack(f">{start[3]}I", sizes)
    count = math.prod(shape)
    values = _at_most(file, count + 1)
    if len(values) != count:
        more = "more" if len(values) > count else len(values)
        raise ValueError(f"it says {' × '.join(map(str, shape))}, which is {count} bytes, and holds {more}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _at_most(file: IO[bytes], count: int) -> bytes:
    """Read `count` bytes piecewise, so that a false size in the header allocates no memory."""
    values = bytearray()
    while len(values) < count and (piece := file.read(min(count - len(values), _PIECE_BYTES))):
        values += piece
    return bytes(values)


# ---- scikit-learn's digits -----------------------------------------------------------------------------------------

_BRIGHTEST = 16
"""Its pixels are counts of 0 to 16."""


@implements(DigitsData)
class DigitsSource:
    """1,797 images of 8×8 (Alpaydin and Kaynak 1998, the test part of the UCI set), scaled to 0 … 255."""

    def __init__(self, settings: DigitsData) -> None:
        self.settings = settings

    def images(self) -> ImageSet:
        """All images; the set has no sides.

        Raises:
            MissingExtra: scikit-learn is not installed.
        """
        import numpy as np

        _check_installed()
        from sklearn.datasets import load_digits

        images, labels = load_digits().images, load_digits().target
        pixels = np.rint(images * 255 / _BRIGHTEST).astype(np.uint8)
        return ImageSet((ImagePart(pixels, labels, "scikit-learn's digits"),))

    def digests(self) -> dict[str, str]:
        """The version of scikit-learn."""
        _check_installed()
        return {"data": f"digits of scikit-learn@{metadata.version('scikit-learn')}"}


def _check_installed() -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtra("scikit-learn", "vision", "data of kind digits")
