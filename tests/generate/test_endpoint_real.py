"""A real server, `transformers serve` with SmolLM2, on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generate.endpoint_run import EndpointRun

from potstill.console import Console
from potstill.data import load_records
from potstill.models import resolve

pytestmark = pytest.mark.slow
OVERRIDES = ("generate.temperature=0", "generate.samples=1", "generate.max_new_tokens=12", "teacher.max_in_flight=2")


class Serving:
    """The server; `model` is what it calls the model."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, model: str) -> None:
        self.process, self.url, self.model = process, f"http://127.0.0.1:{port}/v1", model

    def post(self, **body: Any) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            json.dumps(body | {"model": self.model}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    model = str(resolve("smollm2-135m-instruct", console=Console("quiet")).path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--device", "cpu"]
    log = (tmp_path_factory.mktemp("serving") / "log").open("wb")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield Serving(process, port, model)
    finally:
        process.kill()
        process.wait()
        log.close()


def run_of(folder: Path, serving: Serving, prompts: int = 3) -> EndpointRun:
    made = EndpointRun(folder, serving.url, prompts=prompts, samples=1, timeout=300)
    (folder / "recipe.yaml").write_text(
        (folder / "recipe.yaml").read_text().replace("model: mock", f"model: {serving.model}")
    )
    return made


def test_it_writes_the_words_of_the_same_model_on_this_machine(serving: Serving, tmp_path: Path) -> None:
    """Greedy, in float32; and a second run asks nothing."""
    made = run_of(tmp_path / "served", serving)
    assert made.here(*OVERRIDES) == 0
    assert made.manifest["facts"]["requests_sent"] == 3
    output = made.output
    assert made.here(*OVERRIDES) == 0
    assert "requests_sent" not in made.manifest["facts"] and made.output == output

    local = EndpointRun(tmp_path / "local", serving.url, prompts=3, samples=1)
    teacher = "teacher={kind: local, model: smollm2-135m-instruct, generate_dtype: float32, device: cpu}"
    assert local.here(teacher, *OVERRIDES[:3]) == 0
    served, here = (load_records(run.run / "generate" / "records.parquet") for run in (made, local))
    assert [r.messages for r in served] == [r.messages for r in here]
    assert [r.finished for r in served] == [r.finished for r in here]


def test_it_gives_one_choice_without_log_probabilities_whatever_is_asked(serving: Serving) -> None:
    """Why n is asked for in single requests, and why what comes back is looked at: this is a 200."""
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "n": 3, "logprobs": True}
    status, answer = serving.post(**asked)
    assert status == 200 and len(answer["choices"]) == 1 and not answer["choices"][0].get("logprobs")


def test_that_it_gives_no_log_probabilities_is_found_out(
    serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of(tmp_path, serving, prompts=1).here(*OVERRIDES, "teacher.logprobs=true") == 2
    assert "takes the request for log-probabilities, and gives none" in capsys.readouterr().err


def test_a_field_that_it_does_not_know_is_refused_with_the_fix(
    serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_of(tmp_path, serving, prompts=1)
    assert made.here(*OVERRIDES, "teacher.extra.min_p=0.1") == 2
    said = capsys.readouterr().err
    assert "does not take 'min_p' (422: " in said and "drop min_p from the teacher's extra" in said


def test_a_server_that_does_not_draw_is_found_out_and_told_to_by_its_own_field(
    serving: Serving, tmp_path: Path
) -> None:
    """It takes a temperature, and stays greedy unless the model's settings or the request's say do_sample."""
    sampled = (*OVERRIDES, "generate.samples=4", "generate.temperature=1", "teacher.max_in_flight=1")
    greedy = run_of(tmp_path / "greedy", serving, prompts=1)
    assert greedy.here(*sampled) == 0
    warned = greedy.manifest["warnings"]
    assert any("3 of 3 further samples say what the first does" in warning for warning in warned)

    texts = []
    for name in ("one", "other"):
        made = run_of(tmp_path / name, serving, prompts=1)
        assert made.here(*sampled, """teacher.extra.generation_config='{"do_sample": true}'""") == 0
        records = load_records(made.run / "generate" / "records.parquet")
        texts.append([r.messages[-1]["content"] for r in records if r.messages])
        assert not any("further samples" in warning for warning in made.manifest["warnings"])
    assert texts[0] == texts[1] and len(set(texts[0])) >= 3  # drawn by the seeds that were sent
