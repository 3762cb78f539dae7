"""A local teacher: what it writes, what it gives, and that it is never in training mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potstill.decoding.generator import write
from potstill.errors import DataError
from potstill.models.live import live_signals
from potstill.recipe import LocalTeacher
from potstill.registry import build
from potstill.signals import IGNORE, Ask, Batch
from potstill.teachers import LocalModel
from potstill.teachers import local as local_module
from potstill.types import Answer, Request, Sampling
from tiny_models import make_tiny_causal_lm

GREEDY = Sampling(max_new_tokens=16)
SAMPLED = Sampling(max_new_tokens=16, temperature=0.8, top_p=0.9, top_k=40)
WORDS = ("Hello", "What is copper?", "A much longer question, about barley and malt and water and yeast.", "x")


@pytest.fixture(scope="module")
def teacher(tiny_llama: Path) -> LocalModel:
    return open_teacher(tiny_llama)


def open_teacher(folder: Path, **settings: Any) -> LocalModel:
    settings = {"dtype": "float32", "generate_dtype": "float32", "device": "cpu"} | settings
    made: LocalModel = build(LocalTeacher(model=str(folder), **settings))
    return made


def ask(sampling: Sampling, words: Sequence[str] = WORDS, samples: int = 1) -> list[Request]:
    return [
        Request(sampling, messages=({"role": "user", "content": said},), sample=sample)
        for said in words
        for sample in range(samples)
    ]


def a_batch(length: int = 12) -> Batch:
    ids = torch.arange(3, 3 + 2 * length).view(2, length)
    segments = torch.ones_like(ids)
    segments[1, -3:] = 0
    labels = torch.where(segments > 0, ids, IGNORE)
    labels[:, :4] = IGNORE
    positions = torch.arange(length).expand(2, -1)
    return Batch.from_inputs({"input_ids": ids, "labels": labels, "position_ids": positions, "segment_ids": segments})


# ---- writing -------------------------------------------------------------------------------------------------


def greedy_by_hand(teacher: LocalModel, request: Request) -> tuple[list[int], bool]:
    """The most probable token, again and again, with nothing cached or padded."""
    tokenizer = teacher.tokenizer
    text = tokenizer.apply_chat_template(
        [dict(m) for m in request.messages or ()], tokenize=False, add_generation_prompt=True
    )
    ids, written = tokenizer.encode(text, add_special_tokens=False), []
    for _ in range(request.sampling.max_new_tokens):
        with torch.no_grad():
            token = int(teacher.model(torch.tensor([ids + written])).logits[0, -1].argmax())
        written.append(token)
        if token == tokenizer.eos_token_id:
            return written, True
    return written, False


def test_greedy_answers_are_the_most_probable_tokens_whatever_else_is_in_the_batch(teacher: LocalModel) -> None:
    requests = ask(GREEDY)
    answers = teacher.generate(requests, seed=0)
    for request, answer in zip(requests, answers, strict=True):
        written, stopped = greedy_by_hand(teacher, request)
        assert answer.completion_tokens == len(written)
        assert answer.finish == ("stop" if stopped else "length")
        assert answer.text == teacher.tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")
    assert len({a.prompt_tokens for a in answers}) > 1, "rows of several lengths, so that padding was at work"


def test_a_model_without_end_token_writes_as_much_as_it_may(tiny_llama: Path) -> None:
    teacher = open_teacher(tiny_llama)
    teacher._writer.generation_config.eos_token_id = None
    vars(teacher)["_stop_ids"] = []
    request = ask(Sampling(max_new_tokens=300), WORDS[:1])[0]
    (answer,) = teacher.generate([request], seed=0)
    assert (answer.completion_tokens, answer.finish) == (300, "length")
    ids = torch.tensor([teacher._prompt(request)])
    expected = teacher.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=300, do_sample=False, pad_token_id=2
    )
    text = teacher.tokenizer.decode(expected[0, answer.prompt_tokens :], skip_special_tokens=True)
    assert answer.text == text.rstrip("\ufffd")


class Scripted(nn.Module):
    """Replaces the output layer: every row says its script, one token a step."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab: int) -> None:
        super().__init__()
        self.scripts, self.vocab, self.step = scripts, vocab, -1

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.step += 1
        logits = torch.zeros(*hidden.shape[:-1], self.vocab)
        for row, script in enumerate(self.scripts):
            logits[row, :, script[min(self.step, len(script) - 1)]] = 9.0
        return logits


