"""Pruning keeps what matters: parts that do nothing are found and left out, and the rest computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from potstill.errors import DataError, RecipeError
from potstill.models.anatomy import model_layers
from potstill.models.facts import ModelFacts
from potstill.models.shapes import Shape, Widths, widths_of
from potstill.recipe.students import Pruned
from potstill.signals import Batch
from potstill.students import BuiltStudent
from potstill.students.importance import Importance, measure_importance, norms_of
from potstill.students.pruned import Candidate, candidates_of, cut
from potstill.students.width import choose, prune
from tiny_models import VOCAB, Family, tiny_model

from .conftest import TeacherMaker
from .test_influence import batch

BY_WIDTH: tuple[Family, ...] = ("llama", "qwen2", "mistral", "granite")
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def widths(model: PreTrainedModel) -> Widths:
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    return widths_of(ModelFacts(model.config.to_dict(), shapes, 0))


def importance(model: PreTrainedModel, *batches: Batch, records: int = 8) -> Importance:
    groups = model.config.num_key_value_heads
    return measure_importance(
        model, batches or [batch([7, 9])], groups=groups, records=records, advance=lambda rows: None
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS, use_cache=False).logits
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", BY_WIDTH)
def test_the_whole_shape_is_the_teacher(family: Family, tied: bool) -> None:
    teacher = tiny_model(family, tied=tied)
    sizes = widths(teacher)
    kept = choose(importance(teacher), sizes.shape, range(4))
    assert torch.equal(logits(prune(teacher, sizes, sizes.shape, kept, "causal_lm")), logits(teacher))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", BY_WIDTH)
def test_a_teacher_with_idle_parts_loses_nothing_with_them(family: Family, tied: bool) -> None:
    """Half of the residual stream, one of two groups of heads and a third of the channels do nothing; a layer is an
    identity."""
    teacher = tiny_model(family, tied=tied, layers=3, kv_heads=2, rms_norm_eps=1e-12)
    sizes = widths(teacher)
    draw = torch.Generator().manual_seed(0)
    idle_hidden = torch.randperm(32, generator=draw)[:16]
    with torch.no_grad():
        teacher.get_input_embeddings().weight[:, idle_hidden] = 0
        for number, layer in enumerate(model_layers(teacher)):
            attention, mlp = layer.self_attn, layer.mlp
            group = number % 2
            attention.o_proj.weight[:, 16 * group : 16 * (group + 1)] = 0
            attention.v_proj.weight[8 * group : 8 * (group + 1)] = 0
            idle = torch.randperm(64, generator=draw)[:24]
            mlp.up_proj.weight[idle] = 0
            for output in (attention.o_proj, mlp.down_proj):
                output.weight[idle_hidden] = 0
                if number == 1:
                    output.weight.zero_()
            if (bias := attention.v_proj.bias) is not None:
                bias[8 * group : 8 * (group + 1)] = 0
    shape = Shape(layers=2, hidden=16, groups=1, channels=40)
    student = cut(teacher, Candidate((0, 2), "even", shape), sizes, importance(teacher), "causal_lm")
    assert sum(p.numel() for p in student.parameters()) == sizes.parameters(shape)
    assert (student.get_input_embeddings().weight is student.get_output_embeddings().weight) == tied  # type: ignore[union-attr]
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-3, atol=1e-4)


def test_scores_are_means_over_tokens_and_norms_over_texts() -> None:
    model, lengths = tiny_model(layers=1), (5, 9)
    rows = batch(list(lengths))
    taken: dict[str, list[torch.Tensor]] = {"groups": [], "channels": [], "hidden": [], "energy": []}
    layer: Any = model_layers(model)[0]
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: taken["groups"].append(a[0][0])),
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: taken["channels"].append(a[0][0])),
        layer.input_layernorm.register_forward_hook(lambda m, a, out: taken["energy"].append(a[0][0])),
        *(norm.register_forward_hook(lambda m, a, out: taken["hidden"].append(out[0])) for norm in norms_of(model)),
    ]
    with torch.no_grad():
        for row, length in zip(rows.teacher.input_ids, lengths, strict=True):
            model(row[None, :length], use_cache=False)
    for handle in handles:
        handle.remove()

    def score(per_text: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([text.mean(0) for text in per_text]).square().sum(0).sqrt().double()

    found = importance(model, rows)
    by_group = [text.unflatten(-1, (2, 16)).norm(dim=-1) for text in taken["groups"]]
    torch.testing.assert_close(found.groups[0], score(by_group), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.channels[0], score([t.abs() for t in taken["channels"]]), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.hidden, score([t.abs() for t in taken["hidden"]]), rtol=1e-5, atol=0)
    squares = torch.cat(taken["energy"]).square()
    torch.testing.assert_close(
        found.energy[0], (squares / squares.sum(-1, keepdim=True)).mean(0).double(), rtol=1e-5, atol=0
    )
    assert (found.rows, found.tokens) == (2, 14)


def test_padding_changes_no_score() -> None:
    model = tiny_model()
    apart = importance(model, batch([6]), batch([3], seed=4))
    short = batch([3], seed=4).teacher.input_ids
    ids = torch.cat([batch([6]).teacher.input_ids, torch.cat([short, torch.full((1, 3), 2)], 1)])
    segments = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    positions = torch.arange(6).expand(2, -1).contiguous()
    together = Batch.from_inputs({"input_ids": ids, "labels": ids, "position_ids": positions, "segment_ids": segments})
    found = importance(model, together)
    for name in ("hidden", "groups", "channels", "energy"):
        torch.testing.assert_close(getattr(found, name), getattr(apart, name), rtol=1e-4, atol=1e-7)


def test_no_records_is_an_error_and_no_hook_is_left() -> None:
    model = tiny_model()
    with pytest.raises(DataError, match="no records"):
        measure_importance(model, [], groups=2, records=4, advance=lambda rows: None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_norm_keeps_the_size_of_what_it_lets_through() -> None:
    energy = torch.tensor([[0.4, 0.4, 0.1, 0.1]] * 3, dtype=torch.float64)
    scores = Importance(torch.tensor([4.0, 3, 2, 1]), torch.ones(1, 1), torch.ones(1, 2), energy, 1, 1)
    kept = choose(scores, Shape(1, 2, 1, 1), [0])
    assert kept.hidden.tolist() == [0, 1] and kept.channels.tolist() == [[0]]
    assert kept.scales.tolist() == pytest.approx([(0.8 * 4 / 2) ** 0.5] * 3)


def test_each_shape_is_tried_with_layers_by_influence_and_evenly_spaced() -> None:
    influence = [0.9, 0.8, 0.1, 0.2, 0.7]
    made = candidates_of([Shape(3, 8, 1, 8), Shape(5, 4, 1, 8)], 5, influence)
    assert [(c.layers, c.by) for c in made] == [
        ((0, 1, 4), "influence"),
        ((0, 2, 4), "even"),
        ((0, 1, 2, 3, 4), "all"),
    ]


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_depth_alone_is_cut_in_every_family(family: Family) -> None:
    teacher = tiny_model(family)
    student = cut(teacher, Candidate((0, 3), "even", None), None, None, "causal_lm")
    for index in (1, 2):
        model_layers(teacher)[index].register_forward_hook(lambda module, args, out: args[0])
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


def test_without_its_stage_there_is_no_student(teacher_of: TeacherMaker, build: Callable[..., BuiltStudent]) -> None:
    with pytest.raises(RecipeError, match=r"train\.pruned"):
        build(Pruned(parameters=10_000), teacher_of())
