"""Models of the hub, fetched from a hub of our own on the loopback interface, in processes that know no other."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "1" * 40


@dataclass
class Hub:
    """What huggingface_hub asks of a hub about models: a commit's description, its tree, and its files."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        name = next((n for n in self.models if path.startswith((f"/api/models/{n}", f"/{n}/resolve/"))), None)
        if name is None:
            return _refusal(404, "RepoNotFound")
        if name in self.gated:
            return _refusal(403, "GatedRepo")
        files = self.models[name]
        if path.startswith(f"/{name}/resolve/"):
            revision, _, file = path.removeprefix(f"/{name}/resolve/").partition("/")
            if file not in files or revision not in ("main", COMMIT):
                return _refusal(404, "EntryNotFound")
            self.fetched.append(file)
            return 200, {"ETag": f'"{_etag(files[file])}"', "X-Repo-Commit": COMMIT}, files[file]
        asked = path.removeprefix(f"/api/models/{name}").strip("/") or "revision/main"
        what, revision = asked.split("/")[:2]
        if revision not in ("main", COMMIT):
            return _refusal(404, "RevisionNotFound")
        if what == "revision":
            siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            return 200, {}, json.dumps({"id": name, "sha": COMMIT, "tags": [], "siblings": siblings}).encode()
        assert what == "tree", f"this hub knows nothing of {what}"
        tree = [{"type": "file", "path": f, "size": len(c), "oid": _etag(c)} for f, c in files.items()]
        return 200, {}, json.dumps(tree).encode()


def _refusal(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b'{"error": "refused"}'


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@dataclass
class Served:
    """The hub's contents, and what a process must be told so that it knows this hub alone."""

    hub: Hub
    environment: dict[str, str]

    def resolve(self, model: str, revision: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Resolve a model in a process of its own; it prints the source, or the refusal."""
        code = (
            "import sys; from potstill.console import Console; from potstill.errors import ModelError\n"
            "from potstill.models import resolve\n"
            "try:\n"
            "    source = resolve(sys.argv[1], revision=sys.argv[2] or None, console=Console('lines'))\n"
            "    print(source.path, source.name, source.revision, source.licence, sep='|')\n"
            "except ModelError as error:\n"
            "    print('refused:', error)\n"
            "print('torch' in sys.modules)"
        )
        command = [sys.executable, "-c", code, model, revision or ""]
        env = {**os.environ, **self.environment, **environment}
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    yield Served(hub, {"HF_ENDPOINT": here, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""})
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tiny_llama: Path) -> dict[str, bytes]:
    """The files of a model, with all that a hub's repository may hold beside it."""
    files = {file.name: file.read_bytes() for file in tiny_llama.iterdir()}
    beside = ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "modeling.py", "picture.png")
    return {**files, **dict.fromkeys(beside, b"not wanted"), "README.md": b"---\nlicense: apache-2.0\n---\n"}


def test_a_hub_model_is_fetched_without_pickles_code_and_second_copies(
    served: Served, model: dict[str, bytes], tiny_llama: Path
) -> None:
    served.hub.models["some/model"] = model
    done = served.resolve("some/model")
    source, torch_loaded = done.stdout.splitlines()
    path, *facts = source.split("|")
    assert facts == ["some/model", COMMIT, "apache-2.0"] and torch_loaded == "False"
    assert {p.name for p in Path(path).iterdir()} == {p.name for p in tiny_llama.iterdir()} | {"README.md"}
    assert (Path(path) / "model.safetensors").read_bytes() == model["model.safetensors"]
    assert "fetching some/model:" in done.stderr and "Fetching" not in done.stderr


def test_a_fetched_model_is_used_offline_and_asked_for_no_more(served: Served, model: dict[str, bytes]) -> None:
    served.hub.models["some/model"] = model
    first = served.resolve("some/model").stdout
    served.hub.fetched.clear()
    assert served.resolve("some/model").stdout == first == served.resolve("some/model", HF_HUB_OFFLINE="1").stdout
    assert served.hub.fetched == []


def test_a_kind_that_cannot_be_used_is_refused_before_its_weights_are_fetched(
    served: Served, model: dict[str, bytes]
) -> None:
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {"a": 1}}
    served.hub.models["some/llava"] = model | {"config.json": json.dumps(config).encode()}
    said = served.resolve("some/llava").stdout
    assert "some/llava: llava (LlavaForConditionalGeneration) is a vision-language model" in said
    assert set(served.hub.fetched) == {"config.json"}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "the weights of some/old are pickled (pytorch_model.bin)"),
        ("weights.Q4_K_M.gguf", "some/old holds GGUF files"),
        ("adapter.txt", "some/old holds no weights"),
    ],
)
def test_a_hub_model_without_safetensors_is_refused(file: str, said: str, served: Served) -> None:
    served.hub.models["some/old"] = {"config.json": b"{}", file: b"weights"}
    assert said in served.resolve("some/old").stdout
    assert served.hub.fetched == []


def test_what_the_hub_refuses_is_said_with_the_fix(served: Served, model: dict[str, bytes]) -> None:
    served.hub.models |= {"some/model": model, "some/gated": model}
    served.hub.gated.add("some/gated")
    assert "hf auth login" in served.resolve("some/gated").stdout
    assert "there is no model 'some/none'" in served.resolve("some/none").stdout
    assert "some/model has no revision 'v7'" in served.resolve("some/model", "v7").stdout
    unreachable = served.resolve("some/model", HF_ENDPOINT="http://127.0.0.1:9").stdout
    assert "is not on this disk, and the hub did not give it" in unreachable
