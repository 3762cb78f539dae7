"""From what a recipe calls a model to a folder: every form of name, and what each is refused for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models import locate, resolve, weights_digest

QUIET = Console("quiet")


def test_a_folder_is_used_where_it_is(tiny_llama: Path) -> None:
    source = resolve(str(tiny_llama), console=QUIET)
    assert source == locate(str(tiny_llama))
    assert (source.path, source.name, source.notes) == (tiny_llama, tiny_llama.name, ())
    assert source.digest == weights_digest(tiny_llama)


def test_a_relative_folder_and_one_in_the_home_are_found(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("some/model", console=QUIET).digest == resolve("~/some/model", console=QUIET).digest


def test_the_student_of_another_run_is_its_trained_model(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "half" / "train" / "model")
    source = resolve(f"run:{tmp_path}/half", console=QUIET)
    assert (source.path, source.name) == (tmp_path / "half/train/model", "run:half")


def refusal(model: str, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(model, revision=revision, console=QUIET)
    assert caught.value.fix, "an error says what to do"
    return str(caught.value)


def test_a_run_without_a_student_says_how_to_train_one(tmp_path: Path) -> None:
    assert "there is no such run" in refusal(f"run:{tmp_path}/none")
    said = refusal(f"run:{tmp_path}")
    assert "there is no trained student" in said and "potstill train" in said


@pytest.mark.parametrize("path", ["/no/such/model", "./none", "a/b/c", "none.gguf", "~/none"])
def test_a_path_to_nothing_is_no_hub_id(path: str) -> None:
    assert "there is no such model" in refusal(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "and no GGUF file" in refusal(str(tmp_path / "model.safetensors"))


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert "did you mean 'smollm2-135m-instruct'?" in refusal("smollm2-135m-instuct")


def test_a_hub_model_that_is_not_here_is_not_located_and_asks_for_nothing() -> None:
    assert locate("some/model") is None


def test_a_hub_model_offline_says_so_and_names_the_package_that_holds_it() -> None:
    said = refusal("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "is not on this disk" in said and "offline" in said
    assert "model: smollm2-135m-instruct is the same model" in said
    assert "hf download" in refusal("some/model")


def test_code_of_its_own_is_refused_unless_the_recipe_trusts_it(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "strange"))
    config = (folder / "config.json").read_text().replace('"llama"', '"strange", "auto_map": {"AutoConfig": "code.S"}')
    (folder / "config.json").write_text(config)
    assert "runs code of its own (code.py)" in refusal(str(folder))
    assert resolve(str(folder), trust_remote_code=True, console=QUIET).path == folder
