"""Claims about arguments of `model.generate`: what the loop has is honoured, what it does not have is refused by name,
and nothing is ignored in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.stopping_criteria import MaxLengthCriteria

from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ModelDraft
from potstill.decoding.speculative import SpeculativeDecoder
from potstill.errors import UserError
from tiny_models import make_tiny_tokenizer, tiny_model

IDS = torch.tensor([[5, 9, 30]])
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def opened() -> tuple[Any, SpeculativeDecoder]:
    model = tiny_model("gpt2", seed=3, spread=0.3)
    return model, SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model("gpt2", seed=3, spread=0.29))), gamma=3)


def filled_cache() -> DynamicCache:
    model, cache = opened()[0], DynamicCache()
    with torch.no_grad():
        model(IDS[:, :2], past_key_values=cache)
    return cache


REFUSED: dict[str, tuple[Any, str]] = {
    "assistant_model": (lambda: tiny_model(), "ModelDraft(CachedModel(model))"),
    "assistant_tokenizer": (make_tiny_tokenizer, "the target's tokenizer"),
    "synced_gpus": (lambda: True, "one device"),
    "use_cache": (lambda: False, "leave use_cache out"),
    "cache_implementation": (lambda: "static", "a cache of its own"),
    "prefill_chunk_size": (lambda: 8, "prompts are read whole"),
    "num_assistant_tokens": (lambda: 3, "set gamma"),
    "assistant_confidence_threshold": (lambda: 0.7, "set threshold of ModelDraft"),
    "assistant_early_exit": (lambda: 2, "early_exit(target, layers)"),
    "max_matching_ngram_size": (lambda: 2, "longest of LookupDraft"),
    "token_healing": (lambda: True, "use model.generate"),
    "num_beams": (lambda: 2, "use model.generate"),
    "return_dict_in_generate": (lambda: True, "use model.generate"),
    "token_type_ids": (lambda: torch.ones_like(IDS), "use model.generate"),
    "position_ids": (lambda: torch.tensor([[4, 5, 6]]), "use model.generate"),
    "past_key_values": (filled_cache, "the whole text"),
}
"""Each of them `model.generate` reads, or says why not."""
NOT_HANDED_ON = {"assistant_model", "assistant_tokenizer", "synced_gpus", "token_healing"}
"""What `transformers` keeps from a `custom_generate`, or refuses there itself."""


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_loop_does_not_have_is_refused_by_name_with_what_to_do(key: str) -> None:
    model, decoder = opened()
    value, fix = REFUSED[key]
    with pytest.raises(UserError, match=key) as refused:
        decoder.generate(IDS, **GREEDY, **{key: value()})
    assert fix in str(refused.value)
    if key not in NOT_HANDED_ON:
        with pytest.raises(UserError, match=key):
            model.generate(IDS, **GREEDY, custom_generate=decoder, **{key: value()})


def test_paged_decoding_is_refused_which_would_leave_the_decoder_out() -> None:
    """`transformers` goes to another loop there before it looks at `custom_generate`."""
    with pytest.raises(UserError, match="cache_implementation: paged"):
        opened()[1].generate(IDS, **GREEDY, cache_implementation="paged")


def test_keys_of_the_models_own_configuration_that_change_no_text_are_no_obstacle() -> None:
    """Many checkpoints were saved with `use_cache: false` by their training."""
    model, decoder = opened()
    wanted = model.generate(IDS, **GREEDY)
    model.generation_config.use_cache = False
    model.generation_config.num_assistant_tokens = 7
    assert torch.equal(decoder.generate(IDS, **GREEDY), wanted)


def test_position_ids_that_count_each_rows_tokens_are_no_obstacle() -> None:
    model, decoder = opened()
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    given: dict[str, Any] = {"attention_mask": mask, "position_ids": torch.tensor([[1, 0, 1], [0, 1, 2]])}
    ids = torch.tensor([[2, 9, 30], [5, 9, 30]])
    assert torch.equal(decoder.generate(ids, **GREEDY, **given), model.generate(ids, **GREEDY, **given))


@pytest.mark.parametrize("place", ["keyword", "configuration"])
def test_a_stop_string_ends_the_text_where_it_stands(place: str) -> None:
    model, decoder = opened()
    tokenizer = make_tiny_tokenizer()
    whole = model.generate(IDS, max_new_tokens=40, do_sample=False)[0, 3:].tolist()
    end = next(n for n in range(3, 40) if tokenizer.decode(whole[n - 2 : n]).isascii() and whole[n] not in whole[:n])
    string = tokenizer.decode(whole[end - 1 : end + 1])
    assert len(string) == 2
    keys: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "stop_strings": [string]}
    settings = {"generation_config": GenerationConfig(**keys)} if place == "configuration" else keys
    wanted = model.generate(IDS, **settings, tokenizer=tokenizer)
    assert wanted.shape[1] == 3 + end + 1 < 43, "or nothing was tested"
    assert torch.equal(decoder.generate(IDS, **settings, tokenizer=tokenizer), wanted)
    assert torch.equal(decoder.generate(IDS, **settings, tokenizer=tokenizer, stopping_criteria=[]), wanted)


def test_a_stop_string_leaves_other_stopping_criteria_in_force() -> None:
    decoder = opened()[1]
    five = MaxLengthCriteria(IDS.shape[1] + 5)
    settings: dict[str, Any] = GREEDY | {"stop_strings": ["nowhere"], "tokenizer": make_tiny_tokenizer()}
    assert decoder.generate(IDS, **settings, stopping_criteria=[five]).shape[1] == IDS.shape[1] + 5


@pytest.mark.parametrize("key", ["encoder_repetition_penalty", "encoder_no_repeat_ngram_size"])
@pytest.mark.parametrize("copies", [1, 2])
def test_processors_that_read_the_prompts_read_that_of_their_row(key: str, copies: int) -> None:
    """Of each row its own, several rows of one prompt too, and after the first row has ended."""
    model, decoder = opened()
    ids = model.generate(
        torch.tensor([[5, 9, 30], [40, 41, 42]]), max_new_tokens=6, do_sample=False
    )  # it repeats itself
    settings: dict[str, Any] = {"max_new_tokens": 14, key: {"encoder_repetition_penalty": 3.0}.get(key, 1)}
    if copies == 1:
        settings |= {"do_sample": False, "pad_token_id": 2}
        plain = model.generate(ids, max_new_tokens=14, do_sample=False)
        settings["eos_token_id"] = int(model.generate(ids, **settings)[0, 13])
        wanted = model.generate(ids, **settings)
        assert all(not torch.equal(*rows) for rows in zip(wanted[:, :14], plain[:, :14], strict=True))
        assert torch.equal(decoder.generate(ids, **settings), wanted)
    else:
        settings |= {"do_sample": True, "top_k": 1, "num_return_sequences": copies}
        assert torch.equal(decoder.generate(ids, **settings), model.generate(ids, **settings))
