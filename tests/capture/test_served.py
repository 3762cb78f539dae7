"""A server's log-probabilities as a store: two wires, answered from a tiny model, and everything that can be wrong.

The responses are made by a server of a few lines, in the shapes of vLLM's and SGLang's APIs; theirs as recorded and as
their source makes them are in `test_wires.py`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from train.recipes import write_recipe

from potstill.capture.served import Scored, Served, asked_of, entries_of, read_scored
from potstill.console import Console
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import RecipeError, RunError
from potstill.measures import Measures
from potstill.pipeline import run_recipe
from potstill.recipe import EndpointTeacher, load_recipe
from potstill.store.files import SignalStore
from potstill.teachers.local import LocalModel
from tiny_models import make_tiny_causal_lm, tiny_model


class Engine(ThreadingHTTPServer):
    """Log-probabilities of prompts by a tiny model. `noise` nats are added, other in every answer."""

    daemon_threads = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.noise, self.seen = tiny_model("llama", seed=seed), 0.0, list[dict[str, Any]]()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def scores(self, ids: list[int], k: int) -> tuple[list[float], list[list[tuple[int, float]]]]:
        with self.lock, torch.no_grad():
            log_p = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            if self.noise:
                log_p = (log_p + self.noise * torch.randn_like(log_p)).log_softmax(-1)
        values, tokens = log_p.topk(k)
        own = [float(log_p[at - 1, ids[at]]) for at in range(1, len(ids))]
        return own, [list(zip(t.tolist(), v.tolist(), strict=True)) for t, v in zip(tokens, values, strict=True)]


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        if self.path == "/v1/completions":
            answer = vllm(body["prompt"], *self.server.scores(body["prompt"], body["prompt_logprobs"]))
        elif self.path == "/completion":
            [[forced, _]] = body["logit_bias"]
            own, likeliest = self.server.scores([*body["prompt"], forced], body["n_probs"])
            [answer] = llamacpp([0, forced], own[-1:], likeliest[-2:-1])
        else:
            assert self.path == "/generate"
            answer = sglang(body["input_ids"], *self.server.scores(body["input_ids"], body["top_logprobs_num"]))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def vllm(ids: list[int], own: list[float], likeliest: list[list[tuple[int, float]]]) -> dict[str, Any]:
    def of(at: int) -> dict[str, Any]:
        pairs = {**dict(likeliest[at]), ids[at + 1]: own[at]}
        return {str(t): {"logprob": v, "rank": n + 1, "decoded_token": None} for n, (t, v) in enumerate(pairs.items())}

    prompt = [None, *(of(at) for at in range(len(ids) - 1))]
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "prompt_logprobs": prompt}
    return {"object": "text_completion", "choices": [choice], "usage": {"prompt_tokens": len(ids)}}


def sglang(ids: list[int], own: list[float], likeliest: list[list[tuple[int, float]]]) -> dict[str, Any]:
    facts = {
        "input_token_logprobs": [[None, ids[0], None], *([v, t, None] for v, t in zip(own, ids[1:], strict=True))],
        "input_top_logprobs": [None, *([[v, t, None] for t, v in pairs] for pairs in likeliest[:-1])],
    }
    return {"text": "", "meta_info": facts}


def llamacpp(ids: list[int], own: list[float], likeliest: list[list[tuple[int, float]]]) -> list[dict[str, Any]]:
    """Of each token behind the first a response of its own."""
    return [
        {
            "content": "",
            "completion_probabilities": [
                {"id": of, "logprob": value, "top_logprobs": [{"id": t, "logprob": v} for t, v in pairs]}
            ],
        }
        for of, value, pairs in zip(ids[1:], own, likeliest, strict=False)
    ]


SHAPES = {"vllm": vllm, "sglang": sglang, "llamacpp": llamacpp}


def responses(document: Any) -> list[str]:
    """The responses to the requests for `ROW`: of llama.cpp those of the two learned tokens."""
    return [json.dumps(one) for one in document[-2:]] if isinstance(document, list) else [json.dumps(document)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("teacher"))


def recipe(tmp_path: Path, folder: Path, engine: Engine, wire: str, **capture: Any) -> Path:
    (tmp_path / "tokenizer").mkdir(exist_ok=True)
    for file in folder.iterdir():  # without the weights
        if file.suffix != ".safetensors":
            (tmp_path / "tokenizer" / file.name).write_bytes(file.read_bytes())
    teacher = {
        "kind": "endpoint",
        "base_url": engine.address,
        "model": "tiny",
        "tokenizer": str(tmp_path / "tokenizer"),
        "prompt_logprobs": wire,
        "licence": "own",
    }
    student = {"kind": "existing", "model": str(folder)}
    path = write_recipe(tmp_path, folder, capture={"kind": "topk", "k": 16, **capture})
    loaded = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**loaded, "teacher": teacher, "student": student}))
    return path


def run(path: Path, to: Path, *overrides: str, verb: str | None = None) -> None:
    run_recipe(load_recipe(path, overrides), to, console=Console("quiet"), verb=verb)


@pytest.mark.parametrize("wire", ["vllm", "sglang", "llamacpp"])
def test_a_servers_store_is_the_local_models_and_trains_without_either(
    wire: str, tmp_path: Path, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, folder, engine, wire)
    run(path, tmp_path / "served", verb="capture")
    local = write_recipe(tmp_path / "local", folder, capture={"kind": "topk", "k": 16})
    run(local, tmp_path / "here", verb="capture")
    theirs, ours = (SignalStore(tmp_path / name / "capture" / "store") for name in ("served", "here"))
    assert dict(theirs.records) == dict(ours.records)
    for record, tokens in ours.records.items():
        one, other = ours.read(record, tokens), theirs.read(record, tokens)
        assert np.abs(one.target_log_prob - other.target_log_prob).max() < 0.02
        assert np.abs(np.exp(one.rest) - np.exp(other.rest)).max() < 1e-3
        assert (other.entropy <= one.entropy + 5e-3).all(), "all others as one: a lower bound"
        by_id = [sorted(zip(e.ids.tolist(), e.weights.tolist(), strict=True)) for e in (one, other)]
        assert [i for i, _ in by_id[0]] == [i for i, _ in by_id[1]]
        assert np.allclose([w for _, w in by_id[0]], [w for _, w in by_id[1]], rtol=2e-3)
    monkeypatch.setattr(LocalModel, "model", property(lambda self: pytest.fail("a teacher was loaded")))
    asked = len(engine.seen)
    run(path, tmp_path / "served", verb="train")
    assert len(engine.seen) == asked and (tmp_path / "served" / "train" / "model").is_dir()


def test_a_server_that_serves_another_model_after_an_interruption_is_refused(
    tmp_path: Path, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else half of the store would be of one teacher and half of another."""
    path = recipe(tmp_path, folder, engine, "vllm", batch_tokens=60)
    scores = Served.scores
    monkeypatch.setattr(Served, "scores", lambda self, rows: scores(self, rows) if len(engine.seen) < 9 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(path, tmp_path / "run", verb="capture")
    monkeypatch.setattr(Served, "scores", scores)
    model, engine.model = engine.model, tiny_model("llama", seed=7)
    with pytest.raises(RunError, match="otherwise than when this capture began"):
        run(path, tmp_path / "run", verb="capture")
    engine.model = model
    run(path, tmp_path / "run", verb="capture")


def test_an_evaluation_reads_a_servers_side_of_held_out_text_from_the_store(
    tmp_path: Path, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a local teacher, of which the same tokens are stored."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    settings = {"resamples": 50, "speed": False, "samples_shown": 0, "controls": []}
    other_student = make_tiny_causal_lm(tmp_path / "student", seed=9)
    of_server = yaml.safe_load(recipe(tmp_path, folder, engine, "vllm").read_text())
    of_server |= {"evaluate": settings, "student": {"kind": "existing", "model": str(other_student)}}
    of_server["train"]["args"]["learning_rate"] = 1e-5
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(of_server))
    of_local = {**of_server, "teacher": {"kind": "local", "model": str(folder), "device": "cpu"}}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(of_local))
    run(tmp_path / "server.yaml", tmp_path / "served")
    asked = len(engine.seen)
    run(tmp_path / "local.yaml", tmp_path / "here")
    theirs, ours = (Measures.load(tmp_path / name / "evaluate" / "measures.json") for name in ("served", "here"))
    assert "teacher" not in theirs.models and theirs.teacher_unmeasured == "a server has no size and no rates here"
    for name in ("kl", "top1_agreement", "nll"):
        one, other = theirs.models["student"].get(name), ours.models["student"].get(name)
        assert one is not None and other is not None and one.value == pytest.approx(other.value, abs=0.02)
    nll = ours.models["teacher"].get("nll")
    [note] = [note for note in theirs.notes if note.startswith("The teacher is a server")]
    assert nll is not None and float(note.split(" nats")[0].split()[-1]) == pytest.approx(nll.value, abs=0.01)
    page = (tmp_path / "served" / "report" / "report.html").read_text()
    assert "the KL from its teacher is at least" in page and len(engine.seen) == asked


