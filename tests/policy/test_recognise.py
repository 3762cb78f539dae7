"""The licence is found where it stands: card, text, GGUF file, data set's info, host, name; else in the recipe."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.policy.recognise import licence_files, licence_of_data, licence_of_model
from potstill.recipe import Recipe
from tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).parents[2]
APACHE = (ROOT / "LICENSE").read_text(encoding="utf-8")


def recipe(**sections: Any) -> Recipe:
    plain = {"name": "asked", "data": {"kind": "jsonl", "path": "/nowhere/rows.jsonl"}, **sections}
    return Recipe.model_validate(plain)


def sources_of_teacher(**teacher: Any) -> set[str]:
    made = recipe(teacher={"kind": "local", **teacher})
    return {evidence.source for evidence in licence_of_model(made.teachers["main"])}


def sources_of_data(**data: Any) -> set[str]:
    task = "image_classification" if data["kind"] in ("digits", "idx") else "causal_lm"
    return {evidence.source for evidence in licence_of_data(recipe(task=task, data=data).data)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def write(model: Path) -> Callable[..., Path]:
    def written(**files: str) -> Path:
        for name in ("README.md", "LICENSE"):
            (model / name).unlink(missing_ok=True)
            if name in files:
                (model / name).write_text(files[name], encoding="utf-8")
        return model

    return written


def test_a_model_that_states_nothing_has_no_known_licence(write: Callable[..., Path]) -> None:
    assert sources_of_teacher(model=str(write())) == {""}


def test_a_card_states_it(write: Callable[..., Path]) -> None:
    assert sources_of_teacher(model=str(write(**{"README.md": "---\nlicense: gemma\n---\n"}))) == {"gemma-2025-03"}
    named = "---\nlicense: other\nlicense_name: qwen-research\n---\n"
    assert sources_of_teacher(model=str(write(**{"README.md": named}))) == {"qwen-research"}


@pytest.mark.parametrize(
    ("front", "sources"),
    [
        ("\ufeff---\nlicense: gemma\n---\n", {"gemma-2025-03"}),
        ("\n---\nlicense: gemma\n---\n", {"gemma-2025-03"}),
        ("---\nlicense: Other\nlicense_name: llama3.1\n---\n", {"llama-3.1"}),
        ("---\nlicense: [mit, cc-by-nc-4.0]\n---\n", {"mit", "cc-by-nc-4.0"}),
        ("---\ntags: [a---b]\nlicense: gemma\n---\n", {"gemma-2025-03"}),
    ],
)
def test_a_card_is_read_however_its_front_is_written(write: Callable[..., Path], front: str, sources: set[str]) -> None:
    assert sources_of_teacher(model=str(write(**{"README.md": front}))) == sources


def test_the_name_of_a_licences_file_may_be_in_any_case(write: Callable[..., Path]) -> None:
    folder = write(**{"README.md": "---\nlicense: mit\n---\n"})
    file = folder / "license.txt"
    file.write_text(APACHE, encoding="utf-8")
    try:
        assert sources_of_teacher(model=str(folder)) == {"mit", "apache-2.0"}
    finally:
        file.unlink()


def test_a_text_and_a_card_that_differ_are_both_asked(write: Callable[..., Path]) -> None:
    files = {"README.md": "---\nlicense: mit\n---\n", "LICENSE": APACHE}
    assert sources_of_teacher(model=str(write(**files))) == {"mit", "apache-2.0"}


def test_a_text_that_only_resembles_one_is_not_known(write: Callable[..., Path]) -> None:
    text = APACHE.replace("2. Grant of Copyright License.", "2. Grant. No model may be trained on the Work by anyone.")
    evidence = licence_of_model(recipe(teacher={"kind": "local", "model": str(write(LICENSE=text))}).teachers["main"])
    assert [found.source for found in evidence] == [""]
    assert "resembles apache-2.0" in evidence[0].stated


def test_a_statement_of_the_recipe_answers_for_what_is_not_found(write: Callable[..., Path]) -> None:
    statement = {"id": "mit", "attested_by": "A. Person", "on": "2026-11-27", "why": "the maker wrote to us"}
    assert sources_of_teacher(model=str(write()), licence=statement) == {"mit"}


def test_a_statement_does_not_replace_what_is_found(write: Callable[..., Path]) -> None:
    folder = write(**{"README.md": "---\nlicense: cc-by-nc-4.0\n---\n"})
    assert sources_of_teacher(model=str(folder), licence="mit") == {"mit", "cc-by-nc-4.0"}


def gguf_file(folder: Path, **metadata: str) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    for key, value in metadata.items():
        writer.add_string(key, value)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    return folder / "m.gguf"


def test_a_gguf_file_states_it(tmp_path: Path) -> None:
    assert sources_of_teacher(model=str(gguf_file(tmp_path, **{"general.license": "llama3.2"}))) == {"llama-3.2"}


@pytest.mark.parametrize(
    ("front", "sources"),
    [
        ("license: mit\nbase_model: meta-llama/Llama-2-7b-hf", {"mit", "llama-2"}),
        ("license: mit\nbase_model: [google/gemma-2b, meta-llama/Llama-3.1-8B]", {"mit", "gemma-2025-03", "llama-3.1"}),
        ("base_model: meta-llama/Llama-2-7b-hf", {"llama-2"}),
        ("license: mit\nbase_model: somebody/something", {"mit"}),
        ("base_model: somebody/something", {""}),
        ("license: mit\nbase_model: {a: 1}", {"mit"}),
        ("license: mit\nbase_model:", {"mit"}),
    ],
)
def test_a_card_names_the_model_that_it_was_made_from(
    write: Callable[..., Path], front: str, sources: set[str]
) -> None:
    """A fine-tuned Llama that its maker calls MIT is under Llama's licence too."""
    assert sources_of_teacher(model=str(write(**{"README.md": f"---\n{front}\n---\n"}))) == sources


