"""Drafts that cannot write ahead of their target are refused by the check, by name and with what would serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_speculation import recipe
from transformers import MambaConfig, MambaForCausalLM

from potstill.check import Findings, check_recipe
from potstill.errors import PotstillError
from potstill.heads import save_heads
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer, random_heads, tiny_model


def check(folder: Path, speculate: dict[str, Any], **changes: Any) -> Findings:
    return check_recipe(recipe(folder, speculate, **changes))


def errors(found: Findings) -> str:
    return "\n".join(str(finding.error) for finding in found.found if finding.level == "error")


def other_tokens(folder: Path) -> str:
    file = make_tiny_causal_lm(folder / "other") / "tokenizer.json"
    stated = json.loads(file.read_text())
    vocabulary = stated["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(stated))
    return str(file.parent)


def recurrent(folder: Path) -> str:
    config = MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder / "recurrent")
    make_tiny_tokenizer().save_pretrained(folder / "recurrent")
    return str(folder / "recurrent")


def hybrid(folder: Path) -> str:
    model = make_tiny_causal_lm(folder / "hybrid", "qwen2")
    config = json.loads((model / "config.json").read_text())
    config["layer_types"] = ["full_attention", "linear_attention", "full_attention", "full_attention"]
    (model / "config.json").write_text(json.dumps(config))
    return str(model)


def heads(folder: Path, without: str | None = None, **shape: Any) -> str:
    save_heads(random_heads(tiny_model(**shape), 2), folder / "heads")
    if without is not None:
        (folder / "heads" / without).unlink()
    return str(folder / "heads")


def written(file: Path, text: str = "") -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return str(file)


REFUSED: dict[str, tuple[Any, str, str]] = {
    "other tokens": (lambda f: {"kind": "model", "model": other_tokens(f)}, "2 tokens differ", "kind: lookup"),
    "a recurrent draft": (lambda f: {"kind": "model", "model": recurrent(f)}, "cannot be rolled back", "attention"),
    "a hybrid draft": (lambda f: {"kind": "model", "model": hybrid(f)}, "linear_attention", "attention"),
    "other rows": (
        lambda f: {"kind": "model", "model": str(make_tiny_causal_lm(f / "padded", vocab=320))},
        "320 rows and the target's 259",
        "at most 259",
    ),
    "too many layers": (lambda f: {"kind": "layers", "layers": 4}, "target that has 4", "1 to 3 layers"),
    "no model": (lambda f: {"kind": "model", "model": str(f / "nothing")}, "nothing", "path"),
    "no heads": (
        lambda f: {"kind": "medusa", "weights": str(f / "nothing")},
        "nothing does not exist",
        "a folder that speculate exported",
    ),
    "a file in place of heads": (
        lambda f: {"kind": "medusa", "weights": written(f / "heads.safetensors")},
        "heads.safetensors is a file",
        "exported",
    ),
    "heads without weights": (
        lambda f: {"kind": "medusa", "weights": heads(f, without="model.safetensors")},
        "heads has no model.safetensors",
        "exported",
    ),
    "a model in place of heads": (
        lambda f: {"kind": "medusa", "weights": str(make_tiny_causal_lm(f / "model"))},
        "model_type llama, not medusa",
        "exported",
    ),
    "heads that state no keys": (
        lambda f: {"kind": "medusa", "weights": str(Path(written(Path(heads(f)) / "config.json", "[]")).parent)},
        "model_type None, not medusa",
        "exported",
    ),
    "heads of a broken file": (
        lambda f: {"kind": "medusa", "weights": str(Path(written(Path(heads(f)) / "config.json", "{")).parent)},
        "config.json cannot be read",
        "exported",
    ),
    "heads of another target": (
        lambda f: {"kind": "medusa", "weights": heads(f, hidden=48)},
        "hidden_size 48, and the target has 32",
        "on this target",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_draft_that_cannot_write_ahead_is_refused_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    draft, said, fix = REFUSED[name]
    text = errors(check(tmp_path, {"draft": draft(tmp_path)}))
    assert said in text and fix in text.partition("fix:")[2] and "[Errno" not in text


def test_a_target_that_cannot_be_rolled_back_is_refused(tmp_path: Path) -> None:
    teacher = {"kind": "local", "model": recurrent(tmp_path), "device": "cpu"}
    text = errors(check(tmp_path, {"draft": {"kind": "lookup"}}, teacher=teacher))
    assert "MambaForCausalLM cannot decode speculatively" in text and "speculate.target" in text


def test_a_quantised_target_is_refused_while_parsing(tmp_path: Path) -> None:
    make_tiny_causal_lm(tmp_path / "teacher")
    teacher = {"kind": "local", "model": str(tmp_path / "teacher"), "quantization": "bnb_4bit"}
    with pytest.raises(PotstillError, match="without quantization"):
        recipe(tmp_path, {}, teacher=teacher)


def test_what_fits_is_said_and_a_shorter_context_is_a_warning(tmp_path: Path) -> None:
    found = check(tmp_path, {"draft": {"kind": "layers", "layers": 2}})
    assert not errors(found)
    said = [finding.text for finding in found.found if finding.topic == "speculate"]
    assert any("first 2 of 4 layers" in text for text in said) and any("prompts" in text for text in said)
    short = str(make_tiny_causal_lm(tmp_path / "short", max_position_embeddings=40))
    found = check(tmp_path, {"draft": {"kind": "model", "model": short}})
    warned = [finding.text for finding in found.found if finding.level == "warning" and finding.topic == "speculate"]
    assert not errors(found) and any("context has 40 tokens" in text for text in warned)


def test_prompts_that_leave_no_room_are_refused(tmp_path: Path) -> None:
    text = errors(check(tmp_path, {"max_new_tokens": 600}))
    assert "two prompts at least" in text and "lower speculate.max_new_tokens" in text
