"""Claims about what drafts propose. Whatever it is, the text is the target's; a wrong proposal only costs time, so the
text shows none of these mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper

from potstill.decoding.acceptance import Chance
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ChainedDraft, LookupDraft, ModelDraft, Proposal, early_exit
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.models.anatomy import inner_decoder
from tiny_models import random_heads, tiny_model

CPU = torch.device("cpu")
GREEDY, CHANCE = Sampler(greedy=True), Chance(0, CPU)
PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44]]


# ---- lookup --------------------------------------------------------------------------------------------------------


def looked_up(texts: Sequence[Sequence[int]], draft: LookupDraft, most: int = 4) -> list[list[int]]:
    rows = Rows(texts, most, 50, CPU)
    draft.start(rows)
    return proposed(rows, draft, most)


def proposed(rows: Rows, draft: LookupDraft, most: int) -> list[list[int]]:
    counts = draft.propose(rows, most, GREEDY, CHANCE).counts
    return [
        rows.ids_BT[row, length : length + count].tolist()
        for row, (length, count) in enumerate(zip(rows.lengths, counts, strict=True))
    ]


@pytest.mark.parametrize(
    ("text", "sizes", "ahead"),
    [
        ([1, 2, 3, 9, 8, 7, 6, 1, 2, 3], (3, 1), [9, 8, 7, 6]),
        ([1, 2, 3, 9, 1, 2, 3], (3, 3), [9, 1, 2, 3]),
        ([1, 2, 7, 5, 2, 8, 1, 2], (3, 1), [7, 5, 2, 8]),  # the longest n-gram before the latest
        ([1, 2, 1, 3, 1], (3, 1), [3, 1]),  # the latest of one size
        ([1, 5, 1], (3, 2), []),  # none of two tokens
        ([1, 5, 1], (1, 1), [5, 1]),
        ([1, 1], (3, 1), [1]),
        ([1, 2, 3], (3, 1), []),
        ([4], (3, 1), []),
    ],
)
def test_a_lookup_continues_as_the_longest_latest_n_gram_was_continued(
    text: list[int], sizes: tuple[int, int], ahead: list[int]
) -> None:
    assert looked_up([text], LookupDraft(*sizes)) == [ahead]
    assert looked_up([text], LookupDraft(*sizes), most=2) == [ahead[:2]]


def test_a_lookup_finds_what_was_written_since_and_keeps_rows_apart() -> None:
    rows, draft = Rows([[1, 2, 3], [1, 4, 5]], 6, 50, CPU), LookupDraft()
    draft.start(rows)
    assert proposed(rows, draft, 2) == [[], []]
    for row in (0, 1):
        rows.extend(row, [1])
    assert proposed(rows, draft, 2) == [[2, 3], [4, 5]]
    draft.keep(rows.keep([1]))
    rows.extend(0, [4])
    assert proposed(rows, draft, 2) == [[5, 1]]


# ---- models --------------------------------------------------------------------------------------------------------


class Nonsense(LookupDraft):
    """Proposes what never stands in every other round, so that the model behind it has to catch up."""

    turn = 0

    def _after(self, row: int, tokens: Any) -> list[int]:
        self.turn += row == 0
        return [1, 1, 1] if self.turn % 2 else []


SAMPLERS = {
    "greedy": Sampler(greedy=True),
    "greedy with a penalty": Sampler([RepetitionPenaltyLogitsProcessor(1.5)], greedy=True),
    "sampled with a penalty": Sampler(
        [RepetitionPenaltyLogitsProcessor(1.5), TemperatureLogitsWarper(0.6), TopKLogitsWarper(20)]
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("vocabulary", [None, torch.arange(258, -1, -1)], ids=["whole", "by row"])
def test_every_token_stands_of_a_draft_that_equals_its_target(
    sampler: Sampler, vocabulary: torch.Tensor | None
) -> None:
    """Whatever rows have ended, whatever others wrote in between, and whatever order the output layer's rows have."""
    model = tiny_model(seed=3, spread=0.3)
    whole = SpeculativeDecoder(model).write(Request(PROMPTS, 40, sampler=sampler), seed=2)
    drafting = ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3), vocabulary))
    nonsense = Nonsense()
    decoder = SpeculativeDecoder(model, ChainedDraft([nonsense, drafting]), gamma=3)
    by_model: list[tuple[int, int]] = []
    stops = [whole[0][6], whole[2][13]]
    for news in decoder.rounds(Request(PROMPTS, 40, stops, sampler), Chance(2, CPU)):
        if nonsense.turn % 2 == 0:
            by_model += decoder.account.accepted_by_round[-len(news) :]
    assert len(by_model) >= 4 and all(drafted == accepted for drafted, accepted in by_model)