def scripted(folder: Path, *scripts: Sequence[int]) -> LocalModel:
    teacher = open_teacher(folder)
    teacher._writer.lm_head = Scripted(scripts, 259)
    return teacher


def ids_of(teacher: LocalModel, text: str) -> list[int]:
    return list(teacher.tokenizer.encode(text, add_special_tokens=False))


def test_an_answer_ends_at_its_first_end_token_and_says_so(tiny_llama: Path) -> None:
    teacher = open_teacher(tiny_llama)
    end = teacher.tokenizer.eos_token_id
    scripts = ([*ids_of(teacher, "yes"), end], [end], ids_of(teacher, "on and on "), [*ids_of(teacher, "ab"), end])
    answers = scripted(tiny_llama, *scripts).generate(ask(Sampling(max_new_tokens=4)), seed=0)
    said = [(a.text, a.finish, a.completion_tokens) for a in answers]
    assert said == [("yes", "stop", 4), ("", "stop", 1), ("on a", "length", 4), ("ab", "stop", 3)]


def test_the_end_of_a_turn_ends_an_answer_where_the_model_names_it(tiny_llama: Path) -> None:
    """As chat models do whose tokenizer's end token is another."""
    teacher = open_teacher(tiny_llama)
    teacher._writer.generation_config.eos_token_id = [0, 2]
    teacher._writer.lm_head = Scripted([[*ids_of(teacher, "ab"), 0, *ids_of(teacher, "cd")]], 259)
    (answer,) = teacher.generate(ask(GREEDY, WORDS[:1]), seed=0)
    assert (answer.text, answer.finish, answer.completion_tokens) == ("ab", "stop", 3)


def test_special_tokens_and_broken_characters_are_no_text(tiny_llama: Path) -> None:
    teacher = open_teacher(tiny_llama)
    cut = ids_of(teacher, "caf\u00e9")[:-1]
    said = [1, *ids_of(teacher, "ok"), 2]
    answers = scripted(tiny_llama, cut, said).generate(ask(Sampling(max_new_tokens=4), WORDS[:2]), seed=0)
    assert [a.text for a in answers] == ["caf", "ok"]


def test_the_models_own_sampling_defaults_are_not_used(tiny_llama: Path) -> None:
    plain, opinionated = open_teacher(tiny_llama), open_teacher(tiny_llama)
    opinionated._writer.generation_config.update(
        repetition_penalty=5.0,
        top_k=1,
        min_p=0.9,
        no_repeat_ngram_size=1,
        do_sample=True,
        temperature=0.01,
        suppress_tokens=list(range(3, 200)),
        num_beams=3,
        max_new_tokens=2,
        min_new_tokens=9,
    )
    before = opinionated._writer.generation_config.to_dict()
    for sampling in (GREEDY, SAMPLED, Sampling(max_new_tokens=8, beams=2)):
        assert opinionated.generate(ask(sampling), seed=3) == plain.generate(ask(sampling), seed=3)
    assert opinionated._writer.generation_config.to_dict() == before, "the model's own are as they were"


def test_sampled_answers_depend_on_the_batch_and_the_seed_alone(teacher: LocalModel) -> None:
    requests = ask(SAMPLED, samples=2)
    torch.manual_seed(1)
    first = teacher.generate(requests, seed=7)
    torch.manual_seed(2)
    torch.rand(5)
    state = torch.random.get_rng_state()
    assert teacher.generate(requests, seed=7) == first
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random state is left alone"
    assert teacher.generate(requests, seed=8) != first
    texts = [a.text for a in first]
    assert all(a != b for a, b in zip(texts[::2], texts[1::2], strict=True)), "samples of one prompt differ"


def test_samples_follow_the_distribution_cut_as_asked(tiny_llama: Path) -> None:
    teacher = open_teacher(tiny_llama)
    sampling = Sampling(max_new_tokens=1, temperature=0.7, top_k=4, top_p=0.8)
    prompt = teacher._prompt(ask(sampling, WORDS[:1])[0])
    with torch.no_grad():
        logits = teacher.model(torch.tensor([prompt])).logits[0, -1].double()
    p, ids = (logits / 0.7).softmax(-1).topk(4)
    p = p / p.sum()
    kept = p.cumsum(0) - p < 0.8  # up to and with the one that reaches it
    expected = {int(i): float(x) for i, x in zip(ids[kept], p[kept] / p[kept].sum(), strict=True)}
    assert len(expected) >= 2
    draws = 2000
    rows = write(
        teacher.model, [prompt] * draws, sampling, samples=[0] * draws, most_new=1, stop_ids=[2], pad_id=2, seed=0
    )
    counts = Counter(row[0] for row in rows)
    assert set(counts) <= set(expected)
    for token, share in expected.items():
        assert counts[token] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


