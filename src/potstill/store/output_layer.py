"""A teacher's output layer beside its stored hidden states: the only part of the teacher that training loads.

`head.safetensors` holds `weight` [V, H] and, if there is one, `bias` [V], as the teacher has them; soft-cap and scale
are in its metadata. With them a stored hidden state gives the full distribution, at any temperature.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from potstill.artifacts import disk_error
from potstill.errors import DataError
from potstill.signals import Head
from potstill.store.files import OUTPUT_LAYER


@dataclass(frozen=True)
class OutputLayer:
    """The effective output layer of a `signals.Head`."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float

    @classmethod
    def load(cls, folder: Path) -> OutputLayer:
        """The output layer of a store.

        Raises:
            DataError: the store has none, or it cannot be read.
        """
        file = folder / OUTPUT_LAYER
        try:
            with safe_open(file, "pt") as tensors:
                facts = tensors.metadata()
                bias = tensors.get_tensor("bias") if "bias" in tensors.keys() else None  # noqa: SIM118
                softcap = float(facts["softcap"]) if "softcap" in facts else None
                return cls(tensors.get_tensor("weight"), bias, softcap, float(facts["scale"]))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise DataError(
                f"the teacher's output layer cannot be read: {error}",
                where=str(file),
                fix="capture again",
            ) from error

    def head(self, hidden: NDArray[np.float32] | Tensor) -> Head:
        """The signal of stored hidden states [N, H], in the weights' dtype."""
        rows = torch.as_tensor(hidden).to(self.weight.device, self.weight.dtype)
        return Head(rows, self.weight, self.bias, self.softcap, self.scale)


def save_output_layer(head: Head, folder: Path) -> None:
    """Write the output layer of a live signal into a store's folder, atomically.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    tensors = {"weight": head.weight.detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().cpu().contiguous()
    facts = {"scale": repr(float(head.scale))}
    if head.softcap is not None:
        facts["softcap"] = repr(float(head.softcap))
    part = folder / f"{OUTPUT_LAYER}.part"
    try:
        with part.open("wb") as file:
            file.write(save(tensors, facts))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / OUTPUT_LAYER)
    except OSError as error:
        raise disk_error(error, folder) from error
