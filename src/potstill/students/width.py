"""A narrower and shallower decoder: the teacher's weights at the indices that are kept.

The result is an ordinary model of the teacher's family, of a smaller configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import ModelError
from potstill.models.shapes import Axis, Shape, Widths, axes_of
from potstill.models.tasks import opener_of
from potstill.students.depth import config_from, copied_name, layers_name, shallower_config
from potstill.students.importance import Importance, norms_of
from potstill.tasks import Task


@dataclass(frozen=True)
class Kept:
    """The indices of the teacher that a student keeps, each ascending.

    Attributes:
        layers: by index.
        hidden: [h] dimensions of the residual stream, the same everywhere.
        groups: [layers, g] groups of heads of every kept layer.
        channels: [layers, f] feed-forward channels of every kept layer.
        scales: [2 · layers + 1] factors on the weights of the norms, in the order of `importance.norms_of`.
    """

    layers: tuple[int, ...]
    hidden: Int[Tensor, " h"]
    groups: Int[Tensor, "l g"]
    channels: Int[Tensor, "l f"]
    scales: Tensor


def choose(importance: Importance, shape: Shape, layers: Sequence[int]) -> Kept:
    """The most important parts of each kind; ties go to the earlier one.

    A norm divides a state by the root of its mean square, over fewer dimensions than before. `scales` restore its size:
    where the share s of the squared norm (a mean over tokens) lies in h kept dimensions of H, the factor is √(s·H/h).
    Minitron leaves them out.
    """
    width = len(importance.hidden)
    hidden = _largest(importance.hidden, shape.hidden)
    last = len(importance.energy) - 1
    norms = [2 * layer + place for layer in layers for place in (0, 1)] + [last]
    shares = importance.energy[norms][:, hidden].sum(-1)
    return Kept(
        tuple(layers),
        hidden,
        torch.stack([_largest(importance.groups[layer], shape.groups) for layer in layers]),
        torch.stack([_largest(importance.channels[layer], shape.channels) for layer in layers]),
        (shares * width / shape.hidden).sqrt().float(),
    )


def _largest(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return order.sort().values


def pruned_config(teacher: PreTrainedConfig, widths: Widths, shape: Shape, layers: Sequence[int]) -> PreTrainedConfig:
    """The teacher's configuration in a smaller shape. Heads keep their width, so it is stated.

    Raises:
        ModelError: the family refuses it.
    """
    changes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.channels,
        "num_attention_heads": shape.groups * widths.heads_per_group,
        "num_key_value_heads": shape.groups,
        "head_dim": widths.head_dim,
    }
    return config_from(shallower_config(teacher, layers), changes)


@torch.no_grad()
def prune(teacher: PreTrainedModel, widths: Widths, shape: Shape, kept: Kept, task: Task) -> PreTrainedModel:
    """A student of the teacher's kept weights, in fp32 on the processor.

    Raises:
        ModelError: a weight of the student has no counterpart.
    """
    config = pruned_config(teacher.config, widths, shape, kept.layers)
    student: PreTrainedModel = opener_of(task).from_config(config, dtype=torch.float32)
    prefix, given = layers_name(teacher), teacher.state_dict()
    for name, tensor in student.state_dict().items():
        source, axes = copied_name(name, prefix, kept.layers), axes_of(name)
        if source not in given or axes is None:
            raise ModelError(f"the student's {name} has no counterpart in {type(teacher).__name__}", where="student")
        place = int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else 0
        value = given[source]
        for dimension, axis in enumerate(axes):
            if (indices := _indices(axis, kept, place, widths)) is not None:
                value = value.index_select(dimension, indices.to(value.device))
        tensor.copy_(value)
    for norm, scale in zip(norms_of(student), kept.scales, strict=True):
        norm.get_parameter("weight").mul_(scale)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    student.eval()
    return student


def _indices(axis: Axis, kept: Kept, place: int, widths: Widths) -> Tensor | None:
    """The kept indices along an axis, in the student's layer `place`; None keeps all."""
    match axis:
        case "hidden":
            return kept.hidden
        case "channels":
            return kept.channels[place]
        case "keys":
            return _blocks(kept.groups[place], widths.head_dim)
        case "queries":
            return _blocks(kept.groups[place], widths.head_dim * widths.heads_per_group)
        case _:
            return None


def _blocks(groups: Tensor, width: int) -> Tensor:
    """The indices of whole blocks of a width."""
    return (groups[:, None] * width + torch.arange(width)).flatten()
