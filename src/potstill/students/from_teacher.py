"""A student made of some of the teacher's layers.

The steps are: choose layers, write the smaller configuration, construct, copy. Reducing another dimension (width,
feed-forward, heads) would need other configuration and copying steps between the same two ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.console import Console
from potstill.errors import DataError, ModelError, RecipeError
from potstill.models.anatomy import model_layers
from potstill.models.live import run_inside
from potstill.models.load import new_head, open_model
from potstill.models.tasks import is_plain, opener_of
from potstill.recipe.layers import choose_layers
from potstill.recipe.students import ByInfluence, FromTeacher
from potstill.registry import implements
from potstill.signals import Batch
from potstill.students.base import Materials, Plain
from potstill.students.depth import copy_layers, lost_kinds, shallower_config
from potstill.students.importance import first_texts
from potstill.tasks import SPECS


@implements(FromTeacher)
class TeacherLayers:
    """Some of the teacher's layers, with its embeddings, norms and head; tied weights stay tied. Sanh et al. 2019, §3.

    If the teacher has no head for the task, the student gets a new one.
    """

    def __init__(self, settings: FromTeacher) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises RecipeError for impossible layers, ModelError for a teacher that cannot be cut."""
        if materials.teacher is None:
            raise RecipeError(
                "a student of kind from_teacher needs a teacher whose weights are here", where="student.kind"
            )
        teacher, new = open_model(
            materials.teacher,
            task=materials.task,
            labels=materials.labels,
            dtype="float32",
            device="cpu",
            trust_remote_code=materials.trust_remote_code,
        )
        if is_plain(teacher):
            raise RecipeError(
                f"the teacher is a module of your own ({type(teacher).__name__}), whose layers are not known",
                where="student.kind",
                fix="make the student of a module too (kind: module), or from a config",
            )
        assert isinstance(teacher, PreTrainedModel)
        if getattr(teacher.config, "quantization_config", None) is not None:
            raise ModelError(
                "the teacher's weights are quantised, and a student cannot be made of packed weights",
                where=str(materials.teacher.path),
                fix="name the unquantised model as teacher, or make the student from a config",
            )
        influence = self._influence(teacher, materials)
        layers = choose_layers(self.settings.layers, len(model_layers(teacher)), influence or ())
        for kind in lost_kinds(teacher.config, layers):
            materials.console.warn(f"the student keeps none of the teacher's {kind} layers (student.layers: {layers})")
        student = self._construct(teacher, layers, materials)
        facts: dict[str, Any] = {"layers": layers, "teacher_layers": len(model_layers(teacher))}
        if new:
            materials.console.say(f"{materials.teacher.name}: {new_head(new)}")
            facts["new_weights"] = list(new)
        return Plain(student, facts if influence is None else {**facts, "influence": influence})

    def _influence(self, teacher: PreTrainedModel, materials: Materials) -> list[float] | None:
        if not isinstance(self.settings.layers, ByInfluence):
            return None
        if materials.influence_batches is None:
            raise RecipeError("by_influence looks at the training data, and there are none", where="student.layers")
        records = self.settings.layers.records
        return layer_influence(teacher, materials.influence_batches(), records=records, console=materials.console)

    def _construct(self, teacher: PreTrainedModel, layers: list[int], materials: Materials) -> PreTrainedModel:
        config = shallower_config(teacher.config, layers)
        student: PreTrainedModel = opener_of(materials.task).from_config(
            config, dtype=torch.float32, trust_remote_code=materials.trust_remote_code
        )
        copy_layers(teacher, student, layers)
        if SPECS[materials.task].writes:
            student.generation_config = copy.deepcopy(teacher.generation_config)
        return student


# ---- how much each layer changes the hidden state --------------------------------------------------------------------


@torch.no_grad()
def layer_influence(model: nn.Module, batches: Iterable[Batch], *, records: int, console: Console) -> list[float]:
    """1 − cos(input, output) of each layer, the mean over all real tokens; 0 means no change of direction.
    Block influence of Men et al. 2024 (ShortGPT, arXiv 2403.03853), eq. 1.

    Args:
        model: in evaluation mode; its mode is unchanged.
        batches: their teacher's view is read, up to `records` rows.
        records: the number of rows to read.
        console: shows progress.

    Returns:
        One number per layer, in [0, 2].

    Raises:
        DataError: there are no tokens.
    """
    layers = model_layers(model)
    device = next(model.parameters()).device
    sums = torch.zeros(len(layers), dtype=torch.float64)
    real = torch.zeros(0, dtype=torch.bool)
    tokens = 0

    def measure(index: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[index] += _turned(before[real], after[real])

        return hook

    handles = [layer.register_forward_hook(measure(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with console.task("measuring the layers", total=records, unit="records") as task:
            for texts in first_texts(batches, records, device):
                real = texts.segment_ids > 0
                run_inside(model, texts)
                tokens += int(real.sum())
                task.advance(len(texts.input_ids))
    finally:
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise DataError("there are no records to measure the layers' influence on", where="student.layers.by_influence")
    return [float(total) / tokens for total in sums]


def _turned(before: Tensor, after: Tensor) -> float:
    """Σ (1 − cos) over rows."""
    return float((1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)).double().sum())
