"""The process that holds models for the playground: JSON lines in, JSON lines out. The studio itself never loads torch.

→ {"write": 1, "models": {"teacher": "smollm2-135m-instruct", "student": "run:…"}, "prompt": "…",
   "temperature": 0.7, "tokens": 40, "seed": 0}                the prompt: a text, or messages
← {"token": 1, "of": "student", "text": " the", "kl": 0.41, "p": {"teacher": 0.2, "student": 0.6}}   for each
← {"done": 1}
→ {"write": 1, …, "draft": "student"}     the first model's text alone, which the student drafts (speculative decoding)
← {"token": 1, …, "by": "student"}        by whom it was written
← {"done": 1, "rounds": 9, "drafted": 30, "accepted": 21}
→ {"at": 2, "of": "student", "place": 3, "temperature": 2.0, "likeliest": 8}
← {"at": 2, "tokens": [[" the", {"teacher": 0.2, "student": 0.6}], …], "entropy": {…}}
→ {"stop": true}      ends the text that is being written
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TemperatureLogitsWarper

from potstill.console import Console
from potstill.decoding.acceptance import Chance
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ModelDraft
from potstill.decoding.generator import draw, stop_token_ids
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.errors import PotstillError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.resolve import resolve

MOST_TOKENS = 200
DRAFTED = 4
"""Tokens that a draft proposes a round."""
MOST_PROMPT_TOKENS = 3072
"""What is before them is left out."""


class Models:
    """The models of the last request, kept open."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}

    def get(self, names: Mapping[str, str]) -> tuple[dict[str, Any], Any]:
        """The models by role, and the first one's tokenizer.

        Raises:
            PotstillError: one cannot be opened, or their tokens are not the same.
        """
        for gone in set(self._open) - set(names.values()):
            del self._open[gone], self._tokenizers[gone]
        for name in names.values():
            if name not in self._open:
                source = resolve(name, console=Console("quiet"))
                self._open[name] = load_model(source, task="causal_lm")
                self._tokenizers[name] = load_tokenizer(source)
        first = next(iter(names.values()))
        ours = self._tokenizers[first].get_vocab()
        for role, name in names.items():
            if self._tokenizers[name].get_vocab() != ours:
                raise PotstillError(
                    f"the {role} has other tokens than the first model", fix="choose models of one tokenizer"
                )
        return {role: self._open[name] for role, name in names.items()}, self._tokenizers[first]


class Text:
    """What one model writes, with every model's logits at each of its tokens. Each model has a cache of its own."""

    def __init__(self, writer: str, models: Mapping[str, Any], prompt: Sequence[int]) -> None:
        self.writer, self.models = writer, models
        self._caches: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        self.ids: list[int] = []
        self.logits: dict[str, list[Any]] = {role: [] for role in models}
        self.prompt = list(prompt)
        self._feed(self.prompt)

    def _feed(self, ids: Sequence[int]) -> None:
        for role, model in self.models.items():
            made = model(torch.tensor([list(ids)]), past_key_values=self._caches.get(role), use_cache=True)
            self._caches[role], self._next[role] = made.past_key_values, made.logits[0, -1].float()

    def step(self, temperature: float, generator: torch.Generator) -> int:
        """Write one token; all models read it."""
        own = self._next[self.writer]
        if temperature > 0:
            token = int(draw((own / temperature).softmax(-1)[None], generator))
        else:
            token = int(own.argmax())
        self.take(token)
        return token

    def take(self, token: int) -> None:
        """Go on with a token that was chosen elsewhere; all models read it."""
        for role in self.models:
            self.logits[role].append(self._next[role].half())
        self.ids.append(token)
        self._feed([token])

    def facts(self) -> dict[str, Any]:
        """Of the last token: every model's probability, and KL from the first model to each other."""
        first, *others = self.models
        last = {role: logits[-1] for role, logits in self.logits.items()}
        p = {role: float(logits.float().softmax(-1)[self.ids[-1]]) for role, logits in last.items()}
        return {"p": p, "kl": {role: kl(last[first], last[role]) for role in others}}


def kl(p_logits: Any, q_logits: Any) -> float:
    """KL(p ‖ q) in nats over the rows that both have."""
    rows = min(p_logits.shape[-1], q_logits.shape[-1])
    p, q = p_logits[:rows].float().log_softmax(-1), q_logits[:rows].float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum().clamp(min=0))


