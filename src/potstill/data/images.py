"""Images with classes, and their sides. `image_sources` reads the files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from potstill import registry
from potstill.data.split import Split, SplitSide
from potstill.errors import DataError
from potstill.recipe.data import ImageSettings
from potstill.types import DataReason, Reject

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Pixels:
    """One image.

    Args:
        pixels: [H,W] or [H,W,C] of 0 to 255 (uint8); or floats in a user's own rows, which are not rescaled.
        label: the number of its class in `Sides.classes`; None where it has none.
        group: hash of the image alone: the same image is one group, whatever its class.
        record_id: hash of image and class.
        row: its row in the source, from 1.
    """

    pixels: np.ndarray[Any, Any]
    label: int | None = None
    group: str = ""
    record_id: str = ""
    row: int = 0

    @property
    def rendered(self) -> str:
        """As `Tokenized.rendered`: what a stored signal is of."""
        return self.group


@dataclass(frozen=True)
class ImagePart:
    """A source's images, or one side of them: `images` [N,H,W] or [N,H,W,C] (uint8) and `labels` [N], whole numbers
    from 0. `where` is for error messages."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    where: str
    side: Literal["", "train", "held_out"] = ""


@dataclass(frozen=True)
class ImageSet:
    """All images of a source. `names` are the class names by number; without names, a class is called by its
    number."""

    parts: tuple[ImagePart, ...]
    names: tuple[str, ...] = ()


class ImageSource(Protocol):
    """A source of images. Built from its settings; bound to them with `@implements`."""

    def images(self) -> ImageSet:
        """All images, in an order that does not change.

        Raises:
            DataError: the source is missing or malformed (the error says where).
        """
        ...

    def digests(self) -> dict[str, str]:
        """Digests that identify the content that is read; they go into the keys of the stages that use it."""
        ...


@dataclass
class SplitImages:
    """Images of both sides, and what was left out."""

    train: list[Pixels] = field(default_factory=list)
    held_out: list[Pixels] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    lost_classes: tuple[str, ...] = ()


def split_images(settings: ImageSettings) -> SplitImages:
    """Read a source of images and put each on its side.

    An image of the training side is left out if the same image has the same class already (an exact duplicate), or is
    held out too. The held-out side stays whole, so that figures on a published test set are comparable. `limit` keeps
    the images with the lowest hashes: a fair sample of classes and sides, whatever their order. `train_limit` does the
    same on the training side alone.

    Raises:
        DataError: the source is missing, malformed or empty, has fewer than two classes, or no sides of its own where
            the recipe asks for them.
        MissingExtra: the source needs a package that is not installed.
    """
    where = f"data ({settings.kind})"
    found = cast(ImageSource, registry.build(settings)).images()
    check_images(found)
    hashed = [(part, image) for part in found.parts for image in _hashed(part)]
    sides = Split.of(settings, (image.group for _, image in hashed))
    images = [(part, image, sides.side(image.group, part.side)) for part, image in hashed]
    split = SplitImages()
    split.counts["read"] = len(images)
    if not images:
        raise DataError("the data set is empty", where=where)
    _leave_out_twice(images, split)
    if settings.limit is not None:
        last = _last_of(split.train + split.held_out, settings.limit)
        before = {image.label for image in split.train + split.held_out}
        split.train, split.held_out = ([i for i in side if _rank(i) <= last] for side in (split.train, split.held_out))
        lost = before - {image.label for image in split.train + split.held_out}
        split.lost_classes = _names_of(lost, found.names)
    if not split.train:
        raise DataError("no image is on the training side", where=where, fix="lower data.held_out, or raise limit")
    _name_classes(split, found.names)
    present = {cast(int, image.label) for image in split.train}
    if len(present) < 2:
        raise DataError(
            f"every image to train on is of class {split.classes[min(present)]!r}",
            where=where,
            fix="a classifier needs two classes",
        )
    if settings.train_limit is not None:
        _limit_training(split, settings.train_limit, where)
    return split


