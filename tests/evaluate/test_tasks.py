"""Claims about the whole stage beyond causal models, on runs of tiny ones: what is measured is what the models say."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_tasks import CLASSES, TaskRun

from potstill.console import Console
from potstill.errors import ModelError
from potstill.evaluate import speed
from potstill.evaluate.documents import png_of
from potstill.evaluate.speed import Peak
from potstill.evaluate.stage import stage
from potstill.measures import Measures
from potstill.models.load import load_model
from potstill.models.resolve import resolve
from tiny_models import make_tiny_wordpiece


class Done:
    """A run that was evaluated: measures, documents, and the values by column."""

    def __init__(self, run: TaskRun) -> None:
        self.run, context = run, run.context()
        stage(run.recipe).write(context)
        self.work, self.out = context.work, context.out
        self.measures = Measures.load(context.out / "measures.json")
        self.documents: list[dict[str, Any]] = json.loads((context.out / "documents.json").read_text())
        table = context.out / ("tokens.parquet" if run.task == "masked_lm" else "examples.parquet")
        self.values: dict[str, list[Any]] = pq.read_table(table).to_pydict()


def opened(folder: Path) -> Any:
    """A model as potstill opens it, in fp32."""
    return load_model(resolve(str(folder), console=Console("quiet")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(TaskRun(tmp_path_factory.mktemp("texts"), "sequence_classification"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(TaskRun(tmp_path_factory.mktemp("images"), "image_classification"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(TaskRun(tmp_path_factory.mktemp("masked"), "masked_lm"))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(TaskRun(tmp_path_factory.mktemp("embeddings"), "sentence_embedding"))


@pytest.mark.parametrize("task", ["texts", "images"])
def test_classes_are_measured_in_all_models_by_accuracy_agreement_and_kl(
    task: str, request: pytest.FixtureRequest
) -> None:
    done: Done = request.getfixturevalue(task)
    measures = done.measures
    assert list(measures.models) == ["teacher", "student", "text_only", "untrained"]
    for name, model in measures.models.items():
        assert model.get("accuracy") is not None and model.get("nll") is not None and model.get("perplexity") is None
        assert (
            (model.get("kl") is None)
            == (model.get("top1_agreement") is None)
            == (model.get("lost") is None)
            == (name == "teacher")
        )
    for metric in ("accuracy", "kl", "nll", "top1_agreement"):
        assert measures.comparison("student", "text_only", metric) is not None
        assert measures.comparison("student", "untrained", metric) is not None
    assert measures.comparison("student", "teacher", "accuracy") is not None
    assert measures.records == measures.targets == len(done.values["label"]) == done.work.counts["held-out records"]


@pytest.mark.parametrize("task", ["texts", "images"])
def test_accuracy_and_agreement_are_counted_over_the_classes_said(task: str, request: pytest.FixtureRequest) -> None:
    done: Done = request.getfixturevalue(task)
    labels, said, theirs = (np.array(done.values[n]) for n in ("label", "class_student", "class_teacher"))
    student = done.measures.models["student"]
    assert set(labels) <= set(CLASSES)
    assert student.get("accuracy") is not None and student.get("accuracy").value == pytest.approx(
        (labels == said).mean()
    )
    assert student.get("top1_agreement") is not None and student.get("top1_agreement").value == pytest.approx(
        (said == theirs).mean()
    )
    assert student.get("lost") is not None
    assert student.get("lost").value == pytest.approx(((theirs == labels) & (said != labels)).mean())
    assert done.measures.chance == pytest.approx(max((labels == c).mean() for c in CLASSES))


def test_classes_and_losses_are_those_of_the_models_own_logits(texts: Done) -> None:
    run = texts.run
    tokenizer = make_tiny_wordpiece()
    student, teacher = opened(run.folder / "train/model"), opened(run.teacher)
    for document in texts.documents[:5]:
        inputs = tokenizer(document["text"], truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            mine, theirs = (m(**inputs).logits[0].double().log_softmax(-1) for m in (student, teacher))
        assert document["nll_student"] == pytest.approx(-float(mine[CLASSES.index(document["label"])]), rel=1e-4)
        assert document["kl"] == pytest.approx(float((theirs.exp() * (theirs - mine)).sum()), rel=1e-3, abs=1e-5)
        said = document["predictions"]["student"]
        assert said["class"] == CLASSES[int(mine.argmax())]
        assert said["probability"] == pytest.approx(float(mine.max().exp()), rel=1e-4)


def test_the_examples_that_the_student_gets_most_wrong_come_first(texts: Done) -> None:
    losses = [d["nll_student"] for d in texts.documents]
    assert losses == sorted(losses, reverse=True) and len(losses) == texts.measures.records


def test_an_image_is_shown_as_it_is(images: Done) -> None:
    png = base64.b64decode(images.documents[0]["image"])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    begin = png.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(png[begin : png.index(b"IEND") - 8]), np.uint8).reshape(8, 9)
    held = np.load(images.run.folder / "data.npz")["images"]
    assert (rows[:, 0] == 0).all() and any((rows[:, 1:] == image).all() for image in held)


def test_what_is_no_picture_is_not_drawn() -> None:
    assert png_of(np.zeros((4, 4, 2), np.uint8)) is None
    assert png_of(np.zeros((4,), np.uint8)) is None
    assert png_of(np.zeros((2, 3, 3), np.uint8)) is not None


def test_masked_tokens_alone_are_targets_and_are_the_same_for_all_models(masked: Done) -> None:
    measures, values = masked.measures, masked.values
    assert measures.targets == len(values["token"]) == masked.work.counts["target tokens"]
    # 15 % of at most 14 tokens (two are special) are 1 or 2 a row.
    assert len(set(values["record_id"])) <= measures.targets <= 2 * len(set(values["record_id"]))
    student = measures.models["student"]
    assert student.get("accuracy") is None and student.get("kl") is not None and student.get("nll") is not None
    assert student.metrics["perplexity"].value == pytest.approx(np.exp(student.metrics["nll"].value))
    assert student.get("kl").value == pytest.approx(np.mean(values["kl_student"]), rel=1e-5)


def test_masked_values_are_those_of_whole_logits_at_the_masked_places(masked: Done) -> None:
    from potstill.evaluate.held_out import read_held_out

    run = masked.run
    held_out = read_held_out(run.recipe, None, run.folder / "train/model", run.context().work)
    model: Any = opened(run.folder / "train/model")
    expected = []
    for row in held_out.rows:
        batch = held_out.collate([row])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[0].log_softmax(-1)
        places = (batch["masked_labels"][0] >= 0).nonzero().squeeze(-1)
        expected += (-logits[places, batch["masked_labels"][0][places]]).tolist()
    np.testing.assert_allclose(masked.values["nll_student"], expected, rtol=1e-4, atol=1e-4)


def test_a_masked_document_is_shown_with_its_blanks(masked: Done) -> None:
    assert all("▁▁▁" in d["prompt"] and "▁▁▁" not in d["reference"] for d in masked.documents)
    assert all(d["answers"] == {} for d in masked.documents)


def test_embeddings_are_measured_by_neighbours_and_by_similarities(embeddings: Done) -> None:
    measures, values = embeddings.measures, embeddings.values
    assert list(measures.models) == ["teacher", "student", "untrained"]
    labels, nearest, theirs = (np.array(values[n]) for n in ("label", "nearest_student", "nearest_teacher"))
    student = measures.models["student"]
    assert student.get("accuracy") is not None and student.get("top1_agreement") is not None
    assert student.get("accuracy").value == pytest.approx((labels[nearest] == labels).mean())
    assert student.get("top1_agreement").value == pytest.approx((nearest == theirs).mean())
    assert (
        student.get("similarity_correlation") is not None
        and student.get("nll") is None
        and student.get("perplexity") is None
    )
    assert measures.comparison("student", "untrained", "top1_agreement") is not None
    assert any("pooled (first)" in note for note in measures.notes), "as the recipe's objective pools"
    regrets = [d["regret"] for d in embeddings.documents]
    assert regrets == sorted(regrets, reverse=True) and min(regrets) >= 0


def test_the_neighbour_is_the_one_that_transformers_own_states_find(embeddings: Done) -> None:
    run, tokenizer = embeddings.run, make_tiny_wordpiece()
    model: Any = opened(run.folder / "train/model")
    first = embeddings.documents[0]
    texts = [d["text"] for d in embeddings.documents]
    with torch.no_grad():
        states = [
            model(**tokenizer(t, truncation=True, max_length=16, return_tensors="pt")).last_hidden_state[0, 0]
            for t in texts
        ]
    vectors = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    cosines = vectors[1:] @ vectors[0]
    assert first["neighbours"]["student"]["text"] == texts[1 + int(cosines.argmax())]
    assert first["neighbours"]["student"]["cosine"] == pytest.approx(float(cosines.max()), abs=1e-5)


def test_fine_tuning_without_a_teacher_is_measured_by_accuracy(tmp_path: Path) -> None:
    done = Done(TaskRun(tmp_path, "sequence_classification", teacher=False))
    assert list(done.measures.models) == ["student", "untrained"]
    student = done.measures.models["student"]
    assert student.get("accuracy") is not None and (student.get("kept"), student.get("lost"), student.get("kl")) == (
        None,
        None,
        None,
    )
    assert done.measures.comparison("student", "untrained", "accuracy") is not None
    assert not any("teacher" in warning for warning in done.work.warnings), "nobody asked for one"


def test_an_ensemble_of_one_model_twice_is_that_model_and_weighs_twice_as_much(images: Done, tmp_path: Path) -> None:
    twice = Done(TaskRun(tmp_path, "image_classification", members=2, evaluate={"controls": []}))
    np.testing.assert_allclose(twice.values["nll_teacher"], images.values["nll_teacher"], rtol=1e-5)
    np.testing.assert_allclose(twice.values["kl_student"], images.values["kl_student"], rtol=1e-4, atol=1e-6)
    one, two = images.measures.models["teacher"], twice.measures.models["teacher"]
    assert (two.parameters, two.bytes) == (2 * one.parameters, 2 * one.bytes)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    run = TaskRun(tmp_path, "sequence_classification", evaluate={"controls": []})
    file = run.teacher / "config.json"
    config = json.loads(file.read_text())
    config["id2label"], config["label2id"] = {"0": "rye", "1": "malt", "2": "ale"}, {"rye": 0, "malt": 1, "ale": 2}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"class 0 of .* is 'rye', and of the data 'ale'"):
        Done(run)


@pytest.mark.parametrize("task", ["sequence_classification", "image_classification"])
def test_rates_are_examples_per_second_of_one_batch_for_both(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "peak_of", lambda *args: Peak(7, "a process"))
    monkeypatch.setattr(speed, "MOST_REPETITIONS", 3)
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.01)
    done = Done(TaskRun(tmp_path, task, evaluate={"speed": True, "controls": []}))
    for name in ("teacher", "student"):
        found = done.measures.models[name].speed
        assert found is not None and found.examples_per_second is not None and found.examples_spread is not None
        assert found.decode_tokens_per_second is None
        assert found.examples_spread[0] <= found.examples_per_second <= found.examples_spread[1]
    said = next(note for note in done.measures.notes if note.startswith("Rates:"))
    what = "a batch of 256 images" if task == "image_classification" else "a batch of 32 texts of 16 tokens"
    assert said.startswith(f"Rates: {what}, forward only, median of 3 repetitions")


def test_peak_memory_of_a_batch_is_measured_in_a_process_of_its_own(images: Done) -> None:
    from potstill.evaluate.compared_models import ComparedModels
    from potstill.evaluate.held_out import read_held_out
    from potstill.evaluate.speed import forward_of, peak_of

    context = images.run.context()
    held_out = read_held_out(images.run.recipe, None, images.run.folder / "train/model", context.work)
    models = ComparedModels(context, CLASSES, images.out / "work")
    found = peak_of(models.student, forward_of(held_out, images.out / "batch.safetensors"), "float32")
    assert found.bytes > 50e6 and "process of its own" in found.of


def test_another_pooling_is_another_evaluation(tmp_path: Path) -> None:
    run = TaskRun(tmp_path, "sentence_embedding")
    objectives = [{"kind": "rkd_distance", "pooling": "mean"}]
    other = TaskRun(tmp_path / "other", "sentence_embedding", train={"objectives": objectives})
    assert [stage(r.recipe).settings["pooling"] for r in (run, other)] == ["first", "mean"]
