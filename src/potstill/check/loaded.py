"""Preconditions that torch and transformers judge: devices, names of parameters and modules, unusual arguments.

Loading the two takes seconds, so each precondition does it only where a recipe asks for something of its kind. Models
are built without weights.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs, all_teachers
from potstill.check.models import student_sizes
from potstill.errors import ModelError, PotstillError, RecipeError
from potstill.models.folder import is_module
from potstill.recipe import Existing, FromTeacher, LocalTeacher, ObjectiveSettings, TrainStage
from potstill.recipe.measures import LMEval

if TYPE_CHECKING:
    from torch import nn

_ANYWHERE = frozenset({"auto", "cpu"})
_MAPS = frozenset({"auto", "balanced", "balanced_low_0", "sequential", "cpu"})
_WIDTHS = ("hidden", "queries", "keys")
_LARGEST_FLOAT16 = 65_504.0
_MOST_READ_BYTES = 4_000_000_000
"""Weights of larger models are not read by a check."""
_ALWAYS_THERE = frozenset({None, "sdpa", "eager"})
_PLAIN_ARGUMENTS = frozenset(
    """learning_rate num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size
    gradient_accumulation_steps warmup_steps weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon logging_steps
    bf16 use_cpu save_total_limit dataloader_drop_last disable_tqdm""".split()
)
"""Training arguments whose type and range, which the recipe has checked, are all that can be wrong with them."""
_PLAIN_VALUES = {
    "lr_scheduler_type": ("linear", "cosine", "constant", "constant_with_warmup"),
    "optim": ("adamw_torch", "adamw_torch_fused", "sgd"),
    "report_to": ("none", [], ["none"]),
}


def devices_are_here(inputs: Inputs) -> None:
    """The devices that teachers name are on this machine."""
    for name, teacher in all_teachers(inputs.recipe.teachers):
        if not isinstance(teacher, LocalTeacher):
            continue
        named = {"device": teacher.device} if teacher.device not in _ANYWHERE else {}
        if teacher.device_map is not None and teacher.device_map not in _MAPS:
            named["device_map"] = teacher.device_map
        for key, device in named.items():
            from potstill.models.load import pick_device

            try:
                pick_device(device)
            except ModelError as error:
                fix = f"{error.fix}, or leave {key} out" if error.fix else None
                raise ModelError(error.what, where=f"teachers.{name}.{key}", fix=fix) from None


def attention_is_here(inputs: Inputs) -> None:
    """The attention implementations that teachers name are installed, and their models have them."""
    for name, teacher in all_teachers(inputs.recipe.teachers):
        if not isinstance(teacher, LocalTeacher) or teacher.attn_implementation in _ALWAYS_THERE:
            continue
        source = inputs.source(teacher)
        if source is None or is_module(source.path) or teacher.trust_remote_code:
            continue
        from potstill.students.outline import outline_of_folder

        try:
            outline_of_folder(source, inputs.recipe.task, attn_implementation=teacher.attn_implementation)
        except (ImportError, ValueError) as error:
            raise ModelError(
                f"attn_implementation: {teacher.attn_implementation} cannot be used: {_first_line(error)}",
                where=f"teachers.{name}.attn_implementation",
                fix="leave it out (sdpa always works)",
            ) from None


def lm_eval_has_its_tasks(inputs: Inputs) -> Iterator[Finding]:
    """lm-eval is installed, and its folder has the tasks that the recipe names."""
    evaluate = inputs.recipe.evaluate
    for measure in evaluate.measures_for(inputs.task) if evaluate is not None else ():
        if isinstance(measure, LMEval):
            try:
                from potstill.evaluate.measures.lm_eval import tasks_in

                tasks_in(measure)
            except PotstillError as error:
                yield Finding.of("evaluate", error)


def arguments_are_accepted(inputs: Inputs) -> None:
    """`TrainingArguments` take every stage's arguments on this machine; optimiser, schedule and loggers can be made."""
    recipe, sides = inputs.recipe, inputs.sides
    train = recipe.train
    stages: list[TrainStage] = [
        stage
        for stage in (train.in_stages if train is not None else ())
        if train is not None and not _are_plain({**train.args, **stage.args})
    ]
    if not stages:
        return
    import torch
    from transformers import Trainer

    from potstill.models.load import pick_device
    from potstill.train.arguments import training_arguments

    for stage in stages:
        with tempfile.TemporaryDirectory() as folder:
            rows = max(len(sides.train), 1) if sides is not None else 1
            try:
                arguments = training_arguments(recipe, Path(folder), pick_device(), rows, stage)
                trainer = Trainer(model=torch.nn.Linear(1, 1), args=arguments)
                trainer.create_optimizer_and_scheduler(num_training_steps=10)
            except (RecipeError, ImportError, ValueError, TypeError, KeyError, RuntimeError) as error:
                args = {**recipe.required_train.args, **stage.args}
                unusual = sorted(name for name, value in args.items() if not _is_plain(name, value))
                why = error.what if isinstance(error, RecipeError) else _first_line(error)
                raise RecipeError(
                    f"transformers refuses these arguments here: {why}",
                    where="train.args",
                    fix=f"correct or leave out {', '.join(unusual)}",
                ) from None


