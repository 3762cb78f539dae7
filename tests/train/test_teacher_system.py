"""Context distillation: the teacher sees a system prompt that the student does not, in training and in evaluation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from potstill.data import ChatTokenizer
from potstill.data.reader import CausalReader
from potstill.data.tokenize import Tokenized
from potstill.errors import RecipeError
from potstill.evaluate.stage import stage as evaluate_stage
from potstill.recipe import Recipe, parse_recipe
from potstill.train import DistillTrainer
from potstill.train.stage import stage as train_stage
from small_run import records
from tiny_models import make_tiny_tokenizer, tiny_model

SYSTEM = "Answer as a cooper would."


def recipe(folder: Path, *objectives: dict[str, Any], **train: Any) -> Recipe:
    document = {
        "name": "told",
        "teacher": {"kind": "local", "model": "some/where"},
        "student": {"kind": "from_teacher"},
        "data": {"kind": "jsonl", "path": "rows.jsonl"},
        "train": {"objectives": list(objectives) or [{"kind": "forward_kl"}], **train},
        "evaluate": {},
    }
    (folder / "rows.jsonl").write_text('{"prompt": "What is malt?", "completion": "Grain."}\n')
    return parse_recipe(document, base=folder)


def held_out_kl(system: str | None, folder: Path) -> float:
    """KL(teacher ‖ student) on records, where the student is a copy of the teacher."""
    tokenizer = make_tiny_tokenizer()
    reader = CausalReader(ChatTokenizer.from_transformers(tokenizer), 200, system)
    rows = [row for record in records(6) for row in reader.rows(record) if isinstance(row, Tokenized)]
    teacher = tiny_model()
    trainer = DistillTrainer(
        model=copy.deepcopy(teacher),
        teacher=teacher,
        args=TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True),
        objectives=[{"kind": "forward_kl"}],
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )
    return float(trainer.evaluate()["eval_kl"])


def test_a_copy_of_the_teacher_differs_only_from_one_that_is_told_more(tmp_path: Path) -> None:
    assert held_out_kl(None, tmp_path) == pytest.approx(0, abs=1e-6)
    assert held_out_kl(SYSTEM, tmp_path) > 1e-3


def test_the_prompt_is_in_the_teachers_view_alone_and_the_same_tokens_are_learned() -> None:
    chat = ChatTokenizer.from_transformers(make_tiny_tokenizer())
    (row,) = CausalReader(chat, 200, SYSTEM).rows(records(1)[0])
    assert isinstance(row, Tokenized) and row.teacher is not None
    assert SYSTEM in chat.decode(row.teacher.input_ids) and SYSTEM not in chat.decode(row.input_ids)
    assert row.teacher.learned == row.learned


def test_another_prompt_is_another_training_and_another_evaluation(tmp_path: Path) -> None:
    for stage in (train_stage, evaluate_stage):
        settings = [stage(recipe(tmp_path, teacher_system=system)).settings for system in (None, SYSTEM, "Be brief.")]
        assert len({str(each) for each in settings}) == 3


@pytest.mark.parametrize(
    ("objective", "fix"),
    [
        ({"kind": "hard_ce"}, "no objective reads the teacher"),
        ({"kind": "hidden_mse", "over": "tokens"}, "set over: targets"),
        ({"kind": "attention_kl"}, "on the response or on hidden states"),
    ],
)
def test_objectives_that_need_one_view_are_refused(tmp_path: Path, objective: dict[str, Any], fix: str) -> None:
    with pytest.raises(RecipeError, match=fix):
        recipe(tmp_path, objective, teacher_system=SYSTEM)
    recipe(tmp_path, {"kind": "forward_kl"}, {"kind": "hidden_cosine"}, teacher_system=SYSTEM)
