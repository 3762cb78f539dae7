"""Students: the models that are trained.

build.py         build the student of a recipe, with its adapter
base.py          the inputs of a builder, and its contract
outline.py       a student without its weights, for checks

from_teacher.py  some of the teacher's layers
pruned.py        the teacher, pruned to a size
from_config.py   random weights in a shape
existing.py      an existing model
module.py        a module of the user's own

depth.py         fewer layers
width.py         fewer dimensions, heads and channels
importance.py    what each part contributes

Modules are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.students.build import BuiltStudent, build_student

__all__ = ["BuiltStudent", "build_student"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.build"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