def check_images(found: ImageSet) -> None:
    """Raises DataError if the parts do not fit together: counts, dtypes, sizes, or classes without a name."""
    import numpy as np

    shape = found.parts[0].images.shape[1:]
    for part in found.parts:
        images, labels = part.images, part.labels
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}, not uint8 [N,H,W] or [N,H,W,C]",
                where=part.where,
                fix="store pixels as whole numbers from 0 to 255",
            )
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"labels are {labels.dtype} {list(labels.shape)}, not whole numbers [N]", where=part.where)
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images, and {len(labels)} labels", where=part.where)
        if images.shape[1:] != shape:
            raise DataError(
                f"images of {list(images.shape[1:])}, and others of {list(shape)}",
                where=part.where,
                fix="bring all images to one size",
            )
        if len(labels) and labels.min() < 0:
            raise DataError(f"label {labels.min()} is below 0", where=part.where)
        if len(labels) and found.names and labels.max() >= len(found.names):
            raise DataError(
                f"label {labels.max()}, and only {len(found.names)} classes have a name (0 to {len(found.names) - 1})",
                where=part.where,
            )


_Found = tuple[ImagePart, Pixels, SplitSide]


def _hashed(part: ImagePart) -> Iterator[Pixels]:
    """Every image of a part, with its hashes and the source's own label."""
    import numpy as np

    form = hashlib.sha256(str(part.images.shape[1:]).encode())
    for row, (image, label) in enumerate(zip(part.images, part.labels.tolist(), strict=True), 1):
        hashed = form.copy()
        hashed.update(np.ascontiguousarray(image).tobytes())
        group = hashed.hexdigest()[:16]
        hashed.update(str(label).encode())
        yield Pixels(image, label, group, hashed.hexdigest()[:16], row)


def _leave_out_twice(images: list[_Found], split: SplitImages) -> None:
    held_out = {image.group for _, image, side in images if side == "held_out"}
    seen: set[str] = set()
    for part, image, side in images:
        if side == "held_out":
            split.held_out.append(image)
        elif image.group in held_out:
            _reject(split, DataReason.ON_BOTH_SIDES, part.where, image.row)
        elif image.record_id in seen:
            _reject(split, DataReason.EXACT_DUPLICATE, part.where, image.row)
        else:
            seen.add(image.record_id)
            split.train.append(image)


def _rank(image: Pixels) -> tuple[str, int]:
    return image.record_id, image.row


def _last_of(images: list[Pixels], limit: int) -> tuple[str, int]:
    """The rank of the last image that is kept."""
    return sorted(map(_rank, images))[:limit][-1]


def _limit_training(split: SplitImages, limit: int, where: str) -> None:
    last = _last_of(split.train, limit)
    kept = [image for image in split.train if _rank(image) <= last]
    if lost := {image.label for image in split.train} - {image.label for image in kept}:
        names = _names_of(lost, split.classes)
        raise DataError(
            f"of {limit} images to learn from none is of class {' or '.join(map(repr, names))}",
            where=where,
            fix="raise data.train_limit",
        )
    if len(kept) < len(split.train):
        split.counts["beyond data.train_limit"] = len(split.train) - len(kept)
    split.train = kept


def _names_of(labels: set[int | None], names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names by number, in order; a class without a name is called by its number."""
    numbers = sorted(label for label in labels if label is not None)
    return tuple(names[number] if names else str(number) for number in numbers)


def _name_classes(split: SplitImages, names: tuple[str, ...]) -> None:
    """Number the classes of the training side; leave out held-out images of other classes."""
    present = sorted({cast(int, image.label) for image in split.train})
    split.classes = names or tuple(map(str, present))
    number = {label: label for label in present} if names else {label: index for index, label in enumerate(present)}
    split.train = [replace(image, label=number[cast(int, image.label)]) for image in split.train]
    known = []
    for image in split.held_out:
        label = cast(int, image.label)
        if label in number:
            known.append(replace(image, label=number[label]))
        else:
            _reject(
                split, DataReason.UNKNOWN_CLASS, "held-out images", image.row, names[label] if names else str(label)
            )
    split.held_out = known


def _reject(split: SplitImages, reason: DataReason, source: str, row: int, detail: str = "") -> None:
    split.counts[reason] += 1
    split.rejects.append(Reject(reason, source, row, detail=detail))