def test_beams_give_the_most_probable_answers_best_first(teacher: LocalModel) -> None:
    """Two tokens, and beams enough to keep every first one: the search is exhaustive, so the best are known."""
    sampling = Sampling(max_new_tokens=2, beams=259)
    requests = ask(sampling, WORDS[:1], samples=3)
    answers = teacher.generate(requests, seed=0)
    prompt = teacher._prompt(requests[0])
    with torch.no_grad():
        first = teacher.model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        pairs = torch.tensor([[*prompt, token] for token in range(259)])
        second = teacher.model(pairs).logits[:, -1].double().log_softmax(-1)
    scores = (first[:, None] + second) / 2
    scores[2] = float("-inf")
    scores[2, 0] = first[2]  # an answer that ends at once has one token
    best = [divmod(int(i), 259) for i in scores.flatten().topk(3).indices]
    assert [a.text for a in answers] == [
        teacher.tokenizer.decode([t for t in pair if t != 2], skip_special_tokens=True).rstrip("\ufffd")
        for pair in best
    ]


def test_each_sample_of_a_beam_search_is_a_beam_of_its_own_prompt(teacher: LocalModel) -> None:
    sampling = Sampling(max_new_tokens=6, beams=4)
    together = teacher.generate(ask(sampling, WORDS[:3], samples=3), seed=0)
    assert together == [a for said in WORDS[:3] for a in teacher.generate(ask(sampling, [said], samples=3), seed=0)]
    assert teacher.generate(list(reversed(ask(sampling, WORDS[:3], samples=3))), seed=0) == together[::-1]
    with pytest.raises(ValueError, match="beams"):
        teacher.generate(ask(sampling, WORDS[:1], samples=5), seed=0)


def test_a_batch_has_one_sampling_setting(teacher: LocalModel) -> None:
    with pytest.raises(ValueError, match="one sampling setting"):
        teacher.generate([*ask(GREEDY), *ask(SAMPLED)], seed=0)


def test_a_prompt_as_long_as_the_context_is_refused_and_a_nearly_as_long_one_cut(tiny_llama: Path) -> None:
    teacher = open_teacher(tiny_llama)
    around = len(teacher._prompt(ask(GREEDY, [""])[0]))
    with pytest.raises(DataError, match="512 in all"):
        teacher.generate(ask(GREEDY, ["x" * (512 - around)]), seed=0)
    (answer,) = teacher.generate(ask(GREEDY, ["x" * (507 - around)]), seed=0)
    assert answer.completion_tokens <= 5


def test_a_plain_prompt_is_continued_where_there_is_no_template(tmp_path: Path) -> None:
    teacher = open_teacher(make_tiny_causal_lm(tmp_path / "base", template=None))
    (answer,) = teacher.generate([Request(GREEDY, prompt="Once upon")], seed=0)
    assert isinstance(answer, Answer) and answer.prompt_tokens == len("Once upon")
    with pytest.raises(DataError, match="chat template"):
        teacher.generate(ask(GREEDY), seed=0)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "mistral"])
def test_other_families_write_alike_alone_and_in_a_batch(family: Any, tmp_path: Path) -> None:
    teacher = open_teacher(make_tiny_causal_lm(tmp_path / family, family))
    requests = ask(GREEDY)
    assert teacher.generate(requests, seed=0) == [teacher.generate([r], seed=0)[0] for r in requests]


# ---- signals -------------------------------------------------------------------------------------------------

LAST = Ask(taps=frozenset({"hidden.4"}))
EVERYTHING = Ask(response=True, taps=frozenset({"hidden.2", "hidden.4"}))


def test_signals_are_the_models_own_logits_and_states(teacher: LocalModel) -> None:
    batch = a_batch()
    signals = teacher.signals(batch, EVERYTHING)
    whole = teacher.model(batch.teacher.input_ids, output_hidden_states=True)
    rows = batch.target_positions["teacher"]
    assert signals.head is not None
    torch.testing.assert_close(signals.head.logits(), whole.logits.flatten(0, 1)[rows], atol=1e-4, rtol=1e-4)
    assert set(signals.taps) == {"hidden.2", "hidden.4"}
    for row, length in ((0, 12), (1, 9)):
        torch.testing.assert_close(signals.taps["hidden.4"][row, :length], whole.hidden_states[4][row, :length])


