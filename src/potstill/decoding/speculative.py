"""Exact speculative decoding: a draft proposes tokens, and the target reads them in one block and accepts or rejects.

The distribution of the text is the target's own, whatever the draft. Greedy text is the target's own up to the rounding
of its kernels: a block of n tokens is another matrix product than n blocks of one, which may turn a near-tie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from potstill.decoding.acceptance import Chance, Source, Verdict, verify_greedy, verify_sampled
from potstill.decoding.arguments import check_prepared, check_settings, take_stop_strings
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import Draft, Proposal, Reads
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.tree import Typical, Walk, walk, walk_typical
from potstill.errors import ModelError, UserError

Ends = Callable[[Tensor], bool]
"""Whether a text [1, t] ends with its last token."""


@dataclass
class Account:
    """What a decoding did, and where its time went. A round is a block of the target behind the prompts, whose reading
    gives the first token of each row. On an accelerator, where work is queued, only the sum of the times means
    something."""

    prompts: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    written: int = 0
    prompt_seconds: float = 0.0
    """Of the target, and of choosing the first tokens."""
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    other_seconds: float = 0.0
    accepted_by_round: list[tuple[int, int]] = field(default_factory=list)
    """(drafted, accepted) of each row and round."""

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a row gets from one round: 1 without any acceptance."""
        return (self.written - self.prompts) / max(len(self.accepted_by_round), 1)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.prompt_seconds + self.draft_seconds + self.verify_seconds + self.other_seconds


@dataclass(frozen=True)
class Request:
    """One batch to write.

    Args:
        prompts: token ids, at least one each.
        budget: maximum number of new tokens of each row, at least 1.
        stop_ids: end tokens; a row ends with the first one.
        sampler: what is done to logits.
        padding: see `Rows`.
        ends: further conditions, tried after each token.
    """

    prompts: Sequence[Sequence[int]]
    budget: int
    stop_ids: Sequence[int] = ()
    sampler: Sampler = field(default_factory=lambda: Sampler(greedy=True))
    padding: Sequence[Sequence[int]] | None = None
    ends: Sequence[Ends] = ()


class Watcher(Protocol):
    """Sees what is written, and the target's distributions that it was written by."""

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """A new batch begins."""
        ...

    def wrote(self, logits_NV: Float[Tensor, "N V"], news: Mapping[int, Sequence[int]], ended: Collection[int]) -> None:
        """A round's new tokens.

        Args:
            logits_NV: of the target, in place of each new token, row after row: before processors and temperature.
            news: the new tokens by row of the batch.
            ended: the rows whose text ends with them.
        """
        ...


