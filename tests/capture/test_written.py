"""What a server gave with its own answers becomes the store of those answers, token by token, or nothing does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.capture.plan import plan_of
from potstill.capture.served import entries_of
from potstill.capture.written import Written, bytes_of
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import DataError
from potstill.recipe import EndpointTeacher, TopKCapture
from potstill.teachers.endpoint import EndpointModel
from potstill.teachers.endpoint_wire import body_of, read_answer
from potstill.types import LIKELIEST, Answer, Record, Request, Sampling
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer

ASKING = EndpointTeacher(base_url="http://127.0.0.1:1/v1", model="m", answer_logprobs=2)
ENCODED = make_tiny_tokenizer()
TEXT = "Ale é"
RECORD = Record(prompt="Hi", completion=TEXT, group="g")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("model"))


def of_text(text: str, ids: bool) -> dict[str, Any]:
    """As llama.cpp names tokens (with ids), or as OpenAI does: every byte of a text is a token here."""

    def named(token: int) -> dict[str, Any]:
        own = [ENCODED.convert_ids_to_tokens(token)]
        raw = bytes_of(own[0], by_bytes=True)
        return {"token": raw.decode(errors="replace"), "bytes": list(raw), **({"id": token} if ids else {})}

    found = []
    for token in ENCODED(text, add_special_tokens=False).input_ids:
        others = [{**named(token), "logprob": -0.1}, {**named(20), "logprob": -3.0}]
        found.append({**named(token), "logprob": -0.1, "top_logprobs": others})
    return {"content": found}


def answer(logprobs: Any) -> Any:
    message = {"message": {"content": TEXT}, "finish_reason": "stop", "logprobs": logprobs}
    sent = body_of(Request(Sampling(64), prompt="Hi"), ASKING, None, None)
    return read_answer(json.dumps({"choices": [message]}).encode(), ASKING, sent)


def row(text: str) -> Tokenized:
    ids = ENCODED(text, add_special_tokens=False).input_ids
    return Tokenized([5, *ids, 2], [IGNORE, *ids, 2], RECORD.id)


def written(folder: Path, likeliest: Any) -> Written:
    of = ASKING.model_copy(update={"tokenizer": str(folder)})
    record = replace(RECORD, metadata={LIKELIEST: likeliest})
    return Written(EndpointModel(of), TopKCapture(k=2), [record])


@pytest.mark.parametrize("ids", [True, False])
def test_answers_are_asked_and_kept_with_their_likeliest_tokens(folder: Path, ids: bool) -> None:
    body = body_of(Request(Sampling(64), prompt="Hi"), ASKING, None, None)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    found = answer(of_text(TEXT, ids))
    assert isinstance(found, Answer) and found == Answer(**json.loads(json.dumps(found.to_dict())))
    of_row = row(TEXT)
    source = written(folder, found.likeliest)
    [scored] = source.scores([of_row])
    learned = of_row.learned
    for label, own, likeliest in zip(learned[:-1], scored.own, scored.likeliest, strict=False):
        assert own == -0.1 and likeliest == {label: -0.1, 20: -3.0}
    assert scored.likeliest[-1] == {} and source.check(plan_of({of_row.record_id: of_row}, frozenset(), 99, 99)) == 1
    entries = entries_of(scored, 0.9)
    assert entries.rest[-1] == 0 and entries.offsets[-1] == entries.offsets[-2], "the end token: all mass in the rest"


def test_from_the_first_other_token_on_nothing_is_known(folder: Path) -> None:
    source = written(folder, answer(of_text(TEXT, ids=True)).likeliest)
    [scored] = source.scores([row("Alm é")])
    assert [bool(found) for found in scored.likeliest] == [True, True, *[False] * (len(scored.own) - 2)]
    with pytest.raises(DataError, match="no record has log-probabilities of the tokens that are learned"):
        source.check(plan_of({RECORD.id: row("Zle é")}, frozenset(), 99, 99))


@pytest.mark.parametrize("estimator", ["top_k"])
def test_a_target_without_a_distribution_has_no_loss_and_no_gradient(estimator: Any) -> None:
    from potstill.objectives import ForwardKLRule, fused_sweep
    from potstill.signals import Dense, Sparse

    leaf = torch.randn(1, 7, dtype=torch.float64).requires_grad_()
    nothing = Sparse(
        torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.int32), torch.zeros(0), torch.zeros(1),
        estimator, vocab=7, rest=torch.zeros(1),
    )  # fmt: skip
    swept = fused_sweep(Dense(leaf), nothing, torch.zeros(1, dtype=torch.long), [(ForwardKLRule(), 1.0)])
    swept.loss.backward()
    assert leaf.grad is not None and abs(swept.loss.item()) < 1e-9 and leaf.grad.abs().max() < 1e-9


PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON = st.recursive(
    PARTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner), max_leaves=12
)


@settings(max_examples=300)
@given(where=st.data(), put=JSON, ids=st.booleans())
def test_whatever_a_server_puts_there_it_is_kept_or_refused(where: st.DataObject, put: Any, ids: bool) -> None:
    document = {"logprobs": of_text(TEXT, ids)}
    parent, key = where.draw(st.sampled_from(list(_places(document))))
    parent[key] = put
    found = answer(document["logprobs"])
    if isinstance(found, Answer):
        assert found.likeliest and json.loads(json.dumps(found.likeliest)) == found.likeliest


def _places(document: Any) -> Any:
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], (dict, list)):
            yield from _places(document[key])


@given(st.text())
def test_the_bytes_of_a_texts_tokens_are_its_own(text: str) -> None:
    tokens = ENCODED.convert_ids_to_tokens(ENCODED(text, add_special_tokens=False).input_ids)
    if not set(tokens) & set(ENCODED.all_special_tokens):
        assert b"".join(bytes_of(token, by_bytes=True) for token in tokens) == text.encode(errors="replace")
    assert bytes_of("\u2581ale", by_bytes=False) == b" ale" and bytes_of("<0x0A>", by_bytes=False) == b"\n"
