"""Killed at random moments, a capture of any kind ends byte for byte as one that was not interrupted."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from capture.kills import capture
from capture.test_features import ARGS, LABELS, MINILM, RKD, SMALLER, TINYBERT, recipe_file, texts
from capture.test_served import Engine, recipe
from train.recipes import write_recipe
from train.small import WORDS

from potstill.types import LIKELIEST
from tiny_models import make_tiny_causal_lm, make_tiny_classifier, make_tiny_encoder, make_tiny_tokenizer

SMALL = {"batch_tokens": 120, "shard_tokens": 600, "sample_tokens": 1}
RELATIONS = [{"kind": "forward_kl"}, {"kind": "attention_kl"}, {"kind": "hidden_mse", "layers": "every_other"}]


def of_text(folder: Path, **captured: Any) -> Path:
    """A language model's distributions, and what is asked for beside them."""
    train = {"objectives": RELATIONS} if "features" in captured else {}
    return write_recipe(folder, make_tiny_causal_lm(folder / "teacher"), train=train, capture={**captured, **SMALL})


def of_examples(folder: Path, task: str, objectives: list[dict[str, Any]], **captured: Any) -> Path:
    """Logits of classes, layers, relations and embeddings of encoders."""
    classes = task == "sequence_classification"
    make = make_tiny_classifier if classes else make_tiny_encoder
    document = {
        "task": task,
        "teacher": {
            "kind": "local",
            "model": str(make(folder / "teacher", **({"labels": LABELS} if classes else {}))),
            "device": "cpu",
        },
        "student": SMALLER,
        "data": texts(folder),
        "train": {"objectives": objectives, "args": ARGS, "max_length": 32},
        "capture": {**captured, **SMALL, "shard_tokens": 200},
    }
    return recipe_file(folder, document)


def of_server(folder: Path, wire: str) -> Path:
    """Log-probabilities of a server that goes on running."""
    engine = Engine()
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    return recipe(folder, make_tiny_causal_lm(folder / "teacher"), engine, wire, **SMALL)


def of_answers(folder: Path) -> Path:
    """What a server gave with its own answers."""
    path, encoded = of_server(folder, "vllm"), make_tiny_tokenizer()
    document = yaml.safe_load(path.read_text())
    del document["teacher"]["prompt_logprobs"]
    document["teacher"] |= {"answer_logprobs": 2}
    document["capture"] |= {"k": 2}
    rows = []
    for number in range(40):
        answer = " ".join(WORDS[number % 5 : number % 9 + 2]) or "still"
        tokens = encoded(answer, add_special_tokens=False).input_ids
        likeliest = [[token, -0.5, [[token, -0.5], [3, -2.0]]] for token in tokens]
        rows.append({"prompt": f"say {number}", "completion": answer, "metadata": {LIKELIEST: likeliest}})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path.write_text(yaml.safe_dump(document))
    return path


KINDS: Mapping[str, Callable[[Path], Path]] = {
    "threshold": lambda f: of_text(f, kind="threshold", bytes_per_token=20),
    "sampled": lambda f: of_text(f, kind="sampled"),
    "topk": lambda f: of_text(f, kind="topk", k=8),
    "hidden": lambda f: of_text(f, kind="hidden", dtype="int8"),
    "dense_of_tokens": lambda f: of_text(f, kind="dense"),
    "relations": lambda f: of_text(f, kind="threshold", tau=0.02, features="asked"),
    "classes_with_layers": lambda f: of_examples(
        f, "sequence_classification", TINYBERT, kind="dense", features="asked"
    ),
    "relations_alone": lambda f: of_examples(f, "sequence_classification", MINILM, kind="features", features="asked"),
    "pooled": lambda f: of_examples(f, "sentence_embedding", RKD, kind="features", features="asked"),
    "server": lambda f: of_server(f, "vllm"),
    "answers_of_a_server": of_answers,
}


def digests(run: Path) -> dict[str, str]:
    """Of every file of its stores."""
    stores = sorted(run.glob("capture*/store"))
    files = [file for store in stores for file in sorted(store.rglob("*")) if file.is_file()]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def killed(path: Path, folder: Path, kills: int, seed: str, before: Path | None = None) -> tuple[int, int]:
    """Kill captures at random moments until there were so many kills, and compare each that ends with an uninterrupted
    one: how many were killed, and how many ended. Each begins with the run folder `before`, or with none."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["capture.kills"])

    def started(run: str) -> Any:
        if before is not None and not (folder / run).exists():
            shutil.copytree(before, folder / run)
        process = processes.Process(target=capture, args=(path, folder / run))
        process.start()
        return process

    started("warm").join()
    began = time.monotonic()
    started("whole").join()
    seconds, whole, chosen = time.monotonic() - began, digests(folder / "whole"), random.Random(seed)
    assert len([name for name in whole if name.endswith(".bin")]) >= 2
    done = ended = 0
    while done < kills or not ended:
        process = started("killed")
        process.join(chosen.uniform(0.1, 1.0) * seconds if done < kills else None)
        if process.exitcode is None:
            os.kill(process.pid, 9)
            process.join()
            done += 1
            continue
        assert process.exitcode == 0 and digests(folder / "killed") == whole
        shutil.rmtree(folder / "killed")
        ended += 1
    return done, ended


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_20_random_moments_it_is_byte_for_byte_the_same(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, ended = killed(KINDS[kind](tmp_path), tmp_path, 20, kind)
    with capsys.disabled():
        print(f"{kind}: {done} kills, {ended} stores equal")


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_killed_at_20_random_moments_a_store_that_grows_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = KINDS["hidden"](tmp_path), tmp_path / "data.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[4:25]), encoding="utf-8")
    capture(path, tmp_path / "before")
    data.write_text("\n".join(lines[:-2]), encoding="utf-8")
    done, ended = killed(path, tmp_path, 20, "grown", tmp_path / "before")
    counts = json.loads((tmp_path / "whole/capture/manifest.json").read_text())["counts"]
    assert counts["taken over"] == 21 and counts["records"] == len(lines) - 2
    with capsys.disabled():
        print(f"grown: {done} kills, {ended} stores equal")
