"""An exported student opens without potstill, answers, stops, and holds nothing that is not a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from potstill.artifacts import Artifact, Work, read_artifact, write_artifact
from potstill.console import Console
from potstill.errors import ModelError, RunError
from potstill.export.end_tokens import end_tokens
from potstill.export.stage import stage
from potstill.recipe import Recipe, parse_recipe
from potstill.stage import Context
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer, tiny_model

WITHOUT_POTSTILL = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "potstill":
            raise ModuleNotFoundError("potstill is not here")
sys.meta_path.insert(0, Blocked())
try:
    import potstill
    sys.exit("potstill could be imported")
except ModuleNotFoundError:
    pass

import json
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
asked = [{"role": "user", "content": "Hi"}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
assert not any(name.partition(".")[0] == "potstill" for name in sys.modules)
print(json.dumps({"ids": answer, "text": tokenizer.decode(answer, skip_special_tokens=True)}))
"""

TURN_END = 2


def recipe_of(*exports: dict[str, Any], teacher: str, evaluate: bool = False) -> Recipe:
    document: dict[str, Any] = {
        "name": "exported",
        "teacher": {"kind": "local", "model": teacher},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "x.jsonl"},
        "train": {},
        "export": list(exports),
    }
    if evaluate:
        document["evaluate"] = {}
    return parse_recipe(document, base=Path("/"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student that learned to answer `Hello!` and to stop, as the train stage leaves it."""
    run = tmp_path_factory.mktemp("run")
    model, tokenizer = tiny_model("llama", layers=2, spread=0.1), make_tiny_tokenizer()
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    ids = tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)["input_ids"]
    begin = len(tokenizer.apply_chat_template(said[:1], add_generation_prompt=True, return_dict=True)["input_ids"])
    # The template writes a newline behind the end of the turn, which is not learned.
    ids = ids[:, : 1 + (ids[0] == TURN_END).nonzero()[-1]]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(ids).logits[0, begin - 1 : -1], ids[0, begin:]).backward()
        optimizer.step()
    with write_artifact(run, "train", "0" * 64, settings={}, inputs={}, seed=0) as work:
        folder = work.path / "model"
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for stray in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
            (folder / stray).write_bytes(b"not a model")
        for stray in ("projectors.safetensors", "adapter_model.safetensors"):
            save_file({"w": torch.zeros(2)}, folder / stray)
    make_tiny_causal_lm(run / "teacher")
    (run / "teacher" / "LICENSE").write_text("Do as you like.\n")
    return run


def export(run: Path, *exports: dict[str, Any], index: int = 0, report: Artifact | None = None) -> tuple[Path, Work]:
    recipe = recipe_of(*exports, teacher=str(run / "teacher"), evaluate=report is not None)
    made = stage(recipe, index)
    train = read_artifact(run / "train")
    assert train is not None
    inputs = {"train": train} | ({"report": report} if report is not None else {})
    with write_artifact(run, made.name, "1" * 64, settings={}, inputs={}, seed=0) as work:
        made.write(Context(recipe, run, {name: inputs[name] for name in made.reads}, work, Console("quiet")))
    return run / made.name, work


def test_it_answers_and_stops_where_potstill_cannot_be_imported(trained: Path) -> None:
    folder, _ = export(trained, {"kind": "huggingface"})
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_POTSTILL, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"ids": [*said["ids"][:-1], TURN_END], "text": "Hello!"}
    assert TURN_END not in said["ids"][:-1]


def test_weights_that_are_kept_are_the_trained_ones_byte_for_byte(trained: Path) -> None:
    folder, _ = export(trained, {"kind": "huggingface"})
    assert (folder / "model.safetensors").read_bytes() == (trained / "train/model/model.safetensors").read_bytes()


def test_nothing_is_exported_that_is_not_the_model(trained: Path) -> None:
    folder, _ = export(trained, {"kind": "huggingface"})
    assert {f.name for f in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "LICENSE", "README.md", "manifest.json"),
        *("provenance.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_precision_is_the_rounded_weights(trained: Path, dtype: str) -> None:
    folder, _ = export(trained, {"kind": "huggingface", "dtype": dtype})
    before, after = (load_file(f / "model.safetensors") for f in (trained / "train/model", folder))
    assert before.keys() == after.keys()
    wanted = getattr(torch, dtype)
    assert all(torch.equal(before[name].to(wanted), after[name]) for name in before)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [TURN_END]


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path, tiny_model("llama", layers=1))
    weights = run / "train/model/model.safetensors"
    changed = load_file(weights)
    changed["model.norm.weight"][3] = 1e5
    save_file(changed, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite in torch\.float16.*\n.*bfloat16"):
        export(run, {"kind": "huggingface", "dtype": "float16"})


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_stand_for_no_token_are_trimmed_and_counted(tmp_path: Path, tied: bool) -> None:
    model = tiny_model("llama", layers=1, vocab=320, tied=tied)
    run = run_with(tmp_path, model)
    folder, work = export(run, {"kind": "huggingface"})
    assert work.counts["output rows without a token, trimmed"] == 320 - 259
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert opened.config.vocab_size == 259
    ids = torch.tensor([[5, 9, 100, 258]])
    torch.testing.assert_close(opened(ids).logits, model(ids).logits[..., :259], rtol=0, atol=1e-6)


def test_the_end_of_a_turn_is_an_end_token_though_the_tokenizer_names_another(tmp_path: Path) -> None:
    run = run_with(tmp_path, tiny_model("llama", layers=1))
    model = run / "train/model"
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    assert end_tokens(model) == [0, TURN_END, 7]


def test_the_card_and_the_licence_go_along(trained: Path) -> None:
    with write_artifact(trained, "report", "2" * 64, settings={}, inputs={}, seed=0) as work:
        (work.path / "README.md").write_text("# The card\n")
    card = read_artifact(trained / "report")
    folder, _ = export(trained, {"kind": "huggingface"}, report=card)
    assert (folder / "README.md").read_text() == "# The card\n"
    assert (folder / "LICENSE").read_text() == "Do as you like.\n"
    folder, work = export(trained, {"kind": "huggingface", "model_card": False}, report=card)
    assert not (folder / "README.md").exists() and not work.warnings


def test_a_missing_card_is_said(trained: Path) -> None:
    folder, work = export(trained, {"kind": "huggingface"})
    assert "no figures" in work.warnings[0]
    assert "## Licences and terms" in (folder / "README.md").read_text()


def test_an_export_without_training_says_what_to_do(tmp_path: Path) -> None:
    make_tiny_causal_lm(tmp_path / "teacher")
    with write_artifact(tmp_path, "train", "0" * 64, settings={}, inputs={}, seed=0):
        pass
    with pytest.raises(RunError, match="no trained student"):
        export(tmp_path, {"kind": "huggingface"})


def run_with(run: Path, model: Any) -> Path:
    """A run whose student is this model."""
    with write_artifact(run, "train", "0" * 64, settings={}, inputs={}, seed=0) as work:
        model.save_pretrained(work.path / "model")
        make_tiny_tokenizer().save_pretrained(work.path / "model")
    make_tiny_causal_lm(run / "teacher")
    return run
