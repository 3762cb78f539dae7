"""Objectives on what modules give, by their paths: attention transfer and hints, above all for convolutional nets."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.objectives.attention import example_ids_of, per_example
from potstill.objectives.base import TappedObjective, tap, widened
from potstill.objectives.norms import unit
from potstill.objectives.projections import Regressor, channel_axis
from potstill.recipe.features import AttentionTransfer, Hint, Modules
from potstill.registry import implements
from potstill.signals import Batch, Dims, Signals, View


def attention_map(maps: Float[Tensor, "B C *space"], power: float = 2.0) -> Float[Tensor, "B M"]:
    """Where a layer looks: the mean over channels of |F|^p, flattened over space and divided by its length, in fp32
    (fp64 for fp64). Zagoruyko & Komodakis 2017, §3.1 (sum or mean over channels: the length is divided out).

    A map that is 0 everywhere stays 0, and gets no gradient.
    """
    return unit(widened(maps).abs().pow(power).mean(1).flatten(1))


def attention_transfer(
    student: Float[Tensor, "B C *space"], teacher: Float[Tensor, "B D *space"], power: float = 2.0
) -> Float[Tensor, " B"]:
    """Mean over positions of the squared difference of attention maps, per example, in [0, 4 / positions].

    The authors' code: eq. 2 of the paper has the length of the difference instead of the mean of its squares. The
    gradient flows to the student only.
    """
    return (attention_map(student, power) - attention_map(teacher.detach(), power)).square().mean(1)


def hint(student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Mean over all but the first axis of (student − teacher)², per example, in fp32 (fp64 for fp64).

    Romero et al. 2015 (FitNets), eq. 3, which has half of the sum. The gradient flows to the student only.
    """
    return (widened(student) - widened(teacher.detach())).square().flatten(1).mean(1)


@implements(AttentionTransfer)
class AttentionTransferLoss(TappedObjective[AttentionTransfer]):
    """Squared difference of attention maps. Zagoruyko & Komodakis 2017.

    The mean over its pairs of modules, where the paper has the sum: multiply the weight by their number for its
    balance.
    """

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pairs = self.settings.modules
        return tuple(f"module:{pair.student}" for pair in pairs), tuple(f"module:{pair.teacher}" for pair in pairs)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        """Per image.

        Raises:
            ModelError: outputs that are no maps, or maps of different sizes.
        """
        found = []
        for pair in self.settings.modules:
            ours, theirs = _outputs(pair, student, teacher)
            for path, output in ((pair.student, ours), (pair.teacher, theirs)):
                if output.ndim < 4:
                    raise ModelError(
                        f"the output of {path} has the shape {list(output.shape)} and is no map [B,C,h,w]",
                        where="modules",
                        fix="attention_transfer is for convolutional nets; for texts take attention_kl, else hint",
                    )
            found.append(attention_transfer(ours, theirs, self.settings.power))
        return torch.stack(found).mean(0)


@implements(Hint)
class HintLoss(TappedObjective[Hint]):
    """Squared difference of a guided and a hint module's output, through a learned regressor where the channels differ.
    Romero et al. 2015 (FitNets), eq. 3.

    [B,C,h,w] has its channels second, [B,C] and [B,T,C] at the end. Of texts, what a module gives for each token is
    averaged over those of an example, padding aside.
    """

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pair = self.settings.modules
        return (f"module:{pair.student}",), (f"module:{pair.teacher}",)

    def build(self, dims: Dims) -> Regressor:
        """A regressor without parameters yet: channels are no part of the sizes of a model, so `initialise` makes them
        of the first batch."""
        return Regressor()

    def initialise(self, module: nn.Module, student: Signals, teacher: Signals | None, batch: Batch) -> None:
        """Makes the regressor's parameters, where the channels differ.

        Raises:
            ModelError: the outputs' sizes differ by more than their channels.
        """
        assert isinstance(module, Regressor)
        ours, theirs = _outputs(self.settings.modules, student, self.taught(teacher))
        axis = channel_axis(ours)
        module.materialise(ours.shape[axis], theirs.shape[axis])

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        """Per example.

        Raises:
            ModelError: the outputs' sizes differ by more than their channels, or by these without a regressor.
        """
        pair, view = self.settings.modules, batch.student
        ours, theirs = _outputs(pair, student, teacher)
        if module is not None:
            ours = module(widened(ours))
        if ours.shape != theirs.shape:
            raise ModelError(_differ(pair, ours, theirs), where="modules", fix="train it with what its build returns")
        if isinstance(view, View) and ours.ndim == 3 and ours.shape[:2] == view.input_ids.shape:
            ids = example_ids_of(batch)
            squares = (widened(ours) - widened(theirs.detach())).square().mean(-1)
            return per_example(squares, ids) / per_example(torch.ones_like(squares), ids)
        if ours.shape[0] != view.examples:
            raise ModelError(
                f"the output of {pair.student} has the shape {list(ours.shape)} for {view.examples} examples",
                where="modules",
                fix="set train.packing: false, or name a module that gives a state for each token",
            )
        return hint(ours, theirs)


def _outputs(pair: Modules, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    ours = tap(student, f"module:{pair.student}", "student")
    theirs = tap(teacher, f"module:{pair.teacher}", "teacher")
    if _sizes(ours) != _sizes(theirs):
        raise ModelError(
            _differ(pair, ours, theirs),
            where="modules",
            fix="name modules whose outputs agree in all but their channels, as those after as many strides",
        )
    return ours, theirs


def _sizes(output: Tensor) -> tuple[int, ...]:
    """All but the channels."""
    axis = channel_axis(output)
    return (*output.shape[:axis], *output.shape[axis + 1 :])


def _differ(pair: Modules, ours: Tensor, theirs: Tensor) -> str:
    return (
        f"the output of the student's {pair.student} has the shape {list(ours.shape)}, and that of the teacher's "
        f"{pair.teacher} {list(theirs.shape)}"
    )
