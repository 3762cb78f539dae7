"""What `DistillTrainer` is given, in whichever form, as student, teacher and objectives."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.console import Console
from potstill.errors import CapabilityError, RecipeError, UserError, did_you_mean
from potstill.models.anatomy import dims
from potstill.models.live import live_signals
from potstill.models.load import load_model, load_tokenizer
from potstill.models.resolve import resolve
from potstill.objectives import Objective
from potstill.recipe import ForwardKL, HardCE, LocalTeacher, Needs, ObjectiveSettings
from potstill.registry import build, settings_class
from potstill.signals import Batch, ModelDims, Signals
from potstill.teachers.base import Teacher
from potstill.types import Answer, Capability, Request

logger = logging.getLogger(__name__)


class GivenTeacher:
    """A loaded model as a teacher. It gives distributions and inner states; it is not asked to write.

    It is put into evaluation mode before every batch, whatever has been done to it in between (rule 8).
    """

    capabilities: frozenset[Capability] = frozenset({"head", "dense", "taps"})

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.model, self._tokenizer = model, tokenizer

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its class and configured name: all that is known of a model that was handed over."""
        config: Any = getattr(self.model, "config", None)
        return {"class": type(self.model).__name__, "model": getattr(config, "name_or_path", "")}

    @property
    def dims(self) -> ModelDims:
        """Its sizes."""
        return dims(self.model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that was handed over with it, if one was."""
        return self._tokenizer

    def signals(self, batch: Batch, needs: Sequence[Needs]) -> Signals:
        """What objectives need of it for a batch, without gradient."""
        self.model.eval()
        layers = self.dims.layers
        states = {layers for need in needs if need.hidden == "last"}
        states |= {teacher for need in needs if isinstance(need.hidden, tuple) for _, teacher in need.hidden}
        response = any("head" in alternatives for need in needs for alternatives in need.teacher)
        with torch.no_grad():
            positions = batch.target_positions["teacher"]
            return live_signals(self.model, batch.teacher, positions, states, "head" if response else None)

    def generate(self, requests: Sequence[Request], *, seed: int) -> list[Answer]:
        """It does not declare `generate`.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(
            "this teacher gives distributions, not text", mend="use a LocalTeacher, or model.generate() itself"
        )


def given_student(model: str | nn.Module, trust_remote_code: bool = False) -> nn.Module:
    """The student in fp32: opened by name, or as it is with what is trained of it in fp32.

    Raises:
        ModelError: it cannot be found or used.
    """
    if isinstance(model, str):
        source = resolve(model, trust_remote_code=trust_remote_code, console=Console("quiet"))
        return load_model(source, dtype="float32", device="cpu", trust_remote_code=trust_remote_code)
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if narrow:
        logger.warning(
            "the student's %s weights are trained in fp32: smaller updates than they can hold would be lost",
            str(narrow[0].dtype).removeprefix("torch."),
        )
        for parameter in narrow:
            parameter.data = parameter.data.float()
        # So that it is also saved, and opened again, as what it now is.
        model.config.dtype = torch.float32
    return model


def given_tokenizer(model: str | nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model that was given by name."""
    return load_tokenizer(resolve(model, console=Console("quiet"))) if isinstance(model, str) else None


def given_teacher(
    teacher: str | nn.Module | Teacher | None, student: nn.Module, device: torch.device
) -> Teacher | None:
    """The teacher, ready to give signals on a device.

    Raises:
        UserError: it shares modules with the student, which would be put into evaluation mode with it.
        ModelError: it cannot be found or used.
    """
    if teacher is None:
        return None
    if isinstance(teacher, str):
        made: Teacher = build(LocalTeacher(model=teacher, device=str(device)))
        return made
    if not isinstance(teacher, nn.Module):
        return teacher
    shared = {id(m) for m in teacher.modules()} & {id(m) for m in student.modules()}
    if shared:
        raise UserError(
            "the teacher shares modules with the student: it would learn along, and the student would lose its dropout",
            where="teacher",
            mend="give a copy: teacher=copy.deepcopy(model)",
        )
    if isinstance(teacher, PreTrainedModel) and not getattr(teacher, "hf_device_map", None):
        nn.Module.to(teacher, device)
    return GivenTeacher(teacher, None)


def given_objectives(objectives: Sequence[ObjectiveSettings | Mapping[str, Any]] | None) -> list[ObjectiveSettings]:
    """Settings of objectives; a mapping is read as the recipe reads it. None is `forward_kl` and `hard_ce`.

    Raises:
        RecipeError: an unknown kind or key, or none at all.
    """
    if objectives is None:
        return [ForwardKL(), HardCE()]
    if not objectives:
        raise RecipeError("no objectives: there is nothing to learn", mend="leave them out for forward_kl and hard_ce")
    return [o if isinstance(o, ObjectiveSettings) else _read(o, index) for index, o in enumerate(objectives)]


def _read(mapping: Mapping[str, Any], index: int) -> ObjectiveSettings:
    where = f"objectives[{index}]"
    if not isinstance(mapping, Mapping) or "kind" not in mapping:
        raise RecipeError(f"{mapping!r} is neither settings nor a mapping with a 'kind'", where=where)
    kind = settings_class("objectives", str(mapping["kind"]))
    # A plug-in is named by its file; its class knows its short name.
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
    """The objectives that settings describe."""
    return [build(s) for s in settings]
