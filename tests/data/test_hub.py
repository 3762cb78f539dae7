"""Data sets of the hub, read from a hub of our own on the loopback interface, in processes that never knew another."""

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

FIRST, SECOND = "1" * 40, "2" * 40
Files = dict[str, bytes]


@dataclass
class Repository:
    """A data set: its commits, oldest first, and which of them each name stands for."""

    commits: dict[str, Files]
    branches: dict[str, str]
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """What huggingface_hub and datasets ask of a hub: a commit's description, its tree, and its files."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(path)
        for name, repository in self.repositories.items():
            api, files = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if path != api and not path.startswith((api + "/", files)):
                continue
            if repository.gated:
                return _refusal(403, "GatedRepo")
            if path.startswith(files):
                return self._file(repository, path.removeprefix(files))
            return self._described(name, repository, path.removeprefix(api).strip("/") or "revision/main")
        return _refusal(404, "RepoNotFound")

    def _described(self, name: str, repository: Repository, asked: str) -> tuple[int, dict[str, str], bytes]:
        what, revision, folder = (*asked.split("/", 2), "")[:3]
        commit = repository.commit(revision)
        if commit is None:
            return _refusal(404, "RevisionNotFound")
        files = repository.commits[commit]
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            return 200, {}, json.dumps({"id": name, "sha": commit, "tags": [], "siblings": siblings}).encode()
        assert what == "tree", f"this hub knows nothing of {what}"
        inside = {f: c for f, c in files.items() if not folder or f.startswith(folder + "/")}
        if not inside:
            return _refusal(404, "EntryNotFound")
        listed = [{"type": "file", "path": f, "size": len(c), "oid": _etag(c)} for f, c in inside.items()]
        folders = {f.rpartition("/")[0] for f in files if "/" in f} if not folder else set()
        listed += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return 200, {}, json.dumps(listed).encode()

    def _file(self, repository: Repository, asked: str) -> tuple[int, dict[str, str], bytes]:
        revision, _, name = asked.partition("/")
        commit = repository.commit(revision)
        if commit is None or name not in repository.commits[commit]:
            return _refusal(404, "EntryNotFound")
        content = repository.commits[commit][name]
        return 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}, content


def _refusal(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b'{"error": "refused"}'


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield hub
    server.shutdown()
    server.server_close()


READ = """
import json, sys
from potstill.data import read_records, source_digests
from potstill.errors import DataError
from potstill.recipe.data import HubData
for asked in json.loads(sys.argv[1]):
    settings = HubData(kind="hub", **asked)
    try:
        digests, result = source_digests(settings), read_records(settings)
        records = [record.to_dict() for record in result.records]
        found = {"digests": digests, "records": records, "counts": result.counts}
    except DataError as error:
        found = {"error": str(error)}
    print("FOUND", json.dumps(found))
"""


def read(home: Path, *asked: dict[str, str], offline: bool = False) -> list[dict[str, Any]]:
    """What a fresh process reads, whose Hugging Face folders are in `home`: for each of several settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") or key == "HF_ENDPOINT"}
    own = {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if offline:
        own["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-c", READ, json.dumps(asked)]
    done = subprocess.run(command, env={**kept, **own}, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert len(said) == len(asked)
    return [json.loads(line) for line in said]


def lines(*prompts: str) -> Files:
    return {
        "README.md": b"# A data set\n",
        "data/train.jsonl": "".join(json.dumps({"prompt": p}) + "\n" for p in prompts).encode(),
    }


def prompts(found: dict[str, Any]) -> list[str]:
    assert "records" in found, found
    return [record["prompt"] for record in found["records"]]


def test_a_data_set_is_read_at_the_commit_that_its_revision_names(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["us/prompts"] = Repository({FIRST: lines("a", "b", "a")}, {"main": FIRST})
    (found,) = read(tmp_path, {"id": "us/prompts", "licence": "MIT"})
    assert prompts(found) == ["a", "b"] and found["counts"] == {"read": 3, "exact duplicate": 1}
    assert found["digests"] == {"data": f"hub:us/prompts@{FIRST}"}
    assert found["records"][1]["row"] == 2
    assert found["records"][1]["provenance"]["source"] == f"hub:us/prompts@{FIRST[:12]}"
    assert found["records"][1]["provenance"]["licence"] == "MIT"

    # The branch moves on: what is read follows it, unless the recipe names the commit.
    hub.repositories["us/prompts"].commits[SECOND] = lines("c")
    hub.repositories["us/prompts"].branches["main"] = SECOND
    now, then = read(tmp_path, {"id": "us/prompts"}, {"id": "us/prompts", "revision": FIRST})
    assert prompts(now) == ["c"] and now["digests"] == {"data": f"hub:us/prompts@{SECOND}"}
    assert prompts(then) == ["a", "b"]


def test_without_a_network_only_the_very_commit_that_was_fetched_will_do(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["us/prompts"] = Repository({FIRST: lines("a")}, {"main": FIRST})
    read(tmp_path, {"id": "us/prompts"})
    asked = len(hub.requests)
    ways = [{"id": "us/prompts", "revision": FIRST}, {"id": "us/prompts", "revision": SECOND}, {"id": "us/prompts"}]
    fetched, other, branch = read(tmp_path, *ways, offline=True)
    assert prompts(fetched) == ["a"]
    # Left to itself, `datasets` takes any version that it finds.
    assert "only another version of it is cached" in other["error"]
    assert "cannot be reached" in branch["error"] and "set data.revision to a commit" in branch["error"]
    assert len(hub.requests) == asked


def test_what_a_hub_refuses_is_said_in_words(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["us/prompts"] = Repository({FIRST: lines("a")}, {"main": FIRST})
    hub.repositories["us/secret"] = Repository({FIRST: lines("a")}, {"main": FIRST}, gated=True)
    refused = {
        "hub:us/promts: the hub has no such data set": {"id": "us/promts"},
        "is gated": {"id": "us/secret"},
        "no revision 'v2'": {"id": "us/prompts", "revision": "v2"},
        "Unknown split \"test\". Should be one of ['train']": {"id": "us/prompts", "split": "test"},
        "not an id of the hub": {"id": "us prompts"},
    }
    for words, found in zip(refused, read(tmp_path, *refused.values()), strict=True):
        assert words in found["error"]
