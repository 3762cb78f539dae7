"""Both sides of a recipe's data: records of text, or images, with the names of their classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from potstill.data.images import Pixels, split_images
from potstill.data.read import ReadResult, read_records
from potstill.data.split import Split
from potstill.recipe.data import DataSettings, ImageSettings
from potstill.types import DataReason, Record, Reject

_NAMES_SHOWN = 10

Example = Record | Pixels
"""One item of a data set: a record (of text), or an image."""


@dataclass(frozen=True)
class Sides:
    """Both sides of the split.

    `classes` are the class names of the training side (numbers in numerical order, else names in alphabetical order),
    empty if nothing has a label; if a source of images names its classes, all of them by number. `counts` holds `read`
    and, by reason, the number of examples left out, each of which is in `rejects`. `read` is the result of reading
    (None for images). `warnings` name classes lost to `limit` and classes that cannot be measured.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    classes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    rejects: Sequence[Reject] = ()
    read: ReadResult | None = None
    warnings: tuple[str, ...] = ()


def read_sides(settings: DataSettings) -> Sides:
    """Read a source and split it. A held-out example of a class that the training side lacks is left out and counted.

    Raises: as `read_records`, or for images `split_images`; and as `Split.side`.
    """
    if isinstance(settings, ImageSettings):
        images = split_images(settings)
        measured = {images.classes[image.label] for image in images.held_out if image.label is not None}
        trained = {images.classes[image.label] for image in images.train if image.label is not None}
        warnings = _about_classes(sorted(trained - measured) if images.held_out else (), images.lost_classes)
        counts = dict(images.counts)
        return Sides(images.train, images.held_out, images.classes, counts, images.rejects, warnings=warnings)
    read = read_records(settings)
    sides: dict[str, list[Record]] = {"train": [], "held_out": []}
    split = Split.of(settings, (record.group for record in read.records))
    for record in read.records:
        sides[split.side_of(record)].append(record)
    classes = class_names(record.label for record in sides["train"])
    held_out: list[Record] = []
    unknown: list[Record] = []
    for record in sides["held_out"]:
        (held_out if record.label is None or record.label in classes else unknown).append(record)
    rejects = [*read.rejects, *(_unknown(record) for record in unknown)]
    counts = read.counts | ({DataReason.UNKNOWN_CLASS: len(unknown)} if unknown else {})
    with_record = {record.label for record in held_out}
    unmeasured = [name for name in classes if name not in with_record] if held_out else []
    warnings = _about_classes(unmeasured, read.lost_classes)
    return Sides(sides["train"], held_out, classes, counts, rejects, read, warnings)


def _about_classes(unmeasured: Sequence[str], lost: Sequence[str]) -> tuple[str, ...]:
    """Warnings for classes without a held-out record, and for those lost to `data.limit`."""
    warnings = []
    if lost:
        warnings.append(f"{counted_classes(lost)} lost to data.limit")
    if unmeasured:
        warnings.append(f"{counted_classes(unmeasured)} not measured: without a held-out record")
    return tuple(warnings)


def counted_classes(names: Sequence[str]) -> str:
    """Names of classes with their number, for a sentence: "2 classes (a, b) are"."""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (" …" if len(names) > _NAMES_SHOWN else "")
    return f"{len(names):,} classes ({shown}) are" if len(names) != 1 else f"the class {shown} is"


def class_names(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The distinct labels: in numerical order if all are whole numbers, else in alphabetical order."""
    names = {label for label in labels if label is not None}
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _unknown(record: Record) -> Reject:
    return Reject.of(record, DataReason.UNKNOWN_CLASS, detail=record.label or "")