def test_a_server_that_disagrees_with_itself_is_refused_before_it_is_paid(
    tmp_path: Path, folder: Path, engine: Engine
) -> None:
    engine.noise = 0.5
    with pytest.raises(RunError, match="the server's answers to one text lie apart by 0"):
        run(recipe(tmp_path, folder, engine, "vllm"), tmp_path / "run", verb="capture")
    assert len(engine.seen) == 3, "one text, three times, and nothing else"
    run(recipe(tmp_path, folder, engine, "vllm", tolerance=5.0), tmp_path / "run", verb="capture")


def test_a_server_of_another_model_than_the_weights_here_is_refused(tmp_path: Path, folder: Path) -> None:
    with Engine(seed=7) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        path = recipe(tmp_path, folder, other, "vllm")
        (tmp_path / "tokenizer" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(RunError, match="the server and the weights on this machine lie apart"):
            run(path, tmp_path / "run", verb="capture")
        other.shutdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["capture.k=40"], r"more than the server gives a token \(20\)"),
        (["capture={kind: threshold}"], "set capture.kind: topk"),
        (["capture.features=[hidden.1]"], "without features"),
        (["capture.temperature=2.0", "train.objectives.0.temperature=2.0"], "leave capture.temperature out"),
        (["teacher.tokenizer=null"], "name the model's folder as the teacher's tokenizer"),
        (["teacher.prompt_logprobs=null"], "set prompt_logprobs on the teacher"),
    ],
)
def test_what_a_server_does_not_give_is_refused(
    changes: list[str], message: str, tmp_path: Path, folder: Path, engine: Engine
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(tmp_path, folder, engine, "vllm"), changes)


