"""A server's distributions over texts that it is sent, as the entries of a `topk` store.

A server is asked by token ids, so that its tokens are those of the records, for the log-probabilities of every token of
the prompt and of the `k` likeliest in its place:

    vllm       POST /v1/completions, `prompt_logprobs`: of each token a mapping from ids (as text) to `logprob`. (vLLM
               writes the tokens' text beside them, whatever is asked: 0.32.0 ignores `detokenize` there.)
    sglang     POST /generate, `return_logprob`, `top_logprobs_num`: lists of (log-probability, id, text)
    llamacpp   POST /completion, `n_probs`: of the one token that is written. llama.cpp scores no prompts, so each
               learned token is a request: the text before it, and a bias that has it written. Log-probabilities are
               those before the bias. The server keeps the text before it from request to request.

It does not say what lies beyond them: the remaining mass is 1 − Σ p in double precision, and the entropy is that of the
k tokens with all others as one outcome, a lower bound. Objectives match the mass that a `topk` store does not keep as
one outcome too, so their values are those of that coarser distribution.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.artifacts import read_json, write_atomically
from potstill.capture.filling import Filling
from potstill.capture.plan import Plan, length_of
from potstill.capture.store_report import Report
from potstill.console import Console
from potstill.data.reader import Collate, Row
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import CapabilityError, RunError
from potstill.models.facts import size_in
from potstill.quantities import byte_size
from potstill.recipe import EndpointTeacher, LocalTeacher, TopKCapture
from potstill.signals import ModelDims
from potstill.store.codec import TARGET_FLOOR, Entries, decode
from potstill.store.earlier import Matching
from potstill.store.files import Appended, SignalStore, StoreWriter
from potstill.teachers.endpoint import EndpointModel, NoJournal
from potstill.teachers.endpoint_client import Call, EndpointClient
from potstill.teachers.endpoint_wire import ERROR_BYTES, Redact, Trouble
from potstill.types import Answer

_BYTES_A_PAIR = 160
"""Bytes of a token in a response, with its log-probability, its rank and its escaped text."""
_REPEATS = 3
_WRITTEN = 1000.0
"""A bias that has a token written, whatever its logit."""
_LEAST_REST, _LEAST_LOG = 1e-12, -1e3
_MOST_MASS = 1.02
"""What the probabilities of one place may sum to: engines round."""


@dataclass(frozen=True)
class Scored:
    """The log-probabilities of one text, at its learned tokens: the token's own, and the likeliest by id."""

    own: tuple[float, ...]
    likeliest: tuple[Mapping[int, float], ...]


def asked_of(settings: EndpointTeacher, row: Tokenized, k: int) -> list[dict[str, Any]]:
    """The bodies of the requests for a row: one, or one for each learned token."""
    if settings.prompt_logprobs == "sglang":
        sampling = {"max_new_tokens": 1, "temperature": 0}
        of_text: dict[str, Any] = {
            "input_ids": row.input_ids,
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
            "return_text_in_logprobs": False,
        }
        return [of_text]
    if settings.prompt_logprobs == "llamacpp":
        one = {"n_predict": 1, "temperature": 0, "n_probs": k, "post_sampling_probs": False, "cache_prompt": True}
        return [
            {"prompt": row.input_ids[:place], **one, "logit_bias": [[label, _WRITTEN]]}
            for place, label in _learned(row)
        ]
    of_text = {
        "model": settings.model,
        "prompt": row.input_ids,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": k,
    }
    return [of_text]


def _learned(row: Tokenized) -> list[tuple[int, int]]:
    """(place, token) of every learned token."""
    return [(place, label) for place, label in enumerate(row.labels) if label != IGNORE]


def read_scored(wire: str, contents: Sequence[str], row: Tokenized, k: int, vocab: int) -> Scored:
    """The log-probabilities in the responses to the requests for a row.

    Raises:
        ValueError: there are none, fewer than were asked for, they are of other tokens, or no distribution. The message
            holds no text of the response, in which a key may be.
    """
    try:
        by_token = _READERS[wire]([json.loads(content) for content in contents], row, vocab)
    except _OtherText:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"no log-probabilities of the prompt ({type(error).__name__})") from None
    k = min(k, vocab)
    if len(by_token) != len(row):
        raise ValueError(f"log-probabilities of {len(by_token)} tokens, where {len(row)} were sent")
    own, likeliest = [], []
    for place, label in _learned(row):
        found = by_token[place]
        if found is None or label not in found:
            raise ValueError(f"no log-probability of token {label} at {place}")
        if any(not -math.inf <= value <= 1e-3 for value in found.values()):
            raise ValueError(f"a log-probability above 0 at {place}")
        if any(not 0 <= token < vocab for token in found):
            raise ValueError(f"a token at {place} is none of the {vocab:,} of the named tokenizer")
        if (mass := math.fsum(map(math.exp, found.values()))) > _MOST_MASS:
            raise ValueError(f"log-probabilities at {place} whose probabilities sum to {mass:.3g}")
        own.append(min(found[label], 0.0))
        first = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        if len(first) < k:
            raise ValueError(f"{len(first)} log-probabilities at {place}, where {k} were asked for")
        likeliest.append({token: min(value, 0.0) for token, value in first})
    return Scored(tuple(own), tuple(likeliest))


