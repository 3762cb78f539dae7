"""Students: the models that are trained. Each module implements one kind of the recipe's `student`.

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