# ---- what a response says ----------------------------------------------------------------------------------------

ROW = Tokenized([3, 5, 7, 9], [IGNORE, IGNORE, 7, 9], "r")
OWN = [-3.0, -1.0, -2.0]
NAMES = ("choices", "prompt_logprobs", "logprob", "meta_info", "input_token_logprobs", "input_top_logprobs", "7", "9")
LIKELIEST = [[(4, -0.5), (5, -1.2)], [(6, -0.7), (7, -1.0)], [(2, -0.4), (1, -1.8)], [(0, -0.1), (1, -3.0)]]


@pytest.mark.parametrize(("wire", "shape"), SHAPES.items())
def test_both_wires_give_the_learned_tokens_and_the_likeliest_in_their_place(wire: str, shape: Any) -> None:
    scored = read_scored(wire, responses(shape(ROW.input_ids, OWN, LIKELIEST)), ROW, 2, 10)
    assert scored == Scored((-1.0, -2.0), ({6: -0.7, 7: -1.0}, {2: -0.4, 1: -1.8}))


def test_sglang_names_the_last_token_of_the_vocabulary_0() -> None:
    """It takes ids from vocab − 1 on for those of images."""
    row = Tokenized([3, 9, 9, 7], [IGNORE, 9, 9, 7], "r")
    likeliest = [[(4, -0.5), (5, -1.2)], [(6, -0.7), (9, -1.0)], [(2, -0.4), (1, -1.8)], [(0, -0.1), (1, -3.0)]]
    document = sglang([3, 0, 9, 7], OWN, likeliest)
    found = read_scored("sglang", [json.dumps(document)], row, 2, 10)
    assert found.own == tuple(OWN) and found.likeliest[1] == {6: -0.7, 9: -1.0}
    with pytest.raises(ValueError, match="another token at 1 than 9"):
        read_scored("sglang", [json.dumps(document)], row, 2, 11)


