"""Objectives on outputs of modules, by path: attention transfer and hints, mainly for convolutional nets."""

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
    """The spatial attention of a layer: the mean over channels of |F|^p, flattened over space and divided by its norm,
    in fp32 (fp64 for fp64). Zagoruyko & Komodakis 2017, §3.1 (sum or mean over channels is the same after division). A
    map that is 0 everywhere stays 0, and gets no gradient.
    """
    return unit(widened(maps).abs().pow(power).mean(1).flatten(1))


def attention_transfer(
    student: Float[Tensor, "B C *space"], teacher: Float[Tensor, "B D *space"], power: float = 2.0
) -> Float[Tensor, " B"]:
    """Mean over positions of the squared difference of attention maps, per example, in [0, 4 / positions].

    As in the authors' code: eq. 2 of the paper has the norm of the difference instead of the mean of its squares. The
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

    The mean over pairs of modules, where the paper has the sum: for the paper's balance, multiply the weight by their
    number.
    """

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pairs = self.settings.modules
        return tuple(f"module:{pair.student}" for pair in pairs), tuple(f"module:{pair.teacher}" for pair in pairs)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        """Values per image.

        Raises:
            ModelError: outputs that are no maps, or maps of different sizes.
        """
        found = []
        for pair in self.settings.modules:
            student_output, teacher_output = _outputs(pair, student, teacher)
            for path, output in ((pair.student, student_output), (pair.teacher, teacher_output)):
                if output.ndim < 4:
                    raise ModelError(
                        f"the output of {path} has the shape {list(output.shape)} and is no map [B,C,h,w]",
                        where="modules",
                        fix="attention_transfer is for convolutional nets; for texts take attention_kl, else hint",
                    )
            found.append(attention_transfer(student_output, teacher_output, self.settings.power))
        return torch.stack(found).mean(0)


@implements(Hint)
class HintLoss(TappedObjective[Hint]):
    """Squared difference of a guided and a hint module's output, through a learned regressor if the channels differ.
    Romero et al. 2015 (FitNets), eq. 3.

    Channels are the second axis of [B,C,h,w], and the last of [B,C] and [B,T,C]. For texts, values per token are
    averaged over an example, without padding.
    """

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pair = self.settings.modules
        return (f"module:{pair.student}",), (f"module:{pair.teacher}",)

    def build(self, dims: Dims) -> Regressor:
        """A regressor without parameters: the number of channels is not among a model's sizes, so `initialise` creates
        the parameters from the first batch."""
        return Regressor()

    def initialise(self, module: nn.Module, student: Signals, teacher: Signals | None, batch: Batch) -> None:
        """Create the regressor's parameters, if the channels differ.

        Raises:
            ModelError: the outputs' sizes differ by more than their channels.
        """
        assert isinstance(module, Regressor)
        student_output, teacher_output = _outputs(self.settings.modules, student, self.taught(teacher))
        axis = channel_axis(student_output)
        module.materialise(student_output.shape[axis], teacher_output.shape[axis])

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        """Values per example.

        Raises:
            ModelError: the outputs' sizes differ by more than their channels, or by channels without a regressor.
        """
        pair, view = self.settings.modules, batch.student
        student_output, teacher_output = _outputs(pair, student, teacher)
        if module is not None:
            student_output = module(widened(student_output))
        if student_output.shape != teacher_output.shape:
            raise ModelError(
                _differ(pair, student_output, teacher_output),
                where="modules",
                fix="train it with what its build returns",
            )
        if isinstance(view, View) and student_output.ndim == 3 and student_output.shape[:2] == view.input_ids.shape:
            ids = example_ids_of(batch)
            squares = (widened(student_output) - widened(teacher_output.detach())).square().mean(-1)
            return per_example(squares, ids) / per_example(torch.ones_like(squares), ids)
        if student_output.shape[0] != view.examples:
            raise ModelError(
                f"the output of {pair.student} has the shape {list(student_output.shape)} for {view.examples} examples",
                where="modules",
                fix="set train.packing: false, or name a module that gives a state for each token",
            )
        return hint(student_output, teacher_output)


def _outputs(pair: Modules, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    student_output = tap(student, f"module:{pair.student}", "student")
    teacher_output = tap(teacher, f"module:{pair.teacher}", "teacher")
    if _sizes(student_output) != _sizes(teacher_output):
        raise ModelError(
            _differ(pair, student_output, teacher_output),
            where="modules",
            fix="name modules whose outputs agree in all but their channels, as those after as many strides",
        )
    return student_output, teacher_output


def _sizes(output: Tensor) -> tuple[int, ...]:
    """All sizes but the channels."""
    axis = channel_axis(output)
    return (*output.shape[:axis], *output.shape[axis + 1 :])


def _differ(pair: Modules, student_output: Tensor, teacher_output: Tensor) -> str:
    return (
        f"the output of the student's {pair.student} has the shape {list(student_output.shape)}, and that of "
        f"the teacher's {pair.teacher} {list(teacher_output.shape)}"
    )
