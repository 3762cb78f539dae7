"""The stage with a local model: in bfloat16, where an answer depends on what else is in its batch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from generate.run_generate import main

from potstill.artifacts import read_artifact
from potstill.data import load_records
from potstill.teachers import LocalModel
from potstill.types import Answer, Record, Request

SCRIPT = Path(__file__).parent / "run_generate.py"


def recipe_file(folder: Path, model: str, prompts: int, settings: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"Tell me about the number {n}{', please' * (n % 5)}."}) for n in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(
        f"name: local\nseed: 5\nteacher: {{kind: local, model: {model}, generate_dtype: bfloat16, device: cpu}}\n"
        f"data: {{kind: jsonl, path: prompts.jsonl, held_out: 0.2}}\ngenerate: {{kind: sequence, {settings}}}\n"
    )
    return folder / "recipe.yaml"


def records_of(run: Path) -> list[Record]:
    return load_records(run / "generate" / "records.parquet")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and lose much where something else is at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "settings",
    [
        "max_new_tokens: 12, batch_size: 5",
        "max_new_tokens: 12, batch_size: 6, samples: 2, temperature: 0.9, top_p: 0.9",
        "max_new_tokens: 12, batch_size: 9, samples: 2, beams: 3",
        "max_new_tokens: 12, batch_size: 5, token_budget: 220",
    ],
    ids=["greedy", "sampled", "beams", "budget"],
)
def test_a_run_broken_off_in_the_middle_ends_as_one_that_was_not(
    settings: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(recipe_file(tmp_path, str(tiny_llama), 24, settings))
    assert main(recipe, str(tmp_path / "whole")) == 0

    class PowerCut(BaseException):
        pass

    written, generate = [], LocalModel.generate

    def for_a_while(self: LocalModel, requests, *, seed, wrote=None):  # type: ignore[no-untyped-def]
        if len(written) in (2, 4):
            written.append(0)
            raise PowerCut
        written.append(len(requests))
        return generate(self, requests, seed=seed, wrote=wrote)

    monkeypatch.setattr(LocalModel, "generate", for_a_while)
    for _ in range(2):
        with pytest.raises(PowerCut):
            main(recipe, str(tmp_path / "broken"))
    monkeypatch.undo()
    assert main(recipe, str(tmp_path / "broken")) == 0
    assert records_of(tmp_path / "broken") == records_of(tmp_path / "whole")
    artifact = read_artifact(tmp_path / "broken" / "generate")
    assert artifact is not None and artifact.manifest["facts"]["answers_from_journal"] == sum(written)


def test_the_samples_of_a_record_are_its_beams_best_first(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the beams of a model are is tested with the teacher; here they are texts of ours."""

    def beams(self: LocalModel, requests: list[Request], *, seed: int, wrote: object = None) -> list[Answer]:
        assert {r.sampling.beams for r in requests} == {3}
        return [Answer(f"beam {r.sample} of {(r.messages or ())[-1]['content']}", "stop", 1, 1) for r in requests]

    monkeypatch.setattr(LocalModel, "generate", beams)
    recipe = recipe_file(tmp_path, str(tiny_llama), 6, "max_new_tokens: 8, batch_size: 6, samples: 3, beams: 3")
    assert main(str(recipe), str(tmp_path / "run")) == 0
    records = records_of(tmp_path / "run")
    assert len(records) == 18
    for record in records:
        question, answer = (message["content"] for message in (record.messages or ())[-2:])
        assert answer == f"beam {record.sample} of {question}"
    assert [r.sample for r in records] == [0, 1, 2] * 6


@pytest.mark.long
def test_smollm2_killed_in_the_middle_writes_the_same_rows(tmp_path: Path) -> None:
    """A real SIGKILL of the real model, in bfloat16, sampled; the journal's log tells when a batch is committed."""
    settings = "max_new_tokens: 24, batch_size: 4, temperature: 0.7"
    recipe = recipe_file(tmp_path, "smollm2-135m-instruct", 20, settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), str(recipe)]
    subprocess.run([*command, str(whole)], check=True)

    process, log, sizes = subprocess.Popen([*command, str(killed)]), killed / "journal.sqlite-wal", set[int]()
    while len(sizes) < 4 and process.poll() is None:  # it grows by the schema, and then by batches
        sizes |= {log.stat().st_size} if log.exists() else set()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "generate").exists()

    subprocess.run([*command, str(killed)], check=True)
    assert records_of(killed) == records_of(whole)
    artifact = read_artifact(killed / "generate")
    assert artifact is not None and 4 <= artifact.manifest["facts"]["answers_from_journal"] <= 16
