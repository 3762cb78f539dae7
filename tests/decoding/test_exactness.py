"""Claims about the distribution of speculative text: enumerated over every choice, it is the target's; and each known
mistake of such a loop is seen."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from enumerated import Table, TableModel, enumerate_paths
from potstill.decoding import acceptance
from potstill.decoding import tree as tree_of_tokens
from potstill.decoding.cached_model import CachedModel, RowCache, RowLayer
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft, Proposal, early_exit
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.decoding.tree import Tree
from tiny_models import random_heads, tiny_model

Joint = dict[tuple[tuple[int, ...], ...], float]


class Repeats(LogitsProcessor):
    """A penalty that hangs on the history: the last token is four times less probable, the first one twice."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        changed = scores.clone()
        changed[0, input_ids[0, -1]] -= 1.3862943611198906
        changed[0, input_ids[0, len(input_ids[0]) // 2]] -= 0.6931471805599453
        return changed


PROCESSORS: dict[str, list[Any]] = {
    "plain": [],
    "warped": [Repeats(), TemperatureLogitsWarper(0.7), TopKLogitsWarper(3), TopPLogitsWarper(0.8)],
    "min-p": [MinPLogitsWarper(0.4)],
}


class Guesses(LookupDraft):
    """A tree of tokens that hang on the text: the choices of a head turn with the number of its tokens."""

    def __init__(self, vocab: int, nodes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self._vocab, self._nodes = vocab, [node for node in nodes if max(node) < vocab]

    def propose(self, rows: Rows, most: int, sampler: Sampler, source: Any) -> Proposal:
        tree = Tree(tuple(self._nodes[:most]))
        for row, tokens in enumerate(rows.tokens):
            for place, node in enumerate(tree.paths):
                rows.ids_BT[row, len(tokens) + place] = (sum(tokens) + len(node) + node[-1]) % self._vocab
        return Proposal([len(tree.paths)] * len(rows.tokens), tree=tree)


NODES = [(0,), (1,), (0, 1), (1, 0), (0, 0), (0, 1, 0), (1, 0, 1)]
BESIDE_A_CHAIN = [(0,), (1,), (0, 0), (0, 1), (0, 0, 1), (0, 0, 0)]


DRAFTS: dict[str, Callable[[int, TableModel], Draft]] = {
    "model": lambda vocab, target: ModelDraft(TableModel(Table(vocab, 9, True))),
    "layers": lambda vocab, target: ModelDraft(TableModel(Table(vocab, 9, True), lender=target)),
    "frequent": lambda vocab, target: ModelDraft(TableModel(Table(vocab, 9), torch.tensor([vocab - 1, 0]))),
    "lookup": lambda vocab, target: LookupDraft(),
    "chained": lambda vocab, target: ChainedDraft([LookupDraft(), ModelDraft(TableModel(Table(vocab, 9, True)))]),
    "stopped": lambda vocab, target: ModelDraft(TableModel(Table(vocab, 9, True)), threshold=0.55),
    "tree": lambda vocab, target: Guesses(vocab, NODES),
    "chained tree": lambda vocab, target: ChainedDraft([LookupDraft(2, 2), Guesses(vocab, NODES)]),
    "tree of a model": lambda vocab, target: of_a_model(Table(vocab, 9, True)),
    "tree of layers": lambda vocab, target: of_a_model(Table(vocab, 9, True), lender=target),
    "tree of frequent": lambda vocab, target: of_a_model(Table(vocab, 9), torch.tensor([vocab - 1, 0])),
    "chained tree of a model": lambda vocab, target: ChainedDraft(
        [LookupDraft(2, 2), of_a_model(Table(vocab, 9, True))]
    ),
}


def of_a_model(*table: Any, **more: Any) -> ModelDraft:
    return ModelDraft(TableModel(*table, **more), nodes=BESIDE_A_CHAIN)


def speculative(
    vocab: int,
    gamma: int,
    kind: str,
    prompts: list[list[int]],
    budget: int,
    stop: Sequence[int] = (),
    processors: str = "plain",
) -> Joint:
    target = TableModel(Table(vocab, 4, smooth=processors != "plain"))
    sampler = Sampler(PROCESSORS[processors])
    request = Request(prompts, budget, stop, sampler)

    def run(source: Any) -> tuple[tuple[int, ...], ...]:
        nodes = len(NODES) if "tree" in kind else gamma
        decoder = SpeculativeDecoder(target, DRAFTS[kind](vocab, target), gamma=nodes)
        texts: list[list[int]] = [[] for _ in prompts]
        for news in decoder.rounds(request, source):
            for row, tokens in news.items():
                texts[row].extend(tokens)
        return tuple(map(tuple, texts))

    joint: Joint = defaultdict(float)
    grid = processors == "plain" and kind != "frequent"
    for texts, weight in enumerate_paths(run, grid):
        joint[texts] += weight  # type: ignore[index]
    return joint


def target_alone(
    vocab: int, prompts: list[list[int]], budget: int, stop: Sequence[int] = (), processors: str = "plain"
) -> Joint:
    """The same by definition: a product over the tokens of each row, and over rows."""
    table = Table(vocab, 4, smooth=processors != "plain")

    def texts(history: list[int], left: int) -> dict[tuple[int, ...], float]:
        if left == 0:
            return {(): 1.0}
        scores = torch.tensor([table.row(history)], dtype=torch.float64).log()
        for processor in PROCESSORS[processors]:
            scores = processor(torch.tensor([history]), scores)
        found: dict[tuple[int, ...], float] = {}
        for token, p in enumerate(scores.softmax(-1)[0].tolist()):
            if p > 0:
                rest = {(): 1.0} if token in stop else texts([*history, token], left - 1)
                found |= {(token, *text): p * share for text, share in rest.items()}
        return found

    joint: Joint = {(): 1.0}
    for prompt in prompts:
        own = texts(prompt, budget)
        joint = {(*done, text): p * share for done, p in joint.items() for text, share in own.items()}
    return joint


def error(found: Joint, expected: Joint) -> float:
    return max(abs(found.get(text, 0.0) - expected.get(text, 0.0)) for text in found.keys() | expected.keys())


CASES: dict[str, dict[str, Any]] = {
    "two tokens, gamma 3": {"vocab": 2, "gamma": 3, "prompts": [[0, 1, 0]], "budget": 5},
    "three tokens, gamma 2": {"vocab": 3, "gamma": 2, "prompts": [[0, 1, 2, 0]], "budget": 4},
    "four tokens, gamma 1": {"vocab": 4, "gamma": 1, "prompts": [[3, 1, 3]], "budget": 3},
    "an end token inside": {"vocab": 3, "gamma": 2, "prompts": [[1, 1]], "budget": 4, "stop": [0]},
    "two rows, of other lengths": {"vocab": 2, "gamma": 2, "prompts": [[0, 1, 0, 1], [1]], "budget": 3, "stop": [1]},
    "history, temperature, top-k, top-p": {
        "vocab": 4,
        "gamma": 2,
        "prompts": [[1, 3]],
        "budget": 3,
        "processors": "warped",
    },
    "history in two rows": {"vocab": 3, "gamma": 1, "prompts": [[1, 2, 0], [2]], "budget": 3, "processors": "warped"},
    "min-p": {"vocab": 3, "gamma": 2, "prompts": [[1, 0]], "budget": 4, "processors": "min-p"},
}


def expected(case: dict[str, Any]) -> Joint:
    return target_alone(**{key: value for key, value in case.items() if key != "gamma"})


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("name", CASES)
def test_the_joint_distribution_of_a_text_is_the_targets(name: str, kind: str) -> None:
    found = speculative(kind=kind, **CASES[name])
    assert sum(found.values()) == pytest.approx(1, abs=1e-12), "every path was walked"
    assert error(found, expected(CASES[name])) < 1e-12


# ---- each mistake is seen ------------------------------------------------------------------------------------------


def _or_equal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "stands", lambda r, p, q: r <= p / q)


def _no_residual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "residual", lambda p, q: p)


def _no_bonus_rule(patch: pytest.MonkeyPatch) -> None:
    """The token behind a block that was accepted whole is drawn from the residual of its last place."""
    right = acceptance.verify_sampled

    def wrong(p: Tensor, q: Tensor | None, drafted: Tensor, counts: Tensor, source: Any) -> acceptance.Verdict:
        if drafted.shape[1] and q is not None:
            p = torch.cat([p[:, :-1], (p[:, -1:] - q[:, -1:]).clamp_min(0) + 1e-30], 1)
        return right(p, q, drafted, counts, source)

    patch.setattr("potstill.decoding.speculative.verify_sampled", wrong)


def _before_truncation(patch: pytest.MonkeyPatch) -> None:
    """Tokens are drawn from the truncated distribution, and judged by the one before."""
    right = ModelDraft.propose

    def wrong(self: ModelDraft, rows: Rows, most: int, sampler: Sampler, source: Any) -> Proposal:
        raw: list[Tensor] = []

        class Both(Sampler):
            def distributions(self, logits: Tensor, *rest: Any) -> Tensor:
                raw.append(Sampler().distributions(logits, *rest))
                return sampler.distributions(logits, *rest)

        proposal = right(self, rows, most, Both(greedy=sampler.greedy), source)
        return Proposal(proposal.counts, torch.cat(raw, 1)[:, : proposal.most])

    patch.setattr(ModelDraft, "propose", wrong)


def _stale_cache(patch: pytest.MonkeyPatch) -> None:
    """What was rejected stays in the target's slots: a block is written behind the last one."""
    right, written = TableModel.__call__, {}

    def wrong(
        self: TableModel,
        tokens: Tensor,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        tree: Tree | None = None,
    ) -> Tensor:
        if self.table._seed == 4 and self.slots:
            starts = [max(start, written.get(id(self), 0)) for start in starts]
            self.slots = [row + [0] * 8 for row in self.slots]
        written[id(self)] = max(starts) + tokens.shape[1]
        return right(self, tokens, starts, ends, tree)

    def start(self: TableModel, capacity: int) -> None:
        written.pop(id(self), None)
        self._capacity, self.slots = capacity, []

    patch.setattr(TableModel, "__call__", wrong)
    patch.setattr(TableModel, "start", start)


def _wrong_history(patch: pytest.MonkeyPatch) -> None:
    right = Rows.history
    patch.setattr(Rows, "history", lambda self, row, drafted: right(self, row, 0))


def _dropped_for_what_it_is(patch: pytest.MonkeyPatch) -> None:
    """A drafted token is withdrawn after it was drawn, if it had little probability."""
    right = ModelDraft.propose

    def wrong(self: ModelDraft, rows: Rows, most: int, sampler: Sampler, source: Any) -> Proposal:
        proposal = right(self, rows, most, sampler, source)
        length = len(rows.tokens[0])
        token = rows.ids_BT[0, length + proposal.most - 1]
        kept = proposal.most - (proposal.q_BgV is not None and bool(proposal.q_BgV[0, -1, token] < 0.4))
        q = None if proposal.q_BgV is None or kept == 0 else proposal.q_BgV[:, :kept]
        return Proposal([kept], q)

    patch.setattr(ModelDraft, "propose", wrong)


def _siblings_seen(patch: pytest.MonkeyPatch) -> None:
    """A node of a tree sees all nodes before it."""
    patch.setattr(Tree, "sees", property(lambda tree: torch.ones(len(tree.parents), len(tree.parents)).tril().bool()))


def _nodes_left(patch: pytest.MonkeyPatch) -> None:
    """The nodes that stand are not moved to their positions."""
    patch.setattr(TableModel, "settle", lambda self, paths: None)


def _other_parents(patch: pytest.MonkeyPatch) -> None:
    """A walk goes on at the children of a node's sibling."""
    right = tree_of_tokens.walk

    def wrong(logits: Tensor, block: Tensor, tree: Tree, *rest: Any) -> Any:
        other = Tree(tree.paths)
        object.__setattr__(other, "parents", tuple({1: 2, 2: 1}.get(parent, parent) for parent in tree.parents))
        return right(logits, block, other, *rest)

    patch.setattr("potstill.decoding.speculative.walk", wrong)


def _typical(patch: pytest.MonkeyPatch) -> None:
    """Typical acceptance, which is lossy."""

    def wrong(*given: Any) -> Any:
        return tree_of_tokens.walk_typical(*given, tree_of_tokens.Typical())

    patch.setattr("potstill.decoding.speculative.walk", wrong)


TREE_MISTAKES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "siblings are seen": (_siblings_seen, "two tokens, gamma 3"),
    "nodes stay where they were": (_nodes_left, "two tokens, gamma 3"),
    "children of other nodes": (_other_parents, "two tokens, gamma 3"),
    "the history of another position": (_wrong_history, "history in two rows"),
    "typical acceptance": (_typical, "three tokens, gamma 2"),
}


