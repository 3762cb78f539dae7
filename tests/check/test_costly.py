"""What a run would find out only after money or minutes were spent, the check finds from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import yaml
from models.gguf_families import write_family

from potstill.check import Findings, check_recipe
from potstill.recipe import load_recipe
from tiny_models import make_tiny_causal_lm

Check = Callable[..., Findings]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("models") / "teacher", num_hidden_layers=4)


@pytest.fixture
def check(tmp_path: Path, teacher: Path) -> Check:
    def checked(rows: list[dict[str, Any]] | None = None, **sections: Any) -> Findings:
        rows = rows or [{"prompt": f"What is {n} + {n}?", "reference": str(2 * n)} for n in range(40)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        document: dict[str, Any] = {
            "name": "checked",
            "teacher": {"kind": "local", "model": str(teacher)},
            "student": {"kind": "from_teacher"},
            "data": {"kind": "jsonl", "path": "rows.jsonl", "format": "prompt", "held_out": 0.2},
            "generate": {"kind": "sequence", "max_new_tokens": 16},
            "train": {},
            **sections,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
        return check_recipe(load_recipe(tmp_path / "recipe.yaml"))

    return checked


def judged(**verify: Any) -> dict[str, Any]:
    return {"generate": {"kind": "sequence", "max_new_tokens": 16, "verify": verify}}


def errors(findings: Findings) -> str:
    return "\n".join(str(finding.text) for finding in findings.errors)


def with_architecture(file: Path, name: str) -> None:
    """Another architecture of the same length in the header."""
    content = file.read_bytes()
    assert content.count(b"llama") > 1 and len(name) == 5
    file.write_bytes(content.replace(b"llama", name.encode()))


def test_a_gguf_file_that_cannot_be_converted_is_refused(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_family(file, "llama")
    assert not check(teacher={"kind": "local", "model": "model.gguf"}).errors
    with_architecture(file, "llima")
    assert "the architecture 'llima' is none that transformers converts" in errors(
        check(teacher={"kind": "local", "model": "model.gguf"})
    )


@pytest.mark.parametrize(("parts", "said"), [(3, "it is one of 3 parts"), (None, "it holds no tokenizer")])
def test_a_gguf_file_that_is_not_whole_is_refused(check: Check, tmp_path: Path, parts: int | None, said: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    if parts is not None:
        writer.add_uint16("split.count", parts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert said in errors(check(teacher={"kind": "local", "model": "model.gguf"}))


def test_a_schema_that_refers_to_nothing_is_refused(check: Check) -> None:
    def of(schema: dict[str, Any]) -> str:
        return errors(check(**judged(kind="json_schema", json_schema=schema)))

    assert "refers to ‘#/$defs/place’, which is not in it" in of({"items": {"$ref": "#/$defs/place"}})
    assert "other documents are not fetched" in of({"$ref": "https://example.org/place.json"})
    assert of({"$defs": {"place": {"type": "string"}}, "items": {"$ref": "#/$defs/place"}}) == ""
    assert of({"properties": {"a": {"$ref": "#"}}}) == ""


def test_references_that_are_none_of_the_choices_are_refused(check: Check) -> None:
    def of(reference: str, letters: str, **more: Any) -> str:
        rows = [{"prompt": f"Which is {n}?", "choices": list("wxyz"), "reference": reference} for n in range(20)]
        verify: dict[str, Any] = {"kind": "choice", "letters": letters}
        return errors(check(rows, **judged(**{**more, "of": [verify]} if more else verify)))

    for reference in ("D", "3", "z"):
        assert "none of the 20 prompts has a reference that is one of its choices" in of(reference, "AB")
        assert of(reference, "ABCD") == ""
    assert "has a reference that is one of its choices" in of("D", "AB", kind="all")


def test_data_of_the_hub_are_refused_where_the_hub_is_forbidden(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = {"kind": "hub", "id": "some/data", "held_out": 0.2}
    assert "HF_HUB_OFFLINE forbids to ask the hub for some/data" in errors(check(data=data))
    assert "HF_HUB_OFFLINE" not in errors(check(data={**data, "revision": "a" * 40})), "it may be in the cache"


def test_a_learning_rate_of_0_is_warned_of(check: Check) -> None:
    def warned(rate: float) -> bool:
        return "stays as it begins" in str(
            [finding.text for finding in check(train={"args": {"learning_rate": rate}}).found]
        )

    assert warned(0.0) and not warned(1e-4)


def test_a_student_that_is_its_teacher_is_warned_of(check: Check, teacher: Path) -> None:
    def warnings(**train: Any) -> str:
        found = check(student={"kind": "existing", "model": str(teacher)}, train=train).found
        return "\n".join(str(finding.text) for finding in found if finding.level == "warning")

    assert "it is the teacher itself" in warnings(objectives=[{"kind": "forward_kl"}])
    assert "it is the teacher itself" not in warnings(objectives=[{"kind": "forward_kl"}, {"kind": "hard_ce"}])
    assert "it is the teacher itself" not in warnings(objectives=[{"kind": "forward_kl"}], teacher_system="Be kind.")
