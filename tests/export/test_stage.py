"""Every export has a folder of its own, and reads the card where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from potstill.export.stage import stage
from potstill.recipe import Recipe, parse_recipe

KINDS = [{"kind": "huggingface"}, {"kind": "huggingface", "dtype": "bfloat16"}, {"kind": "huggingface"}]


def recipe_of(evaluate: bool, tiny_llama: Path, card: bool = True) -> Recipe:
    document = {
        "name": "n",
        "teacher": {"kind": "local", "model": str(tiny_llama)},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "x.jsonl"},
        "train": {},
        "export": [k | {"model_card": card} for k in KINDS],
    }
    return parse_recipe(document | ({"evaluate": {}} if evaluate else {}), base=Path("/"))


def test_exports_of_one_kind_have_different_folders_and_keys(tiny_llama: Path) -> None:
    recipe = recipe_of(False, tiny_llama)
    stages = [stage(recipe, i) for i in range(3)]
    assert [s.name for s in stages] == ["export.huggingface", "export.huggingface-2", "export.huggingface-3"]
    assert len({s.key(recipe, {})[0] for s in stages}) == 3


@pytest.mark.parametrize(
    ("evaluate", "card", "reads"),
    [(True, True, ("train", "report")), (True, False, ("train",)), (False, True, ("train",))],
)
def test_the_report_is_read_only_for_its_card(
    evaluate: bool, card: bool, reads: tuple[str, ...], tiny_llama: Path
) -> None:
    assert stage(recipe_of(evaluate, tiny_llama, card), 0).reads == reads


def test_a_new_licence_text_is_a_new_export(tmp_path: Path, tiny_llama: Path) -> None:
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    recipe = recipe_of(False, tmp_path)
    before = stage(recipe, 0).key(recipe, {})[0]
    (tmp_path / "NOTICE").write_text("Made by somebody.")
    assert stage(recipe, 0).key(recipe, {})[0] != before


def test_keys_of_report_and_export_are_made_without_torch_or_altair() -> None:
    code = (
        "import sys, potstill.report.stage, potstill.export, potstill.export.stage;"
        "sys.exit(','.join({'torch', 'transformers', 'altair', 'vl_convert'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
