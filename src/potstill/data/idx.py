"""Images in the layout of MNIST: IDX files, packed or not, with a test side of their own.

An IDX file begins with two zero bytes, a byte for the kind of number (8: unsigned bytes) and one for how many
dimensions there are; each dimension follows in four bytes, the most significant first, and then the numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from potstill.artifacts import file_digest
from potstill.data.images import ImagePart, ImageSet
from potstill.data.source import existing
from potstill.data.split import Side
from potstill.errors import DataError
from potstill.recipe.data import IDXData
from potstill.registry import implements

if TYPE_CHECKING:
    import numpy as np

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
"""SHA-256 of the 10,000 test labels: by them the set is known, in whatever folder and however packed."""

_UNSIGNED_BYTE = 8
_PIECE_BYTES = 2**24
_PREFIXES: dict[Side, str] = {"train": "train", "held_out": "t10k"}


@implements(IDXData)
class IDXSource:
    """A folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`, `.gz` or not."""

    def __init__(self, settings: IDXData) -> None:
        self.folder = settings.path.expanduser()

    def images(self) -> ImageSet:
        """Both sides; of Fashion-MNIST with the names of its classes.

        Raises:
            DataError: a file is missing, torn or not IDX.
        """
        parts = [
            ImagePart(read_idx(images), read_idx(labels), f"{self.folder} ({prefix})", side)
            for side, prefix in _PREFIXES.items()
            for images, labels in [self._pair(prefix)]
        ]
        of_test = hashlib.sha256(parts[1].labels.tobytes()).hexdigest()
        return ImageSet(tuple(parts), _FASHION_CLASSES if of_test == _FASHION_TEST_LABELS else ())

    def digests(self) -> dict[str, str]:
        """SHA-256 of the four files, by name."""
        files = [file for prefix in _PREFIXES.values() for file in self._pair(prefix)]
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
    """The array of an IDX file of unsigned bytes, packed with gzip or not.

    Raises:
        DataError: it is not one, it is torn, or it goes on behind its end.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with cast(IO[bytes], gzip.open(path) if packed else path.open("rb")) as file:
            return _read(file)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"not a whole IDX file: {error}", where=str(path), fix="fetch the file again") from error


def _read(file: IO[bytes]) -> np.ndarray[Any, Any]:
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
    """The next bytes, by pieces: no memory is set aside for what a file merely says that it holds."""
    values = bytearray()
    while len(values) < count and (piece := file.read(min(count - len(values), _PIECE_BYTES))):
        values += piece
    return bytes(values)
