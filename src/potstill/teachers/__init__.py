"""Teachers: what knows, and can be asked. A module here implements one kind of the recipe's `teacher`."""

from potstill.teachers import local
from potstill.teachers.base import Teacher
from potstill.teachers.cached import SignalCache
from potstill.teachers.ensemble import Ensemble
from potstill.teachers.local import LocalModel

__all__ = ["Ensemble", "LocalModel", "SignalCache", "Teacher", "local"]
