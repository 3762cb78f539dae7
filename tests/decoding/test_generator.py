"""Claims about the one generator of local models: progress, batches and end tokens."""

from __future__ import annotations

import pytest
import torch

from potstill.decoding.generator import batches_by_length, draw, stream, write
from potstill.types import Sampling
from tiny_models import tiny_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44]]


def rows(sampling: Sampling, told: list[int], stop_ids: list[int], most_new: int = 9) -> list[list[int]]:
    return write(
        tiny_model(seed=3, spread=0.3),
        PROMPTS,
        sampling,
        samples=[0] * len(PROMPTS),
        most_new=most_new,
        stop_ids=stop_ids,
        pad_id=0,
        seed=1,
        wrote=told.append,
    )


@pytest.mark.parametrize("sampling", [Sampling(9), Sampling(9, temperature=1.5)], ids=["greedy", "sampled"])
def test_progress_counts_every_token_that_is_written_and_none_behind_an_end(sampling: Sampling) -> None:
    told: list[int] = []
    unstopped = rows(sampling, told, stop_ids=[])
    assert told == [3] * 9
    ends = sorted({unstopped[0][4], unstopped[1][2]})
    told.clear()
    stopped = rows(sampling, told, stop_ids=ends)
    assert sum(told) == sum(map(len, stopped)) < 27
    assert len(told) == max(map(len, stopped)), "it is told with every step"


def test_progress_of_beams_counts_one_token_a_prompt_and_step() -> None:
    told: list[int] = []
    rows(Sampling(6, beams=2), told, stop_ids=[], most_new=6)
    assert told == [3] * 6


def test_progress_changes_no_token() -> None:
    sampling = Sampling(9, temperature=1.0)
    model = tiny_model(seed=3, spread=0.3)
    silent = write(model, PROMPTS, sampling, samples=[0] * 3, most_new=9, stop_ids=[2], pad_id=0, seed=1)
    assert silent == rows(sampling, [], stop_ids=[2])


def test_batches_hold_every_prompt_once_the_shortest_first() -> None:
    batches = batches_by_length(PROMPTS, 2)
    assert batches == [[1, 0], [2]]


def test_the_models_own_settings_are_as_they_were() -> None:
    model = tiny_model()
    model.generation_config.repetition_penalty = 50.0
    own = model.generation_config
    with torch.no_grad():
        write(model, PROMPTS, Sampling(2), samples=[0] * 3, most_new=2, stop_ids=[], pad_id=0, seed=0)
    assert model.generation_config is own


def test_a_draw_follows_the_distribution_and_never_takes_what_has_no_probability() -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    tokens = draw(p.repeat_interleave(20_000, 0), torch.Generator().manual_seed(0)).view(2, -1)
    shares = torch.stack([row.bincount(minlength=6) for row in tokens]) / 20_000
    assert torch.equal(shares[p == 0], torch.zeros(8)), "not even at the edges"
    torch.testing.assert_close(shares, p, atol=0.014, rtol=0)


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_a_draw_at_the_edge_of_the_unit_interval_takes_a_token_that_is_there(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, dtype, **_: torch.full(shape, u, dtype=dtype))
    p = torch.tensor([[0.0, 0.7, 0.3, 0.0]])
    assert draw(p, torch.Generator()).item() == (1 if u == 0 else 2)


@pytest.mark.parametrize("sampling", [Sampling(9), Sampling(9, temperature=1.5, top_k=20)], ids=["greedy", "sampled"])
def test_a_stream_gives_the_tokens_that_write_gives_without_the_end(sampling: Sampling) -> None:
    model = tiny_model(seed=3, spread=0.3)

    def whole(stop_ids: list[int]) -> list[int]:
        return write(model, PROMPTS[:1], sampling, samples=[0], most_new=9, stop_ids=stop_ids, pad_id=0, seed=4)[0]

    unstopped = whole([])
    assert list(stream(model, PROMPTS[0], sampling, stop_ids=[], seed=4)) == unstopped
    end = unstopped[5]
    assert list(stream(model, PROMPTS[0], sampling, stop_ids=[end], seed=4)) == whole([end])[:-1]


def test_a_beam_search_is_not_streamed() -> None:
    with pytest.raises(ValueError, match="streamed"):
        next(stream(tiny_model(), PROMPTS[0], Sampling(3, beams=2), stop_ids=[], seed=0))
