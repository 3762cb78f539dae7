"""The arguments of `DistillTrainer`: coerced from any accepted form to student, teacher and objectives, and rejected
where they would fail silently."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from potstill.console import Console
from potstill.data.reader import TaskReader, reader_for
from potstill.errors import CapabilityError, ModelError, RecipeError, UserError, did_you_mean
from potstill.models.anatomy import dims
from potstill.models.folder import TOKENIZER_FILES
from potstill.models.labels import check_same_labels, labels_of
from potstill.models.live import live_signals
from potstill.models.load import load_model, load_tokenizer
from potstill.models.resolve import locate, resolve
from potstill.models.tasks import spec_of, task_of, unwrap
from potstill.models.tokenizers import check_same_tokenizer
from potstill.objectives import Objective
from potstill.recipe import ForwardKL, HardCE, LocalTeacher, Masking, ObjectiveSettings
from potstill.recipe.objectives import why_not
from potstill.recipe.schedules import schedule_text
from potstill.registry import build, settings_class
from potstill.signals import Ask, Batch, ModelDims, Signals
from potstill.tasks import SPECS, Task
from potstill.teachers.base import Teacher, capabilities_for
from potstill.teachers.stored import StoredTeacher
from potstill.teachers.stored_several import StoredTeachers
from potstill.train.sharing import refuse_shared
from potstill.types import Answer, Capability, Request

logger = logging.getLogger(__name__)


class GivenTeacher:
    """A loaded model or module as a teacher. It gives distributions and inner states, but does not write.

    It is put into evaluation mode before every batch, whatever its mode was before (rule 8).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def modules(self) -> tuple[nn.Module]:
        """The model."""
        return (self.model,)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities of a model for its task, except `generate`."""
        return capabilities_for(spec_of(self.model)) - {"generate"}

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its class and configured name: all that is known of a loaded model."""
        config: Any = getattr(self.model, "config", None)
        return {"class": type(self.model).__name__, "model": getattr(config, "name_or_path", "")}

    @property
    def dims(self) -> ModelDims:
        """Its sizes."""
        return dims(self.model)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The class names, if it has any."""
        return labels_of(self.model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer in the folder that the model came from, if it is still there."""
        return tokenizer_beside(self.model)

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The requested tensors for a batch, in its own precision and without gradient."""
        self.model.eval()
        with torch.no_grad(), torch.autocast(batch.target_ids.device.type, enabled=False):
            return live_signals(self.model, batch, "teacher", ask)

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """A loaded model does not write.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(
            "this teacher gives distributions, not text", fix="use a LocalTeacher, or model.generate() itself"
        )


def given_student(model: str | nn.Module, peft_config: PeftConfig | None = None) -> nn.Module:
    """The student, opened in fp32 if given by name, with its adapter; its trainable weights are in fp32.

    Raises:
        ModelError: it cannot be found or used.
    """
    if isinstance(model, str):
        model = load_model(resolve(model, console=Console("quiet")), dtype="float32", device="cpu")
    if peft_config is not None:
        assert isinstance(model, PreTrainedModel)
        model = get_peft_model(model, peft_config)
    embeddings = unwrap(model).get_input_embeddings() if SPECS[task_of(model)].reads_text else None
    if isinstance(embeddings, nn.Embedding):
        # Padding is marked by length, never by token id: a pad token that is also the end token must be trained (rule
        # 4).
        embeddings.padding_idx = None
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if narrow:
        logger.warning(
            "the student's %s weights are trained in fp32: smaller updates than they can hold would be lost",
            str(narrow[0].dtype).removeprefix("torch."),
        )
        for parameter in narrow:
            parameter.data = parameter.data.float()
    return model


def given_reader(
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int,
    masking: Masking | None,
    seed: int,
) -> TaskReader:
    """The reader of a student's rows, from its task, its tokenizer and its classes."""
    spec, classes = SPECS[task_of(student)], tuple[str, ...]()
    if not spec.has_vocabulary:
        # If a module does not name its classes, their numbers are the names.
        classes = labels_of(student) or tuple(str(number) for number in range(dims(student).vocab))
    return reader_for(
        spec.name, tokenizer=tokenizer, max_length=max_length, classes=classes, masking=masking, seed=seed
    )


