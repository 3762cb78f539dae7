"""Build a student: from the teacher's layers, from a configuration, from an existing model, with or without LoRA."""

from potstill.students.build import BuiltStudent, build_student
from potstill.students.existing import ExistingModel
from potstill.students.from_config import RandomWeights
from potstill.students.from_teacher import TeacherLayers

__all__ = ["BuiltStudent", "ExistingModel", "RandomWeights", "TeacherLayers", "build_student"]
