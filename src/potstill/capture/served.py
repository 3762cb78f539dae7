"""A server's distributions over texts that it is sent, as the entries of a `topk` store.

A server is asked by token ids, so that its tokens are those of the records, for the log-probabilities of every token of
the prompt and of the `k` likeliest in its place:

    vllm     POST /v1/completions, `prompt_logprobs`: of each token a mapping from ids (as text) to `logprob`
    sglang   POST /generate, `return_logprob`, `top_logprobs_num`: lists of (log-probability, id, text)

It does not say what lies beyond them: the remaining mass is 1 − Σ p in double precision, and the entropy is that of the
k tokens with all others as one outcome, a lower bound. Objectives match the mass that a `topk` store does not keep as
one outcome too, so their values are those of that coarser distribution.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.artifacts import read_json
from potstill.capture.fidelity import Report
from potstill.capture.plan import Plan, length_of
from potstill.console import Console
from potstill.data.reader import Collate
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import CapabilityError, RunError
from potstill.models.facts import size_in
from potstill.recipe import EndpointTeacher, LocalTeacher, TopKCapture
from potstill.signals import ModelDims
from potstill.store.codec import Entries
from potstill.store.files import SignalStore, StoreWriter
from potstill.teachers.endpoint import EndpointModel, NoJournal
from potstill.teachers.endpoint_client import Call, EndpointClient
from potstill.teachers.endpoint_wire import ERROR_BYTES, Redact, Trouble
from potstill.types import Answer

_BYTES_A_PAIR = 160
"""Bytes of a token in a response, with its log-probability, its rank and its escaped text."""
_REPEATS = 3
_LEAST_REST = 1e-12


@dataclass(frozen=True)
class Scored:
    """The log-probabilities of one text, at its learned tokens: the token's own, and the likeliest by id."""

    own: tuple[float, ...]
    likeliest: tuple[Mapping[int, float], ...]


def asked_of(settings: EndpointTeacher, ids: Sequence[int], k: int) -> dict[str, Any]:
    """The body of a request."""
    if settings.prompt_logprobs == "sglang":
        sampling = {"max_new_tokens": 1, "temperature": 0}
        return {
            "input_ids": list(ids),
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
            "return_text_in_logprobs": False,
        }
    return {
        "model": settings.model,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": k,
        "detokenize": False,
    }


def read_scored(wire: str, content: str, row: Tokenized, k: int) -> Scored:
    """The log-probabilities in a response.

    Raises:
        ValueError: it has none, has fewer than were asked for, or is of other tokens.
    """
    document = json.loads(content)
    try:
        by_token = _sglang(document, row) if wire == "sglang" else _vllm(document, row)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from error
    if len(by_token) != len(row):
        raise ValueError(f"log-probabilities of {len(by_token)} tokens, where {len(row)} were sent")
    own, likeliest = [], []
    for place, label in enumerate(row.labels):
        if label == IGNORE:
            continue
        found = by_token[place]
        if found is None or label not in found:
            raise ValueError(f"no log-probability of token {label} at {place}")
        if any(not -math.inf <= value <= 1e-3 or math.isnan(value) for value in found.values()):
            raise ValueError(f"a log-probability above 0 at {place}")
        own.append(min(found[label], 0.0))
        first = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        if len(first) < k:
            raise ValueError(f"{len(first)} log-probabilities at {place}, where {k} were asked for")
        likeliest.append({token: min(value, 0.0) for token, value in first})
    return Scored(tuple(own), tuple(likeliest))


def _vllm(document: Any, row: Tokenized) -> list[dict[int, float] | None]:
    """Of each token the likeliest and itself; None of the first."""
    choice = document["choices"][0]
    listed = choice["prompt_logprobs"] if choice.get("prompt_logprobs") is not None else document["prompt_logprobs"]
    return [
        None if pairs is None else {int(token): float(of["logprob"]) for token, of in pairs.items()} for pairs in listed
    ]


def _sglang(document: Any, row: Tokenized) -> list[dict[int, float] | None]:
    """Likewise. A response may leave the first token out."""
    facts = document["meta_info"]
    own, likeliest = list(facts["input_token_logprobs"]), list(facts["input_top_logprobs"])
    missing = len(row) - len(own)
    if missing == 1:
        own, likeliest = [None, *own], [None, *likeliest]
    found: list[dict[int, float] | None] = []
    for place, (pair, pairs) in enumerate(zip(own, likeliest, strict=True)):
        if pair is None or pair[0] is None or pairs is None:
            found.append(None)
            continue
        if int(pair[1]) != row.input_ids[place]:
            raise ValueError(f"token {pair[1]} at {place}, where {row.input_ids[place]} was sent")
        found.append({int(token): float(value) for value, token, *_ in pairs} | {int(pair[1]): float(pair[0])})
    return found


