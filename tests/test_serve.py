"""`potstill serve` starts servers of others, with a run's student, on loopback alone; a dry run starts nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from potstill import cli, serve
from potstill.chat.speaker import student_of
from potstill.console import Console
from potstill.errors import MissingExtra, RunError, UserError
from potstill.export.gguf_file import write_gguf
from potstill.serve import server_for
from potstill.types import Sampling
from tiny_models import make_tiny_causal_lm


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "half"
    make_tiny_causal_lm(folder / "train" / "model")
    (folder / "recipe.yaml").write_text("name: half\n")
    return folder


@pytest.fixture
def llama_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def gguf_in(run: Path) -> Path:
    file = run / "export.gguf" / "model-F16.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    return file


def test_a_run_is_served_by_transformers_and_its_export_goes_before_what_was_trained(run: Path) -> None:
    trained = server_for(run, None, 8000)
    assert trained.model == str(run / "train" / "model")
    exported = make_tiny_causal_lm(run / "export.huggingface")
    assert server_for(run, None, 8000).model == str(exported)
    assert server_for(exported, None, 8000).model == str(exported)


def test_every_server_listens_on_loopback(run: Path, llama_server: Path) -> None:
    gguf_in(run)
    for engine in ("transformers", "llama.cpp"):
        server = server_for(run, engine, 9000)
        place = server.command.index("--host")
        assert server.command[place + 1] == "127.0.0.1"
        assert server.address == "http://127.0.0.1:9000/v1"


def test_a_gguf_file_is_served_by_llama_cpp_where_it_is_installed(run: Path, llama_server: Path) -> None:
    file = gguf_in(run)
    server = server_for(run, None, 8000)
    assert server.command[:3] == (str(llama_server), "--model", str(file))
    assert server.model == "half"
    assert server_for(file, None, 8000).command[0] == str(llama_server)
    llama_server.unlink()
    assert "transformers" in " ".join(server_for(run, None, 8000).command)
    with pytest.raises(UserError, match="not installed"):
        server_for(file, None, 8000)


def test_what_is_missing_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="no GGUF file"):
        server_for(run, "llama.cpp", 8000)
    with pytest.raises(RunError, match="no such run"):
        server_for(run / "nowhere", None, 8000)
    with pytest.raises(RunError, match=r"no model of transformers"):
        server_for(run.parent, "transformers", 8000)
    monkeypatch.setattr(serve, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra):
        server_for(run, None, 8000)


def test_a_dry_run_prints_the_command_and_starts_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setattr(serve, "run_server", started.append)
    for options in (["--dry-run"], ["--dry-run", "--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["serve", str(run), *options])
        assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("HF_HUB_OFFLINE=1 ") and " serve " in lines[0]
    assert json.loads(lines[-1])["command"][-4:] == ["--host", "127.0.0.1", "--port", "8000"]
    assert not started
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", str(run), "--engine", "vllm"])
    assert ended.value.code == 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", *(["llama.cpp"] if shutil.which("llama-server") else [])])
def test_the_server_answers_a_chat_request(engine: str, run: Path) -> None:
    """Greedily, and as the student itself answers behind its own template."""
    model = run / "train" / "model"
    if engine == "llama.cpp":
        (run / "export.gguf").mkdir()
        write_gguf(model, run / "export.gguf" / "model-F32.gguf", "f32", end_tokens=[], name="half")
    port = free_port()
    command = [sys.executable, "-m", "potstill.cli", "serve", str(run), "--port", str(port), "--engine", engine]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    asked = {
        "model": server_for(run, engine, port).model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": False,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        until = time.monotonic() + 240
        while time.monotonic() < until and process.poll() is None:
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    found = json.load(answer)
                break
            except urllib.error.URLError:
                time.sleep(1)
        else:
            pytest.fail("no answer")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    [choice] = found["choices"]
    expected = "".join(student_of(model, None, Console("quiet")).answer("Hello", Sampling(8, 0.0), 0))
    assert choice["message"] == choice["message"] | {"role": "assistant", "content": expected}