def _are_plain(args: dict[str, Any]) -> bool:
    return all(_is_plain(name, value) for name, value in args.items())


def _is_plain(name: str, value: Any) -> bool:
    return name in _PLAIN_ARGUMENTS or value in _PLAIN_VALUES.get(name, ())


def parts_are_found(inputs: Inputs) -> None:
    """The student has the modules that its adapter is for, and the parameters that stages freeze or initialise; both
    models have the modules that objectives compare."""
    recipe = inputs.recipe
    train, student = recipe.train, recipe.student
    if train is None or student is None:
        return
    stages = [stage for stage in train.in_stages if stage.freeze or stage.initialise]
    objectives = [o for o in train.all_objectives if o.needs().teacher and _names_parts(o)]
    adapted = student.lora is not None and student.lora.target_modules != "all-linear"
    if not (adapted or stages or objectives):
        return
    outline = _student(inputs)
    if outline is None:
        return
    if stages:
        from potstill.train.trainable import matching

        for stage in stages:
            for key in ("freeze", "initialise"):
                matching(outline, getattr(stage, key), f"train.stages ({stage.name}).{key}")
            frozen = set(matching(outline, stage.freeze, "train.stages"))
            learns = any(objective.trains_alone for objective in stage.objectives)
            learning = [name for name, parameter in outline.named_parameters() if parameter.requires_grad]
            reached = _reached(inputs, outline, stage)
            if not learns and all(name in frozen for name in learning[:reached]):
                which = "" if reached is None else " that the objectives reach"
                raise RecipeError(
                    f"every parameter{which} is frozen, so nothing learns",
                    where=f"train.stages ({stage.name}).freeze",
                    fix="freeze fewer of them",
                )
    if objectives:
        _objectives_find_their_parts(inputs, outline, objectives)


def adapter_is_low_rank(inputs: Inputs) -> Iterator[Finding]:
    """A warning if the adapter's rank is not below the width of each layer that it adapts: there it has more
    parameters than the layer. Torch is loaded only if the configuration lets one expect it."""
    student = inputs.recipe.student
    if inputs.recipe.train is None or student is None or student.lora is None:
        return
    widths = student_sizes(inputs)
    if student.lora.r < min((width for name in _WIDTHS if (width := widths.get(name))), default=0):
        return
    outline = _student(inputs)
    if outline is None:
        return
    from peft.tuners.lora import LoraLayer

    widths_of = {name: min(m.weight.shape) for name, m in outline.named_modules() if isinstance(m, LoraLayer)}
    narrow = {name: width for name, width in widths_of.items() if width <= student.lora.r}
    if narrow:
        name, width = min(narrow.items(), key=lambda pair: pair[1])
        yield warning(
            "student",
            f"lora.r is {student.lora.r}, and {len(narrow)} of the {len(widths_of)} layers that it adapts are no wider "
            f"({name.removeprefix('base_model.model.')}: {width}): the adapter has more parameters than these",
        )


