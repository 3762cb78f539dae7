"""Claims about what is collected while a target writes: it is the target's own distribution at each written token,
whatever the draft, it changes nothing, and a draft learns from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TrainingArguments

from potstill.data.collate import Collator
from potstill.data.tokenize import Tokenized
from potstill.decoding.acceptance import Chance
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft, early_exit
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.errors import DataError
from potstill.signals import Batch
from potstill.speculate.collecting import STORE, Collector, load_collected
from potstill.store.files import SignalStore
from potstill.train import DistillTrainer
from tiny_models import make_tiny_tokenizer, random_heads, tiny_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44]]
NODES = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0)]
WHOLE = 1e-7
"""A threshold below which a tiny model has hardly any probability: nothing is sampled."""

DRAFTS: dict[str, Callable[[CachedModel], Draft | None]] = {
    "alone": lambda target: None,
    "model": lambda target: ModelDraft(CachedModel(tiny_model(seed=3, spread=0.29))),
    "layers": lambda target: early_exit(target, 2),
    "medusa": lambda target: MedusaDraft(random_heads(target.model, 2), NODES),
    "chained": lambda target: ChainedDraft([LookupDraft(), early_exit(target, 2, torch.arange(200))]),
}


def serve(
    model: PreTrainedModel, kind: str = "model", request: Request | None = None, **settings: Any
) -> tuple[Collector, list[list[int]], SpeculativeDecoder]:
    collector, target = Collector(model, **settings), CachedModel(model)
    decoder = SpeculativeDecoder(target, DRAFTS[kind](target), gamma=4, watcher=collector, device="cpu")
    return collector, decoder.write(request or Request(PROMPTS, 24), seed=1), decoder


@pytest.mark.parametrize(
    "sampler", [Sampler(greedy=True), Sampler([TemperatureLogitsWarper(0.8)])], ids=["greedy", "T"]
)
@pytest.mark.parametrize("kind", DRAFTS)
def test_each_written_token_has_the_distribution_of_one_pass_over_its_text(
    kind: str, sampler: Sampler, tmp_path: Path
) -> None:
    """Rows of different lengths, one of which ends inside a block; distributions are those before temperature."""
    model = tiny_model(seed=3, spread=0.3)
    plain = SpeculativeDecoder(model).write(Request(PROMPTS, 24, sampler=sampler), seed=1)
    request = Request(PROMPTS, 24, stop_ids=[plain[0][9]], sampler=sampler)
    collector, texts, decoder = serve(model, kind, request, tau=WHOLE)
    assert kind == "alone" or decoder.account.accepted > 0, "or nothing was tested"
    collector.save(tmp_path)
    rows, _ = load_collected(tmp_path)
    by_prompt = {tuple(row.input_ids[: len(row) - len(row.learned)]): row for row in rows}
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert by_prompt[tuple(prompt)].learned == text
        (kept,) = (kept for kept in collector._texts.values() if kept.prompt == tuple(prompt))
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found = torch.zeros_like(log_p)
        at = np.repeat(np.arange(len(text)), np.diff(kept.entries.offsets))
        found[at, kept.entries.ids] = torch.from_numpy(kept.entries.weights)
        torch.testing.assert_close(found, log_p.exp(), atol=2e-6, rtol=1e-4)
        own = log_p.gather(1, torch.tensor(text)[:, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(kept.entries.target_log_prob), own, atol=1e-4, rtol=1e-4)


def test_watching_changes_no_text() -> None:
    model = tiny_model(seed=3, spread=0.3)
    target = CachedModel(model)
    processors = [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.8)]
    request = Request(PROMPTS, 24, sampler=Sampler(processors))
    texts = [
        SpeculativeDecoder(target, early_exit(target, 2), gamma=3, watcher=watcher).write(request, seed=4)
        for watcher in (None, Collector(model))
    ]
    assert texts[0] == texts[1]


def test_the_latest_texts_are_kept_each_once() -> None:
    model = tiny_model(seed=3, spread=0.3)
    collector, target = Collector(model, most_tokens=20), CachedModel(model)
    decoder = SpeculativeDecoder(target, early_exit(target, 2), watcher=collector)
    for prompt in ([5], [6], [5]):
        decoder.write(Request([prompt], 8))
    assert (len(collector), collector.tokens) == (2, 16)
    decoder.write(Request([[7]], 8))
    assert {kept.prompt for kept in collector._texts.values()} == {(5,), (7,)} and collector.tokens == 16


def test_a_text_that_was_given_up_is_not_kept(tmp_path: Path) -> None:
    model = tiny_model(seed=3, spread=0.3)
    collector = Collector(model)
    decoder = SpeculativeDecoder(model, watcher=collector)
    next(decoder.rounds(Request(PROMPTS, 24), Chance(0, torch.device("cpu"))))
    with pytest.raises(DataError, match="no text was collected"):
        collector.save(tmp_path)
    decoder.write(Request([[7]], 3))
    assert len(collector) == 1


def test_what_was_collected_is_joined_to_its_own_tokens(tmp_path: Path) -> None:
    """The stored log-probability of each learned token is that of the live target, to half a unit of the format."""
    model = tiny_model(seed=3, spread=0.3)
    collector, _, _ = serve(model, request=Request(PROMPTS, 24, sampler=Sampler()))
    collector.save(tmp_path, make_tiny_tokenizer())
    rows, teacher = load_collected(tmp_path)
    assert teacher.tokenizer is not None and teacher.capabilities == {"top_logprobs"}
    for row in rows:
        batch = Batch.from_inputs(teacher.joining(Collator(0))([row]))
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(
            batch.stored["target_log_prob"], log_p[-len(row.learned) :], atol=0.0045, rtol=0, check_dtype=False
        )


@pytest.mark.slow
def test_a_draft_learns_from_what_was_collected(tmp_path: Path) -> None:
    """No teacher is loaded; more of its tokens stand afterwards than before, on the prompts that were served."""
    model = tiny_model(seed=3, spread=0.6)
    request = Request([[prompt, 2 * prompt] for prompt in range(3, 35)], 16, sampler=Sampler())
    collector, _, _ = serve(model, "alone", request)
    collector.save(tmp_path / "served")
    rows, teacher = load_collected(tmp_path / "served")
    assert len(rows) == 32 and all(isinstance(row, Tokenized) for row in rows)
    draft = tiny_model(seed=5, layers=1, spread=0.6)
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=120,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        seed=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )

    def stands() -> float:
        decoder = SpeculativeDecoder(model, ModelDraft(CachedModel(draft.eval())), gamma=2)
        decoder.write(request, seed=2)
        return decoder.account.accepted / decoder.account.drafted

    before = stands()
    DistillTrainer(draft, teacher, arguments, [{"kind": "forward_kl"}], train_dataset=rows).train()
    assert stands() > 2 * before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no collected texts"):
        load_collected(tmp_path)
    model = tiny_model(seed=3, spread=0.3)
    collector, _, _ = serve(model)
    collector.save(tmp_path)
    assert len(SignalStore(tmp_path / STORE)) == 3
    (tmp_path / "texts.jsonl").write_text('{"record": 1}\n')
    with pytest.raises(DataError, match="no collected texts"):
        load_collected(tmp_path)
