"""Texts that the target writes, and what a draft would have proposed at each of their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.logits_process import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from potstill.decoding.acceptance import Chance
from potstill.decoding.drafts import LookupDraft, Reads
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.heads import MedusaHeads
from potstill.models.anatomy import inner_decoder
from potstill.speculate.forecast import Floats, Trace

_POSITIONS_AT_ONCE = 64

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """A prompt and what the target wrote behind it, as token ids."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]


def sampler_of(temperature: float, top_p: float = 1.0) -> Sampler:
    """How tokens are chosen; temperature 0 is greedy."""
    if temperature == 0:
        return Sampler(greedy=True)
    processors: list[LogitsProcessor] = [] if temperature == 1 else [TemperatureLogitsWarper(temperature)]
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    return Sampler(processors)


def write_text(
    decoder: SpeculativeDecoder, prompt: Sequence[int], budget: int, stops: Sequence[int], sampler: Sampler, seed: int
) -> Text:
    """One text of a decoder without a draft."""
    (written,) = decoder.write(Request([prompt], budget, stops, sampler), seed)
    return Text(tuple(prompt), tuple(written))


@dataclass(frozen=True)
class Agreement:
    """A draft's agreement with a target, at each position of one text [T].

    Attributes:
        alpha: probability that a drafted token is accepted: Σ min(p, q); 1 or 0 if greedy.
        accept: the same, given the token that the text has there: min(1, q/p).
        sure: the draft's largest probability.
        ranks: of the text's token among the draft's choices, 0 the best; the number of all where it is none of them.
    """

    alpha: Floats
    accept: Floats
    sure: Floats
    ranks: Ranks


@torch.no_grad()
def agreement(target: Reads, reader: Reads, text: Text, sampler: Sampler, device: torch.device) -> Agreement:
    """Compare the distributions of a draft's model and the target along a text. Positions beyond the draft's context
    have no acceptance."""
    rows = rows_of(text, target.vocab_size, device)
    ahead = len(text.prompt) - 1
    target.start(rows.capacity)
    if ahead:
        target(rows.block([0], ahead), [0], [0])

    def own(first: int, count: int) -> Tensor:
        start = ahead + first
        return sampler.distributions(target(rows.block([start], count), [start]), rows, 0)[0]

    return compared(own, reader, text, rows, sampler)


def rows_of(text: Text, vocab_size: int, device: torch.device) -> Rows:
    """One text as the rows of a decoding."""
    return Rows([[*text.prompt, *text.written]], 0, vocab_size, device)


@torch.no_grad()
def compared(own: Callable[[int, int], Tensor], reader: Reads, text: Text, rows: Rows, sampler: Sampler) -> Agreement:
    """Compare a draft's distributions along a text with those of its target.

    Args:
        own: of the target, of `count` tokens of the text from the number `first` on, in order: the distributions
            [n, V], or the probabilities of the text's own tokens [n]; greedy, anything.
        reader: the draft's model.
        text: that the target wrote.
        rows: the same.
        sampler: by which it wrote.
    """
    ahead, whole, written = len(text.prompt) - 1, rows.capacity, len(text.written)
    limit = whole if reader.limit is None else reader.limit
    if not reader.lends:
        reader.start(min(whole, limit))
    if 0 < ahead <= limit:
        reader(rows.block([0], ahead), [0], [0])
    parts = []
    for first in range(0, written, _POSITIONS_AT_ONCE):
        count = min(_POSITIONS_AT_ONCE, written - first)
        p, start = own(first, count), ahead + first  # before the draft, which may read what the target has read
        q = None
        if start + count <= limit:
            q = sampler.distributions(reader(rows.block([start], count), [start]), rows, 0, reader.vocabulary)[0]
        tokens = torch.tensor(text.written[first : first + count], device=rows.ids_BT.device)
        parts.append(_compare(p, q, tokens, sampler.greedy, rows.vocab_size))
    alpha, accept, sure = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Agreement(alpha, accept, sure, np.concatenate([part[3] for part in parts]))


def _compare(
    p: Tensor, q: Float[Tensor, "n V"] | None, tokens: Tensor, greedy: bool, vocab_size: int
) -> tuple[Floats, Floats, Floats, Ranks]:
    if q is None:
        nothing = np.zeros(len(tokens))
        return nothing, nothing, nothing, np.full(len(tokens), vocab_size, dtype=np.int64)
    at = tokens[:, None]
    q_at = q.gather(-1, at)
    ranks = torch.where(q_at.squeeze(-1) > 0, (q > q_at).sum(-1), vocab_size)
    if greedy:
        alpha = accept = (q.argmax(-1) == tokens).double()
    else:
        p_at = p if p.dim() == 1 else p.gather(-1, at).squeeze(-1)
        accept = (q_at.squeeze(-1) / p_at.clamp_min(1e-30)).clamp_max(1.0)
        # The mean of `accept` over tokens x ~ p is Σ min(p, q): its estimate where p is known at the token alone.
        alpha = accept if p.dim() == 1 else torch.minimum(p, q).sum(-1)
    alphas, accepts, sure = (found.double().cpu().numpy() for found in (alpha, accept, q.amax(-1)))
    return alphas, accepts, sure, ranks.cpu().numpy()


