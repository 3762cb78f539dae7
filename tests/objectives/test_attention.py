"""Attention scores, distributions and MiniLM's relations: by hand, with grouped heads, and who may be compared."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives.tables import packed_batch, signals, tables, text_batch
from objectives.worlds import make_batch
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives.attention import distribution_kl, score_mse, scores_of, visible_pairs
from potstill.objectives.minilm import split_anew
from potstill.recipe.features import AttentionKL, AttentionScores
from potstill.recipe.objectives import ObjectiveSettings
from potstill.recipe.relations import MiniLMv1, MiniLMv2
from potstill.registry import build
from potstill.signals import Batch, Dims, ModelDims, Signals, View

KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
"""KL((¾, ¼) ‖ (½, ½))."""

ATTENTION: tuple[ObjectiveSettings, ...] = (
    AttentionScores(),
    AttentionKL(),
    MiniLMv1(),
    MiniLMv2(relation_heads=1),
)


def dims(heads: int = 2, layers: int = 1, causal: bool = False, kv_heads: int | None = None) -> ModelDims:
    return ModelDims(11, hidden=4, layers=layers, heads=heads, kv_heads=kv_heads or heads, causal=causal)


def test_scores_by_hand() -> None:
    queries = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])[None, None]
    keys = torch.tensor([[1.0, 0, 0, 0], [0, 3.0, 0, 0]])[None, None]
    scores = scores_of(queries, keys)  # d = 4: divided by 2
    torch.testing.assert_close(scores[0, 0], torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    ids = torch.zeros(1, 2, dtype=torch.long)
    zero = torch.zeros_like(scores)
    torch.testing.assert_close(score_mse(scores, zero, ids, causal=False), torch.tensor([(1.0 + 9.0) / 4]))
    scores[0, 0, 0, 1] = 100.0  # what a causal token does not see
    torch.testing.assert_close(score_mse(scores, zero, ids, causal=True), torch.tensor([(1.0 + 9.0) / 3]))


def test_distributions_by_hand() -> None:
    ids, uniform = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 1, 2, 2)
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])[None, None]
    torch.testing.assert_close(distribution_kl(uniform, teacher, ids, causal=False), torch.tensor([KL / 2]))
    # The direction: KL(teacher ‖ student).
    other = distribution_kl(teacher, uniform, ids, causal=False)
    torch.testing.assert_close(other, torch.tensor([0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)]) / 2)
    # A first token that sees itself alone has nothing to choose.
    assert distribution_kl(uniform, teacher, ids, causal=True).abs().max() < 1e-7
    torch.testing.assert_close(distribution_kl(uniform, teacher.flip(2), ids, causal=True), torch.tensor([KL / 2]))


def test_heads_are_averaged() -> None:
    ids = torch.zeros(1, 2, dtype=torch.long)
    one = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])[None, None]
    two = torch.cat([one, torch.zeros_like(one)], 1)
    torch.testing.assert_close(distribution_kl(torch.zeros_like(two), two, ids, False), torch.tensor([KL / 4]))
    expected = torch.tensor([math.log(3) ** 2 / 8])
    torch.testing.assert_close(score_mse(torch.zeros_like(two), two, ids, False), expected)


def test_tokens_see_those_of_their_own_example() -> None:
    ids = torch.tensor([[0, 0, 1, 1, -1]])
    expected = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0] * 5]).bool()
    assert torch.equal(visible_pairs(ids, causal=False)[0], expected)
    assert torch.equal(visible_pairs(ids, causal=True)[0], expected.tril())


def test_grouped_heads_of_keys_are_repeated() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4)
    by_group = torch.stack([queries[:, a] @ keys[:, a // 3].mT / 2 for a in range(6)], 1)
    torch.testing.assert_close(scores_of(queries, keys), by_group)
    # As PyTorch's own attention groups them.
    attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True)
    ours = scores_of(queries, keys).softmax(-1) @ keys.repeat_interleave(3, 1)
    torch.testing.assert_close(ours, attended)


def test_minilm_by_hand() -> None:
    # One head of one dimension: relations [[x², xy], [xy, y²]], with x² = ln 3 and y = 0 in the teacher.
    batch = text_batch((2,))
    whole = torch.tensor([[math.sqrt(math.log(3))], [0.0]])[None, None]
    parts = ("queries.0", "keys.0", "values.0")
    teacher = Signals(taps=dict.fromkeys(parts, whole), dims=dims(heads=1))
    student = Signals(taps=dict.fromkeys(parts, torch.zeros_like(whole)), dims=dims(heads=1))
    half = KL / 2
    torch.testing.assert_close(build(MiniLMv1())(student, teacher, batch).values, torch.tensor([2 * half]))
    v2 = build(MiniLMv2(relation_heads=1))
    torch.testing.assert_close(v2(student, teacher, batch).values, torch.tensor([3 * half]))
    values = build(MiniLMv2(relation_heads=1, relations=("values",)))
    torch.testing.assert_close(values(student, teacher, batch).values, torch.tensor([half]))
    asked = values.ask(Dims(dims(1), dims(1)))
    assert asked["teacher"].taps == {"values.0"}


def test_heads_are_put_together_and_split_anew() -> None:
    states = torch.arange(6.0).view(1, 2, 1, 3)  # one token: heads (0,1,2) and (3,4,5)
    assert split_anew(states, 3).tolist() == [[[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]]]]
    assert torch.equal(split_anew(states, 2), states)
    with pytest.raises(ModelError, match=r"6 dimensions \(2 heads of 3\) cannot be split into 4 relation heads"):
        split_anew(states, 4)


def test_relations_take_models_of_other_heads_widths_and_depths() -> None:
    # Teacher: 4 heads of 6 (keys and values 2), student: 3 heads of 4; relation heads 12.
    torch.manual_seed(0)
    batch = text_batch()

    def given(layer: int, heads: int, kv_heads: int, size: int, sizes: ModelDims) -> Signals:
        shapes = {"queries": heads, "keys": kv_heads, "values": kv_heads}
        return Signals(taps={f"{n}.{layer}": torch.randn(5, a, 6, size) for n, a in shapes.items()}, dims=sizes)

    student, teacher = given(1, 3, 3, 4, dims(3, 2)), given(3, 4, 2, 6, dims(4, 5, kv_heads=2))
    objective = build(MiniLMv2(relation_heads=12, teacher_layer=-2))
    assert objective.ask(Dims(dims(3, 2), dims(4, 5)))["teacher"].taps == {"queries.3", "keys.3", "values.3"}
    values = objective(student, teacher, batch).values
    assert values.shape == (5,) and values.min() > 0
    forwards = build(MiniLMv2(relation_heads=12, teacher_layer=3))
    torch.testing.assert_close(forwards(student, teacher, batch).values, values)
    for wrong in (5, -6):
        with pytest.raises(ModelError, match=f"attention layer {wrong} of the teacher, which has 0 to 4"):
            build(MiniLMv2(teacher_layer=wrong)).ask(Dims(dims(3, 2), dims(4, 5)))


def test_values_of_grouped_heads_serve_minilm_v1() -> None:
    # A teacher of 4 heads that share 2, against a student of 4: as if its values were written out.
    torch.manual_seed(0)
    batch = text_batch()
    parts = {
        "queries.0": torch.randn(5, 4, 6, 3),
        "keys.0": torch.randn(5, 2, 6, 3),
        "values.0": torch.randn(5, 2, 6, 3),
    }
    grouped = Signals(taps=parts, dims=dims(4, kv_heads=2))
    wide = {n: t if t.shape[1] == 4 else t.repeat_interleave(2, 1) for n, t in parts.items()}
    student = Signals(taps={n: torch.randn(5, 4, 6, 3) for n in parts}, dims=dims(4))
    loss = build(MiniLMv1())
    expected = loss(student, Signals(taps=wide, dims=dims(4)), batch).values
    torch.testing.assert_close(loss(student, grouped, batch).values, expected)


@pytest.mark.parametrize("settings", ATTENTION[:3], ids=lambda s: s.kind)
def test_unequal_heads_are_refused_with_the_fix(settings: ObjectiveSettings) -> None:
    with pytest.raises(ModelError, match=r"the student has 2 attention heads, the teacher 4\n.*minilm_v2"):
        build(settings).ask(Dims(dims(2), dims(4)))


@pytest.mark.parametrize("settings", ATTENTION, ids=lambda s: s.kind)
def test_looking_back_is_not_held_against_looking_both_ways(settings: ObjectiveSettings) -> None:
    with pytest.raises(ModelError, match="that of the student looks back only, that of the teacher both ways"):
        build(settings).ask(Dims(dims(causal=True), dims()))


@pytest.mark.parametrize("settings", ATTENTION, ids=lambda s: s.kind)
def test_the_tokens_must_be_the_same(settings: ObjectiveSettings) -> None:
    batch = make_batch()
    assert isinstance(batch.student, View)
    other = Batch(batch.student, replace(batch.student), batch.target_ids, batch.target_positions)
    given = signals(tables(0, rows=2))
    with pytest.raises(ValueError, match="see the same ones"):
        build(settings)(given, given, other)


@pytest.mark.parametrize("settings", ATTENTION, ids=lambda s: s.kind)
def test_what_is_masked_may_be_anything(settings: ObjectiveSettings) -> None:
    # Another packed text with enormous entries: no share of the softmax, no NaN, no gradient across.
    torch.manual_seed(0)
    batch = packed_batch((3, 4))
    ours = {n: t.clone() for n, t in tables(0, torch.float32, rows=1, time=7).items()}
    theirs = tables(1, torch.float32, rows=1, time=7)
    first = build(settings)(signals(ours), signals(theirs), batch).values[0]
    for name in list(ours):
        if name.split(".")[0] in ("queries", "keys", "values"):
            ours[name][:, :, 3:] = 1e15
            ours[name].requires_grad_()
    changed = build(settings)(signals(ours), signals(theirs), batch).values[0]
    torch.testing.assert_close(changed, first)
    leaves: list[Tensor] = [t for t in ours.values() if t.requires_grad]
    for gradient in torch.autograd.grad(changed, leaves, materialize_grads=True):
        assert gradient.isfinite().all() and gradient[:, :, 3:].abs().max() == 0
