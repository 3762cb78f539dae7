"""Claims about the whole stage, on a run of tiny models: files, comparisons, controls, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.errors import DataError, RunError, TokenizerMismatch
from potstill.evaluate.stage import stage
from potstill.measures import Measures
from small_run import SmallRun
from tiny_models import make_tiny_tokenizer


def evaluated(run: SmallRun) -> tuple[Measures, list[dict[str, Any]], dict[str, list[Any]]]:
    """Write the stage's artifact: measures, documents, and tokens by column."""
    context = run.context()
    stage(run.recipe).write(context)
    documents = json.loads((context.out / "documents.json").read_text())
    tokens = pq.read_table(context.out / "tokens.parquet").to_pydict()
    run.work = context.work  # type: ignore[attr-defined]
    return Measures.load(context.out / "measures.json"), documents, tokens


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One evaluation that several tests look at."""
    run = SmallRun(tmp_path_factory.mktemp("run"))
    before = digests(run.folder)
    return (run, before, *evaluated(run))


def digests(folder: Path) -> dict[str, str]:
    files = [f for part in ("teacher", "train", "train.text_only", "generate") for f in (folder / part).rglob("*")]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def test_every_model_stands_beside_the_others_with_intervals(done: Any) -> None:
    _, _, measures, _, _ = done
    assert list(measures.models) == ["teacher", "student", "text_only", "untrained"]
    for name, model in measures.models.items():
        assert model.get("nll").low <= model.get("nll").value <= model.get("nll").high
        assert model.metrics["perplexity"].value == pytest.approx(np.exp(model.metrics["nll"].value))
        assert (model.get("kl") is None) == (model.get("top1_agreement") is None) == (name == "teacher")
    for other in ("text_only", "untrained"):
        for metric in ("kl", "nll", "top1_agreement"):
            assert measures.comparison("student", other, metric) is not None
    assert measures.comparison("student", "teacher", "nll") is not None
    assert measures.comparison("text_only", "untrained", "kl") is not None


def test_a_comparison_is_the_difference_of_the_means(done: Any) -> None:
    _, _, measures, _, _ = done
    difference = measures.comparison("student", "text_only", "kl").difference
    models = measures.models
    assert difference.value == pytest.approx(models["student"].get("kl").value - models["text_only"].get("kl").value)
    # The student was moved less far from the teacher's layers than the control.
    assert difference.high < 0


def test_several_seeds_are_one_student_with_the_spread_of_both(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, train={"seeds": 2}, evaluate={"samples_shown": 1})
    measures, documents, tokens = evaluated(run)
    assert measures.seeds == 2 and list(measures.models) == ["teacher", "student", "text_only", "untrained"]
    student, control = measures.models["student"], measures.models["text_only"]
    ours = [np.mean(tokens[f"kl_student{seed}"]) for seed in ("", "_seed1")]
    assert student.by_seed["kl"] == pytest.approx(ours) and ours[0] != ours[1]
    kl = student.metrics["kl"]
    assert kl.value == pytest.approx(np.mean(ours))
    # With two seeds, Student's interval over seeds alone reaches 12.7 / √2 standard deviations to each side.
    assert kl.high - kl.value > 12.7 * np.std(ours, ddof=1) / np.sqrt(2)
    difference = measures.comparison("student", "text_only", "kl").difference
    by_hand = np.mean(ours) - np.mean([np.mean(tokens[f"kl_text_only{seed}"]) for seed in ("", "_seed1")])
    assert difference.value == pytest.approx(by_hand) == pytest.approx(kl.value - control.metrics["kl"].value)
    assert measures.models["teacher"].by_seed == {} == measures.models["untrained"].by_seed
    assert any("trained 2 times" in note for note in measures.notes)
    assert set(documents[0]["answers"]) == {"teacher", "student", "text_only"}


def test_only_held_out_records_are_measured_and_all_of_them(done: Any) -> None:
    run, _, measures, documents, tokens = done
    expected = {record.id for record in run.held_out_records}
    assert 0 < len(expected) < 24
    assert {d["record_id"] for d in documents} == set(tokens["record_id"]) == expected
    assert measures.records == len(expected) == run.work.counts["held-out records"]
    assert measures.targets == len(tokens["token"]) == run.work.counts["target tokens"]


def test_measures_are_the_means_of_the_tokens(done: Any) -> None:
    _, _, measures, documents, tokens = done
    assert measures.models["student"].get("kl").value == pytest.approx(np.mean(tokens["kl_student"]), rel=1e-6)
    assert measures.models["text_only"].get("top1_agreement").value == pytest.approx(np.mean(tokens["agree_text_only"]))
    ids, nll = np.array(tokens["record_id"]), np.array(tokens["nll_teacher"])
    for document in documents:
        assert document["nll_teacher"] == pytest.approx(nll[ids == document["record_id"]].mean(), rel=1e-5)
        assert document["targets"] == int((ids == document["record_id"]).sum())


def test_tokens_are_found_at_their_position(done: Any) -> None:
    run, _, _, documents, tokens = done
    tokenizer = make_tiny_tokenizer()
    document = documents[0]
    mine = [t for t, r in zip(tokens["token"], tokens["record_id"], strict=True) if r == document["record_id"]]
    assert tokenizer.decode(mine) == document["reference"] + "<|im_end|>"
    record = next(r for r in run.held_out_records if r.id == document["record_id"])
    ids = tokenizer.apply_chat_template([dict(m) for m in record.messages or ()], return_dict=False)
    places = [p for p, r in zip(tokens["position"], tokens["record_id"], strict=True) if r == document["record_id"]]
    assert [ids[p] for p in places] == mine


def test_the_worst_documents_come_first_with_what_models_wrote(done: Any) -> None:
    _, _, _, documents, _ = done
    losses = [d["kl"] for d in documents]
    assert losses == sorted(losses, reverse=True)
    assert [set(d["answers"]) for d in documents[:3]] == [{"teacher", "student", "text_only"}] * 3
    assert all(d["answers"] == {} for d in documents[3:])
    assert documents[0]["prompt"].startswith("What is")


def test_sizes_are_those_of_the_models_and_of_their_files(done: Any) -> None:
    run, _, measures, _, _ = done
    model = AutoModelForCausalLM.from_pretrained(run.folder / "train" / "model")
    student = measures.models["student"]
    assert model.config.tie_word_embeddings
    assert student.parameters == sum(p.numel() for p in model.parameters()) < measures.models["teacher"].parameters
    assert student.bytes == (run.folder / "train" / "model" / "model.safetensors").stat().st_size
    assert (student.layers, measures.models["teacher"].layers) == (2, 4)
    assert measures.models["untrained"].parameters == student.parameters


def test_what_was_read_is_unchanged(done: Any) -> None:
    run, before, *_ = done
    assert digests(run.folder) == before


def test_the_untrained_control_is_the_teachers_own_layers(done: Any) -> None:
    run, *_ = done
    teacher = AutoModelForCausalLM.from_pretrained(run.teacher).state_dict()
    untrained = AutoModelForCausalLM.from_pretrained(run.folder / "evaluate" / "checkpoints" / "untrained").state_dict()
    assert len([name for name in untrained if ".layers.1." in name]) > 5
    for name, weight in untrained.items():
        assert torch.equal(weight, teacher[name.replace(".layers.1.", ".layers.2.")])


def test_without_text_only_or_generate_the_datas_own_held_out_side_is_measured(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, generate=False, text_only=False, evaluate={"controls": [], "samples_shown": 0})
    assert stage(run.recipe).reads == ("train",)
    measures, documents, _ = evaluated(run)
    assert list(measures.models) == ["teacher", "student"]
    assert {(c.model, c.against) for c in measures.comparisons} == {("student", "teacher")}
    assert {d["record_id"] for d in documents} == {r.id for r in run.held_out_records}
    assert all(d["answers"] == {} for d in documents)


def test_cut_records_are_counted_and_said(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False, train={"max_length": 80}, evaluate={"controls": []})
    measures, _, _ = evaluated(run)
    counts = run.work.counts  # type: ignore[attr-defined]
    assert counts["cut at 80 tokens"] > 0
    assert any("were cut" in note for note in measures.notes)
    assert counts["held-out records"] + counts.get("not measured: nothing to learn", 0) == len(run.held_out_records)


def test_a_student_that_is_not_the_one_trained_is_refused(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False)
    facts = run.folder / "train" / "student.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"layers": [0, 3]}))
    with pytest.raises(RunError, match=r"layers \[0, 2\], the trained one with \[0, 3\]"):
        evaluated(run)


def test_layers_chosen_by_influence_are_those_that_were_trained(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False, student={"layers": [1, 3]})
    student = run.recipe.student
    assert student is not None
    chosen = student.model_validate({"kind": "from_teacher", "layers": {"by_influence": 2}})
    run.recipe = run.recipe.model_copy(update={"student": chosen})
    evaluated(run)
    teacher = AutoModelForCausalLM.from_pretrained(run.teacher).model.layers[3].state_dict()
    untrained = AutoModelForCausalLM.from_pretrained(run.folder / "evaluate" / "checkpoints" / "untrained")
    assert all(torch.equal(w, teacher[name]) for name, w in untrained.model.layers[1].state_dict().items())


def test_no_held_out_records_is_an_error_with_the_fix(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, generate=False, text_only=False, data={"limit": 1})
    with pytest.raises(DataError, match="no held-out records") as caught:
        evaluated(run)
    assert "larger share" in str(caught.value)


def exchange_two_tokens(run: SmallRun) -> None:
    """The student's tokenizer gets as many tokens as the teacher's, two of them exchanged."""
    file = run.folder / "train" / "model" / "tokenizer.json"
    tokens_of = json.loads(file.read_text())
    vocabulary = tokens_of["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokens_of))


def test_a_teacher_whose_distributions_were_learned_from_must_be_comparable(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False, train={"objectives": [{"kind": "forward_kl"}]})
    exchange_two_tokens(run)
    with pytest.raises(TokenizerMismatch, match="different vocabularies: 2 tokens differ"):
        evaluated(run)


def test_a_teacher_of_other_tokens_is_not_compared_with_and_this_is_said(tmp_path: Path) -> None:
    on_text = {"objectives": [{"kind": "hard_ce"}], "controls": []}
    student = {"kind": "existing", "model": str(tmp_path / "teacher")}
    run = SmallRun(tmp_path, text_only=False, student=student, train=on_text)
    exchange_two_tokens(run)
    measures, documents, tokens = evaluated(run)
    assert list(measures.models) == ["student", "untrained"]
    assert measures.models["student"].get("kl") is None and "kl_student" not in tokens
    assert measures.comparison("student", "untrained", "nll") is not None
    assert measures.teacher_unmeasured is not None and "2 tokens differ" in measures.teacher_unmeasured
    assert any("no KL, no agreement" in note for note in measures.notes)
    assert any("no KL, no agreement" in warning for warning in run.work.warnings)  # type: ignore[attr-defined]
    losses = [d["nll_student"] for d in documents]
    assert losses == sorted(losses, reverse=True)


def test_a_recipe_without_a_teacher_is_measured_by_nll(tmp_path: Path) -> None:
    run = SmallRun(
        tmp_path, generate=False, text_only=False, student={"kind": "existing", "model": str(tmp_path / "teacher")}
    )
    run.recipe = run.recipe.model_copy(update={"teachers": {}})
    measures, _, _ = evaluated(run)
    assert list(measures.models) == ["student", "untrained"]
    assert any("no teacher" in note for note in measures.notes)


def test_few_groups_are_said(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False, records=12, evaluate={"controls": [], "samples_shown": 0})
    measures, _, _ = evaluated(run)
    assert measures.groups < 10
    assert any(f"Only {measures.groups} held-out groups" in note for note in measures.notes)


def test_the_key_is_known_without_torch(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(run.recipe.model_dump_json())
    code = (
        "import sys, json; from potstill.recipe import Recipe; from potstill.evaluate.stage import stage\n"
        f"s = stage(Recipe.model_validate_json(open({str(recipe)!r}).read()))\n"
        "print(s.reads, sorted(s.sources())); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('train', 'generate') ['teacher']"
