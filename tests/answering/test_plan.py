"""The plan of batches: depends on all requests, and on nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.answering.local import PlannedBatch, Question, cut, make_batch, plan_batches
from potstill.data.split import SplitSide
from potstill.types import Request, Sampling

TEACHER = {"model": "m", "dtype": "bfloat16"}


def question(
    length: int, *, side: SplitSide = "train", samples: int = 1, name: str = "", **sampling: float
) -> Question:
    how = Sampling(8, **{"temperature": 0.0, **sampling})  # type: ignore[arg-type]
    requests = tuple(Request(how, prompt=f"{name}{'w' * length}", sample=i) for i in range(samples))
    return Question(requests, side, length)


def questions(count: int, seed: int = 0, **settings: float) -> list[Question]:
    draw = random.Random(seed)
    sides: list[SplitSide] = ["held_out" if draw.random() < 0.2 else "train" for _ in range(count)]
    return [question(draw.randrange(1, 90), side=side, name=f"{i} ", **settings) for i, side in enumerate(sides)]  # type: ignore[arg-type]


def requests_of(batches: list[PlannedBatch]) -> list[Request]:
    return [request for batch in batches for request in batch.requests]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_every_request_is_planned_exactly_once(count: int, batch_size: int, samples: int, seed: int) -> None:
    asked = questions(count, seed, samples=samples, temperature=1.0)
    planned = requests_of(plan_batches(asked, TEACHER, batch_size=batch_size, seed=seed))
    assert sorted(map(repr, planned)) == sorted(repr(r) for q in asked for r in q.requests)
    assert all(len(b.requests) <= batch_size for b in plan_batches(asked, TEACHER, batch_size=batch_size, seed=seed))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=25), st.integers(1, 9), st.randoms())
def test_questions_of_different_numbers_of_samples_are_planned_whole(
    mix: list[tuple[int, bool]], batch_size: int, draw: random.Random
) -> None:
    for how in ({"temperature": 1.0}, {"beams": 5}):
        asked = [
            question(n % 7, side="held_out" if held else "train", samples=samples, name=f"{n} ", **how)
            for n, (samples, held) in enumerate(mix)
        ]
        batches = plan_batches(asked, TEACHER, batch_size=batch_size, seed=0)
        assert sorted(map(repr, requests_of(batches))) == sorted(repr(r) for q in asked for r in q.requests)
        assert all(len(b.requests) <= max(batch_size, b.step) for b in batches)
        draw.shuffle(asked)
        assert plan_batches(asked, TEACHER, batch_size=batch_size, seed=0) == batches


@settings(deadline=None)
@given(st.randoms())
def test_the_order_of_the_data_changes_nothing(draw: random.Random) -> None:
    asked = questions(40)
    shuffled = list(asked)
    draw.shuffle(shuffled)
    assert plan_batches(shuffled, TEACHER, batch_size=6, seed=1) == plan_batches(asked, TEACHER, batch_size=6, seed=1)


def test_a_batch_holds_prompts_of_like_length() -> None:
    asked = questions(200)
    length = {q.requests[0]: q.prompt_tokens for q in asked}
    batches = plan_batches([q for q in asked if q.side == "train"], TEACHER, batch_size=8, seed=0)
    spans = sorted((min(length[r] for r in b.requests), max(length[r] for r in b.requests)) for b in batches)
    assert all(previous[1] <= following[0] for previous, following in pairwise(spans))


def test_batches_are_done_in_an_order_that_has_nothing_to_do_with_length() -> None:
    asked = [question(n, name=f"{n} ") for n in range(1, 401)]
    lengths = [len(b.requests[0].prompt or "") for b in plan_batches(asked, TEACHER, batch_size=4, seed=0)]
    first, second = lengths[:50], lengths[50:]
    assert lengths != sorted(lengths)
    assert abs(sum(first) - sum(second)) / sum(lengths) < 0.15


def test_held_out_answers_do_not_depend_on_training_prompts() -> None:
    held_out = [q for q in questions(60) if q.side == "held_out"]
    train = [q for q in questions(60) if q.side == "train"]
    few = plan_batches([*held_out, *train[:5]], TEACHER, batch_size=4, seed=0)
    many = plan_batches([*held_out, *train], TEACHER, batch_size=4, seed=0)
    asked = {q.requests[0] for q in held_out}
    assert [b for b in few if b.requests[0] in asked] == [b for b in many if b.requests[0] in asked]


def test_both_sides_are_dealt_in_proportion_and_a_held_out_batch_comes_first() -> None:
    asked = [question(n, side="held_out" if n % 5 == 0 else "train", name=f"{n} ") for n in range(1, 401)]
    held_out = {q.requests[0] for q in asked if q.side == "held_out"}
    sides = [b.requests[0] in held_out for b in plan_batches(asked, TEACHER, batch_size=8, seed=0)]
    assert sides[0]
    for done in range(5, len(sides)):
        assert abs(sum(sides[:done]) / done - 0.2) <= 1 / done


def test_samples_of_a_prompt_stay_together() -> None:
    asked = questions(30, samples=4, temperature=1.0)
    for batch in plan_batches(asked, TEACHER, batch_size=12, seed=0):
        prompts = [r.prompt for r in batch.requests]
        assert len(prompts) % 4 == 0
        assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, len(prompts), 4))
        assert [r.sample for r in batch.requests[:4]] == [0, 1, 2, 3]


def test_beams_count_as_sequences_and_are_never_cut_apart() -> None:
    asked = questions(30, samples=2, beams=5)
    batches = plan_batches(asked, TEACHER, batch_size=10, seed=0)
    assert max(len(b.requests) for b in batches) == 4  # 2 prompts × 5 beams are 10 sequences, of which 2 each are kept
    whole = next(b for b in batches if len(b.requests) == 4)
    first, rest = cut(whole, 3, TEACHER, 0)
    assert first is not None and [r.sample for r in first.requests] == [0, 1]
    assert rest is not None and first.requests + rest.requests == whole.requests
    assert cut(whole, 1, TEACHER, 0)[0] is None


def test_a_seed_is_the_batchs_own_and_follows_from_its_content() -> None:
    sampled = [q.requests[0] for q in questions(6, temperature=0.7)]
    batch = make_batch(sampled, TEACHER, 3)
    assert make_batch(sampled, TEACHER, 3) == batch
    others = [
        make_batch(sampled[:5], TEACHER, 3),
        make_batch(sampled[::-1], TEACHER, 3),
        make_batch(sampled, TEACHER, 4),
        make_batch(sampled, {**TEACHER, "dtype": "float32"}, 3),
        make_batch([replace(r, sampling=replace(r.sampling, top_k=5)) for r in sampled], TEACHER, 3),
    ]
    assert len({b.digest for b in (batch, *others)}) == 6
    assert len({b.seed for b in (batch, *others)}) == 6


def test_greedy_answers_outlive_a_change_of_seed() -> None:
    greedy = [q.requests[0] for q in questions(6)]
    assert make_batch(greedy, TEACHER, 3) == make_batch(greedy, TEACHER, 4)
