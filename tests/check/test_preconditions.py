"""What a run would refuse late is refused by the check: before anything is fetched, generated or trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models.gguf_families import Quantised, write_family

from potstill.check import Findings, check_recipe, cost
from potstill.console import Console
from potstill.errors import DataError, PotstillError, UserError
from potstill.pipeline import run_recipe
from potstill.recipe import load_recipe
from tiny_models import make_tiny_causal_lm, make_tiny_classifier, make_tiny_encoder, make_tiny_masked_lm

Check = Callable[..., Findings]

PROMPTS = [{"prompt": f"What is {n} + {n}?"} for n in range(40)]
ANSWERED = [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n)} for n in range(40)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 4 layers, a student with its tokenizer, and one with another."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_causal_lm(folder / "teacher", num_hidden_layers=4)
    make_tiny_causal_lm(folder / "student", num_hidden_layers=2, seed=1)
    other = make_tiny_causal_lm(folder / "other", num_hidden_layers=2, seed=2)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    make_tiny_causal_lm(folder / "plain", template=None)
    return folder


@pytest.fixture
def check(tmp_path: Path, models: Path) -> Check:
    def checked(rows: list[dict[str, Any]], **sections: Any) -> Findings:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        document: dict[str, Any] = {
            "name": "checked",
            "teacher": {"kind": "local", "model": str(models / "teacher")},
            "student": {"kind": "from_teacher"},
            "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.2},
            "train": {},
            **sections,
        }
        recipe = {key: value for key, value in document.items() if value is not None}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return check_recipe(load_recipe(tmp_path / "recipe.yaml"))

    return checked


def only_error(findings: Findings) -> str:
    (error,) = findings.errors
    return error.text


GENERATE = {"kind": "sequence", "max_new_tokens": 8}


# ---- before money is spent -----------------------------------------------------------------------------------


def test_other_tokens_than_the_teachers_are_refused_before_the_teacher_writes(check: Check, models: Path) -> None:
    student = {"kind": "existing", "model": str(models / "other")}
    findings = check(PROMPTS, student=student, generate=GENERATE)
    assert "differ" in only_error(findings)
    text_alone = check(PROMPTS, student=student, generate=GENERATE, train={"objectives": [{"kind": "hard_ce"}]})
    assert not text_alone.errors


def test_a_run_begins_with_the_check_and_leaves_nothing_when_refused(
    check: Check, models: Path, tmp_path: Path
) -> None:
    check(PROMPTS, student={"kind": "existing", "model": str(models / "other")}, generate=GENERATE)
    with pytest.raises(PotstillError, match="differ"):
        run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", console=Console("quiet"))
    assert not (tmp_path / "run").exists()


def test_no_record_to_train_on_is_refused(check: Check) -> None:
    many = [{"prompt": f"Say {n}", "completion": "copper"} for n in range(120)]
    one_side = check(many, data={"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.99999})
    assert "no record is left to train on" in only_error(one_side)


def test_records_of_which_none_can_be_learned_are_refused(check: Check) -> None:
    findings = check([{"prompt": f"Say {n}", "completion": ""} for n in range(20)])
    assert findings.errors


def test_prompts_that_are_read_as_texts_are_refused(check: Check) -> None:
    findings = check([{"text": row["prompt"]} for row in PROMPTS], generate=GENERATE)
    (error,) = (e for e in findings.errors if "can be answered" in e.text)
    assert "a text has no prompt to answer" in error.text
    assert error.error is not None and "rename it to `prompt`" in str(error.error.fix)


def test_a_verifier_whose_column_is_missing_is_refused(check: Check) -> None:
    generate = {**GENERATE, "verify": {"kind": "exact", "reference": "solution"}}
    assert "none of the 40 prompts has a reference answer" in only_error(check(PROMPTS, generate=generate))
    assert not check(ANSWERED, generate=generate).errors


def test_more_layers_than_the_teacher_has_are_refused(check: Check) -> None:
    error = only_error(check(ANSWERED, student={"kind": "from_teacher", "layers": {"uniform": 40}}))
    assert error == "40 layers are asked of a teacher with 4"


def test_layers_and_size_of_the_student_are_named(check: Check) -> None:
    findings = check(ANSWERED, student={"kind": "from_teacher", "layers": {"last": 2}})
    assert findings.lines["student"][0].startswith("2 of the teacher's 4 layers: 2, 3; ")
    assert findings.figures["layers"] == [2, 3]


def test_the_size_is_that_of_the_student_that_is_built(check: Check, models: Path, tmp_path: Path) -> None:
    from potstill.models.resolve import resolve
    from potstill.students import build_student

    counted = check(ANSWERED, student={"kind": "from_teacher", "layers": [0, 3]}).figures["student_parameters"]
    console = Console("quiet")
    teacher = resolve(str(models / "teacher"), console=console)
    student = load_recipe(tmp_path / "recipe.yaml").student
    assert student is not None
    built = build_student(student, teacher=teacher, tokenizer_source=teacher.path, seed=0, console=console)
    assert counted == built.facts["parameters"]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"kind": "hidden_mse", "layers": [[1, 9]]}, "state 9 of the teacher, which has 0 to 4"),
        ({"kind": "attention_kl", "layers": [[5, 1]]}, "attention layer 5 of the student, which has 0 to 1"),
        ({"kind": "minilm_v2", "teacher_layer": 7}, "attention layer 7 of the teacher, which has 0 to 3"),
        ({"kind": "minilm_v2", "relation_heads": 7}, "cannot be split into 7 relation heads"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(check: Check, objective: dict[str, Any], expected: str) -> None:
    assert expected in only_error(check(ANSWERED, train={"objectives": [objective]}))


def test_a_map_for_twice_the_layers_wants_twice_the_layers(check: Check) -> None:
    train = {"objectives": [{"kind": "hidden_mse", "layers": "every_other"}]}
    student = {"kind": "from_teacher", "layers": {"first": 1}}
    assert "twice the student's layers" in only_error(check(ANSWERED, student=student, train=train))


def test_steps_that_no_rows_fill_are_refused(check: Check) -> None:
    args = {"per_device_train_batch_size": 64, "dataloader_drop_last": True}
    assert "do not fill one step of 64" in only_error(check(ANSWERED, train={"args": args}))


def test_best_weights_without_held_out_records_are_refused(check: Check) -> None:
    data = {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0}
    assert "of 0 groups" in only_error(check(ANSWERED, data=data, train={"keep": "best"}))


def test_every_error_is_found_at_once_and_each_once(check: Check) -> None:
    findings = check(
        ANSWERED,
        student={"kind": "from_teacher", "layers": {"first": 9}},
        train={"args": {"per_device_train_batch_size": 64, "dataloader_drop_last": True}},
        evaluate={"solve": {"verify": {"kind": "exact", "reference": "nowhere"}, "reference": "elsewhere"}},
    )
    assert len(findings.errors) == 3
    with pytest.raises(UserError, match="3 things must be fixed"):
        findings.refuse()


# ---- models --------------------------------------------------------------------------------------------------


def test_a_teacher_of_another_task_is_refused(check: Check, tmp_path: Path) -> None:
    encoder = make_tiny_masked_lm(tmp_path / "encoder")
    findings = check(ANSWERED, teacher={"kind": "local", "model": str(encoder)})
    assert "is no causal language model" in findings.errors[0].text


def test_a_student_of_a_teacher_behind_a_server_is_refused(check: Check) -> None:
    teacher = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "x"}
    findings = check(ANSWERED, teacher=teacher, train={"objectives": [{"kind": "hard_ce"}]})
    assert findings.errors[0].text == "a student of kind from_teacher needs a teacher whose weights are here"


def test_a_key_of_a_server_that_is_not_set_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    teacher = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "x", "api_key_env": "NO_SUCH_KEY"}
    findings = check(PROMPTS, teacher=teacher, generate=GENERATE, train=None, student=None)
    assert "NO_SUCH_KEY is not set" in findings.warnings[0].text


def test_a_configuration_is_held_against_its_family(check: Check) -> None:
    misspelt = check(ANSWERED, student={"kind": "from_config", "config": {"hidden_sizes": [16]}})
    assert "a llama configuration has no key 'hidden_sizes'; did you mean 'hidden_size'?" in only_error(misspelt)
    small = check(ANSWERED, student={"kind": "from_config", "config": {"vocab_size": 10}})
    assert "vocab_size 10 is smaller than the tokenizer's" in only_error(small)


def test_heads_that_do_not_fit_are_refused(check: Check) -> None:
    def shaped(**config: Any) -> Findings:
        return check(ANSWERED, student={"kind": "from_config", "config": config})

    keys = only_error(shaped(num_attention_heads=4, num_key_value_heads=3))
    assert keys == "num_key_value_heads 3 does not divide num_attention_heads 4"
    family = {"model_type": "gpt2", "n_embd": 16, "n_head": 3, "n_layer": 1, "vocab_size": 2000}
    assert "num_attention_heads 3 does not divide hidden_size 16" in only_error(shaped(**family))
    assert not shaped(num_attention_heads=2, num_key_value_heads=1).errors


def test_a_system_prompt_without_a_template_is_refused_once(check: Check, models: Path) -> None:
    teacher = {"kind": "local", "model": str(models / "plain")}
    error = only_error(check(ANSWERED, teacher=teacher, train={"teacher_system": "Be brief."}))
    assert error == "the tokenizer has no chat template, so the teacher cannot be shown a system prompt"


def test_a_schema_that_is_none_is_refused_before_it_judges(check: Check) -> None:
    generate = {**GENERATE, "verify": {"kind": "json_schema", "json_schema": {"type": "objekt"}}}
    assert "json_schema is no JSON Schema: at $.type" in only_error(check(PROMPTS, generate=generate))


def test_rows_longer_than_a_model_has_positions_are_refused(check: Check, tmp_path: Path) -> None:
    gpt2 = {"kind": "local", "model": str(make_tiny_causal_lm(tmp_path / "gpt2", "gpt2"))}
    positions = json.loads((tmp_path / "gpt2" / "config.json").read_text())["n_positions"]
    long = [{"prompt": f"Say {n}", "completion": "copper " * positions} for n in range(20)]
    assert f"{positions:,} positions" in only_error(check(long, teacher=gpt2))
    assert not check(long, teacher=gpt2, train={"max_length": positions}).errors
    fewer = {"kind": "from_config", "config": {"n_positions": 8}}
    assert "the student has 8 positions" in only_error(check(ANSWERED, teacher=gpt2, student=fewer))
    assert not check(long).errors  # rotary positions have no end


def test_relations_among_too_few_examples_are_refused(check: Check) -> None:
    objectives = [{"kind": "rkd_distance"}]
    few = {"objectives": objectives, "args": {"per_device_train_batch_size": 2}}
    assert "rkd_distance is 0 of fewer than 3 examples" in only_error(check(ANSWERED, train=few))
    assert not check(ANSWERED, train={"objectives": objectives}).errors


def test_a_budget_below_one_answer_is_refused(check: Check) -> None:
    small = {**GENERATE, "token_budget": 7}
    assert "less than one answer may take" in only_error(check(PROMPTS, generate=small))


def test_unnamed_classes_are_refused(check: Check, tmp_path: Path) -> None:
    rows = [{"text": f"the still says {n}", "label": ("copper", "cask")[n % 2]} for n in range(40)]
    sections: dict[str, Any] = {"task": "sequence_classification", "train": {"objectives": [{"kind": "forward_kl"}]}}
    sections["student"] = {"kind": "existing", "model": str(make_tiny_encoder(tmp_path / "encoder"))}
    named = make_tiny_classifier(tmp_path / "teacher")
    config = json.loads((named / "config.json").read_text())
    for names in ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": "copper", "1": "cask"}):
        (named / "config.json").write_text(json.dumps({**config, "id2label": names}))
        error = only_error(check(rows, teacher={"kind": "local", "model": str(named)}, **sections))
        assert "class" in error


def test_a_name_that_no_model_can_have_is_refused(check: Check) -> None:
    findings = check(ANSWERED, teacher={"kind": "local", "model": "a b/c"})
    assert "neither a folder or GGUF file" in findings.errors[0].text


def test_a_model_of_the_hub_is_refused_where_the_hub_is_forbidden(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not check(ANSWERED, teacher={"kind": "local", "model": "some/where"}).errors
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in only_error(check(ANSWERED, teacher={"kind": "local", "model": "some/where"}))


def test_what_a_teacher_gives_may_depend_on_its_files(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.recipe import LocalTeacher

    assert not check(ANSWERED).errors
    monkeypatch.setattr(LocalTeacher, "capabilities_here", lambda self: frozenset({"top_logprobs"}))
    assert not check(ANSWERED).errors  # forward KL takes those too
    findings = check(ANSWERED, train={"objectives": [{"kind": "reverse_kl"}]})
    assert "reverse_kl needs dense or head of its teacher" in only_error(findings)


def test_a_teacher_that_nothing_asks_is_named(check: Check, models: Path) -> None:
    teachers = {name: {"kind": "local", "model": str(models / "teacher")} for name in ("main", "spare")}
    findings = check(ANSWERED, teacher=None, teachers=teachers)
    warnings = [w.text for w in findings.warnings if w.topic != "policy"]
    assert warnings == ["spare: nothing in the recipe asks this teacher"]


def test_a_teacher_without_a_template_is_named(check: Check, models: Path) -> None:
    teacher = {"kind": "local", "model": str(models / "plain")}
    findings = check(PROMPTS, teacher=teacher, generate=GENERATE)
    assert any("has no chat template" in warning.text for warning in findings.warnings)


def test_prompts_that_fill_the_teachers_context_are_refused(check: Check, models: Path) -> None:
    context = json.loads((models / "teacher" / "config.json").read_text())["max_position_embeddings"]
    findings = check([{"prompt": f"{n} " * context} for n in range(10)], generate=GENERATE)
    assert "they fill its context" in only_error(findings)


# ---- verifiers, evaluation, export ---------------------------------------------------------------------------


def test_a_language_that_nobody_knows_is_refused(check: Check) -> None:
    pytest.importorskip("py3langid")
    generate = {**GENERATE, "verify": {"kind": "language", "languages": ["xx"]}}
    assert "knows no language 'xx'" in only_error(check(PROMPTS, generate=generate))


def test_held_out_problems_need_what_they_are_judged_by(check: Check) -> None:
    evaluate = {"solve": {"verify": {"kind": "python_tests", "sandbox": {"unsafe": True}}}}
    assert "no metadata['tests']" in only_error(check(ANSWERED, evaluate=evaluate))


@pytest.mark.parametrize("kind", ["exposure", "judged"])
def test_a_measure_of_the_teachers_text_needs_a_teacher_that_writes(check: Check, models: Path, kind: str) -> None:
    def checked(**sections: Any) -> Findings:
        measures = [{"kind": kind, "judge": "other"} if kind == "judged" else {"kind": kind}]
        teachers = {"other": {"kind": "local", "model": str(models / "teacher")}, **sections.pop("teachers", {})}
        return check(ANSWERED, teacher=None, teachers=teachers, evaluate={"measures": measures}, **sections)

    local = {"kind": "local", "model": str(models / "teacher")}
    several = {"kind": "ensemble", "members": [local, local]}
    assert not checked(teachers={"main": local}).errors
    assert "the teacher 'main' is of kind ensemble" in only_error(
        checked(teachers={"main": several}, student={"kind": "existing", "model": str(models / "student")})
    )
    stored = checked(teachers={"main": local}, capture={"kind": "threshold"})
    assert any("set evaluate.teacher: live" in warning.text for warning in stored.warnings)
    text = {"objectives": [{"kind": "hard_ce"}]}
    other = checked(teachers={"main": local}, student={"kind": "existing", "model": str(models / "other")}, train=text)
    assert "the teacher 'main' is not measured" in only_error(other)


@pytest.mark.parametrize("measure", [{"kind": "exposure", "prompts": 1}, {"kind": "memorisation", "sample": 1}])
def test_a_measure_of_one_prompt_has_no_interval(check: Check, measure: dict[str, Any]) -> None:
    with pytest.raises(PotstillError, match="greater than or equal to 2"):
        check(ANSWERED, evaluate={"measures": [measure]})


def test_a_warm_up_that_outlasts_the_training_is_warned_of(check: Check) -> None:
    def warned(**args: Any) -> list[str]:
        found = check(ANSWERED, train={"args": args}).warnings
        return [warning.text for warning in found if "warmup_steps" in warning.text]

    assert not warned(warmup_steps=3) and not warned(warmup_steps=0.9)
    (text,) = warned(warmup_steps=100)
    assert "args.warmup_steps is 100, and there are 4 steps: the learning rate rises to 4% of what is set" in text
    assert not warned(warmup_steps=100, lr_scheduler_type="constant")
    assert len(warned(warmup_steps=8, max_steps=8)) == 1


def test_a_module_is_exported_as_it_was_trained(check: Check, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("class Net:\n    def __init__(self, width: int = 2): ...\n")
    np.savez(
        tmp_path / "images.npz",
        images=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8),
        labels=np.arange(30) % 3,
    )
    findings = check(
        [],
        task="image_classification",
        data="images.npz",
        teacher=None,
        student={"kind": "module", "source": "net.py:Net"},
        train={"objectives": [{"kind": "hard_ce"}]},
        export=[{"kind": "huggingface", "dtype": "float16"}],
    )
    assert "exported as it was trained" in only_error(findings)


# ---- cost ----------------------------------------------------------------------------------------------------


def test_memory_stands_apart_and_together(check: Check) -> None:
    findings = check(ANSWERED)
    memory = findings.figures["memory_bytes"]
    student = findings.figures["student_parameters"]
    assert memory["student"] == 4 * student
    assert memory["gradients_and_optimiser"] == 12 * student
    assert memory["all"] == sum(size for part, size in memory.items() if part != "all")


def test_more_memory_than_there_is_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_memory", lambda: 1000)
    assert any("of memory are available now" in warning.text for warning in check(ANSWERED).warnings)


def test_time_follows_the_rate_of_the_processor(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []
    for rate in (1e6, 1e7):
        monkeypatch.setattr(cost, "product_rate", lambda rate=rate: rate)
        seconds.append(check(ANSWERED).figures["training_seconds_estimated"])
    assert seconds[0] == pytest.approx(10 * seconds[1], rel=0.05)


def test_json_has_every_finding_and_figure(check: Check, tmp_path: Path) -> None:
    check(ANSWERED, student={"kind": "from_teacher", "layers": {"first": 9}})
    done = subprocess.run(
        [sys.executable, "-m", "potstill.cli", "check", str(tmp_path / "recipe.yaml"), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == UserError.exit_code
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert {"topic", "level", "text", "where", "fix"} <= set(told["findings"][0])
    (error,) = (finding for finding in told["findings"] if finding["level"] == "error")
    assert error["where"] == "student.layers.first" and error["fix"] == "ask for 4 or fewer"
    assert told["train"] + told["held_out"] == 40


def test_a_check_loads_no_torch(check: Check, tmp_path: Path) -> None:
    check(PROMPTS, generate=GENERATE, evaluate={}, export=[{"kind": "huggingface"}])
    program = (
        "import sys; from potstill.check import check_recipe; from potstill.recipe import load_recipe; "
        f"assert not check_recipe(load_recipe({str(tmp_path / 'recipe.yaml')!r})).errors; "
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_refusal_is_what_the_run_would_have_raised(check: Check) -> None:
    with pytest.raises(DataError, match=r"data\.held_out: fewer than two groups[\s\S]*fix: raise it"):
        check(ANSWERED[:3], data={"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.01}, evaluate={}).refuse()


def test_a_gguf_file_that_is_here_says_what_its_conversion_takes_and_whether_it_has_a_template(
    check: Check, tmp_path: Path
) -> None:
    write_family(tmp_path / "teacher.gguf", "qwen2", layers=4, template=None, quantised=Quantised.Q8_0)
    findings = check(ANSWERED, teacher={"kind": "local", "model": str(tmp_path / "teacher.gguf")})
    text = findings.text()
    assert "(here, converted at the first run)" in text and "will be fetched" not in text
    assert "is converted once: about 4" in text and "stored as 99 % Q8_0" in text
    assert any("it has no chat template" in warning.text for warning in findings.warnings)
