"""Tasks of lm-eval on our models: log-probabilities as lm-eval's own, results paired question by question."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("lm_eval")

from potstill.errors import DataError
from potstill.evaluate.measures.lm_eval import OurModel
from potstill.evaluate.stage import stage
from potstill.measures import Figures, Measures
from small_run import CHAT, SmallRun
from tiny_models import tiny_model

CHOICES = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
WRITTEN = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""


def folder_of(path: Path) -> Path:
    """Task files, and their questions."""
    tasks = path / "tasks"
    tasks.mkdir()
    file = path / "questions.jsonl"
    rows = [
        {
            "question": f"Copper or malt, number {n}?",
            "choices": ["copper", "malt", "peat"],
            "answer": n % 3,
            "said": "x",
        }
        for n in range(12)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    (tasks / "colours.yaml").write_text(CHOICES % file)
    (tasks / "words.yaml").write_text(WRITTEN % file)
    return tasks


def measured(run: SmallRun) -> tuple[Path, Measures]:
    context = run.context()
    stage(run.recipe).write(context)
    return context.out, Measures.load(context.out / "measures.json")


def test_results_of_every_question_are_paired_with_the_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # which is no git repository
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    asked = {"kind": "lm_eval", "folder": str(folder_of(tmp_path)), "tasks": ["colours", "words"]}
    run = SmallRun(tmp_path, evaluate={"samples_shown": 0, "measures": [{"kind": "fidelity"}, asked]})
    out, measures = measured(run)
    assert "fatal" not in capfd.readouterr().err, "git's word about a folder that is none of its"
    table = pq.read_table(out / "lm_eval.parquet").to_pydict()
    of_colours = np.array([task == "colours" for task in table["task"]])
    assert of_colours.sum() == 12 and len(of_colours) == 24
    for name in ("teacher", "student", "text_only", "untrained"):
        right = np.array(table[f"correct_{name}"])
        assert measures.models[name].metrics["colours_accuracy"].value == pytest.approx(right[of_colours].mean())
        assert not right[~of_colours].any()
    colours = next(f for f in measures.findings if isinstance(f, Figures) and f.title == "colours: 12 questions")
    assert colours.text.startswith("Chance is 33.3 %") and "McNemar" in colours.text
    with pytest.raises(DataError, match="there is no task 'colors'"):
        wrong = SimpleNamespace(**{**asked, "tasks": ("colors",), "folder": Path(asked["folder"])})
        from potstill.evaluate.measures.lm_eval import Harness

        Harness(wrong, None)  # type: ignore[arg-type]


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_log_probabilities_are_those_of_the_whole_text() -> None:
    model = tiny_model()
    adapter = OurModel(model, CHAT, None)
    context, continuation = "What is copper? ", "malt and peat"
    ((score, greedy),) = adapter.loglikelihood([request(context, continuation)])
    before, ids = list(CHAT.encode(context.rstrip()).ids), list(CHAT.encode(context + continuation).ids)
    whole = [*CHAT.leading, *ids]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    first = len(CHAT.leading) + len(before)
    expected = sum(float(logs[i - 1, whole[i]]) for i in range(first, len(whole)))
    assert score == pytest.approx(expected, abs=1e-3) and not greedy
    (rolling,) = adapter.loglikelihood_rolling([request("malt and peat")])
    assert rolling < 0


def test_an_answer_ends_before_the_text_that_ends_it() -> None:
    adapter = OurModel(tiny_model(), CHAT, None)
    (whole,) = adapter.generate_until([request("What is malt?", {"max_gen_toks": 12})])
    assert len(whole) > 4
    end = whole[3]
    (cut,) = adapter.generate_until([request("What is malt?", {"max_gen_toks": 12, "until": [end]})])
    assert cut == whole[: whole.index(end)]