def test_an_early_exit_reads_each_token_once_since_the_target_has_read_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = CachedModel(tiny_model(seed=3, spread=0.3))
    read, right = [], CachedModel.__call__

    def counted(self: CachedModel, tokens_Bn: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if self.lends:
            read.append(tokens_Bn.shape[1])
        return right(self, tokens_Bn, *given, **more)

    monkeypatch.setattr(CachedModel, "__call__", counted)
    decoder, drafted = SpeculativeDecoder(target, early_exit(target, 2), gamma=3), 0
    for _ in decoder.rounds(Request(PROMPTS, 20), CHANCE):
        drafted += decoder.account.accepted_by_round[-1][0] if decoder.account.rounds else 0
    assert sum(read) == drafted > 20 and decoder.account.accepted < decoder.account.drafted, "or nothing was tested"


@torch.no_grad()
@pytest.mark.parametrize("sampler", [GREEDY, Sampler([TemperatureLogitsWarper(0.7)])], ids=["greedy", "sampled"])
def test_a_draft_stops_before_the_first_token_of_which_it_is_less_sure(sampler: Sampler) -> None:
    """How sure it is, is the probability of its most probable choice, whatever is drawn then; each row by itself."""
    model, threshold, seen = tiny_model(seed=3, spread=0.3), 0.12, set()
    draft = ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3)), threshold)
    for first in range(3, 40, 3):
        rows = Rows([[first], [first, 9, 30]], 8, 259, CPU)
        target = CachedModel(model)
        target.start(rows.capacity)
        draft.start(rows, target)
        counts = draft.propose(rows, 5, sampler, CHANCE).counts
        seen |= set(counts)
        for row, (length, count) in enumerate(zip(rows.lengths, counts, strict=True)):
            scores = model(rows.ids_BT[row : row + 1, : length + count]).logits[:, length - 1 :]
            sure = sampler.distributions(scores, Rows([[1]], 8, 259, CPU), 0).amax(-1)[0]
            assert bool((sure[:count] >= threshold).all()) and (count == 5 or sure[count] < threshold)
    assert len(seen) > 2, "or nothing was tested"


# ---- trees of a model ----------------------------------------------------------------------------------------------

