"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from potstill.data.images import ImagePart, ImageSet
from potstill.errors import MissingExtra
from potstill.recipe.data import DigitsData
from potstill.registry import implements

_BRIGHTEST = 16
"""Its pixels are counts of 0 to 16."""


@implements(DigitsData)
class DigitsSource:
    """1,797 images of 8×8 (Alpaydin and Kaynak 1998, the test part of the UCI set), brought to 0 to 255."""

    def __init__(self, settings: DigitsData) -> None:
        self.settings = settings

    def images(self) -> ImageSet:
        """All of them; there are no sides.

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
