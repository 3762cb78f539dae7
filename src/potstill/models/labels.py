"""The names of a classifier's classes, and whether two classifiers number them alike. Loads no torch by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_OF_MODULE = "_potstill_labels"


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """The names of a model's classes, by number; None if it is no classifier, or its classes have no names."""
    from potstill.models.tasks import is_plain, unwrap

    if is_plain(model):
        names: tuple[str, ...] | None = getattr(model, _OF_MODULE, None)
        return names
    inner = unwrap(model)
    if "Classification" not in type(inner).__name__:
        return None
    return labels_in(inner.config.to_dict())


def labels_in(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in a `config.json` (`id2label`), by number; None if they are the placeholders of `transformers`
    (LABEL_0, …)."""
    named = config.get("id2label")
    if not named:
        return None
    names = tuple(str(name) for _, name in sorted(((int(number), name) for number, name in named.items())))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def name_classes(model: nn.Module, labels: Sequence[str]) -> None:
    """Write the names of its classes into a model's configuration, which is saved with it.

    Raises:
        ModelError: the model has another number of classes, or other names.
    """
    from potstill.models.tasks import is_plain, unwrap

    found = labels_of(model)
    if found is not None:
        check_same_labels(found, labels, who="the model", where=type(model).__name__)
    elif is_plain(model):
        setattr(model, _OF_MODULE, tuple(labels))
    else:
        config = unwrap(model).config
        if config.num_labels != len(labels):
            raise ModelError(
                f"{type(unwrap(model)).__name__} gives {config.num_labels} classes, and the data have {len(labels)}",
                fix="use a model of as many classes, or one without head",
            )
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}


def check_same_labels(
    found: Sequence[str], wanted: Sequence[str], *, who: str, where: str, than: str = "the data"
) -> None:
    """Refuse classes that differ in name or order between `who` and `than`.

    Raises:
        ModelError: names the first difference.
    """
    if list(found) == list(wanted):
        return
    what = f"{who} has {len(found)} classes, and {than} {len(wanted)}"
    if len(found) == len(wanted):
        first = next(number for number, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        what = f"class {first} of {who} is {found[first]!r}, and of {than} {wanted[first]!r}"
    elif missing := sorted(set(wanted) - set(found)):
        what += f": {missing[0]!r} is not among its own"
    fix = "use data with the model's classes, or a model without head"
    raise ModelError(what, where=where, fix=fix if than == "the data" else "use models of the same classes")
