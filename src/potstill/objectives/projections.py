"""Learned linear maps from the student's width to the teacher's, trained along and removed at export."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import ModelError


def linear_projections(student_width: int, teacher_width: int, number: int) -> nn.ModuleList:
    """Linear maps [H_student → H_teacher] without bias, initialised as `nn.Linear` does."""
    return nn.ModuleList(nn.Linear(student_width, teacher_width, bias=False) for _ in range(number))


def principal_directions(states_NH: Float[Tensor, "N H"], number: int) -> Float[Tensor, "H K"]:
    """Up to `number` orthonormal principal directions of states, in order of decreasing energy.

    K is the least of `number`, N and H. The directions are about the origin, not the mean: the maps have no bias, so
    they must represent the mean too. Signs make each direction's largest entry positive. In fp32, or fp64 for fp64
    states.
    """
    wide = states_NH.to(torch.promote_types(states_NH.dtype, torch.float32))
    directions: Tensor = torch.linalg.svd(wide, full_matrices=False).Vh[:number].T
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()


def start_at_principal_directions(projection: nn.Linear, states_NH: Float[Tensor, "N H"]) -> None:
    """Set a map's weight so that the student's coordinate i corresponds to the teacher's i-th principal component.

    Column i of the weight [H_teacher, H_student] becomes the i-th principal direction of the teacher's states. With
    fewer states than columns, further columns are directions orthogonal to those, made from the random initialisation;
    if the student is wider than the teacher, the remaining columns are 0 (they are still trained).
    """
    weight = projection.weight
    teacher_width, student_width = weight.shape
    with torch.no_grad():
        found = principal_directions(states_NH.to(weight.device), student_width)
        start = torch.zeros_like(weight, dtype=found.dtype)
        drawn = weight[:, found.shape[1] : min(teacher_width, student_width)].to(found.dtype)
        basis = torch.linalg.qr(torch.cat([found, drawn], 1)).Q
        start[:, : basis.shape[1]] = basis
        start[:, : found.shape[1]] = found  # unchanged: QR may flip a sign
        weight.copy_(start)


class Regressor(nn.Module):
    """An affine map of channels, whose sizes come from the first outputs; the identity if the channels agree.

    A 1×1 convolution over maps [B,C,h,w] (or of more axes), a linear map of [B,C] and of [B,T,C]. Its parameters do
    not exist until `materialise` is called, or a state that has them is loaded. The buffer `channels` [2] is part of
    the state: 0 before, the student's and teacher's numbers after. The seed of the initial parameters is drawn at
    construction.
    """

    channels: Tensor
    map: nn.Linear | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("channels", torch.zeros(2, dtype=torch.long))
        self.seed = int(torch.randint(2**62, ()))
        self.made = False  # the same as `channels` > 0, without a device synchronisation
        self.register_module("map", None)

    def materialise(self, student_channels: int, teacher_channels: int) -> None:
        """Create the parameters, on the device of `channels`."""
        self.channels.copy_(torch.tensor([student_channels, teacher_channels]))
        self.made = True
        self.map = None
        if student_channels != teacher_channels:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.map = nn.Linear(student_channels, teacher_channels).to(self.channels.device)

    def forward(self, output: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Map the student's output to the teacher's number of channels.

        Raises:
            RuntimeError: `materialise` has not been called.
            ModelError: it was made for another number of channels.
        """
        if not self.made:
            raise RuntimeError("the regressor has no sizes yet: show it a first batch (`Objective.initialise`)")
        if self.map is None:
            return output
        axis = channel_axis(output)
        if output.shape[axis] != self.map.in_features:
            raise ModelError(
                f"the regressor is for {self.map.in_features} channels of the student's, and gets {output.shape[axis]}",
                fix="it comes from a checkpoint or a stage with other modules: train into another folder",
            )
        mapped: Tensor = self.map(output.movedim(axis, -1))
        return mapped.movedim(-1, axis)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        sizes: Tensor | None = state_dict.get(prefix + "channels")
        if sizes is not None and sizes.any() and not torch.equal(sizes.cpu(), self.channels.cpu()):
            self.materialise(*(int(n) for n in sizes))
            # The loader then loads the children that exist when this returns.
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def channel_axis(output: Tensor) -> int:
    """The axis of an output's channels: the last of [B,C] and [B,T,C], the second of [B,C,h,w]."""
    return 1 if output.ndim > 3 else output.ndim - 1