@pytest.mark.parametrize("kind", ["tree", "tree of a model"])
@pytest.mark.parametrize("mistake", TREE_MISTAKES)
def test_enumeration_sees_the_mistake_of_a_tree(mistake: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, name = TREE_MISTAKES[mistake]
    make(monkeypatch)
    assert error(speculative(kind=kind, **CASES[name]), expected(CASES[name])) > 1e-3


MISTAKES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "accept if r <= p/q": (_or_equal, "three tokens, gamma 2"),
    "no residual": (_no_residual, "three tokens, gamma 2"),
    "the bonus token from a residual": (_no_bonus_rule, "three tokens, gamma 2"),
    "q before truncation": (_before_truncation, "history, temperature, top-k, top-p"),
    "a stale cache": (_stale_cache, "three tokens, gamma 2"),
    "the history of another position": (_wrong_history, "history, temperature, top-k, top-p"),
    "a token is withdrawn for what it is": (_dropped_for_what_it_is, "three tokens, gamma 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_enumeration_sees_the_mistake(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, name = MISTAKES[mistake]
    make(monkeypatch)
    assert error(speculative(kind="model", **CASES[name]), expected(CASES[name])) > 1e-3


# ---- the real cache ------------------------------------------------------------------------------------------------


@torch.no_grad()
def real_joint(kind: str) -> tuple[Joint, Joint]:
    """Rows of a tiny model with its real cache, in fp64: enumerated, and by one pass over each whole text."""
    # A tree needs a budget of four tokens: too many paths for two rows, which may have two choices of three even so.
    tree = kind in ("medusa", "chained") or "tree" in kind
    processors = [] if tree else [TopKLogitsWarper(2)]
    model = tiny_model(seed=1, spread=0.6, vocab=3, layers=3).double()
    target = CachedModel(model)
    drafts: dict[str, Callable[[], Draft]] = {
        "model": lambda: ModelDraft(CachedModel(tiny_model(seed=2, spread=0.6, vocab=3, layers=1).double())),
        "layers": lambda: early_exit(target, 1),
        "frequent": lambda: early_exit(target, 2, torch.tensor([2, 0])),
        "lookup": LookupDraft,
        "medusa": lambda: MedusaDraft(random_heads(model, 2), [(0,), (1,), (1, 0)]),
        "chained": lambda: ChainedDraft([LookupDraft(), MedusaDraft(random_heads(model, 2), [(0,), (1,), (1, 0)])]),
        "tree of a model": lambda: ModelDraft(
            CachedModel(tiny_model(seed=2, spread=0.6, vocab=3, layers=1).double()), nodes=[(0,), (1,), (0, 1)]
        ),
        "tree of layers": lambda: early_exit(target, 1, nodes=[(0,), (1,), (0, 1)]),
    }
    prompts, budget, gamma = ([[0, 1, 2, 1]], 4, 3) if tree else ([[0, 1, 2, 1], [2]], 3, 1)

    def run(source: Any) -> tuple[tuple[int, ...], ...]:
        texts: list[list[int]] = [[] for _ in prompts]
        decoder = SpeculativeDecoder(target, drafts[kind](), gamma=gamma)
        for news in decoder.rounds(Request(prompts, budget, sampler=Sampler(processors)), source):
            for row, tokens in news.items():
                texts[row].extend(tokens)
        return tuple(map(tuple, texts))

    found: Joint = defaultdict(float)
    for texts, weight in enumerate_paths(run, grid=False):
        found[texts] += weight  # type: ignore[index]
    wanted: Joint = {(): 1.0}
    for prompt in prompts:
        own = {}
        for text in itertools.product(range(3), repeat=budget):
            logits = model(torch.tensor([[*prompt, *text]])).logits[0]
            for processor in processors:
                logits = processor(torch.empty(0), logits)
            p = logits.softmax(-1)
            own[text] = math.prod(float(p[len(prompt) - 1 + place, token]) for place, token in enumerate(text))
        wanted = {(*done, text): p * share for done, p in wanted.items() for text, share in own.items()}
    return found, wanted


@pytest.mark.parametrize(
    "kind", ["model", "layers", "frequent", "lookup", "medusa", "chained", "tree of a model", "tree of layers"]
)
def test_with_a_real_cache_the_joint_distribution_of_a_batch_is_the_targets(kind: str) -> None:
    found, wanted = real_joint(kind)
    assert error(found, wanted) < 1e-12


@pytest.mark.parametrize("part", ["move", "mask"])
def test_a_real_cache_of_a_tree_that_is_wrong_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if part == "move":
        monkeypatch.setattr(RowCache, "move", lambda *given: None)
    else:
        _siblings_seen(monkeypatch)
    found, wanted = real_joint("medusa")
    assert error(found, wanted) > 1e-4


def test_a_real_cache_that_is_not_rolled_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RowLayer.update

    def wrong(self: RowLayer, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        start = max(self._block.starts)
        fresh = not self.is_initialized or start < 3 or bool((self.keys[:, :, start] == 0).all())
        if not fresh:  # a slot that holds something keeps it
            keys, values = keys.clone(), values.clone()
            keys[:, :, 0], values[:, :, 0] = self.keys[:, :, start], self.values[:, :, start]
        return right(self, keys, values, *rest, **more)

    monkeypatch.setattr(RowLayer, "update", wrong)
    found, wanted = real_joint("model")
    assert error(found, wanted) > 1e-4
