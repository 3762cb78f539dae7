"""Weights in and out of a checkpoint: the student's as a plain model folder, the projectors' beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from potstill.errors import ModelError, RunError
from potstill.models.anatomy import unwrap
from potstill.models.plain import WEIGHTS, load_weights

PROJECTORS = "projectors.safetensors"


def load_student(student: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into the student.

    Raises:
        RunError: the checkpoint is of another model.
    """
    try:
        if isinstance(student, PeftModel):
            adapter = student.active_adapter
            student.load_adapter(str(folder), adapter, is_trainable=True)
            return
        if not isinstance(student, PreTrainedModel):
            load_weights(student, folder / WEIGHTS)
            return
        inner = unwrap(student)
        # Opened like any model, so that `transformers` handles ties and renamed weights.
        saved = type(inner).from_pretrained(folder, dtype=inner.dtype, local_files_only=True, use_safetensors=True)
        assert isinstance(saved, PreTrainedModel)
        inner.load_state_dict(saved.state_dict())
    except (ModelError, OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise RunError(
            f"the checkpoint does not fit the student: {first}",
            where=str(folder),
            fix="train into another folder, or remove the checkpoints",
        ) from error


def save_projectors(projectors: nn.Module, folder: Path) -> None:
    """Write the projectors, if any."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in projectors.state_dict().items()}
    if weights:
        save_file(weights, folder / PROJECTORS)


def load_projectors(projectors: nn.Module, folder: Path) -> None:
    """Read the projectors, if any.

    Raises:
        RunError: the checkpoint has others, or none.
    """
    if not projectors.state_dict():
        return
    try:
        with torch.no_grad():
            projectors.load_state_dict(load_file(folder / PROJECTORS))
    except (OSError, RuntimeError) as error:
        raise RunError(
            "the checkpoint's projectors do not fit the objectives",
            where=str(folder / PROJECTORS),
            fix="train into another folder, or remove the checkpoints",
        ) from error