def lookups(lookup: LookupDraft, text: Text, most: int, vocab_size: int) -> Ranks:
    """How many tokens a lookup finds at each position of a text, and how many of them are the text's own [T, 2]."""
    device = torch.device("cpu")
    rows = Rows([text.prompt], len(text.written) + most, vocab_size, device)
    sampler, chance = Sampler(greedy=True), Chance(0, device)
    lookup.start(rows)
    found = np.zeros((len(text.written), 2), dtype=np.int64)
    for place, token in enumerate(text.written):
        (count,) = lookup.propose(rows, most, sampler, chance).counts
        length = len(rows.tokens[0])
        drafted = rows.ids_BT[0, length : length + count].tolist()
        own = text.written[place : place + count]
        matched = next((i for i, (a, b) in enumerate(zip(drafted, own, strict=False)) if a != b), min(count, len(own)))
        found[place] = count, matched
        rows.extend(0, [token])
    return found


@torch.no_grad()
def head_ranks(model: PreTrainedModel, heads: MedusaHeads, text: Text, most: int) -> Ranks:
    """The rank of the text's next tokens among the `most` best choices of each head, in a round that begins at each
    position [T, heads]; `most` where a token is not among them, or is behind the end.

    A round that writes token t of a text reads the state behind token t − 2, as in `MedusaDraft`.
    """
    ids = torch.tensor([[*text.prompt, *text.written]], device=model.device)
    states = inner_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    first = len(text.prompt) - 2
    ranks = np.full((len(text.written), heads.heads), most, dtype=np.int64)
    written = torch.tensor(text.written, device=model.device)
    chosen = heads.choices(states[max(first, 0) : first + len(text.written)], most)
    skipped = max(0, -first)
    for head in range(heads.heads):
        ahead = written[skipped + head :]
        same = chosen[: len(ahead), head] == ahead[:, None]
        found = torch.where(same.any(1), same.long().argmax(1), most)
        ranks[skipped : skipped + len(ahead), head] = found.cpu().numpy()
    return ranks


def accuracies(ranks: Sequence[Ranks], most: int) -> tuple[tuple[float, ...], ...]:
    """Of each head, the share of positions at which the choice of each rank is the text's token."""
    every = np.concatenate(list(ranks))
    return tuple(
        tuple(float((every[:, head] == rank).mean()) for rank in range(most)) for head in range(every.shape[1])
    )


def ranks_ahead(ranks: Ranks, depth: int, choices: int) -> Ranks:
    """The ranks of the text's next tokens in a round that begins at each position [T, depth]; `choices` where a token
    is not among so many, or is behind the end.

    Args:
        ranks: of the text's tokens among the choices of a draft that has read the text before them [T].
        depth: number of tokens.
        choices: number of a draft's choices at each place.
    """
    behind = np.full(depth, choices, dtype=np.int64)
    padded = np.concatenate([np.minimum(ranks, choices), behind])
    return np.lib.stride_tricks.sliding_window_view(padded, depth)[: len(ranks)]


def chain_accuracies(ahead: Sequence[Ranks], choices: int) -> tuple[tuple[float, ...], ...]:
    """Of each depth, the share of rounds at which the choice of each rank is the text's token, among those whose best
    choices are right up to there; no depth that none of them reaches.

    Args:
        ahead: of each text [T, depth].
        choices: number of choices.
    """
    rounds, found = np.concatenate(list(ahead)), []
    for depth in range(rounds.shape[1]):
        if not len(rounds):
            break
        found.append(tuple(float((rounds[:, depth] == rank).mean()) for rank in range(choices)))
        rounds = rounds[rounds[:, depth] == 0]
    return tuple(found)


def trace_of(
    text: Text,
    budget: int,
    agreed: Agreement | None,
    found: Ranks | None,
    ranks: Ranks | None = None,
    nodes: tuple[tuple[int, ...], ...] = (),
) -> Trace:
    """What a forecast needs of a text."""
    accept, sure = (agreed.accept, agreed.sure) if agreed is not None else (None, None)
    return Trace(len(text.written), budget, accept, sure, found, ranks, nodes)