def _reached(inputs: Inputs, student: nn.Module, stage: TrainStage) -> int | None:
    """How many of the student's parameters, in their order, stand below the highest layer that a stage's objectives
    compare; None if they may reach all."""
    source = inputs.source(inputs.teacher)
    if source is None or any(objective.needs().student != {"states"} for objective in stage.objectives):
        return None
    from potstill import registry
    from potstill.models.anatomy import dims
    from potstill.signals import Dims
    from potstill.students.outline import outline_of_folder

    sizes = Dims(dims(student), dims(outline_of_folder(source, inputs.recipe.task)))
    taps = {tap for settings in stage.objectives for tap in registry.build(settings).ask(sizes)["student"].taps}
    states = [int(tap.removeprefix("hidden.")) for tap in taps if tap.removeprefix("hidden.").isdigit()]
    if len(states) < len(taps) or not states or max(states) == sizes.student.layers:
        return None
    # Families register embeddings, layers and head in this order.
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    above = (at for at, name in enumerate(names) if re.search(rf"\.{max(states)}\.", name))
    return next(above, None)


def weights_fit_their_exports(inputs: Inputs) -> None:
    """Exports in float16 can hold the weights that the student begins with. Training changes them little."""
    if not any(getattr(settings, "dtype", None) == "float16" for settings in inputs.recipe.export):
        return
    student = inputs.recipe.student
    source = inputs.source(student if isinstance(student, Existing) else inputs.teacher)
    if not isinstance(student, Existing | FromTeacher) or source is None or is_module(source.path):
        return
    files = sorted(source.path.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > _MOST_READ_BYTES:
        return
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                largest = float(weights.get_tensor(name).abs().max())
                if largest > _LARGEST_FLOAT16:
                    raise ModelError(
                        f"{name} has a weight of {largest:.3g}, and float16 holds up to {_LARGEST_FLOAT16:,.0f}",
                        where="export.dtype",
                        fix="use bfloat16, whose range is that of float32",
                    )


def _names_parts(objective: ObjectiveSettings) -> bool:
    """Whether an objective reads modules by path, or attention, which not every family gives. The layers of others are
    counted from files."""
    return bool(objective.needs().student & {"modules", "attention"})


def _student(inputs: Inputs) -> nn.Module | None:
    """The student without weights; None if its shape is not known yet."""
    recipe, teacher = inputs.recipe, inputs.source(inputs.teacher)
    student = recipe.student
    if student is None or (teacher is None and (isinstance(student, FromTeacher) or inputs.is_changed_teacher)):
        return None
    if getattr(inputs.teacher, "trust_remote_code", False) or getattr(student, "trust_remote_code", False):
        return None  # the code of a model's folder runs in the run alone
    from potstill.console import Console
    from potstill.students.base import Materials
    from potstill.students.outline import outline_of_student

    labels = list(inputs.sides.classes) if inputs.sides is not None and inputs.sides.classes else None
    materials = Materials(teacher, inputs.tokenizer, Console("quiet"), task=recipe.task, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run shows them
        return outline_of_student(student, materials)


def _objectives_find_their_parts(inputs: Inputs, student: nn.Module, objectives: Sequence[ObjectiveSettings]) -> None:
    source = inputs.source(inputs.teacher)
    if source is None or not isinstance(inputs.teacher, LocalTeacher):
        return
    from potstill import registry
    from potstill.models.anatomy import dims
    from potstill.models.taps import check_taps
    from potstill.signals import Dims
    from potstill.students.outline import outline_of_folder

    models = {"student": student, "teacher": outline_of_folder(source, inputs.recipe.task)}
    sizes = Dims(*map(dims, models.values()))
    for settings in objectives:
        for side, asked in registry.build(settings).ask(sizes).items():
            try:
                check_taps(models[side], asked.taps)
            except ModelError as error:
                what = f"{settings.kind}, the {side}: {error.what}"
                raise ModelError(what, where="train.objectives", fix=error.fix) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