@pytest.mark.parametrize(("wire", "shape"), SHAPES.items())
@pytest.mark.parametrize(
    "wrong",
    [
        lambda of: of([3, 5, 7], OWN[:2], LIKELIEST[:3]),
        lambda of: of(ROW.input_ids, [-3.0, 2.0, -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, [-3.0, float("nan"), -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, OWN, [pairs[:1] for pairs in LIKELIEST[:1]] + [[(7, -1.0)]] * 3),
        lambda of: {"choices": []},
        lambda of: {"choices": [{"prompt_logprobs": None}], "prompt_logprobs": None, "meta_info": {}},
        lambda of: [],
        lambda of: of(ROW.input_ids, [-3.0, -0.01, -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, OWN, [[(99, -0.5), (5, -1.2)]] + [[(99, -0.7), (7, -1.0)]] * 3),
        lambda of: of(ROW.input_ids, OWN, [[(-4, -0.5), (5, -1.2)]] + [[(-4, -0.7), (7, -1.0)]] * 3),
        lambda of: of(ROW.input_ids, [-3.0, "-1.0", -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, [-3.0, None, -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, [-3.0, False, -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, [-3.0, -(10**400), -2.0], LIKELIEST),
        lambda of: of(ROW.input_ids, OWN, [[(10**400, -0.7), (7, -1.0)]] * 4),
        lambda of: of(ROW.input_ids, OWN, [[("key-1234", -0.7), (7, -1.0)]] * 4),
    ],
)
def test_a_response_that_is_not_of_the_text_is_refused(wire: str, shape: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"log-prob|token"):
        read_scored(wire, responses(wrong(shape)), ROW, 2, 10)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from([3, 5, 7, 9, -0.5]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner),
    max_leaves=25,
)


@settings(max_examples=400)
@given(wire=st.sampled_from(list(SHAPES)), where=st.data(), put=JSON)
def test_whatever_stands_in_a_response_it_is_read_or_refused(wire: str, where: st.DataObject, put: Any) -> None:
    """A right response with any part of it replaced."""
    document = SHAPES[wire](ROW.input_ids, OWN, LIKELIEST)
    places = list(_places(document))
    parent, key = where.draw(st.sampled_from(places))
    parent[key] = put
    try:
        found = read_scored(wire, responses(document), ROW, 2, 10)
    except ValueError:
        return
    assert len(found.own) == 2 and all(own <= 0 for own in found.own)
    entries = entries_of(found, 1.0)
    assert np.isfinite(entries.entropy).all() and entries.ids.min() >= 0 and entries.ids.max() < 10


@pytest.mark.parametrize("content", ["[" * 100_000, '{"choices":' * 50_000, "", "null", '"key-1234"', "9" * 5000, "{"])
@pytest.mark.parametrize("wire", ["vllm", "sglang", "llamacpp"])
def test_what_is_no_response_is_refused_without_its_text(wire: str, content: str) -> None:
    with pytest.raises(ValueError, match="no log-probabilities of the prompt") as caught:
        read_scored(wire, [content, content], ROW, 2, 10)
    assert "key-1234" not in str(caught.value) and len(str(caught.value)) < 100


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every part."""
    keys = list(document) if isinstance(document, dict) else range(len(document))
    for key in keys:
        yield document, key
        if isinstance(document[key], (dict, list)):
            yield from _places(document[key])


def test_a_token_that_cannot_be_has_no_part_in_the_entropy() -> None:
    found = entries_of(Scored((-math.inf,), ({3: 0.0, 4: -math.inf},)), 1.0)
    assert found.entropy[0] == pytest.approx(0.0, abs=1e-9) and found.weights.tolist() == [1.0, 0.0]


@given(logits=st.lists(st.floats(-20, 20), min_size=5, max_size=5), k=st.integers(1, 4), top_p=st.floats(0.05, 1.0))
def test_what_is_not_kept_is_one_bucket_and_nothing_is_renormalised(logits: list[float], k: int, top_p: float) -> None:
    log_p = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    values, tokens = log_p.topk(k)
    likeliest = dict(zip(tokens.tolist(), values.tolist(), strict=True))
    found = entries_of(Scored((values[0].item(),), (likeliest,)), top_p)
    kept = found.ids.size
    assert 1 <= kept <= k and found.weights.sum() + np.exp(found.rest[0]) == pytest.approx(1, abs=1e-6)
    assert found.weights == pytest.approx(values.exp()[:kept].numpy(), rel=1e-6)
    whole = float(-(log_p.exp() * log_p).sum())
    assert -1e-6 <= found.entropy[0] <= whole + 1e-6


def test_a_request_is_by_ids_with_nothing_to_write() -> None:
    of = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    [body] = asked_of(EndpointTeacher(**of, prompt_logprobs="vllm"), ROW, 5)
    assert body["prompt"] == [3, 5, 7, 9] and body["max_tokens"] == 1
    [body] = asked_of(EndpointTeacher(**of, prompt_logprobs="sglang"), ROW, 5)
    assert body["input_ids"] == [3, 5, 7, 9] and body["top_logprobs_num"] == 5
    assert body["sampling_params"]["max_new_tokens"] == 1
    bodies = asked_of(EndpointTeacher(**of, prompt_logprobs="llamacpp"), ROW, 5)
    assert [(b["prompt"], b["logit_bias"][0][0], b["n_predict"]) for b in bodies] == [([3, 5], 7, 1), ([3, 5, 7], 9, 1)]