def test_only_what_is_needed_is_made(teacher: LocalModel) -> None:
    batch = a_batch()
    alone = teacher.signals(batch, LAST)
    assert alone.head is None and alone.dense is None and set(alone.taps) == {"hidden.4"}
    response = teacher.signals(batch, Ask(response=True))
    assert response.head is not None and not response.taps


@pytest.fixture
def dropping(tmp_path: Path) -> LocalModel:
    """A teacher with dropout."""
    return open_teacher(make_tiny_causal_lm(tmp_path / "dropping", "gpt2", resid_pdrop=0.5, embd_pdrop=0.5))


def test_a_teacher_is_never_in_training_mode_whatever_was_done_to_it(dropping: LocalModel) -> None:
    batch, requests = a_batch(), ask(GREEDY)
    states, answers = dropping.signals(batch, LAST).taps["hidden.4"], dropping.generate(requests, seed=0)
    dropping.model.train()
    assert not torch.equal(live_signals(dropping.model, batch, "teacher", LAST).taps["hidden.4"], states)
    assert torch.equal(dropping.signals(batch, LAST).taps["hidden.4"], states)
    dropping.model.train()
    assert dropping.generate(requests, seed=0) == answers
    assert not any(module.training for module in dropping.model.modules())


def test_a_teacher_gets_no_gradient(teacher: LocalModel) -> None:
    signals = teacher.signals(a_batch(), EVERYTHING)
    assert signals.head is not None
    given = [signals.head.hidden, signals.head.weight, *signals.taps.values()]
    assert not any(t.requires_grad for t in given)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert torch.is_grad_enabled()


def test_a_teacher_gets_no_gradient_even_if_someone_asks_for_it(tiny_llama: Path) -> None:
    teacher = open_teacher(tiny_llama)
    teacher.model.requires_grad_(True)
    signals = teacher.signals(a_batch(), EVERYTHING)
    assert signals.head is not None
    assert not any(t.requires_grad for t in (signals.head.hidden, *signals.taps.values()))


def test_the_students_autocast_does_not_reach_the_teacher(teacher: LocalModel) -> None:
    batch = a_batch()
    outside = teacher.signals(batch, LAST).taps["hidden.4"]
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher.signals(batch, LAST).taps["hidden.4"]
    assert torch.equal(inside, outside)


# ---- who it is -----------------------------------------------------------------------------------------------


def test_identity_changes_with_whatever_changes_answers_and_names_no_local_path(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = open_teacher(tiny_llama).identity
    assert str(tiny_llama.parent) not in str(base) and base["model"] == tiny_llama.name
    assert open_teacher(tiny_llama, generate_dtype="bfloat16").identity != base
    assert open_teacher(tiny_llama, dtype="bfloat16").identity == base, "that of signals changes no answer"
    other = open_teacher(make_tiny_causal_lm(tmp_path / tiny_llama.name, seed=1)).identity
    assert other["model"] == base["model"] and other["digest"] != base["digest"]


def test_nothing_is_loaded_before_it_is_needed(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "load_model", lambda *a, **k: pytest.fail("weights were loaded"))
    teacher = open_teacher(tiny_llama)
    assert teacher.capabilities == {"generate", "head", "dense", "taps"}
    assert teacher.identity["kind"] == "local" and teacher.context_length == 512 and teacher.tokenizer is not None


def test_it_writes_in_bfloat16_where_the_processor_has_it(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(local_module, "has_fast_bf16", lambda device, fast=fast: fast)
        teacher = open_teacher(tiny_llama, generate_dtype="auto")
        assert teacher._writer.dtype == dtype and teacher.model.dtype == torch.float32
        assert (teacher._writer is teacher.model) is not fast


@pytest.mark.slow
def test_the_real_one_answers_and_stops_by_itself() -> None:
    teacher: LocalModel = build(LocalTeacher(model="smollm2-135m-instruct", device="cpu"))
    said = ["What is the capital of France? Answer in one word.", "Say hello."]
    answers = teacher.generate(ask(Sampling(max_new_tokens=40), said), seed=0)
    assert "Paris" in answers[0].text
    assert answers[0].finish == "stop" and "<|im_end|>" not in answers[0].text
    assert answers[0].prompt_tokens == 42
