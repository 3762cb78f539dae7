"""The Python that the pages show runs as it stands, with tiny models in the place of the real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> list[str]:
    blocks = re.findall(r"^```python\n((?s:.*?))^```$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
    assert blocks, f"{page} shows no Python"
    return blocks


@pytest.mark.slow
def test_the_python_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = python_blocks("README.md")
    teacher = make_tiny_causal_lm(tmp_path / "teacher", hidden=48, seed=1)
    student = make_tiny_causal_lm(tmp_path / "tiny", layers=2)
    named = {"HuggingFaceTB/SmolLM2-360M-Instruct": teacher, "HuggingFaceTB/SmolLM2-135M-Instruct": student}
    for hub_id, folder in named.items():
        assert hub_id in code
        code = code.replace(hub_id, str(folder))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    (tmp_path / "answers.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 4, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    history = names["trainer"].state.log_history  # type: ignore[attr-defined]
    assert any("train_loss" in entry for entry in history)


def test_the_python_of_the_docs_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    for code in python_blocks("docs/python.md"):
        exec(compile(code, "docs/python.md", "exec"), {})
    assert "max_steps: 100" in capsys.readouterr().out


def test_the_python_of_speculative_decoding_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(code for code in python_blocks("docs/speculate.md") if "from_pretrained" in code)
    target, draft = make_tiny_causal_lm(tmp_path / "target"), make_tiny_causal_lm(tmp_path / "draft", layers=2)
    named = {"HuggingFaceTB/SmolLM2-360M-Instruct": target, "HuggingFaceTB/SmolLM2-135M-Instruct": draft}
    for hub_id, folder in named.items():
        assert hub_id in code
        code = code.replace(hub_id, str(folder))
    names: dict[str, object] = {}
    exec(compile(code, "docs/speculate.md", "exec"), names)
    assert names["written"].shape[1] > names["input_ids"].shape[1]  # type: ignore[attr-defined]
    assert "A still is" in capsys.readouterr().out