def entries_of(scored: Scored, top_p: float) -> Entries:
    """The entries of a text: the likeliest tokens at each target, or as many of them as hold `top_p`."""
    ids: list[int] = []
    weights: list[float] = []
    sizes, entropy, rest = [], [], []
    for likeliest in scored.likeliest:
        tokens, logs = list(likeliest), np.array(list(likeliest.values()), np.float64)
        p = np.exp(logs)
        before = np.concatenate([[0.0], np.cumsum(p)[:-1]])
        kept = int((before < top_p).sum()) if top_p < 1 else len(tokens)
        left = max(1.0 - float(p[:kept].sum()), _LEAST_REST)
        ids += tokens[:kept]
        weights += p[:kept].tolist()
        sizes.append(kept)
        rest.append(math.log(left))
        entropy.append(-float(p[:kept] @ logs[:kept]) - left * math.log(left))
    return Entries(
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        np.array(ids, np.int32),
        np.minimum(np.array(weights), 1.0).astype(np.float32),
        np.array(entropy, np.float32),
        np.array(scored.own, np.float32),
        np.array(rest, np.float32),
    )


class _Scoring:
    """The exchange of such requests with a server, for `EndpointClient`."""

    def __init__(self, settings: EndpointTeacher, k: int) -> None:
        self.k, self.wire = k, settings.prompt_logprobs
        root = settings.base_url
        self.url = f"{root.removesuffix('/v1')}/generate" if self.wire == "sglang" else f"{root}/completions"

    def most_bytes(self, sent: Mapping[str, Any], size: int) -> int:
        """The maximum size of a response."""
        tokens = len(sent["input_ids"] if self.wire == "sglang" else sent["prompt"])
        return ERROR_BYTES + 2 * size + tokens * (self.k + 2) * _BYTES_A_PAIR

    def read(self, content: bytes, sent: Mapping[str, Any], redact: Redact) -> Answer | Trouble:
        """The response as it is, for `read_scored`."""
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return Trouble("retry", "an answer that is not UTF-8", billed=True, unreadable=True)
        tokens = len(sent["input_ids"] if self.wire == "sglang" else sent["prompt"])
        return Answer(text, "stop", tokens, 1)


class Served:
    """A teacher behind a server, read text by text. A context manager.

    Raises:
        RecipeError: its key is not set.
    """

    def __init__(self, model: EndpointModel, settings: TopKCapture) -> None:
        if model.tokenizer_folder is None:
            raise CapabilityError(
                "a server is asked by token ids, and no tokenizer is named",
                where=model.settings.base_url,
                fix="name the model's folder as the teacher's tokenizer",
            )
        self.model, self.settings, self._folder = model, settings, model.tokenizer_folder
        self._client = EndpointClient(
            model.settings, model.secret(), NoJournal(), exchange=_Scoring(model.settings, settings.k)
        )

    def __enter__(self) -> Served:
        self._client.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._client.__exit__(*error)

    def scores(self, rows: Sequence[Tokenized]) -> list[Scored]:
        """The log-probabilities of some rows, in order.

        Raises:
            RunError: a request was refused, or its answer is not of the text that was sent.
        """
        k, of = self.settings.k, self.model.settings
        calls = [Call(asked_of(of, row.input_ids, k), len(row) + 1) for row in rows]
        stream = self._client.stream()
        stream.submit(calls)
        left = len(calls)
        while left:
            left -= len(stream.take(0.1))
        found = []
        for call, row in zip(calls, rows, strict=True):
            if not isinstance(call.outcome, Answer):
                why = call.outcome
                raise RunError("no answer" if why is None else f"{why.reason} ({why.detail})", where=of.base_url)
            try:
                found.append(read_scored(str(of.prompt_logprobs), call.outcome.text, row, k))
            except ValueError as error:
                raise RunError(
                    f"the server's answer cannot be used: {error}",
                    where=of.base_url,
                    fix="compare teacher.prompt_logprobs with the kind of server, and capture.k with its limit "
                    "(vLLM: --max-logprobs)",
                ) from error
        return found

    @cached_property
    def dims(self) -> ModelDims:
        """The size of the vocabulary, from the named folder; a server tells no others."""
        size = size_in(read_json(self._folder / "config.json"), "vocab_size")
        count = Tokenizer.from_file(str(self._folder / "tokenizer.json")).get_vocab_size()
        return ModelDims(size or count, hidden=0, layers=0, heads=0, kv_heads=0)

    def check_before_paying(self, plan: Plan, collate: Collate, console: Console) -> float:
        """Ask for one text several times, and refuse a server that disagrees with itself by more than
        `capture.tolerance`; or with the same weights, where the folder of the tokenizer has them.

        Returns:
            The largest mean distance that was found, in nats a token.

        Raises:
            RunError: it is too large.
        """
        row = next(row for row in reversed(plan.rows) if isinstance(row, Tokenized))
        first, *others = (np.array(self.scores([row])[0].own) for _ in range(_REPEATS))
        worst = max(float(np.abs(first - other).mean()) for other in others)
        self._refuse(worst, "the server's answers to one text lie apart", "replicas or batches that round otherwise")
        if any(self._folder.glob("*.safetensors")):
            local = _own_by_weights(self._folder, row, collate)
            apart = float(np.abs(first - local).mean())
            self._refuse(apart, "the server and the weights on this machine lie apart", "another model, or precision")
            worst = max(worst, apart)
        console.say(f"capture: the server's answers to one text lie {worst:.4f} nats a token apart")
        return worst

    def _refuse(self, distance: float, what: str, why: str) -> None:
        if not distance <= self.settings.tolerance:
            raise RunError(
                f"{what} by {distance:.3f} nats a token ({why}?), which is more than capture.tolerance "
                f"{self.settings.tolerance:g}",
                where=self.model.settings.base_url,
                fix="serve one replica of the model that is named; or raise capture.tolerance",
            )