class SpeculativeDecoder:
    """Text of a target, faster by a draft. Use it as `decoder.generate(input_ids, …)`, or give it to
    `model.generate(…, custom_generate=decoder)`.

    Attributes:
        account: of the last decoding.

    Args:
        target: a causal language model in evaluation mode, or what reads like one.
        draft: None for the target alone.
        gamma: largest number of drafted tokens a round, at least 1 with a draft; of a tree, its nodes.
        typical: accept what is typical (`Typical`) where a draft gives a tree and tokens are sampled. Lossy: the text
            is not distributed as the target's. None is exact.
        watcher: sees each round's tokens and logits (`speculate.collecting`); it changes nothing.

    Raises:
        ModelError: the target's cache cannot be rolled back.
        UserError: gamma is below 1 with a draft, or the draft is a model of transformers as it is.
    """

    def __init__(
        self,
        target: PreTrainedModel | Reads,
        draft: Draft | None = None,
        *,
        gamma: int = 4,
        typical: Typical | None = None,
        watcher: Watcher | None = None,
        device: str | None = None,
    ) -> None:
        if isinstance(draft, PreTrainedModel):
            raise UserError("a model is no draft by itself", fix="give ModelDraft(CachedModel(model))")
        if draft is not None and gamma < 1:
            raise UserError(
                f"gamma is {gamma}: a draft needs at least 1 token", fix="set gamma to 1 or more, or use no draft"
            )
        self._target: Reads = CachedModel(target) if isinstance(target, PreTrainedModel) else target
        self._model = target if isinstance(target, PreTrainedModel) else getattr(target, "model", None)
        self._draft, self._gamma = draft, gamma if draft is not None else 0
        self._typical, self._watcher = typical, watcher
        self._device = torch.device(device) if device else getattr(self._model, "device", torch.device("cpu"))
        self.account = Account()

    # ---- as transformers' generate ---------------------------------------------------------------------------------

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        seed: int | None = None,
        streamer: BaseStreamer | None = None,
        **settings: Any,
    ) -> Tensor:
        """`model.generate` of the target, with the same arguments, the same result and the draft's speed.

        Args:
            inputs: token ids [B, T], padded on the left.
            generation_config: None is the target's own.
            seed: of the draws; None takes one from torch's global generator.
            streamer: gets the prompt, and each token in the round that wrote it. (`model.generate` passes none on to a
                `custom_generate`, so only this method streams.)
            settings: as for `model.generate`: `logits_processor`, `stopping_criteria`, `attention_mask`, `tokenizer`
                (for `stop_strings`), and any key of a generation configuration.

        Raises:
            UserError: a setting that this decoder does not have (beams, say, or no cache).
        """
        if self._model is None:
            raise TypeError("generate() needs a model of transformers; use write()")
        check_settings(settings)
        generate: Any = self._model.generate
        settings = take_stop_strings(settings, generation_config, self._model.generation_config)
        written: Tensor = generate(
            inputs, generation_config, custom_generate=self, seed=seed, stream_to=streamer, **settings
        )
        return written

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Sequence[LogitsProcessor],
        stopping_criteria: Sequence[Any],
        generation_config: GenerationConfig,
        seed: int | None = None,
        stream_to: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """The loop, as `transformers` calls it from `generate`."""
        if model is not self._model:
            raise ModelError("this decoder belongs to another model", fix="call generate of the model it was made for")
        check_prepared(generation_config, model, model_kwargs)
        request = _request(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        if stream_to is not None:
            stream_to.put(input_ids.cpu())
        written: list[list[int]] = [[] for _ in request.prompts]
        for news in self.rounds(request, Chance(seed, self._device)):
            for row, tokens in news.items():
                written[row].extend(tokens)
                if stream_to is not None:
                    for token in tokens:
                        stream_to.put(torch.tensor([token]))
        if stream_to is not None:
            stream_to.end()
        longest = max(map(len, written))
        pad = generation_config.pad_token_id
        new = torch.full((len(written), longest), pad if isinstance(pad, int) else 0, device=input_ids.device)
        for row, tokens in enumerate(written):
            new[row, : len(tokens)] = torch.tensor(tokens, device=input_ids.device)
        return torch.cat([input_ids, new], 1)

    # ---- the loop --------------------------------------------------------------------------------------------------

    def write(self, request: Request, seed: int = 0) -> list[list[int]]:
        """The new tokens of each row, up to and with its end token."""
        written: list[list[int]] = [[] for _ in request.prompts]
        for news in self.rounds(request, Chance(seed, self._device)):
            for row, tokens in news.items():
                written[row].extend(tokens)
        return written

    @torch.no_grad()
    def rounds(self, request: Request, source: Source) -> Iterator[dict[int, list[int]]]:
        """Write round by round; yields the new tokens of each row that is still written, at least one.

        Raises:
            UserError: a prompt is empty, the budget is below 1, the text would not fit the target's context, or typical
                acceptance is asked for with processors that read the text.
        """
        self._check(request)
        target, draft, account = self._target, self._draft, Account(len(request.prompts))
        self.account = account
        # A round may draft more than a row with little budget left can take: room for that, which is cut off.
        rows = Rows(request.prompts, request.budget + self._gamma + 1, target.vocab_size, self._device, request.padding)
        prompt_lengths, nothing = rows.lengths, Proposal([0] * len(request.prompts))
        clock = _Clock()
        target.start(rows.capacity)
        if draft is not None:
            draft.start(rows, target)
        logits = read_prompts(target, rows)
        if self._watcher is not None:
            self._watcher.begin(request.prompts)
        block = rows.block([length - 1 for length in prompt_lengths], 1)
        judged = judge(logits, block, nothing, rows, request.sampler, source)
        news = self._settle(rows, judged, logits, request, prompt_lengths)
        account.prompt_seconds = clock.lap()
        yield news
        clock.lap()  # what the caller does with the tokens is not ours
        while rows.numbers:
            remaining = max(
                request.budget - length + prompt_lengths[number]
                for number, length in zip(rows.numbers, rows.lengths, strict=True)
            )
            most = min(self._gamma, remaining - 1)
            proposal = Proposal([0] * len(rows.numbers))
            if draft is not None and most > 0:
                proposal = draft.propose(rows, most, request.sampler, source)
            account.draft_seconds += clock.lap()
            starts = [length - 1 for length in rows.lengths]
            block = rows.block(starts, proposal.most + 1)
            logits = target(block, starts, tree=proposal.tree)
            account.verify_seconds += clock.lap()
            judged = judge(logits, block, proposal, rows, request.sampler, source, self._typical)
            target.settle([stood.places for stood in judged])
            for count, stood in zip(proposal.counts, judged, strict=True):
                account.drafted += count
                account.accepted += len(stood.places)
                account.accepted_by_round.append((count, len(stood.places)))
            news = self._settle(rows, judged, logits, request, prompt_lengths)
            account.rounds += 1
            account.other_seconds += clock.lap()
            yield news
            clock.lap()

    def _settle(
        self,
        rows: Rows,
        judged: Sequence[Judged],
        logits: Tensor,
        request: Request,
        prompt_lengths: Sequence[int],
    ) -> dict[int, list[int]]:
        """Append what was accepted, up to the end of each row, forget what was not, and drop the rows that ended;
        returns the new tokens by row of the batch."""
        news: dict[int, list[int]] = {}
        ended: set[int] = set()
        for row, stood in enumerate(judged):
            number = rows.numbers[row]
            left = request.budget - len(rows.tokens[row]) + prompt_lengths[number]
            new = stood.tokens[:left]
            stop = next((place for place, token in enumerate(new, 1) if token in request.stop_ids), None)
            new = new[:stop]
            over = stop is not None or len(new) == left
            rows.extend(row, new)
            for place in range(1 - len(new), 1) if request.ends else ():
                if any(end(rows.history(row, place)) for end in request.ends):
                    new, over = new[: len(new) + place], True
                    break
            news[number] = new
            if over:
                ended.add(row)
            self.account.written += len(new)
        if self._watcher is not None:
            self._watcher.wrote(_behind(logits, judged, news.values()), news, {rows.numbers[row] for row in ended})
        if self._draft is not None:
            self._draft.roll_back(rows)
        if ended:
            kept = [row for row in range(len(rows.numbers)) if row not in ended]
            places = rows.keep(kept)
            if kept:
                self._target.keep(places)
                if self._draft is not None:
                    self._draft.keep(places)
        return news

    def _check(self, request: Request) -> None:
        if not request.prompts:
            raise UserError("there is no prompt", fix="give at least one")
        if empty := next((row for row, prompt in enumerate(request.prompts, 1) if not prompt), None):
            raise UserError(f"prompt {empty} is empty", fix="begin it with the tokenizer's first token, or some text")
        if self._typical is not None and not request.sampler.greedy and request.sampler.reads_history:
            raise UserError(
                "typical acceptance judges a tree at once, and these processors read the text before each token",
                fix="leave penalties out, or typical",
            )
        if request.budget < 1:
            raise UserError(f"a budget of {request.budget} tokens", fix="ask for at least 1")
        needed = max(map(len, request.prompts)) + request.budget
        if self._target.limit is not None and needed > self._target.limit:
            raise UserError(
                f"a prompt and its answer take {needed:,} tokens, and the model's context has {self._target.limit:,}",
                fix="shorten the prompt, or ask for fewer new tokens",
            )


def read_prompts(target: Reads, rows: Rows) -> Tensor:
    """Read each text; returns the logits [B, 1, V] behind its last token. Places behind shorter rows are read too, and
    written over later."""
    lengths = rows.lengths
    starts = [0] * len(lengths)
    logits = target(rows.block(starts, max(lengths)), starts, [length - 1 for length in lengths])
    target.settle([range(1, length) for length in lengths])
    return logits


class Judged(NamedTuple):
    """The accepted part of one row's block: the places of the drafted tokens that stand, and these tokens with the next
    one behind them."""

    places: Sequence[int]
    tokens: list[int]


def judge(
    logits: Tensor,
    block: Tensor,
    proposal: Proposal,
    rows: Rows,
    sampler: Sampler,
    source: Source,
    typical: Typical | None = None,
) -> list[Judged]:
    """Which of a round's drafted tokens stand, given its block [B, g + 1] and the target's logits [B, g + 1, V] behind
    each token. The one synchronisation of a round."""
    if proposal.tree is not None:
        if typical is None or sampler.greedy:
            found = walk(logits, block, proposal.tree, rows, sampler, source)
        else:
            found = walk_typical(logits, block, proposal.tree, rows, sampler, source, typical)
        return _of_walk(found, proposal.tree.depth)
    verdict = _verdict(logits, block[:, 1:], proposal, rows, sampler, source)
    result = torch.cat([verdict.accepted_B[:, None], verdict.next_B[:, None], block[:, 1:]], 1).tolist()
    return [
        Judged(range(1, accepted + 1), [*drafted[:accepted], following]) for accepted, following, *drafted in result
    ]


def _behind(logits: Tensor, judged: Sequence[Judged], news: Iterable[Sequence[int]]) -> Float[Tensor, "N V"]:
    """The target's logits [B, n, V] in place of each new token: behind the root, then along what stands."""
    kept = [[0, *stood.places][: len(new)] for stood, new in zip(judged, news, strict=True)]
    rows = [row for row, places in enumerate(kept) for _ in places]
    return logits[rows, [place for places in kept for place in places]]


def _of_walk(found: Walk, depth: int) -> list[Judged]:
    parts = [found.accepted_B[:, None], found.next_B[:, None], found.nodes_Bd, found.tokens_Bd]
    judged = []
    for accepted, following, *along in torch.cat(parts, 1).tolist():
        judged.append(Judged(along[:accepted], [*along[depth : depth + accepted], following]))
    return judged


def _verdict(
    logits: Tensor, drafted: Tensor, proposal: Proposal, rows: Rows, sampler: Sampler, source: Source
) -> Verdict:
    counts = torch.tensor(proposal.counts, device=drafted.device)
    if sampler.greedy:
        return verify_greedy(sampler.best(logits, rows, 0), drafted, counts)
    p = sampler.distributions(logits, rows, 0)
    q = proposal.q_BgV
    return verify_sampled(p, None if q is None else q[:, : proposal.most].to(p.dtype), drafted, counts, source)


class _Clock:
    """Seconds between calls."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def _request(
    input_ids: Tensor,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[Any],
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> Request:
    """What `transformers` prepared, as a request."""
    mask = model_kwargs.get("attention_mask")
    padded = input_ids.tolist()
    real = (torch.ones_like(input_ids) if mask is None else mask).tolist()
    pads = [row.index(1) if 1 in row else len(row) for row in real]
    if any(0 in row[pad:] for row, pad in zip(real, pads, strict=True)):
        raise UserError("the attention mask hides tokens inside or behind a prompt", fix="pad prompts on the left")
    stop_ids: list[int] = []
    ends: list[Ends] = []
    budgets = [int(config.max_length)] if config.max_length else []
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            stop_ids.extend(criterion.eos_token_id.tolist())
        elif type(criterion) is MaxLengthCriteria:
            budgets.append(criterion.max_length)
        else:
            ends.append(partial(_ends, criterion))
    budget = min(budgets) - input_ids.shape[1]
    return Request(
        [row[pad:] for row, pad in zip(padded, pads, strict=True)],
        budget,
        stop_ids,
        Sampler(processors, greedy=not config.do_sample),
        [row[:pad] for row, pad in zip(padded, pads, strict=True)] if any(pads) else None,
        ends,
    )


def _ends(criterion: Any, text: Tensor) -> bool:
    return bool(criterion(text, None).all())