NODES = [(0,), (0, 0), (1,), (0, 1), (0, 0, 0), (0, 0, 1), (2,)]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@torch.no_grad()
def test_a_tree_is_the_chain_of_best_tokens_and_next_best_ones_beside_it_whatever_stood_before(
    sampler: Sampler,
) -> None:
    """What a round proposes is told by the text alone, by one pass over text and chain: though a token beside the chain
    stood in the round before, or all of it, rows have other lengths, and one row has gone."""
    model, vocabulary = tiny_model(seed=3, spread=0.3), torch.arange(258, -1, -1)
    rows, draft = Rows(PROMPTS, 40, 259, CPU), ModelDraft(CachedModel(model, vocabulary), nodes=NODES)
    draft.start(rows, CachedModel(model))
    for stood in (
        [(0, 1), (1,), ()],
        [(0, 0, 1), (0, 0, 0), (2,)],
        [(0, 0), (0, 1), (1,)],
        [(0,), (0, 0, 1)],
        [(), ()],
    ):
        proposal = draft.propose(rows, 7, sampler, CHANCE)
        assert proposal.tree is not None and list(proposal.tree.paths) == NODES and set(proposal.counts) == {7}
        nodes = {}
        for row, length in enumerate(rows.lengths):
            nodes[row] = dict(zip(NODES, rows.ids_BT[row, length : length + 7].tolist(), strict=True))
        for row, tokens in enumerate(rows.tokens):
            for depth in range(3):
                chain = [nodes[row][(0,) * (place + 1)] for place in range(depth)]
                text = Rows([[*tokens, *chain]], 1, 259, CPU)
                q = sampler.distributions(model(text.ids_BT[:, :-1]).logits[:, -1:], text, 0)[0, 0]
                for node, token in nodes[row].items():
                    if len(node) == depth + 1:
                        assert token == int(q.argsort(descending=True)[node[-1]])
        for row, node in enumerate(stood):
            along = [nodes[row][node[: depth + 1]] for depth in range(len(node))]
            rows.extend(row, [*along, 7])
        draft.roll_back(rows)
        if len(stood) == 3 and stood[2] == (1,):
            draft.keep(rows.keep([0, 2]))


def test_a_tree_is_no_deeper_than_the_drafts_context() -> None:
    model = tiny_model(seed=3, spread=0.3)
    draft = ModelDraft(CachedModel(model), nodes=NODES)
    room = CachedModel(model).limit
    assert room is not None
    for left, nodes in ((0, 0), (1, 3), (2, 5), (3, 7)):
        rows = Rows([[5] * (room + 1 - left)], 10, 259, CPU)
        draft.start(rows, CachedModel(model))
        assert draft.propose(rows, 7, GREEDY, CHANCE).counts == [nodes]


def test_what_no_model_can_draft_is_refused() -> None:
    reader = CachedModel(tiny_model(seed=3))
    with pytest.raises(ValueError, match=r"\(1, 0\)"):
        ModelDraft(reader, nodes=[(0,), (1,), (1, 0)])
    with pytest.raises(ValueError, match="threshold"):
        ModelDraft(reader, 0.3, [(0,), (1,)])


class Known(LookupDraft):
    """Proposes token 9 for the rows that it knows, and counts what it is asked and told."""

    def __init__(self, known: Sequence[bool]) -> None:
        super().__init__()
        self.known, self.asked, self.rolled_back = known, 0, 0

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Any) -> Proposal:
        self.asked += 1
        return Proposal([int(known) for known in self.known])

    def roll_back(self, rows: Rows) -> None:
        self.rolled_back += 1


def test_a_chain_goes_on_until_every_row_has_a_proposal_and_tells_all_its_drafts() -> None:
    rows = Rows([[5], [6]], 4, 50, CPU)
    parts = [Known([True, False]), Known([True, True]), Known([True, True])]
    draft = ChainedDraft(parts)
    assert draft.propose(rows, 2, GREEDY, CHANCE).counts == [1, 1]
    assert [part.asked for part in parts] == [1, 1, 0]
    draft.roll_back(rows)
    assert [part.rolled_back for part in parts] == [1, 1, 1]


@pytest.mark.parametrize(("length", "count"), [(14, 3), (15, 2), (16, 1), (17, 0)])
@torch.no_grad()
def test_a_draft_proposes_up_to_the_last_position_of_its_context(length: int, count: int) -> None:
    """The last drafted token is behind the context's last position, and is not read."""
    draft = ModelDraft(CachedModel(tiny_model("gpt2", seed=3, n_positions=16)))
    rows = Rows([[5] * length], 8, 259, CPU)
    target = CachedModel(tiny_model(seed=3))
    target.start(rows.capacity)
    draft.start(rows, target)
    assert draft.propose(rows, 5, GREEDY, CHANCE).counts == [count]


