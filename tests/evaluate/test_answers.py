"""Claims about what models write: each answer is the model's own greedy one, whoever stands beside it in the batch."""

from __future__ import annotations

import pytest
import torch

from potstill.data import prompt_ids
from potstill.decoding.generator import stop_token_ids
from potstill.evaluate.answers import confidence_in, write_answers
from small_run import CHAT
from tiny_models import tiny_model

PROMPTS = [prompt_ids(f"{'why ' * n}?", CHAT) for n in (9, 1, 4, 2, 7, 3, 8, 5, 6, 10)]


def greedy(model: torch.nn.Module, prompt: list[int], limit: int) -> tuple[list[int], bool]:
    """Token by token, without cache or padding."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == 2:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def test_answers_are_the_greedy_ones_in_the_order_of_the_prompts() -> None:
    model = tiny_model(seed=3, spread=0.3)
    done: list[float] = []
    written = write_answers(model, PROMPTS, CHAT, max_new_tokens=12, advance=done.append)
    for prompt, answer in zip(PROMPTS, written, strict=True):
        ids, finished = greedy(model, prompt, 12)
        assert answer.text == CHAT.decode(ids, skip_special_tokens=True).strip()
        assert answer.finished == finished
    assert sum(done) == pytest.approx(len(PROMPTS))
    assert len(done) > 12, "the bar moves with the tokens, not with the batches"


def test_an_answer_stops_at_the_end_token() -> None:
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight[2] *= 6  # tied: the end token is now often first
    written = write_answers(model, PROMPTS, CHAT, max_new_tokens=40, advance=lambda amount: None)
    expected = [greedy(model, prompt, 40) for prompt in PROMPTS]
    assert [w.finished for w in written] == [finished for _, finished in expected]
    assert any(w.finished for w in written) and not all(w.text == "" for w in written if w.finished)
    assert [w.text for w in written] == [CHAT.decode(ids, skip_special_tokens=True).strip() for ids, _ in expected]


def test_the_models_own_settings_of_generation_do_not_colour_the_answers_and_stay_its_own() -> None:
    model = tiny_model(seed=3, spread=0.3)
    plain = write_answers(model, PROMPTS, CHAT, max_new_tokens=12, advance=lambda amount: None)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    again = write_answers(model, PROMPTS, CHAT, max_new_tokens=12, advance=lambda amount: None)
    assert again == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_a_model_stops_at_its_own_end_tokens_and_its_tokenizers() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [0, 7]
    assert stop_token_ids(model, CHAT.eos_id) == [0, 2, 7]
    prompt = PROMPTS[0]
    ids, _ = greedy(model, prompt, 12)
    model.generation_config.eos_token_id = ids[3]
    (written,) = write_answers(model, [prompt], CHAT, max_new_tokens=12, advance=lambda amount: None)
    assert written.text == CHAT.decode(ids[: ids.index(ids[3])], skip_special_tokens=True).strip()
    assert written.finished


def test_confidence_is_the_geometric_mean_of_the_answers_probabilities() -> None:
    model, prompt, answer = tiny_model(seed=3), [5, 9, 30], [7, 41, 2]
    with torch.no_grad():
        p = model(torch.tensor([[*prompt, *answer]])).logits[0].softmax(-1)
    by_hand = (p[2, 7] * p[3, 41] * p[4, 2]) ** (1 / 3)
    assert confidence_in(model, prompt, answer) == pytest.approx(float(by_hand), rel=1e-5)
    assert confidence_in(model, prompt, []) == 0.0
