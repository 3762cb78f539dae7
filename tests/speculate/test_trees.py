"""Claims about trees that a model drafts: what is measured of them, which one is chosen, and that they come through a
recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_speculation import recipe

from potstill.console import Console
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ChainedDraft, LookupDraft, ModelDraft
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.decoding.tree import Tree
from potstill.errors import RecipeError
from potstill.pipeline import run_recipe
from potstill.speculate.advice import fit_tree
from potstill.speculate.forecast import Timing, Trace, expected, expected_speedup
from potstill.speculate.traces import (
    Ranks,
    agreement,
    chain_accuracies,
    lookups,
    ranks_ahead,
    sampler_of,
    trace_of,
    write_text,
)
from potstill.speculation import load_speculation
from tiny_models import tiny_model

BUDGET, CPU = 40, torch.device("cpu")
NODES = ((0,), (1,), (0, 0), (2,), (0, 1), (0, 0, 0), (3,), (0, 0, 1))


def ranks_of(*values: int) -> Ranks:
    return np.array(values, dtype=np.int64)


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_the_ranks_ahead_of_a_round_are_those_of_the_next_tokens() -> None:
    assert ranks_ahead(ranks_of(0, 2, 9, 1), 3, 4).tolist() == [[0, 2, 4], [2, 4, 1], [4, 1, 4], [1, 4, 4]]


def test_accuracies_of_a_depth_are_among_rounds_whose_best_choices_are_right_so_far() -> None:
    """First tokens have the ranks 0, 0, 1, 0, 2; of the three rounds that go on, second ones 0, 1, 2; then 1."""
    assert chain_accuracies([ranks_ahead(ranks_of(0, 0, 1, 0, 2), 3, 2)], 2) == (
        (0.6, 0.2),
        (1 / 3, 1 / 3),
        (0.0, 1.0),
    )
    assert chain_accuracies([ranks_ahead(ranks_of(1, 1), 3, 2)], 2) == ((0.0, 1.0),)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.8, 1.0), (0.8, 0.6)])
def test_the_rank_of_a_token_is_its_place_among_the_drafts_choices(temperature: float, top_p: float) -> None:
    """By the nodes that the draft proposes there."""
    target, sampler = CachedModel(tiny_model(seed=3, spread=0.3)), sampler_of(temperature, top_p)
    reader, vocabulary = tiny_model(seed=3, spread=0.2), torch.arange(200)
    text = write_text(SpeculativeDecoder(target), [5, 9, 30], BUDGET, [], sampler, 0)
    found = agreement(target, CachedModel(reader, vocabulary), text, sampler, CPU)
    logits = reader(torch.tensor([[*text.prompt, *text.written]])).logits[0, len(text.prompt) - 1 : -1, :200]
    for place, token in enumerate(text.written):
        choices = logits[place].argsort(descending=True).tolist()
        if found.ranks[place] < 259:
            assert choices[found.ranks[place]] == token
        else:
            assert token >= 200 or (top_p < 1 and token not in choices[:1])
    assert {0} < set(found.ranks.tolist())


@pytest.mark.parametrize("chained", [False, True])
@torch.no_grad()
def test_of_greedy_text_the_forecast_of_a_tree_has_the_rounds_that_the_loop_has(chained: bool) -> None:
    target, near = CachedModel(tiny_model(seed=3, spread=0.3)), CachedModel(tiny_model(seed=3, spread=0.29))
    alone, sampler, seen = SpeculativeDecoder(target), sampler_of(0), 0
    for nodes in (2, 5, 8):
        for prompt in ([5, 9, 30], [7, 7, 8, 7, 7], list(range(40, 60))):
            text = write_text(alone, prompt, BUDGET, [2], sampler, 0)
            tree = ModelDraft(near, nodes=NODES)
            decoder = SpeculativeDecoder(target, ChainedDraft([LookupDraft(), tree]) if chained else tree, gamma=nodes)
            (written,) = decoder.write(Request([prompt], BUDGET, [2], sampler))
            assert written == list(text.written)
            ahead = ranks_ahead(agreement(target, near, text, sampler, CPU).ranks, 3, 4)
            found = lookups(LookupDraft(), text, nodes, target.vocab_size) if chained else None
            rounds, _ = expected(trace_of(text, BUDGET, None, found, ahead, NODES), timing(0.1, 0.1), nodes)
            assert rounds == pytest.approx(decoder.account.rounds)
            seen += sum(accepted for _, accepted in decoder.account.accepted_by_round)
    assert seen > 3, "or nothing was tested"


def test_of_sampled_text_the_forecast_of_a_tree_has_the_rounds_that_the_loop_has_on_average() -> None:
    target, near = CachedModel(tiny_model(seed=3, spread=0.3)), CachedModel(tiny_model(seed=3, spread=0.25))
    sampler, prompt, rounds, forecasts = sampler_of(0.8, 0.9), [5, 9, 30], [], []
    for seed in range(150):
        decoder = SpeculativeDecoder(target, ModelDraft(near, nodes=NODES), gamma=5)
        decoder.write(Request([prompt], 12, [], sampler), seed)
        rounds.append(decoder.account.rounds)
        text = write_text(SpeculativeDecoder(target), prompt, 12, [], sampler, 1000 + seed)
        ahead = ranks_ahead(agreement(target, near, text, sampler, CPU).ranks, 3, 4)
        forecasts.append(expected(trace_of(text, 12, None, None, ahead, NODES), timing(0, 0), 5)[0])
    assert np.mean(rounds) < 11, "or nothing was accepted"
    error = np.hypot(np.std(rounds), np.std(forecasts)) / np.sqrt(len(rounds))
    assert abs(np.mean(rounds) - np.mean(forecasts)) < 3 * error


# ---- which one is chosen -------------------------------------------------------------------------------------------


def timing(c: float, v: float, most: int = 8) -> Timing:
    """One token of the target takes a second; each further one in a block takes v more, each step of the draft c."""
    counts = np.arange(most + 1)
    return Timing(1 + v * counts, c * counts, np.zeros(most + 1))


def drawn(shares: Sequence[float], length: int = 2000) -> tuple[Trace, Ranks]:
    """A text at whose tokens the choice of each rank is right with these probabilities, and a draft that draws the
    best choice alone."""
    rest = 1 - sum(shares)
    ranks = np.random.default_rng(0).choice(len(shares) + 1, length, p=[*shares, rest])
    return Trace(length, length + 100, (ranks == 0).astype(float), np.full(length, 0.5)), ranks


def fitted(shares: Sequence[float], times: Timing) -> tuple[tuple[int, ...], ...]:
    trace, ranks = drawn(shares)
    return fit_tree([trace], [ranks_ahead(ranks, 8, len(shares))], times, 8, len(shares))


def test_where_reading_is_free_and_drafting_dear_a_tree_is_wide() -> None:
    nodes = fitted([0.3, 0.2, 0.15, 0.1], timing(0.5, 0.0))
    assert nodes == ((0,), (1,), (2,), (3,))


def test_where_drafting_is_free_a_tree_is_as_deep_as_the_best_choices_reach() -> None:
    assert Tree(fitted([0.6, 0.2, 0.1], timing(0.0, 0.02))).depth >= 3


def test_where_reading_is_dear_or_the_first_choice_is_nearly_always_right_a_chain_stays() -> None:
    assert fitted([0.9, 0.02, 0.01], timing(0.02, 0.1)) == ()


def test_the_tree_that_is_chosen_has_the_best_forecast_of_all_depths() -> None:
    """Steps of the draft are paid by depth, reading by nodes."""
    times = timing(0.2, 0.05)
    trace, ranks = drawn([0.5, 0.2, 0.1])
    ahead = ranks_ahead(ranks, 8, 3)
    chosen = fit_tree([trace], [ahead], times, 8, 3)

    def forecast(nodes: tuple[tuple[int, ...], ...]) -> float:
        of_tree = Trace(trace.length, trace.budget, ranks=ahead, nodes=nodes)
        depth = Tree(nodes).depth
        draft = np.array([0.0, *[0.2 * Tree(nodes[:count]).depth for count in range(1, len(nodes) + 1)]])
        assert draft[-1] == 0.2 * depth
        return max(
            expected_speedup([of_tree], Timing(times.verify, draft, times.other), n) for n in range(1, len(nodes) + 1)
        )

    value = forecast(chosen)
    assert value > max(expected_speedup([trace], times, gamma) for gamma in range(1, 9))
    for other in (((0,),), ((0,), (1,)), ((0,), (0, 0)), ((0,), (1,), (2,)), ((0,), (0, 0), (1,), (0, 0, 0), (0, 1))):
        assert forecast(other) <= value


# ---- through a recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chained", [False, True])
def test_a_tree_is_measured_chosen_tried_and_shown(
    tmp_path: Path, chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = Timing(np.ones(5), 0.9 * np.minimum(np.arange(5), 1), np.zeros(5))
    monkeypatch.setattr("potstill.speculate.costs.Timed.medians", lambda timed: free)
    layers: dict[str, Any] = {"kind": "layers", "layers": 3, "frequent": 200, "ranks": 3}
    made = recipe(tmp_path, {"draft": {"kind": "chained", "then": layers} if chained else layers, "most": 4})
    run_recipe(made, tmp_path / "run", console=Console("quiet"))
    out = tmp_path / "run" / "speculate"
    found = load_speculation(out)
    assert set(found.accuracies) == {"greedy", "T=0.7"} and found.nodes
    for mode, nodes in found.nodes.items():
        assert not any(any(node[:-1]) for node in nodes) and max(node[-1] for node in nodes) in (1, 2)
        assert sum(found.accuracies[mode][0]) <= 1 and len(found.accuracies[mode][0]) == 3
    assert any("with a tree of" in advice.reason for advice in found.advice) and found.trials
    vllm = json.loads((out / "vllm.json").read_text())
    best = found.advice[0].best
    assert vllm["num_speculative_tokens"] == Tree(found.nodes["greedy"][:best]).depth < best
    assert "Which choices are the target’s token" in (tmp_path / "run" / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ({"ranks": 4, "threshold": 0.3}, "drop one of them"),
        ({"ranks": 4, "threshold": "fit"}, "drop one of them"),
        ({"ranks": 4, "frequent": 3}, "lower ranks"),
        ({"ranks": 0}, "greater than or equal to 1"),
    ],
)
def test_what_is_no_tree_is_refused_while_parsing(tmp_path: Path, draft: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, {"draft": {"kind": "layers", "layers": 2, **draft}})
