"""Claims about the loop of speculative decoding: greedy text, ends, budgets, streams, seeds, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.generation.stopping_criteria import MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft, early_exit
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.decoding.tree import Typical
from potstill.errors import ModelError, UserError
from tiny_models import FAMILIES, Family, random_heads, tiny_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44]]


def padded(prompts: list[list[int]] = PROMPTS) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[2] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"inputs": ids, "attention_mask": mask}


def near(family: Family = "llama") -> PreTrainedModel:
    """A model that often agrees with `tiny_model(family, seed=3, spread=0.3)`."""
    return tiny_model(family, seed=3, spread=0.29)


NODES = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0)]
BESIDE_A_CHAIN = [(0,), (0, 0), (1,), (0, 1), (0, 0, 0), (0, 0, 1)]


DRAFTS: dict[str, Callable[[Family, CachedModel], Draft | None]] = {
    "none": lambda family, target: None,
    "model": lambda family, target: ModelDraft(CachedModel(near(family))),
    "layers": lambda family, target: early_exit(target, 2),
    "frequent": lambda family, target: early_exit(target, 3, torch.arange(200)),
    "lookup": lambda family, target: LookupDraft(),
    "chained": lambda family, target: ChainedDraft([LookupDraft(), ModelDraft(CachedModel(near(family)))]),
    "stopped": lambda family, target: ModelDraft(CachedModel(near(family)), threshold=0.1),
    "tree": lambda family, target: ModelDraft(CachedModel(near(family)), nodes=BESIDE_A_CHAIN),
    "tree of layers": lambda family, target: early_exit(target, 2, torch.arange(200), nodes=BESIDE_A_CHAIN),
    "chained tree": lambda family, target: ChainedDraft(
        [LookupDraft(), ModelDraft(CachedModel(near(family)), nodes=BESIDE_A_CHAIN)]
    ),
    "medusa": lambda family, target: MedusaDraft(random_heads(target.model, 2), NODES),
    "chained heads": lambda family, target: ChainedDraft(
        [LookupDraft(), MedusaDraft(random_heads(target.model, 2), NODES)]
    ),
}


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_the_models_own(family: Family, kind: str) -> None:
    """Three rows of different lengths, past a sliding window, with and without a penalty on their history."""
    model = tiny_model(family, seed=3, spread=0.3)
    target = CachedModel(model)
    decoder = SpeculativeDecoder(target, DRAFTS[kind](family, target), gamma=3)
    for penalty in (1.0, 1.3):
        settings: dict[str, Any] = {"max_new_tokens": 80, "do_sample": False, "repetition_penalty": penalty}
        assert torch.equal(decoder.generate(**padded(), **settings), model.generate(**padded(), **settings))
    if kind == "model":
        assert decoder.account.tokens_per_round > 1.5, "or nothing was tested"


def test_a_draft_that_equals_the_target_is_always_accepted() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3))), gamma=3)
    decoder.write(Request(PROMPTS, 40))
    assert {accepted for drafted, accepted in decoder.account.accepted_by_round if drafted == 3} == {3}


def test_a_draft_catches_up_with_text_of_others() -> None:
    """A model behind a lookup reads what the lookup's rounds wrote: it equals the target, so all its tokens stand."""
    model = tiny_model(seed=3, spread=0.3)

    class Wrong(LookupDraft):
        """Proposes nonsense every other time."""

        turn = 0

        def _after(self, row: int, tokens: Any) -> list[int]:
            self.turn += row == 0
            return [1, 1, 1] if self.turn % 2 else []

    decoder = SpeculativeDecoder(
        model, ChainedDraft([Wrong(), ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3)))]), gamma=3
    )
    written = decoder.write(Request(PROMPTS, 40))
    rounds = decoder.account.accepted_by_round
    assert {accepted for _, accepted in rounds[3:6]} == {3}, "the second round is the model's"
    assert written == SpeculativeDecoder(model).write(Request(PROMPTS, 40))


def test_a_text_ends_with_its_first_end_token_inside_a_block() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3))), gamma=5)
    whole = decoder.write(Request(PROMPTS, 20))
    ends = [whole[0][2], whole[1][7]]
    cut = decoder.write(Request(PROMPTS, 20, stop_ids=ends))
    for row, text in enumerate(cut):
        first = next((place for place, token in enumerate(whole[row]) if token in ends), 19)
        assert text == whole[row][: first + 1]
    assert decoder.write(Request(PROMPTS, 20, stop_ids=[row[0] for row in whole])) == [row[:1] for row in whole]


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_budget_is_a_hard_limit(budget: int) -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3))), gamma=4)
    assert [len(row) for row in decoder.write(Request(PROMPTS, budget))] == [budget] * 3
    assert decoder.account.drafted == decoder.account.accepted, "no token is drafted for nothing"


def test_the_same_seed_gives_the_same_text_and_torchs_seed_counts() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(near())), gamma=3)
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "top_p": 0.9}
    first = decoder.generate(**padded(), **settings, seed=5)
    assert torch.equal(first, decoder.generate(**padded(), **settings, seed=5))
    texts = []
    for _ in range(2):
        torch.manual_seed(11)
        texts.append(decoder.generate(**padded(), **settings))
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], first)


