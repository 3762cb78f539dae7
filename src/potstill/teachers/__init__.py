"""Teachers: what knows, and can be asked. A module here implements one kind of the recipe's `teacher`."""

from potstill.teachers import local
from potstill.teachers.base import Teacher
from potstill.teachers.local import LocalModel

__all__ = ["LocalModel", "Teacher", "local"]
