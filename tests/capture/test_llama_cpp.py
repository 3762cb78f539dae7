"""A real server: llama.cpp's, with SmolLM2, by the package `xllamacpp`. Its log-probabilities become a store, of
records that it is sent and of answers that it writes.

What it cannot do: score a prompt. `echo` is ignored, and `logprobs` are of written tokens alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from potstill.console import Console
from potstill.models import resolve
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe
from potstill.store.files import SignalStore

pytestmark = [pytest.mark.slow, pytest.mark.needs("llama.cpp's server")]

SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup = sys.argv[1], 1024, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
TEXTS = ("The brewer keeps the malt dry.", "A still needs a slow fire, and patience.", "Rye bread is dark.")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with SmolLM2 in 16 bits."""
    from potstill.export.gguf_file import write_gguf

    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    folder = resolve("smollm2-135m-instruct", console=Console("quiet")).path
    write_gguf(folder, file, "f16", end_tokens=[2], name="smollm2")
    command = [sys.executable, "-c", SERVE, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def recipe(tmp_path: Path, **changes: Any) -> Path:
    model = str(resolve("smollm2-135m-instruct", console=Console("quiet")).path)
    rows = [{"prompt": f"Say it again: {text}", "completion": text} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = {
        "name": "served",
        "teacher": {"kind": "local", "model": "smollm2-135m-instruct", "dtype": "float32"},
        "student": {"kind": "existing", "model": model},
        "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.34},
        "capture": {"kind": "topk", "k": 8, "max_length": 96},
        **changes,
    }
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "recipe.yaml"


def served(address: str, **more: Any) -> dict[str, Any]:
    model = str(resolve("smollm2-135m-instruct", console=Console("quiet")).path)
    base = {"kind": "endpoint", "base_url": f"{address}/v1", "model": "smollm2", "tokenizer": model}
    return base | {"licence": "apache-2.0", **more}


def test_texts_that_are_sent_get_the_local_models_distributions(tmp_path: Path, address: str) -> None:
    """The check before the first request compares with the weights beside the tokenizer, within 0.05 nats a token."""
    path = recipe(tmp_path, teacher=served(address, prompt_logprobs="llamacpp"))
    run_recipe(load_recipe(path), tmp_path / "served", console=Console("quiet"), verb="capture")
    run_recipe(load_recipe(recipe(tmp_path)), tmp_path / "here", console=Console("quiet"), verb="capture")
    theirs, ours = (SignalStore(tmp_path / name / "capture" / "store") for name in ("served", "here"))
    assert dict(theirs.records) == dict(ours.records) and len(ours) == 3
    for record, tokens in ours.records.items():
        one, other = ours.read(record, tokens), theirs.read(record, tokens)
        assert np.abs(one.target_log_prob - other.target_log_prob).max() < 0.05
        assert np.abs(np.exp(one.rest) - np.exp(other.rest)).max() < 0.01
    facts = json.loads((tmp_path / "served" / "capture" / "fidelity.json").read_text())
    assert facts["apart"] < 0.02


def test_answers_that_it_writes_bring_their_own(tmp_path: Path, address: str) -> None:
    path = recipe(
        tmp_path,
        teacher=served(address, answer_logprobs=8),
        generate={"kind": "sequence", "max_new_tokens": 24, "temperature": 0.7},
        train={"objectives": [{"kind": "forward_kl"}], "max_length": 96, "args": {"max_steps": 1, "use_cpu": True}},
    )
    run_recipe(load_recipe(path), tmp_path / "run", console=Console("quiet"))
    facts = json.loads((tmp_path / "run" / "capture" / "fidelity.json").read_text())
    store = SignalStore(tmp_path / "run" / "capture" / "store")
    assert facts["targets_without"] <= len(store), "at most the end token of each"
    assert 0 < facts["nll"] < 3 and facts["mass_left"] < 0.5
    assert (tmp_path / "run" / "train" / "model").is_dir()