def test_it_streams_and_serves_as_custom_generate() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(near())), gamma=3)
    ids = torch.tensor([PROMPTS[0]])

    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.parts: list[list[int]] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.parts.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    kept = Kept()
    config = GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=2, pad_token_id=2)
    text = model.generate(ids, generation_config=config, custom_generate=decoder)
    assert torch.equal(text, decoder.generate(ids, generation_config=config, streamer=kept))
    assert torch.equal(text, model.generate(ids, generation_config=config))
    assert [token for part in kept.parts for token in part] == text[0].tolist()
    assert kept.ended and len(kept.parts) == 10


def test_stopping_criteria_are_asked_after_each_token() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3))), gamma=5)

    def seven(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] == len(PROMPTS[0]) + 7)

    ids = torch.tensor([PROMPTS[0]])
    text = decoder.generate(ids, max_new_tokens=20, do_sample=False, stopping_criteria=[seven])
    assert torch.equal(text, model.generate(ids, max_new_tokens=7, do_sample=False))


def test_the_first_of_several_stopping_criteria_ends_a_text() -> None:
    """Inside a block: the second one has the tokens 2 to 7."""
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3))), gamma=5)

    def after(count: int) -> Any:
        return lambda ids, scores, **_: torch.full((len(ids),), ids.shape[1] >= len(PROMPTS[0]) + count)

    ids = torch.tensor([PROMPTS[0]])
    wanted = model.generate(ids, max_new_tokens=5, do_sample=False)
    for criteria in ([after(5), after(9)], [after(9), after(5)], [MaxLengthCriteria(len(PROMPTS[0]) + 5), after(9)]):
        settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "stopping_criteria": criteria}
        assert torch.equal(decoder.generate(ids, **settings), wanted)


def test_the_account_counts_the_tokens_that_were_written_and_no_others() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(near())), gamma=5)
    whole = decoder.write(Request(PROMPTS, 20))
    for request in (Request(PROMPTS, 20), Request(PROMPTS, 7), Request(PROMPTS, 20, [whole[0][2], whole[1][7]])):
        written = decoder.write(request)
        assert decoder.account.written == sum(map(len, written))
        assert decoder.account.accepted == sum(accepted for _, accepted in decoder.account.accepted_by_round)


def test_a_draft_whose_context_is_full_proposes_no_more() -> None:
    model = tiny_model(seed=3, spread=0.3)
    short = tiny_model("gpt2", seed=3, n_positions=16)  # positions beyond have no embedding: reading one would fail
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(short)), gamma=4)
    assert decoder.write(Request(PROMPTS, 40)) == SpeculativeDecoder(model).write(Request(PROMPTS, 40))
    drafted = [number for number, _ in decoder.account.accepted_by_round]
    assert drafted[0] == 4 and not any(drafted[12 * 3 :]), "the longest prompt and twelve tokens fill it"
    long = [[4] * 20]
    assert decoder.write(Request(long, 5)) == SpeculativeDecoder(model).write(Request(long, 5))
    assert decoder.account.drafted == 0


@torch.no_grad()
def test_tokens_that_are_drafted_behind_the_context_read_no_position_that_is_not_there() -> None:
    target = CachedModel(tiny_model("gpt2", seed=3, spread=0.3))
    assert target.limit is not None
    target.start(target.limit + 8)
    logits = target(torch.full((1, 4), 5), [target.limit - 2])
    assert logits.shape[1] == 4 and bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_heads_draft_within_the_budget_and_before_the_end(budget: int) -> None:
    """Rows of one token have no state at first; an end token may be the first one, or inside a tree."""
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, MedusaDraft(random_heads(model, 2), NODES), gamma=6)
    whole = SpeculativeDecoder(model).write(Request(PROMPTS, budget))
    assert decoder.write(Request(PROMPTS, budget)) == whole
    firsts = [row[0] for row in whole]
    assert decoder.write(Request(PROMPTS, budget, stop_ids=firsts)) == [row[:1] for row in whole]


def test_an_early_exit_is_a_view_of_the_models_own_weights() -> None:
    model = tiny_model(seed=3, layers=4)
    view = first_layers(model, 2)
    assert {id(p) for p in view.parameters()} < {id(p) for p in model.parameters()}
    assert len(model.model.layers) == 4 and model.config.num_hidden_layers == 4
    ids = torch.tensor([PROMPTS[2]])
    states = model(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(view(ids).logits, model.lm_head(model.model.norm(states)))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([[]], 4), "prompt 1 is empty"),
        (Request([], 4), "no prompt"),
        (Request([[1]], 0), "budget of 0"),
        (Request([[1]], 512), "the model's context has 512"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpeculativeDecoder(tiny_model()).write(request_)


def test_settings_without_meaning_here_are_refused_by_name() -> None:
    model = tiny_model()
    decoder = SpeculativeDecoder(model, LookupDraft())
    for settings in ({"num_beams": 2}, {"return_dict_in_generate": True}, {"guidance_scale": 2.0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            decoder.generate(torch.tensor([[1, 2]]), max_new_tokens=2, **settings)
    with pytest.raises(UserError, match="gamma is 0"):
        SpeculativeDecoder(model, LookupDraft(), gamma=0)
    with pytest.raises(ModelError, match="another model"):
        tiny_model().generate(torch.tensor([[1, 2]]), max_new_tokens=2, custom_generate=decoder)


def test_what_each_row_may_write_is_its_own() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(near())), gamma=3)

    def allowed(row: int, tokens: Tensor) -> list[int]:
        return list(range(10 + 40 * row, 40 + 40 * row))

    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "prefix_allowed_tokens_fn": allowed}
    text = decoder.generate(**padded(), **settings)
    assert torch.equal(text, model.generate(**padded(), **settings))
    assert [set(row[-12:].tolist()) <= set(allowed(number, row)) for number, row in enumerate(text)] == [True] * 3


