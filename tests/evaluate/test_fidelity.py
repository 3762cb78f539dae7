"""Claims about the per-token values: they are what whole logits would give, however the rows are batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.errors import ModelError
from potstill.evaluate.documents import means_by_row
from potstill.evaluate.fidelity import Batches, measure, measure_teacher
from potstill.evaluate.held_out import HeldOut
from potstill.evaluate.scores import Scores
from potstill.objectives.sweep.engine import MOST_CHUNK_ROWS
from small_run import CHAT, InMemory, held_out, records
from tiny_models import tiny_model

ROWS = held_out(records(9))


def batches(rows: HeldOut = ROWS, tokens: int = 300) -> Batches:
    return Batches(rows, tokens)


def nothing(_: float) -> None:
    return None


def scored(student: nn.Module, teacher: nn.Module, folder: Path, of: Batches | None = None) -> Scores:
    of = of or batches()
    _, rows = measure_teacher(InMemory(teacher, side="teacher"), of, folder, nothing)
    return measure(InMemory(student), of, rows, nothing)


def naive(student: nn.Module, teacher: nn.Module, shared: int) -> Scores:
    """Row by row, unpadded, from whole logits in fp64."""
    nll, kl, agree = [], [], []
    for row in ROWS.rows:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0].double() for model in (teacher, student))
        for t in range(1, len(row)):
            if row.labels[t] < 0:
                continue
            mine, theirs = q[t - 1], p[t - 1, :shared].log_softmax(-1)
            nll.append(-float(mine.log_softmax(-1)[row.labels[t]]))
            cut = mine[:shared].log_softmax(-1)
            kl.append(float((theirs.exp() * (theirs - cut)).sum()))
            agree.append(bool(theirs.argmax() == cut.argmax()))
    return Scores(np.array(nll), np.array(kl), np.array(agree))


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
def test_scores_are_those_of_whole_logits(family: str, tmp_path: Path) -> None:
    student, teacher = tiny_model(family, seed=1, layers=2), tiny_model(family, seed=0)  # type: ignore[arg-type]
    ours, expected = scored(student, teacher, tmp_path), naive(student, teacher, 259)
    assert ours.kl is not None and ours.agree is not None and expected.kl is not None
    np.testing.assert_allclose(ours.nll, expected.nll, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(ours.kl, expected.kl, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(ours.agree, expected.agree)


def test_a_padded_vocabulary_is_cut_for_the_divergence_and_kept_for_the_nll(tmp_path: Path) -> None:
    student, teacher = tiny_model(seed=1, layers=2, vocab=264), tiny_model(seed=0)
    ours, expected = scored(student, teacher, tmp_path), naive(student, teacher, 259)
    np.testing.assert_allclose(ours.nll, expected.nll, rtol=2e-5, atol=2e-5)
    assert ours.kl is not None and expected.kl is not None
    np.testing.assert_allclose(ours.kl, expected.kl, rtol=2e-5, atol=2e-5)


def test_a_teacher_held_against_itself_loses_nothing(tmp_path: Path) -> None:
    teacher, of = tiny_model(seed=0), batches()
    own, rows = measure_teacher(InMemory(teacher, side="teacher"), of, tmp_path, nothing)
    again = measure(InMemory(teacher), of, rows, nothing)
    assert again.kl is not None and again.agree is not None
    assert np.abs(again.kl).max() < 1e-6 and again.agree.all()
    np.testing.assert_array_equal(again.nll, own.nll)


def test_batching_changes_nothing_but_rounding(tmp_path: Path) -> None:
    student, teacher = tiny_model(seed=1, layers=2), tiny_model(seed=0)
    one_by_one, all_at_once = batches(tokens=1), batches(tokens=10_000)
    assert len(one_by_one) == len(ROWS.rows) and len(all_at_once) == 1
    a = scored(student, teacher, tmp_path / "a", one_by_one)
    b = scored(student, teacher, tmp_path / "b", all_at_once)
    np.testing.assert_allclose(a.nll, b.nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a.kl, b.kl, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_array_equal(a.agree, b.agree)  # type: ignore[arg-type]


def test_batches_hold_every_row_once_and_no_more_tokens_than_asked() -> None:
    of = batches(tokens=400)
    assert sorted(i for rows in of.rows for i in rows) == list(range(len(ROWS.rows)))
    assert all(len(rows) * max(len(ROWS.rows[i]) for i in rows) <= 400 for rows in of.rows)
    assert 1 < len(of) < len(ROWS.rows)


def test_only_what_the_assistant_wrote_and_its_end_are_measured() -> None:
    expected = [len(CHAT.encode(r.messages[1]["content"]).ids) + 1 for r in ROWS.records if r.messages]
    assert ROWS.counts.tolist() == expected


def test_the_student_is_left_in_training_mode_with_nothing_changed(tmp_path: Path) -> None:
    student, teacher = tiny_model(seed=1, layers=2, attention_dropout=0.5), tiny_model(seed=0)
    student.train()
    student.get_input_embeddings().eval()
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    measured = scored(student, teacher, tmp_path)
    assert student.training and not student.get_input_embeddings().training
    assert all(weight.grad is None for weight in student.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    np.testing.assert_array_equal(measured.nll, scored(student.eval(), teacher, tmp_path).nll)


def test_a_head_that_cannot_be_taken_apart_gives_the_same(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        @property
        def weight(self) -> object:
            return self.head.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(hidden)
            return out

    student, teacher = tiny_model(seed=1, layers=2), tiny_model(seed=0)
    expected = scored(student, teacher, tmp_path)
    teacher.lm_head = Wrapped(teacher.lm_head)
    with pytest.warns(UserWarning, match="whole logits"):
        ours = scored(student, teacher, tmp_path / "dense")
    np.testing.assert_allclose(ours.kl, expected.kl, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


class Watch(TorchDispatchMode):
    """Notes the most rows of any tensor as wide as the vocabulary, and still with as many rows as asked for."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and out.dim() > 1 and out.shape[-1] == 259:
            self.rows = max(self.rows, out.numel() // 259)
        return out


def test_logits_of_a_whole_batch_are_never_made(tmp_path: Path) -> None:
    many = held_out(records(60))
    student, teacher, of = tiny_model(seed=1, layers=2), tiny_model(seed=0), batches(many, tokens=100_000)
    with Watch() as watch:
        scored(student, teacher, tmp_path, of)
    assert len(of) == 1 and of.targets > 1200
    assert 0 < watch.rows <= MOST_CHUNK_ROWS


def test_losses_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    student, teacher = tiny_model(seed=1, layers=2), tiny_model(seed=0)
    of = batches()
    _, rows = measure_teacher(InMemory(teacher, side="teacher"), of, tmp_path, nothing)
    with torch.no_grad():
        student.get_input_embeddings().weight[CHAT.encode("q").ids[0]] = float("inf")
    with pytest.raises(ModelError):
        measure(InMemory(student), of, rows, nothing)


def test_means_by_row_weigh_every_target_of_a_row_alike() -> None:
    values = np.repeat(np.arange(len(ROWS.rows), dtype=np.float32), ROWS.counts)
    assert means_by_row(values, ROWS) == pytest.approx(list(range(len(ROWS.rows))))