def given_tokenizer(model: str | nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model that was given by name."""
    if not isinstance(model, str):
        return None
    source = resolve(model, console=Console("quiet"))
    return load_tokenizer(source) if any((source.path / name).is_file() for name in TOKENIZER_FILES) else None


def tokenizer_beside(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder that a model was opened from, if it is known and still there."""
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    try:
        source = locate(name) if name else None
        return load_tokenizer(source) if source is not None else None
    except ModelError:
        # potstill may be unable to open its weights, but they are loaded already.
        return None


def check_same_outputs(teacher: Teacher, student: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Compare the meaning of both models' outputs: tokens, or classes (rule 6).

    `tokenizer` is the student's, if it was given; rows of token ids need none, and then the one in the student's
    folder is used. Comparisons that are impossible are logged.

    Raises:
        TokenizerMismatch: different tokens.
        ModelError: other classes, or another number of them.
    """
    spec = SPECS[task_of(student)]
    if spec.reads_text:
        student_tokenizer, teacher_tokenizer = tokenizer or tokenizer_beside(student), teacher.tokenizer
        if student_tokenizer is not None and teacher_tokenizer is not None:
            check_same_tokenizer(teacher_tokenizer, student_tokenizer)
        else:
            unknown = "student's" if student_tokenizer is None else "teacher's"
            logger.warning("the %s tokenizer is not known, so the two models' tokenizers were not compared", unknown)
    if not spec.has_classes:
        return
    named, wanted = getattr(teacher, "labels", None), labels_of(student)
    if named is not None and wanted is not None:
        check_same_labels(named, wanted, who="the teacher", where="teacher", than="the student")
        return
    numbers = teacher.dims.vocab, dims(student).vocab
    if numbers[0] != numbers[1]:
        raise ModelError(
            f"the teacher gives {numbers[0]} classes and the student {numbers[1]}",
            where="teacher",
            fix="use models of the same classes",
        )
    unnamed = "student" if wanted is None else "teacher"
    logger.warning(
        "the classes of the %s have no names, so their order was not compared: class 0 of both must mean the same; "
        "give config.id2label to both models",
        unnamed,
    )


def given_teacher(
    teacher: str | nn.Module | Teacher | None, student: nn.Module, device: torch.device
) -> Teacher | None:
    """The teacher, ready to give signals on a device.

    Raises:
        UserError: it shares modules with the student, which would be put into evaluation mode with it, or weights that
            the student trains.
        ModelError: it cannot be found or used.
    """
    if teacher is None:
        return None
    if isinstance(teacher, str):
        made: Teacher = build(LocalTeacher(model=teacher, device=str(device)))
        return made
    if not isinstance(teacher, nn.Module):
        return teacher
    refuse_shared(teacher, student)
    if isinstance(teacher, PreTrainedModel) and not getattr(teacher, "hf_device_map", None):
        nn.Module.to(teacher, device)
    return GivenTeacher(teacher)


def given_objectives(objectives: Sequence[ObjectiveSettings | Mapping[str, Any]] | None) -> list[ObjectiveSettings]:
    """Settings of objectives; a mapping is read as in a recipe. None means `forward_kl` and `hard_ce`.

    Raises:
        RecipeError: an unknown kind or key, or none at all.
    """
    if objectives is None:
        return [ForwardKL(), HardCE()]
    if not objectives:
        raise RecipeError("no objectives: there is nothing to learn", fix="leave them out for forward_kl and hard_ce")
    return [o if isinstance(o, ObjectiveSettings) else _read(o, index) for index, o in enumerate(objectives)]


def _read(mapping: Mapping[str, Any], index: int) -> ObjectiveSettings:
    where = f"objectives[{index}]"
    if not isinstance(mapping, Mapping) or "kind" not in mapping:
        raise RecipeError(f"{mapping!r} is neither settings nor a mapping with a 'kind'", where=where)
    kind = settings_class("objectives", str(mapping["kind"]))
    # A plug-in is named by its file; its class holds its short name.
    fields = {key: value for key, value in mapping.items() if key != "kind"}
    for key in fields:
        if key not in kind.model_fields:  # type: ignore[attr-defined]
            raise RecipeError(f"unknown key {key!r}{did_you_mean(key, kind.model_fields)}", where=where)  # type: ignore[attr-defined]
    try:
        settings = kind(**fields)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise RecipeError("; ".join(problems), where=where) from None
    assert isinstance(settings, ObjectiveSettings)
    return settings


def built(settings: Sequence[ObjectiveSettings]) -> list[Objective[Any]]:
    """The objectives for some settings."""
    return [build(s) for s in settings]


# ---- settings that would fail silently are rejected; about the rest there is a warning -------------------------------


def refuse_arguments(args: TrainingArguments) -> None:
    """Refuse arguments that the loss cannot honour.

    Raises:
        UserError: one of them is set.
    """
    if args.fp16 or args.fp16_full_eval:
        _refuse(
            "fp16 is not supported: its loss scaling breaks gradients that are made in the forward pass",
            "fp16",
            "use bf16=True, or neither",
        )
    if args.bf16_full_eval:
        _refuse(
            "bf16_full_eval would turn the student's fp32 weights into bf16 for good",
            "bf16_full_eval",
            "leave it out: held-out records are measured with the precision of training, and summed in fp32",
        )
    if args.n_gpu > 1:
        _refuse(
            f"{args.n_gpu} GPUs without a launcher would be driven by nn.DataParallel, which splits a batch after it "
            "has been counted",
            "n_gpu",
            "start one process per GPU: `torchrun --nproc-per-node "
            f"{args.n_gpu} your_script.py`, or choose one GPU with CUDA_VISIBLE_DEVICES=0",
        )
    if args.label_smoothing_factor != 0:
        _refuse(
            "label smoothing has no place beside objectives: they are the loss",
            "label_smoothing_factor",
            "leave it out",
        )
    if args.use_liger_kernel:
        _refuse(
            "use_liger_kernel replaces parts of the model; the losses over the vocabulary are fused already",
            "use_liger_kernel",
            "leave it out",
        )
    if args.fsdp or args.deepspeed:
        _refuse(
            "sharded weights (FSDP, DeepSpeed) are not supported yet: the head is read as one tensor",
            "fsdp" if args.fsdp else "deepspeed",
            "use several processes with torchrun (DDP)",
        )
    if args.torch_compile:
        _refuse(
            "torch_compile does not see through the fused loss",
            "torch_compile",
            "leave it out",
        )
    if args.train_sampling_strategy == "batch_rebalance":
        _refuse(
            "steps are dealt out by length already",
            "train_sampling_strategy",
            "leave it out (rows of like length stand together), or say 'sequential'",
        )


def refuse_metrics(compute_metrics: Any) -> None:
    """Refuse metrics that are computed from a batch's logits.

    Raises:
        UserError: there is one.
    """
    if compute_metrics is not None:
        _refuse(
            "compute_metrics would hold the logits of all held-out tokens in memory",
            "compute_metrics",
            "evaluate() gives KL, NLL and top-1 agreement token by token; `potstill evaluate` gives more",
        )


def check_task(task: Task, objectives: Sequence[ObjectiveSettings], *, packing: bool) -> None:
    """Check that the student's task has everything that the objectives read, in rows of one record if they need it.

    Raises:
        UserError: an objective is impossible; the error names alternatives.
    """
    for objective in objectives:
        if reason := why_not(task, objective, packing=packing):
            raise UserError(reason, where="objectives")


def check_capabilities(objectives: Sequence[ObjectiveSettings], teacher: Teacher | None) -> None:
    """Compare the needs of the objectives with the teacher's capabilities.

    Raises:
        CapabilityError: an objective needs a capability that the teacher lacks.
    """
    able = teacher.capabilities if teacher is not None else frozenset()
    for objective in objectives:
        for alternatives in objective.needs().teacher:
            if alternatives & able:
                continue
            wanted = " or ".join(sorted(alternatives))
            given = ", ".join(sorted(able)) if teacher is not None else "nothing: there is none"
            raise CapabilityError(
                f"{objective.kind} needs a teacher that gives {wanted}; this one gives {given}",
                where="objectives",
                fix=f"give a local teacher, or leave {objective.kind} out",
            )


def check_cut(teacher: Teacher | None) -> None:
    """
    Raises:
        CapabilityError: the teacher gives samples of distributions, which cannot be cut to frequent tokens.
    """
    if teacher is not None and teacher.capabilities and not teacher.capabilities & {"head", "dense"}:
        raise CapabilityError(
            "objectives over frequent tokens alone need a teacher's output layer, and this one gives "
            + ", ".join(sorted(teacher.capabilities)),
            where="frequent",
            fix="capture its hidden states ({kind: hidden}), give a local teacher, or learn over all tokens",
        )


def check_stored(objectives: Sequence[ObjectiveSettings], store: StoredTeacher | StoredTeachers) -> None:
    """Compare the temperatures of the objectives with the store's: a sample is of one temperature.

    Raises:
        CapabilityError: they differ.
    """
    stored_at = store.at_temperature
    if stored_at is None:
        return
    for objective in objectives:
        at = getattr(objective, "temperature", stored_at)
        if objective.needs().teacher and at != stored_at:
            raise CapabilityError(
                f"{objective.kind} is at temperature {schedule_text(at)}, and its signals were stored at {stored_at:g}",
                where="objectives",
                fix="give the objective the store's temperature, or capture again at the objective's",
            )


def say_batch_statistics(student: nn.Module, args: TrainingArguments) -> None:
    """Warn if batch normalisation makes the result depend on how a step is split. Over processes it may be
    synchronised."""
    accumulation, processes = args.gradient_accumulation_steps, args.world_size
    norms = [part for part in student.modules() if isinstance(part, _BatchNorm)]
    apart = [norm for norm in norms if accumulation > 1 or not isinstance(norm, nn.SyncBatchNorm)]
    if apart and accumulation * processes > 1 and args.process_index == 0:
        logger.warning(
            "the student normalises by the statistics of a micro-batch (batch normalisation), so splitting a step into "
            "%d changes what is learned",
            accumulation * processes,
        )


def _refuse(what: str, argument: str, fix: str) -> None:
    where = argument if argument == "compute_metrics" else f"TrainingArguments.{argument}"
    raise UserError(what, where=where, fix=fix)