def test_a_rows_padding_and_rules_are_its_own_after_others_have_ended() -> None:
    """The first row ends early; what processors see of the others, padding included, is as `transformers` has it."""
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(near())), gamma=3)

    def allowed(row: int, tokens: Tensor) -> list[int]:
        return [*range(10 + 40 * row, 40 + 40 * row), 2]

    settings: dict[str, Any] = {"do_sample": False, "prefix_allowed_tokens_fn": allowed, "repetition_penalty": 1.4}
    whole = model.generate(**padded(), **settings, max_new_tokens=20)
    ends = [int(whole[0, 8]), int(whole[1, 16])]
    settings |= {"max_new_tokens": 20, "eos_token_id": ends, "pad_token_id": 2}
    assert torch.equal(decoder.generate(**padded(), **settings), model.generate(**padded(), **settings))


def test_typical_acceptance_with_penalties_on_the_text_is_refused() -> None:
    model = tiny_model(seed=3, spread=0.3)
    decoder = SpeculativeDecoder(model, MedusaDraft(random_heads(model, 2), NODES), gamma=6, typical=Typical())
    settings: dict[str, Any] = {"max_new_tokens": 4, "repetition_penalty": 1.3}
    with pytest.raises(UserError, match="typical acceptance"):
        decoder.generate(torch.tensor([[1, 2]]), do_sample=True, **settings)
    decoder.generate(torch.tensor([[1, 2]]), do_sample=False, **settings)  # greedy trees are exact


def test_a_padded_output_layer_drafts_the_tokens_of_both() -> None:
    model = tiny_model(seed=3, spread=0.3)
    padded_draft = tiny_model(seed=3, spread=0.3, vocab=320)
    decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(padded_draft, torch.arange(259))), gamma=3)
    assert decoder.write(Request(PROMPTS, 20)) == SpeculativeDecoder(model).write(Request(PROMPTS, 20))


def test_models_whose_cache_cannot_be_rolled_back_are_refused_by_name() -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="MambaForCausalLM cannot decode speculatively"):
        SpeculativeDecoder(MambaForCausalLM(config))
    with pytest.raises(ModelError, match="an early exit after 4 layers"):
        early_exit(CachedModel(tiny_model(layers=4)), 4)


def test_open_models_in_the_place_of_drafts_and_readers_are_refused_with_what_to_give() -> None:
    model = tiny_model(layers=4)
    with pytest.raises(UserError, match=r"give ModelDraft\(CachedModel\(model\)\)"):
        SpeculativeDecoder(model, near())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"target = CachedModel\(model\)"):
        early_exit(model, 2)  # type: ignore[arg-type]


def test_a_configuration_in_second_place_is_taken_as_by_model_generate() -> None:
    model, config = tiny_model(seed=3, spread=0.3), GenerationConfig(max_new_tokens=9, do_sample=False)
    ids = torch.tensor([[5, 9, 30]])
    assert torch.equal(SpeculativeDecoder(model).generate(ids, config), model.generate(ids, config))


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    decoder = SpeculativeDecoder(tiny_model(), ModelDraft(CachedModel(tiny_model(vocab=300))))
    with pytest.raises(ModelError, match=r"300 token ids(?s:.*)torch\.arange\(259\)"):
        decoder.write(Request(PROMPTS, 4))


@pytest.mark.parametrize("kind", ["model", "layers", "lookup"])
def test_sampled_text_in_bf16_is_the_same_for_the_same_seed_and_another_for_another(kind: str) -> None:
    model = tiny_model(seed=3, spread=0.3).to(torch.bfloat16)
    target = CachedModel(model)
    draft: Draft = (
        LookupDraft()
        if kind == "lookup"
        else early_exit(target, 2)
        if kind == "layers"
        else ModelDraft(CachedModel(near().to(torch.bfloat16)))
    )
    decoder = SpeculativeDecoder(target, draft, gamma=3)
    request = Request(PROMPTS, 10, sampler=Sampler())
    written = decoder.write(request, seed=1)
    assert [len(row) for row in written] == [10, 10, 10]
    assert decoder.write(request, seed=1) == written != decoder.write(request, seed=2)