def test_no_token_is_drafted_that_the_budget_would_cut() -> None:
    model = tiny_model(seed=3, spread=0.3)
    for budget in (1, 2, 3, 6):
        decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(tiny_model(seed=3, spread=0.3))), gamma=4)
        decoder.write(Request(PROMPTS, budget))
        assert 3 + decoder.account.drafted + len(decoder.account.accepted_by_round) == 3 * budget


class Knows(LookupDraft):
    """Proposes what the target will write, but not behind the texts in `astray`."""

    def __init__(self, texts: Sequence[Sequence[int]], astray: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.texts, self.astray = texts, astray

    def _after(self, row: int, tokens: Sequence[int]) -> list[int]:
        text = next(text for text in self.texts if list(text[: len(tokens)]) == tokens)
        return [258] * 3 if tokens in self.astray else list(text[len(tokens) :])


def test_a_row_with_little_budget_left_does_not_shorten_the_drafts_of_others() -> None:
    """The first row has two tokens left in the second round, the other one five."""
    model, prompts = tiny_model(seed=3, spread=0.3), PROMPTS[:2]
    written = SpeculativeDecoder(model).write(Request(prompts, 12))
    texts = [[*prompt, *text] for prompt, text in zip(prompts, written, strict=True)]
    decoder = SpeculativeDecoder(model, Knows(texts, [texts[1][: len(prompts[1]) + 1]]), gamma=3)
    assert decoder.write(Request(prompts, 7)) == [text[:7] for text in written]
    assert decoder.account.accepted_by_round == [(3, 3), (3, 0), (3, 3), (3, 3), (0, 0)]


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_heads_draft_the_choice_of_each_node_by_its_head_and_rank() -> None:
    model = tiny_model(seed=3, spread=0.3)
    heads, nodes = random_heads(model, 2), [(0,), (2,), (2, 1), (0, 0)]
    target, draft, rows = CachedModel(model), MedusaDraft(heads, nodes), Rows([[5, 6, 7]], 8, 259, CPU)
    target.start(rows.capacity)
    draft.start(rows, target)
    with torch.no_grad():
        target(rows.block([0], 2), [0], [1])
        target.settle([[1]])
        assert target.hidden_BH is not None
        choices = heads.choices(target.hidden_BH, 3)[0]
        proposal = draft.propose(rows, 3, GREEDY, CHANCE)
    assert proposal.counts == [3] and proposal.tree is not None and proposal.tree.paths == tuple(nodes[:3])
    assert rows.ids_BT[0, 3:6].tolist() == [int(choices[0, 0]), int(choices[0, 2]), int(choices[1, 1])]


class Watched(MedusaDraft):
    """Keeps the texts of each round, and the states that its tree is made of."""

    def start(self, rows: Rows, target: Any) -> None:
        super().start(rows, target)
        self.seen: list[tuple[list[list[int]], torch.Tensor]] = []

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Any) -> Proposal:
        assert self._target is not None and self._target.hidden_BH is not None
        self.seen.append(([list(row) for row in rows.tokens], self._target.hidden_BH.clone()))
        return super().propose(rows, most, sampler, source)


@torch.no_grad()
def test_heads_read_in_each_round_the_state_behind_each_texts_last_token_but_one() -> None:
    """Behind prompts of different lengths, behind a path of a tree, and after a row has ended."""
    model = tiny_model(seed=3, spread=0.3)
    written = SpeculativeDecoder(model).write(Request(PROMPTS, 14))
    draft = Watched(random_heads(model, 2), [(rank,) for rank in range(60)])
    decoder = SpeculativeDecoder(model, draft, gamma=60)
    decoder.write(Request(PROMPTS, 14, [written[1][5]]))
    assert len({len(texts) for texts, _ in draft.seen}) > 1 and decoder.account.accepted > 3, "or nothing was tested"
    for texts, states in draft.seen:
        for text, state in zip(texts, states, strict=True):
            wanted = inner_decoder(model)(torch.tensor([text[:-1]])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, wanted, atol=1e-5, rtol=1e-4)
