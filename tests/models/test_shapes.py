"""Shapes of decoders: their sizes are those of the models, and candidates have the size that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.errors import ModelError, RecipeError
from potstill.models.facts import ModelFacts, facts_of_folder
from potstill.models.shapes import NEAR, PRUNED_BY_WIDTH, Shape, Widths, candidate_shapes, depth_of_size, widths_of
from tiny_models import make_tiny_causal_lm, tiny_config

SMOLLM2 = Widths(
    Shape(layers=30, hidden=576, groups=3, channels=1536),
    heads_per_group=3,
    head_dim=64,
    outside=(("vocabulary", "hidden"), ("hidden",)),
    inside=(
        *(("queries", "hidden"), ("keys", "hidden"), ("keys", "hidden"), ("hidden", "queries")),
        *(("channels", "hidden"), ("channels", "hidden"), ("hidden", "channels"), ("hidden",), ("hidden",)),
    ),
    vocabulary=49152,
)


@pytest.fixture(scope="session")
def facts_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelFacts]:
    """`facts_of(family, …)`: the sizes of a tiny model on disk."""

    def of(family: str, **shape: object) -> ModelFacts:
        folder = tmp_path_factory.mktemp("models") / family
        if family == "qwen3":
            config = tiny_config("llama", **shape).to_dict()  # type: ignore[arg-type]
            for key in ("model_type", "architectures", "rope_parameters"):
                config.pop(key, None)
            model = AutoModelForCausalLM.from_config(Qwen3Config(**config | {"head_dim": 8}))
            model.save_pretrained(folder)
            return facts_of_folder(folder)
        return facts_of_folder(make_tiny_causal_lm(folder, family, **shape))  # type: ignore[arg-type]

    return of


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", PRUNED_BY_WIDTH)
def test_a_model_has_the_parameters_of_its_shape(family: str, tied: bool, facts_of: Callable[..., ModelFacts]) -> None:
    facts = facts_of(family, tied=tied)
    widths = widths_of(facts)
    assert widths.shape == Shape(layers=4, hidden=32, groups=2, channels=64)
    assert widths.parameters(widths.shape) == facts.parameters
    assert widths.heads_per_group == 2


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "cohere"])
def test_a_family_that_reads_its_width_otherwise_is_refused_by_name(
    family: str, facts_of: Callable[..., ModelFacts]
) -> None:
    with pytest.raises(ModelError, match=f"{family}.*by width") as caught:
        widths_of(facts_of(family))
    assert caught.value.fix is not None and "student.width: false" in caught.value.fix


def test_a_weight_that_is_not_known_is_refused(facts_of: Callable[..., ModelFacts]) -> None:
    facts = facts_of("llama")
    odd = ModelFacts(facts.config, {**facts.shapes, "model.layers.0.mlp.router.weight": (4, 32)}, 0)
    with pytest.raises(ModelError, match="router"):
        widths_of(odd)


def test_smollm2_has_the_size_that_its_card_says() -> None:
    assert SMOLLM2.parameters(SMOLLM2.shape) == 134_515_008


def test_candidates_go_from_whole_width_and_few_layers_to_all_layers_and_little_width() -> None:
    shapes = candidate_shapes(SMOLLM2, 60_000_000, 100)
    assert shapes[0] == Shape(layers=9, hidden=576, groups=3, channels=1536)
    assert shapes[-1].layers == 30
    assert [s.hidden for s in shapes] == sorted({s.hidden for s in shapes}, reverse=True)
    assert [s.layers for s in shapes] == sorted(s.layers for s in shapes)
    few = candidate_shapes(SMOLLM2, 60_000_000, 4)
    assert len(few) == 4 and few[0] == shapes[0] and few[-1] == shapes[-1]


@given(st.integers(10_000_000, 134_000_000))
def test_every_candidate_is_near_the_size_and_fits_into_the_teacher(parameters: int) -> None:
    whole = SMOLLM2.shape
    for shape in candidate_shapes(SMOLLM2, parameters, 5):
        assert abs(SMOLLM2.parameters(shape) - parameters) <= NEAR * parameters
        assert shape.layers <= whole.layers and shape.hidden <= whole.hidden and shape.channels <= whole.channels
        assert 1 <= shape.groups <= whole.groups
        assert shape.hidden % 32 == shape.channels % 32 == 0
        assert shape.hidden % (shape.groups * SMOLLM2.heads_per_group) == 0


@pytest.mark.parametrize("parameters", [100_000, 500_000_000])
def test_a_size_that_no_shape_has_is_refused_with_those_that_one_has(parameters: int) -> None:
    with pytest.raises(RecipeError, match="cannot be pruned") as caught:
        candidate_shapes(SMOLLM2, parameters, 4)
    assert "ask for" in (caught.value.fix or "")


def test_depth_alone_takes_the_nearest_number_of_layers(facts_of: Callable[..., ModelFacts]) -> None:
    facts = facts_of("gpt2")
    sizes = [facts.parameters_of_layers(range(n)) or 0 for n in (1, 2, 3, 4)]
    assert depth_of_size(facts, sizes[1] + 1) == 2
    assert depth_of_size(facts, (sizes[1] + 3 * sizes[2]) // 4) == 3
    with pytest.raises(RecipeError):
        depth_of_size(facts, sizes[3])