class Worker:
    """Answers requests in turn; a text can be stopped while it is written."""

    def __init__(self) -> None:
        self.requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.stopped = threading.Event()
        self.models = Models()
        self.texts: dict[str, Text] = {}
        self.tokenizer: Any = None

    def listen(self) -> None:
        """Read requests until the other end is gone."""
        for line in sys.stdin:
            request = json.loads(line)
            if request.get("stop"):
                self.stopped.set()
            else:
                self.requests.put(request)
        self.stopped.set()
        self.requests.put(None)

    def work(self) -> None:
        """Answer requests until there are no more."""
        while (request := self.requests.get()) is not None:
            number = request.get("write") or request.get("at")
            try:
                if "write" in request:
                    self.stopped.clear()
                    self._write(request)
                else:
                    say(at=number, **self._at(request))
            except PotstillError as error:
                say(error=number, what=error.what, where=error.where or "", fix=error.fix or "")
            except (RuntimeError, ValueError, KeyError, IndexError, MemoryError) as error:
                say(error=number, what=f"{type(error).__name__}: {error}", where="", fix="")

    @torch.no_grad()
    def _write(self, request: Mapping[str, Any]) -> None:
        models, tokenizer = self.models.get(request["models"])
        self.tokenizer = tokenizer
        prompt = prompt_ids(tokenizer, request["prompt"])
        writing = list(models)[:1] if "draft" in request else list(models)
        self.texts = {role: Text(role, models, prompt) for role in writing}
        ends = {i for model in models.values() for i in stop_token_ids(model, tokenizer.eos_token_id)}
        if "draft" in request:
            self._write_with_draft(request, models, ends)
        else:
            self._write_side_by_side(request, ends)

    def _write_side_by_side(self, request: Mapping[str, Any], ends: set[int]) -> None:
        """A text of each model, a token in turn."""
        going = list(self.texts)
        draws = {role: torch.Generator().manual_seed(int(request.get("seed", 0))) for role in self.texts}
        for _ in range(min(int(request["tokens"]), MOST_TOKENS)):
            for role in list(going):
                if self.stopped.is_set():
                    say(done=request["write"], stopped=True)
                    return
                token = self.texts[role].step(float(request["temperature"]), draws[role])
                self._say_token(request, role, token, ends)
                if token in ends:
                    going.remove(role)
        say(done=request["write"], stopped=False)

    def _write_with_draft(self, request: Mapping[str, Any], models: Mapping[str, Any], ends: set[int]) -> None:
        """One text of the first model, which another drafts for it."""
        first, drafter = next(iter(models)), str(request["draft"])
        text, temperature = self.texts[first], float(request["temperature"])
        decoder = SpeculativeDecoder(models[first], ModelDraft(CachedModel(models[drafter])), gamma=DRAFTED)
        steps = [TemperatureLogitsWarper(temperature)] if temperature > 0 else []
        asked = Request(
            [text.prompt],
            min(int(request["tokens"]), MOST_TOKENS),
            sorted(ends),
            Sampler(steps, greedy=temperature == 0),
        )
        for news in decoder.rounds(asked, Chance(int(request.get("seed", 0)), torch.device("cpu"))):
            if self.stopped.is_set():
                say(done=request["write"], stopped=True)
                return
            accepted = decoder.account.accepted_by_round[-1][1] if decoder.account.rounds else 0
            for place, token in enumerate(news[0]):
                text.take(token)
                self._say_token(request, first, token, ends, by=drafter if place < accepted else first)
        account = decoder.account
        rounds = {"rounds": account.rounds, "drafted": account.drafted, "accepted": account.accepted}
        say(done=request["write"], stopped=False, **rounds)

    def _say_token(self, request: Mapping[str, Any], role: str, token: int, ends: set[int], **more: str) -> None:
        shown = {"of": role, "text": self.tokenizer.decode([token]), "end": token in ends}
        say(token=request["write"], **shown, **self.texts[role].facts(), **more)

    def _at(self, request: Mapping[str, Any]) -> dict[str, Any]:
        text, place, temperature = self.texts[request["of"]], int(request["place"]), float(request["temperature"])
        rows = {role: (logits[place].float() / temperature).softmax(-1) for role, logits in text.logits.items()}
        shared = min(map(len, rows.values()))
        best = torch.stack([row[:shared] for row in rows.values()]).sum(0).topk(int(request["likeliest"])).indices
        tokens = [
            [self.tokenizer.decode([i]), {role: float(row[i]) for role, row in rows.items()}] for i in best.tolist()
        ]
        entropy = {role: float(-(row * row.clamp(min=1e-30).log()).sum()) for role, row in rows.items()}
        return {"tokens": tokens, "entropy": entropy, "written": self.tokenizer.decode([text.ids[place]])}


def prompt_ids(tokenizer: Any, prompt: str | list[dict[str, str]]) -> list[int]:
    """Messages through the tokenizer's chat template; a text as the user's turn if there is one, else as it stands.

    Raises:
        PotstillError: messages, and the tokenizer has no chat template.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    elif isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        raise PotstillError("the model has no chat template", fix="choose a model that was trained to chat")
    return ids[-MOST_PROMPT_TOKENS:]


def say(**facts: Any) -> None:
    """One line to the studio."""
    print(json.dumps(facts), file=_OUT, flush=True)


# Standard output is for answers alone: what a library prints goes to standard error.
_OUT = os.fdopen(os.dup(1), "w", encoding="utf-8")

if __name__ == "__main__":
    os.dup2(2, 1)
    worker = Worker()
    threading.Thread(target=worker.listen, daemon=True).start()
    worker.work()