class _OtherText(ValueError):
    """A response is of other tokens than were sent."""


_ByToken = list[dict[int, float] | None]


def _vllm(documents: Sequence[Any], row: Tokenized, vocab: int) -> _ByToken:
    """Of each token the likeliest and itself; None of the first."""
    [document] = documents
    choice = document["choices"][0]
    listed = choice["prompt_logprobs"] if choice.get("prompt_logprobs") is not None else document["prompt_logprobs"]
    return [
        None if pairs is None else {int(token): _number(of["logprob"]) for token, of in pairs.items()}
        for pairs in listed
    ]


def _number(value: Any) -> float:
    """A number of JSON. Raises TypeError: it is a text, a list, true or null."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("no number")
    return float(value)


def _sglang(documents: Sequence[Any], row: Tokenized, vocab: int) -> _ByToken:
    """Likewise. A response may leave the first token out, and names the vocabulary's last 0 in a prompt: SGLang takes
    ids from vocab − 1 on for those of images (`_process_input_token_logprobs`)."""
    [document] = documents
    facts = document["meta_info"]
    own, likeliest = list(facts["input_token_logprobs"]), list(facts["input_top_logprobs"])
    missing = len(row) - len(own)
    if missing == 1:
        own, likeliest = [None, *own], [None, *likeliest]
    found: _ByToken = []
    for place, (pair, pairs) in enumerate(zip(own, likeliest, strict=True)):
        if pair is None or pair[0] is None or pairs is None:
            found.append(None)
            continue
        sent = row.input_ids[place]
        if pair[1] != sent and (pair[1] != 0 or sent < vocab - 1):
            raise _OtherText(f"another token at {place} than {sent}, which was sent")
        found.append({index(token): _number(value) for value, token, *_ in pairs} | {sent: _number(pair[0])})
    return found


def _llamacpp(documents: Sequence[Any], row: Tokenized, vocab: int) -> _ByToken:
    """Likewise; None of tokens that are not learned."""
    found: _ByToken = [None] * len(row)
    for (place, label), document in zip(_learned(row), documents, strict=True):
        [written] = document["completion_probabilities"]
        if written["id"] != label:
            raise _OtherText(f"another token at {place} than {label}, which should have been written")
        first = {index(of["id"]): _number(of["logprob"]) for of in written["top_logprobs"]}
        found[place] = first | {label: _number(written["logprob"])}
    return found


_READERS = {"vllm": _vllm, "sglang": _sglang, "llamacpp": _llamacpp}


def entries_of(scored: Scored, top_p: float) -> Entries:
    """The entries of a text: the likeliest tokens at each target, or as many of them as hold `top_p`."""
    ids: list[int] = []
    weights: list[float] = []
    sizes, entropy, rest = [], [], []
    for likeliest in scored.likeliest:
        tokens, logs = list(likeliest), np.maximum(np.array(list(likeliest.values()), np.float64), _LEAST_LOG)
        p = np.exp(logs)
        before = np.concatenate([[0.0], np.cumsum(p)[:-1]])
        kept = min(int((before < top_p).sum()), len(tokens)) if top_p < 1 else len(tokens)
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
        root = settings.base_url.removesuffix("/v1")
        paths = {"sglang": f"{root}/generate", "llamacpp": f"{root}/completion"}
        self.url = paths.get(str(self.wire), f"{settings.base_url}/completions")

    def most_bytes(self, sent: Mapping[str, Any], size: int) -> int:
        """The maximum size of a response."""
        scored = 1 if self.wire == "llamacpp" else _tokens_of(sent)
        return ERROR_BYTES + 2 * size + scored * (self.k + 2) * _BYTES_A_PAIR

    def read(self, content: bytes, sent: Mapping[str, Any], redact: Redact) -> Answer | Trouble:
        """The response as it is, for `read_scored`."""
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return Trouble("retry", "an answer that is not UTF-8", billed=True, unreadable=True)
        return Answer(text, "stop", _tokens_of(sent), 1)


def _tokens_of(sent: Mapping[str, Any]) -> int:
    return len(sent["input_ids"] if "input_ids" in sent else sent["prompt"])


class Served:
    """A teacher behind a server, read text by text. A context manager.

    Raises:
        RecipeError: its key is not set.
    """

    def __init__(self, model: EndpointModel, settings: TopKCapture) -> None:
        self.model, self.settings, self._folder = model, settings, _folder_of(model)
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
        calls = [[Call(body, _tokens_of(body) + 1) for body in asked_of(of, row, k)] for row in rows]
        stream = self._client.stream()
        stream.submit([call for of_row in calls for call in of_row])
        left = sum(map(len, calls))
        while left:
            left -= len(stream.take(0.1))
        found = []
        for of_row, row in zip(calls, rows, strict=True):
            try:
                found.append(read_scored(str(of.prompt_logprobs), _texts(of_row, of), row, k, self.dims.vocab))
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
        """As `dims_of`."""
        return dims_of(self.model)

    def check_before_paying(self, plan: Plan, collate: Collate, console: Console, began: Path) -> float:
        """Ask for one text several times, and refuse a server that disagrees with itself by more than
        `capture.tolerance`; with what it said when the capture began; or with the same weights, where the folder of the
        tokenizer has them.

        Args:
            began: a file that carries its first answer over to an attempt that continues this one.

        Returns:
            The largest mean distance that was found, in nats a token.

        Raises:
            RunError: it is too large.
        """
        row = next(row for row in reversed(plan.rows) if isinstance(row, Tokenized))
        first, *others = (np.array(self.scores([row])[0].own) for _ in range(_REPEATS))
        worst = max(float(np.abs(first - other).mean()) for other in others)
        self._refuse(worst, "the server's answers to one text lie apart", "replicas or batches that round otherwise")
        if began.is_file():
            before = np.array(json.loads(began.read_text(encoding="utf-8")))
            apart = float(np.abs(first - before).mean())
            self._refuse(
                apart,
                "the server answers otherwise than when this capture began,",
                "another model by the same name",
                f"serve the model that it began with, or remove {began.parent} and capture anew",
            )
            worst = max(worst, apart)
        else:
            write_atomically(began, json.dumps(first.tolist()))
        if any(self._folder.glob("*.safetensors")):
            local = _own_by_weights(self._folder, row, collate)
            apart = float(np.abs(first - local).mean())
            self._refuse(apart, "the server and the weights on this machine lie apart", "another model, or precision")
            worst = max(worst, apart)
        console.say(f"capture: the server's answers to one text lie {worst:.4f} nats a token apart")
        return worst

    def check_earlier(self, plan: Plan, earlier: Matching) -> None:
        """Refuse a server that is not the one of an earlier store, by what it says now of one text of it.

        Raises:
            RunError: it lies further from what is stored than `capture.tolerance`.
        """
        rows = [row for row in reversed(plan.rows) if isinstance(row, Tokenized) and row.record_id in earlier]
        kept = earlier.kept(rows[0].record_id)
        stored = decode(kept.blob, kept.sequence.targets, kept.grid, kept.sequence.length).target_log_prob
        now = np.maximum(np.array(self.scores(rows[:1])[0].own), TARGET_FLOOR)
        self._refuse(
            float(np.abs(now - stored).mean()),
            "the server answers otherwise than in the earlier store,",
            "another model by the same name",
            f"serve the model of that store, or remove {earlier.folder} and capture anew",
        )

    def _refuse(self, distance: float, what: str, why: str, fix: str = "") -> None:
        if not distance <= self.settings.tolerance:
            raise RunError(
                f"{what} by {distance:.3f} nats a token ({why}?), which is more than capture.tolerance "
                f"{self.settings.tolerance:g}",
                where=self.model.settings.base_url,
                fix=fix or "serve one replica of the model that is named; or raise capture.tolerance",
            )


def dims_of(model: EndpointModel) -> ModelDims:
    """The size of the vocabulary, from the folder of the tokenizer; a server tells no others.

    Raises:
        CapabilityError: no tokenizer is named.
    """
    folder = _folder_of(model)
    size = size_in(read_json(folder / "config.json"), "vocab_size")
    count = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    return ModelDims(size or count, hidden=0, layers=0, heads=0, kv_heads=0)


def _folder_of(model: EndpointModel) -> Path:
    if model.tokenizer_folder is None:
        raise CapabilityError(
            "a server's tokens are known by ids, and no tokenizer is named",
            where=model.settings.base_url,
            fix="name the model's folder as the teacher's tokenizer",
        )
    return model.tokenizer_folder


def _texts(calls: Sequence[Call], of: EndpointTeacher) -> list[str]:
    """The responses to some requests. Raises RunError: one was refused."""
    for call in calls:
        if not isinstance(call.outcome, Answer):
            why = call.outcome
            raise RunError("no answer" if why is None else f"{why.reason} ({why.detail})", where=of.base_url)
    return [call.outcome.text for call in calls if isinstance(call.outcome, Answer)]


def _own_by_weights(folder: Path, row: Tokenized, collate: Collate) -> NDArray[np.float64]:
    """The log-probabilities of a row's learned tokens by the weights in a folder."""
    from potstill.objectives import token_statistics
    from potstill.signals import Ask, Batch
    from potstill.teachers.base import input_device
    from potstill.teachers.local import LocalModel

    model = LocalModel(LocalTeacher(model=str(folder)))
    batch = Batch.from_inputs(collate([row]), input_device(model))
    signals = model.signals(batch, Ask(response=True))
    response = signals.head or signals.dense
    if response is None:
        raise CapabilityError("the weights beside the tokenizer give no distributions", where=str(folder))
    own = -token_statistics(response, None, batch.target_ids).nll_student.double().cpu().numpy()
    return np.asarray(own)


