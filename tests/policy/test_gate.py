"""What is not allowed stops with exit code 3, before anything is sent or written; an override stands for good."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mock_server import Mock, mock

from potstill.artifacts import read_artifact
from potstill.check import check_recipe
from potstill.cli import main
from potstill.console import Console
from potstill.errors import RefusedError
from potstill.pipeline import run_recipe
from potstill.policy.gate import rulings_on
from potstill.recipe import Recipe, load_recipe
from tiny_models import make_tiny_causal_lm

OVERRIDE = {
    "source": "llama-2",
    "reason": "our contract with the maker of 2026-01-07 allows it",
    "by": "A. Person",
    "on": "2026-11-27",
}
QUIET = Console("quiet")


@pytest.fixture(scope="module")
def server() -> Iterator[Mock]:
    with mock() as running:
        yield running


def write(folder: Path, **sections: Any) -> Path:
    rows = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}."} for n in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = {
        "name": "asked",
        "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.3, "licence": "own"},
        **sections,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return folder / "recipe.yaml"


def exit_code(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# ---- a blocked recipe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "generate", "train", "check"])
def test_a_blocked_recipe_sends_nothing_and_writes_nothing(
    command: str, server: Mock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(
        tmp_path,
        teacher={"kind": "endpoint", "base_url": server.url, "model": "meta-llama/Llama-2-7b-chat-hf"},
        student={"kind": "existing", "model": str(make_tiny_causal_lm(tmp_path / "student"))},
        generate={"kind": "sequence"},
        train={"objectives": [{"kind": "hard_ce"}]},
    )
    before, requests = files(tmp_path), server.stats()["requests"]
    run = [] if command == "check" else ["--run", str(tmp_path / "run")]
    assert exit_code(command, str(recipe), *run) == RefusedError.exit_code == 3
    said = "".join(capsys.readouterr())
    assert "Llama 2 Community License, §1(b)(v)" in said
    assert "policy.overrides" in said
    assert server.stats()["requests"] == requests
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_preview_is_refused_too(server: Mock, tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        teacher={"kind": "endpoint", "base_url": server.url, "model": "meta-llama/Llama-2-7b-chat-hf"},
        generate={"kind": "sequence"},
    )
    requests = server.stats()["requests"]
    assert exit_code("generate", str(recipe), "--preview", "2", "--run", str(tmp_path / "run")) == 3
    assert server.stats()["requests"] == requests


def test_an_overridden_one_is_asked(server: Mock, tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        teacher={"kind": "endpoint", "base_url": server.url, "model": "meta-llama/Llama-2-7b-chat-hf"},
        generate={"kind": "sequence"},
        policy={"overrides": [OVERRIDE]},
    )
    requests = server.stats()["requests"]
    run_recipe(load_recipe(recipe), tmp_path / "run", console=QUIET)
    assert server.stats()["requests"] > requests
    card = (tmp_path / "run" / "generate" / "README.md").read_text()
    assert "Llama 2 Community License" in card
    assert OVERRIDE["reason"] in card.replace("\\", "")


# ---- answers -----------------------------------------------------------------------------------------------------


def asked(folder: Path, **sections: Any) -> Recipe:
    return load_recipe(write(folder, **sections))


def test_what_is_not_known_warns_or_does_what_the_recipe_says(tmp_path: Path) -> None:
    teacher = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "teacher"}
    sections: dict[str, Any] = {"teacher": teacher, "generate": {"kind": "sequence"}}
    findings = check_recipe(asked(tmp_path, **sections))
    assert not findings.errors
    assert any("no licence is known of teachers.main (teacher)" in warning.text for warning in findings.warnings)
    strict = check_recipe(asked(tmp_path, **sections, policy={"unknown": "block"}))
    assert strict.exit_code == 3
    with pytest.raises(RefusedError, match=r"policy\.unknown is block"):
        rulings_on(asked(tmp_path, **sections, policy={"unknown": "block"})).refuse()
    override = {**OVERRIDE, "source": "unknown"}
    rulings_on(asked(tmp_path, **sections, policy={"unknown": "block", "overrides": [override]})).refuse()


def test_the_purpose_decides(tmp_path: Path) -> None:
    teacher = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "CohereForAI/c4ai-command-r-v01"}
    sections: dict[str, Any] = {"teacher": teacher, "generate": {"kind": "sequence"}}
    research = check_recipe(asked(tmp_path, **sections))
    assert not research.errors
    assert any("not for commercial use: cc-by-nc-4.0" in line for line in research.lines["policy"])
    assert check_recipe(asked(tmp_path, **sections, policy={"purpose": "commercial"})).exit_code == 3
    assert check_recipe(asked(tmp_path, **sections, policy={"purpose": ["research", "publish"]})).exit_code == 0


def test_an_override_that_overrides_nothing_is_named(tmp_path: Path) -> None:
    teacher = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "HuggingFaceTB/SmolLM2-1.7B"}
    findings = check_recipe(
        asked(tmp_path, teacher=teacher, generate={"kind": "sequence"}, policy={"overrides": [OVERRIDE]})
    )
    assert any("nothing here is blocked by llama-2" in warning.text for warning in findings.warnings)


def test_a_reason_is_a_sentence(tmp_path: Path) -> None:
    recipe = write(tmp_path, policy={"overrides": [{**OVERRIDE, "reason": "because"}]})
    assert exit_code("check", str(recipe)) == 2


def test_an_ensemble_states_licences_at_its_members(tmp_path: Path) -> None:
    members = [{"kind": "local", "model": "a", "licence": "mit"}, {"kind": "local", "model": "b", "licence": "own"}]
    teacher = {"kind": "ensemble", "members": members}
    recipe = write(tmp_path, teacher={**teacher, "licence": "mit"})
    assert exit_code("check", str(recipe)) == 2


def test_a_refusal_comes_before_other_errors(tmp_path: Path) -> None:
    teacher = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "gpt-4o"}
    recipe = asked(tmp_path, teacher=teacher, generate={"kind": "sequence"})
    (tmp_path / "rows.jsonl").unlink()
    findings = check_recipe(recipe)
    assert len(findings.errors) > 1
    with pytest.raises(RefusedError):
        findings.refuse()


# ---- for good ----------------------------------------------------------------------------------------------------


def test_an_override_stands_in_everything_that_was_made_under_it(tmp_path: Path) -> None:
    teacher = make_tiny_causal_lm(tmp_path / "teacher")
    (teacher / "README.md").write_text("---\nlicense: llama2\n---\n")
    sections: dict[str, Any] = {
        "teacher": {"kind": "local", "model": str(teacher)},
        "student": {"kind": "from_config", "config": {"num_hidden_layers": 1}},
        "train": {"args": {"max_steps": 2}},
        "evaluate": {"resamples": 20, "speed": False, "samples_shown": 1, "sample_tokens": 2},
        "export": [{"kind": "huggingface"}],
    }
    with pytest.raises(RefusedError, match="Llama 2"):
        run_recipe(asked(tmp_path, **sections), tmp_path / "run", console=QUIET)
    run = tmp_path / "run"
    run_recipe(asked(tmp_path, **sections, policy={"overrides": [OVERRIDE]}), run, console=QUIET)
    exported = run / "export.huggingface"
    for file in (
        run / "report" / "README.md",
        exported / "README.md",
        exported / "NOTICE",
        exported / "provenance.json",
    ):
        assert OVERRIDE["reason"] in file.read_text().replace("\\", ""), file
    artifact = read_artifact(run / "train")
    assert artifact is not None
    assert artifact.manifest["facts"]["policy"]["overrides"] == [OVERRIDE]
    # Another reason does not take the place of the first.
    other = {**OVERRIDE, "reason": "the maker has agreed in writing since then"}
    run_recipe(asked(tmp_path, **sections, policy={"overrides": [other]}), run, console=QUIET)
    card = (run / "report" / "README.md").read_text().replace("\\", "")
    assert OVERRIDE["reason"] in card
    assert other["reason"] in card
    # Without one nothing goes on, although every stage is fresh; and a student's student is under it too.
    with pytest.raises(RefusedError):
        run_recipe(asked(tmp_path, **sections), run, console=QUIET)
    for model in (f"run:{run}", str(exported)):
        next_one = {**sections, "teacher": {"kind": "local", "model": model}}
        rulings = rulings_on(asked(tmp_path, **next_one))
        assert {use.sources for use in rulings.provenance.uses if use.role == "teachers.main"} >= {("llama-2",)}
        assert OVERRIDE["reason"] in [override.reason for override in rulings.provenance.overrides]


def test_an_override_of_somebody_else_lifts_nothing(tmp_path: Path) -> None:
    """A model's own `provenance.json` would otherwise allow whatever its maker wrote into it, and for any purpose."""
    teacher = make_tiny_causal_lm(tmp_path / "teacher")
    use = {
        "role": "t",
        "name": "m",
        "route": "logits",
        "evidence": [{"source": "llama-2", "how": "card", "stated": ""}],
    }
    made = {"format": "potstill-provenance-1", "uses": [use], "overrides": [OVERRIDE]}
    (teacher / "provenance.json").write_text(json.dumps(made))
    sections: dict[str, Any] = {
        "teacher": {"kind": "local", "model": str(teacher)},
        "student": {"kind": "from_config", "config": {"num_hidden_layers": 1}},
        "train": {},
    }
    with pytest.raises(RefusedError, match="Llama 2"):
        rulings_on(asked(tmp_path, **sections)).refuse()
    own = {**OVERRIDE, "reason": "our own lawyers have read the agreement"}
    rulings = rulings_on(asked(tmp_path, **sections, policy={"overrides": [own]}))
    rulings.refuse()
    assert [override.reason for override in rulings.provenance.overrides] == [own["reason"], OVERRIDE["reason"]]


def test_a_draft_of_speculate_is_asked_about(tmp_path: Path) -> None:
    teacher = make_tiny_causal_lm(tmp_path / "teacher")
    (teacher / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    recipe = asked(
        tmp_path,
        teacher={"kind": "local", "model": str(teacher)},
        speculate={"draft": {"kind": "layers", "layers": 1}},
        policy={"purpose": "commercial"},
    )
    with pytest.raises(RefusedError, match="NonCommercial 4"):
        rulings_on(recipe).refuse()
    assert {use.route for use in rulings_on(recipe, "draft").provenance.uses} == {"weights", "data"}


def test_statements_and_overrides_are_read_as_the_page_prints_them(tmp_path: Path) -> None:
    """Every YAML block of docs/policy.md, as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)):
        data = "" if "data:" in block else "data: {kind: jsonl, path: rows.jsonl}\n"
        (tmp_path / f"{number}.yaml").write_text(f"name: printed\n{data}{block}")
        load_recipe(tmp_path / f"{number}.yaml")
    assert number >= 2
