"""The typed recipe. Imports without torch, so that `--help` and `check` answer at once.

recipe.py      the whole recipe, a section per stage
load.py        from YAML and overrides to a recipe
reading.py     YAML as recipes are written
base.py        the base of every settings class
declared.py    names and types of the arguments that code declares

teachers.py    sections: teachers
students.py    student
data.py        data
generate.py    generate: the programs are in reasoning.py and programs.py
verify.py      verifiers
capture.py     capture
train.py       train; schedules.py values that change during training
objectives.py  what every objective has; response.py, features.py and relations.py the kinds; layers.py layers by number
evaluate.py    evaluate and report
measures.py    measures
speculate.py   speculate
export.py      export
policy.py      policy
"""

from potstill.recipe.base import Cosmetic, KindSettings, Settings
from potstill.recipe.capture import (
    CaptureSettings,
    DenseCapture,
    FeaturesCapture,
    HiddenCapture,
    SampledCapture,
    ThresholdCapture,
    TopKCapture,
)
from potstill.recipe.data import DataSettings, ImageSettings
from potstill.recipe.evaluate import EvaluateSettings, ReportSettings
from potstill.recipe.export import (
    AdapterExport,
    CheckedExport,
    ExportSettings,
    GgufExport,
    HuggingFaceExport,
    OnnxExport,
    OpenVinoExport,
    SentenceTransformersExport,
)
from potstill.recipe.features import (
    AttentionKL,
    AttentionMap,
    AttentionScores,
    AttentionTransfer,
    HiddenCosine,
    HiddenMSE,
    HiddenSettings,
    HiddenSmoothL1,
    Hint,
    LayerMap,
    Modules,
)
from potstill.recipe.generate import BudgetSettings, GenerateSettings, SequenceProgram
from potstill.recipe.load import dump_recipe, load_recipe, parse_recipe
from potstill.recipe.objectives import Needs, ObjectiveSettings
from potstill.recipe.policy import LicenceStatement, Override, PolicySettings
from potstill.recipe.programs import ConversationsProgram, SelfInstructProgram
from potstill.recipe.reasoning import ChainFilters, ReasoningProgram
from potstill.recipe.recipe import Recipe
from potstill.recipe.relations import (
    MiniLMv1,
    MiniLMv2,
    PooledSettings,
    Pooling,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
)
from potstill.recipe.response import (
    JSD,
    Acceptance,
    DecoupledKD,
    ForwardKL,
    HardCE,
    LogitMSE,
    Medusa,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    SoftCE,
    SoftSettings,
    TotalVariation,
)
from potstill.recipe.schedules import Change, PositiveSchedule, Schedule, value_at
from potstill.recipe.students import (
    ByInfluence,
    Existing,
    First,
    FromConfig,
    FromTeacher,
    Last,
    Lora,
    ModuleStudent,
    Pruned,
    StudentSettings,
    Uniform,
)
from potstill.recipe.teachers import (
    EndpointTeacher,
    EnsembleTeacher,
    LocalTeacher,
    Price,
    SamplerExtras,
    TeacherSettings,
    members_of,
    weights_of,
)
from potstill.recipe.train import Masking, TrainSettings, TrainStage
from potstill.recipe.verify import (
    AllOf,
    AnyOf,
    Choice,
    Decontamination,
    Exact,
    FirstOf,
    JSONSchema,
    Judge,
    Language,
    Length,
    Math,
    Numeric,
    PythonTests,
    ReasoningGym,
    Refusal,
    Regex,
    SandboxSettings,
    SentenceBLEU,
    VerifierSettings,
)

__all__ = [
    "Acceptance",
    "AllOf",
    "AnyOf",
    "AttentionKL",
    "AttentionMap",
    "AttentionScores",
    "AttentionTransfer",
    "BudgetSettings",
    "ByInfluence",
    "CaptureSettings",
    "ChainFilters",
    "Change",
    "Choice",
    "ConversationsProgram",
    "Cosmetic",
    "DataSettings",
    "Decontamination",
    "DecoupledKD",
    "DenseCapture",
    "EndpointTeacher",
    "EnsembleTeacher",
    "EvaluateSettings",
    "Exact",
    "Existing",
    "CheckedExport",
    "ExportSettings",
    "FeaturesCapture",
    "GgufExport",
    "AdapterExport",
    "SentenceTransformersExport",
    "OnnxExport",
    "OpenVinoExport",
    "First",
    "FirstOf",
    "ForwardKL",
    "FromConfig",
    "FromTeacher",
    "GenerateSettings",
    "HardCE",
    "HiddenCapture",
    "HiddenCosine",
    "HiddenMSE",
    "HiddenSettings",
    "HiddenSmoothL1",
    "Hint",
    "HuggingFaceExport",
    "ImageSettings",
    "JSD",
    "JSONSchema",
    "Judge",
    "KindSettings",
    "Language",
    "Last",
    "LayerMap",
    "Length",
    "LicenceStatement",
    "LocalTeacher",
    "LogitMSE",
    "Lora",
    "Masking",
    "Math",
    "Medusa",
    "MiniLMv1",
    "MiniLMv2",
    "ModuleStudent",
    "Modules",
    "Needs",
    "Numeric",
    "ObjectiveSettings",
    "Override",
    "PooledSettings",
    "PolicySettings",
    "Pooling",
    "PositiveSchedule",
    "Price",
    "Pruned",
    "PythonTests",
    "RKDAngle",
    "RKDDistance",
    "ReasoningGym",
    "ReasoningProgram",
    "Recipe",
    "Refusal",
    "Regex",
    "ReportSettings",
    "ReverseKL",
    "SampledCapture",
    "SamplerExtras",
    "SandboxSettings",
    "Schedule",
    "SelfInstructProgram",
    "SentenceBLEU",
    "SequenceProgram",
    "Settings",
    "SimilarityPreserving",
    "SkewedKL",
    "SkewedReverseKL",
    "SoftCE",
    "SoftSettings",
    "StudentSettings",
    "TeacherSettings",
    "ThresholdCapture",
    "TopKCapture",
    "TotalVariation",
    "TrainSettings",
    "TrainStage",
    "Uniform",
    "VerifierSettings",
    "dump_recipe",
    "load_recipe",
    "members_of",
    "parse_recipe",
    "value_at",
    "weights_of",
]
