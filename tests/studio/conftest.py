"""A studio without a socket, and one that is served, over a folder of runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from report.synthetic import HOSTILE, Shape, recipe_of, write_report
from starlette.testclient import TestClient

from potstill.data import save_records
from potstill.data.split import Split
from potstill.recipe import dump_recipe
from potstill.studio.server import Server, Studio, free_socket, make_app
from potstill.types import Provenance, Record, Reject, Verdict


@dataclass
class Site:
    """A studio and a client that sends what a browser would."""

    studio: Studio
    client: TestClient

    def get(self, path: str = "", **headers: str):  # type: ignore[no-untyped-def]
        return self.client.get(f"/{self.studio.token}/{path}", headers=headers)

    def post(self, path: str, follow: bool = False, **form: str):  # type: ignore[no-untyped-def]
        headers = {"origin": "http://127.0.0.1:8765"}
        return self.client.post(f"/{self.studio.token}/{path}", data=form, headers=headers, follow_redirects=follow)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A studio over an empty folder."""
    studio = Studio(tmp_path / "runs")
    with TestClient(make_app(studio, 8765), base_url="http://127.0.0.1:8765") as client:
        yield Site(studio, client)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one in which every text wants to be more than text."""
    runs = tmp_path_factory.mktemp("hostile") / "runs"
    run, shape = runs / "hostile", Shape(text=HOSTILE)
    write_report(run, shape)
    (run / "recipe.yaml").write_text(dump_recipe(recipe_of(shape, run / "a-teacher")))
    text = HOSTILE.replace("\ud800", "")  # a file of records is UTF-8
    provenance = Provenance(source=text, teacher=text)
    verdicts = (Verdict("reject", text, verifier="a judge"),)
    made = [
        Record(prompt=f"{i} {text}", completion=text, group=f"{i:016x}", row=i, provenance=provenance,
               verdicts=verdicts)
        for i in range(50)
    ]  # fmt: skip
    save_records(run / "generate" / "records.parquet", made, Split(0.3, 0))
    reject = Reject("wrong answer", "prompts.jsonl", 3, HOSTILE, HOSTILE)
    (run / "generate" / "rejects.jsonl").write_text(json.dumps(asdict(reject)) + "\n")
    return runs


@pytest.fixture
def hostile_site(hostile_run: Path) -> Iterator[Site]:
    studio = Studio(hostile_run)
    with TestClient(make_app(studio, 8765), base_url="http://127.0.0.1:8765") as client:
        yield Site(studio, client)


@dataclass
class Served:
    """A studio that a browser can open."""

    studio: Studio
    address: str


def serve(runs: Path) -> Iterator[Served]:
    """Serve a folder of runs in a thread."""
    studio = Studio(runs)
    with free_socket(18765) as listening:
        port = listening.getsockname()[1]
        server = Server(studio, port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield Served(studio, f"http://127.0.0.1:{port}/{studio.token}")
        server.should_exit = True
        thread.join(10)
