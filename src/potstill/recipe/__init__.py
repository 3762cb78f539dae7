"""The typed recipe. Imports without torch, so that `--help` and `check` answer at once."""

from potstill.recipe.base import Cosmetic, KindSettings, Settings
from potstill.recipe.data import DataSettings
from potstill.recipe.evaluate import EvaluateSettings, ReportSettings
from potstill.recipe.export import ExportSettings, HuggingFaceExport
from potstill.recipe.generate import GenerateSettings, SequenceProgram
from potstill.recipe.load import dump_recipe, load_recipe, parse_recipe
from potstill.recipe.objectives import ForwardKL, HardCE, HiddenCosine, LayerMap, Needs, ObjectiveSettings
from potstill.recipe.recipe import Recipe
from potstill.recipe.students import (
    ByInfluence,
    Existing,
    First,
    FromConfig,
    FromTeacher,
    Last,
    Lora,
    StudentSettings,
    Uniform,
)
from potstill.recipe.teachers import LocalTeacher, TeacherSettings
from potstill.recipe.train import TrainSettings

__all__ = [
    "ByInfluence",
    "Cosmetic",
    "DataSettings",
    "EvaluateSettings",
    "Existing",
    "ExportSettings",
    "First",
    "ForwardKL",
    "FromConfig",
    "FromTeacher",
    "GenerateSettings",
    "HardCE",
    "HiddenCosine",
    "HuggingFaceExport",
    "KindSettings",
    "Last",
    "LayerMap",
    "LocalTeacher",
    "Lora",
    "Needs",
    "ObjectiveSettings",
    "Recipe",
    "ReportSettings",
    "SequenceProgram",
    "Settings",
    "StudentSettings",
    "TeacherSettings",
    "TrainSettings",
    "Uniform",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
]