def _own_by_weights(folder: Path, row: Tokenized, collate: Collate) -> NDArray[np.float64]:
    """The log-probabilities of a row's learned tokens by the weights in a folder."""
    from potstill.objectives import token_statistics
    from potstill.signals import Ask, Batch
    from potstill.teachers.local import LocalModel

    batch = Batch.from_inputs(collate([row]))
    signals = LocalModel(LocalTeacher(model=str(folder))).signals(batch, Ask(response=True))
    response = signals.head or signals.dense
    if response is None:
        raise CapabilityError("the weights beside the tokenizer give no distributions", where=str(folder))
    own = -token_statistics(response, None, batch.target_ids).nll_student.double().cpu().numpy()
    return np.asarray(own)


def fill_from(served: Served, plan: Plan, console: Console, writer: StoreWriter) -> None:
    """Write what is missing of a store, batch by batch. What a kill loses is at most the batch in flight."""
    from potstill.capture.capturing import batches_with

    missing: dict[int, set[int]] = {}
    for shard, place in writer.missing():
        missing.setdefault(shard, set()).add(place)
    todo = list(batches_with(plan, missing))
    total = sum(length_of(plan.batches[number][i]) for number, wanted in todo for i in wanted)
    top_p = served.settings.top_p
    with console.task("capturing", total=total, unit="tokens") as task:
        for number, wanted in todo:
            rows = [row for i in wanted if isinstance(row := plan.batches[number][i], Tokenized)]
            kept = [entries_of(scored, top_p) for scored in served.scores(rows)]
            writer.append([(entries, np.full(entries.ids.size, 0.5)) for entries in kept])
            task.advance(sum(map(len, rows)))


def report_of_served(store: SignalStore, plan: Plan, apart: float) -> Report:
    """What is known of a server's store: its size, the teacher's own NLL, and the mass that is not kept."""
    targets = max(int(store.facts["targets"]), 1)
    found = [store.read(row.record_id, row.rendered) for row in plan.rows]
    left = sum(float(np.exp(entries.rest.astype(np.float64)).sum()) for entries in found) / targets
    nll = -sum(float(entries.target_log_prob.sum(dtype=np.float64)) for entries in found) / targets
    facts = {
        "estimators": {},
        "nll": round(nll, 6),
        "bytes_per_token": store.facts["bytes"] / targets,
        "unit": "token",
        "mass_left": round(left, 6),
        "apart": round(apart, 6),
        "store_bytes": int(store.facts["bytes"]),
    }
    lines = [
        f"capture: {facts['bytes_per_token']:.1f} bytes a token (topk, of a server), "
        f"{store.facts['bytes'] / 1e6:,.1f} MB; {left:.1%} of the mass is not kept",
        f"capture: the teacher's own NLL is {nll:.3f} nats a token",
    ]
    return Report(facts, lines, ())
