"""Build a student: from the teacher's layers, from a configuration, from an existing model, from a module of the user's
own, with or without LoRA."""

from potstill.students.build import BuiltStudent, build_student
from potstill.students.existing import ExistingModel
from potstill.students.from_config import RandomWeights
from potstill.students.from_teacher import TeacherLayers
from potstill.students.module import OwnModule

__all__ = ["BuiltStudent", "ExistingModel", "OwnModule", "RandomWeights", "TeacherLayers", "build_student"]