class Scores(Protocol):
    """Where distributions come from: a server that is asked now, or what it gave with its answers."""

    settings: TopKCapture

    def scores(self, rows: Sequence[Tokenized]) -> list[Scored]:
        """The log-probabilities of some rows, in order."""
        ...


def fill_from(
    served: Scores, plan: Plan, console: Console, writer: StoreWriter, earlier: Matching | None = None
) -> None:
    """Write what is missing of a store, batch by batch. What a kill loses is at most the batch in flight.

    Args:
        earlier: what an earlier store has of them.
    """
    filling, top_p = Filling(writer, plan, earlier), served.settings.top_p
    total = sum(length_of(row) for rows in filling.reading for row in rows if row.record_id in filling.missing)
    with console.task("capturing", total=total, unit="tokens") as task:

        def read(rows: Sequence[Row], missing: frozenset[str]) -> Iterator[Appended]:
            wanted = [row for row in rows if isinstance(row, Tokenized) and row.record_id in missing]
            for row, scored in zip(wanted, served.scores(wanted), strict=True):
                entries = entries_of(scored, top_p)
                yield row.record_id, entries, np.full(entries.ids.size, 0.5)
            task.advance(sum(map(len, wanted)))

        for batch in filling.batches(read):
            writer.append(batch)


def report_of_served(store: SignalStore, plan: Plan, apart: float | None, without: int = 0) -> Report:
    """What is known of a server's store: its size, the teacher's own NLL, and the mass that is not kept.

    Args:
        apart: how far its answers lie apart, in nats a token, if it was asked.
        without: targets without a distribution, whose rest is all mass and whose log-probability is 0.
    """
    targets = max(int(store.facts["targets"]), 1)
    known = max(targets - without, 1)
    found = [store.read(row.record_id, row.rendered) for row in plan.rows]
    left = (sum(float(np.exp(entries.rest.astype(np.float64)).sum()) for entries in found) - without) / known
    nll = -sum(float(entries.target_log_prob.sum(dtype=np.float64)) for entries in found) / known
    facts = {
        "estimators": {},
        "nll": round(nll, 6),
        "bytes_per_token": store.facts["bytes"] / targets,
        "unit": "token",
        "mass_left": round(left, 6),
        "apart": None if apart is None else round(apart, 6),
        "targets_without": without,
        "store_bytes": int(store.facts["bytes"]),
    }
    lines = [
        f"capture: {facts['bytes_per_token']:.1f} bytes a token (topk, of a server), "
        f"{byte_size(store.facts['bytes'])}; {left:.1%} of the mass is not kept",
        f"capture: the teacher's own NLL is {nll:.3f} nats a token",
    ]
    lost = f"{without:,} of {targets:,} learned tokens have no distribution: forward_kl is 0 there"
    return Report(facts, lines, [lost] if without else [])