@pytest.mark.parametrize(
    "base",
    [
        {"repo_url": "https://huggingface.co/meta-llama/Llama-2-7b-hf"},
        {"organization": "Meta Llama", "name": "Llama 2 7b Hf"},
    ],
)
def test_a_gguf_file_names_it_too(tmp_path: Path, base: dict[str, str]) -> None:
    file = gguf_file(
        tmp_path, **{"general.license": "mit"}, **{f"general.base_model.0.{k}": v for k, v in base.items()}
    )
    assert sources_of_teacher(model=str(file)) == {"mit", "llama-2"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_a_text_is_read_however_it_is_encoded(write: Callable[..., Path], encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    text = f"© 2020 A. Person\r\n{APACHE}".replace("\n", "\r\n")
    folder = write()
    (folder / "LICENSE").write_bytes(mark + text.encode(encoding))
    assert sources_of_teacher(model=str(folder)) == {"apache-2.0"}


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("LICENSE", True),
        ("MODEL_LICENSE", True),
        ("Tongyi Qianwen LICENSE AGREEMENT.md", True),
        ("Copying.txt", True),
        ("licensed_words.txt", False),
        ("license_check.py", False),
        ("relicense", False),
    ],
)
def test_which_files_hold_a_licence(tmp_path: Path, name: str, is_one: bool) -> None:
    (tmp_path / name).write_text("text")
    assert [file.name for file in licence_files(tmp_path)] == ([name] if is_one else [])


@pytest.mark.parametrize(
    ("url", "model", "sources"),
    [
        ("https://api.openai.com/v1", "gpt-4o", {"openai-api"}),
        ("https://me.openai.azure.com/v1", "gpt-4o", {"azure-openai", "openai-api"}),
        ("https://api.together.xyz/v1", "meta-llama/Llama-3.1-8B-Instruct", {"together-api", "llama-3.1"}),
        ("https://api.anthropic.com/v1", "claude-sonnet-4", {"anthropic-api"}),
        ("http://127.0.0.1:8000/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct", {"apache-2.0"}),
        ("http://10.1.2.3:8000/v1", "Qwen/Qwen2.5-72B-Instruct", {"qwen-2024"}),
        ("http://gpu-box:8000/v1", "meta-llama/Llama-2-7b-chat-hf", {"llama-2"}),
        ("http://127.0.0.1:8000/v1", "teacher", {""}),
        ("https://api.nobody.example/v1", "teacher", {""}),
        ("https://notapi.openai.com.example/v1", "x", {""}),
        # The same servers by other spellings of their names and numbers.
        ("https://api.openai.com./v1", "x", {"openai-api"}),
        ("https://api\u3002openai\u3002com/v1", "x", {"openai-api"}),
        ("https://API.OpenAI.com:443/v1", "x", {"openai-api"}),
        ("http://134744072/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct", {"", "apache-2.0"}),
        ("http://0x8080808/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct", {"", "apache-2.0"}),
        ("http://[::ffff:8.8.8.8]/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct", {"", "apache-2.0"}),
        ("http://[::ffff:10.1.2.3]/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct", {"apache-2.0"}),
        # A proxy, which names whose model it passes on.
        ("http://127.0.0.1:4000/v1", "openai/gpt-4o", {"openai-api"}),
        ("http://127.0.0.1:4000/v1", "openrouter/openai/o3", {"openai-api"}),
        ("http://127.0.0.1:4000/v1", "ft:gpt-3.5-turbo:acme", {"openai-api"}),
        ("http://127.0.0.1:4000/v1", "openai/gpt-oss-120b", {""}),
        ("http://127.0.0.1:11434/v1", "llama2:7b", {"llama-2"}),
        ("http://127.0.0.1:11434/v1", "llama3.1:70b", {"llama-3.1"}),
        ("http://127.0.0.1:11434/v1", "gemma:2b", {"gemma-2025-03"}),
    ],
)
def test_a_server_is_under_the_terms_of_its_host_and_the_licence_of_its_model(
    url: str, model: str, sources: set[str]
) -> None:
    made = recipe(teacher={"kind": "endpoint", "base_url": url, "model": model})
    assert {evidence.source for evidence in licence_of_model(made.teachers["main"])} == sources


def test_data_are_under_what_their_source_states(tmp_path: Path) -> None:
    (tmp_path / "saved" / "train").mkdir(parents=True)
    (tmp_path / "saved" / "train" / "dataset_info.json").write_text(json.dumps({"license": "cc-by-sa-4.0"}))
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: odc-by\n---\n")
    assert sources_of_data(kind="datasets", path=str(tmp_path / "saved")) == {"cc-by-sa-4.0"}
    assert sources_of_data(kind="jsonl", path=str(tmp_path / "rows.jsonl")) == {"odc-by-1.0"}
    assert sources_of_data(kind="package", name="wikipedia") == {"cc-by-sa-3.0"}
    assert sources_of_data(kind="package", name="newsgroups") == {""}
    assert sources_of_data(kind="digits") == {"bsd-3-clause"}
    assert sources_of_data(kind="hub", id="somebody/something") == {""}
    assert sources_of_data(kind="hub", id="somebody/something", licence="own") == {"own"}


@pytest.mark.needs("fashion-mnist")
def test_a_debian_package_states_the_licence_of_its_data() -> None:
    assert sources_of_data(kind="idx") == {"mit"}
