from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.recipes import ARGS, run_stage, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.artifacts import Artifact, Work
from potstill.check import check_recipe
from potstill.console import Console
from potstill.data import read_sides, selects
from potstill.errors import DataError, ModelError, RecipeError, TokenizerMismatch
from potstill.evaluate.held_out import read_held_out
from potstill.recipe import Recipe, load_recipe, parse_recipe
from potstill.recipe.train import Training
from potstill.stage import stage_names
from potstill.train.stage import stage, steps_of_equal_seconds, trained_by
from tiny_models import make_tiny_causal_lm, make_tiny_convnet, make_tiny_tokenizer


def history(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path / "history.jsonl").read_text().splitlines()]


def facts(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.path / "student.json").read_text())


def test_the_artifact_is_a_plain_model_with_facts_and_history(tmp_path: Path, tiny_llama: Path) -> None:
    made = run_stage(load_recipe(write_recipe(tmp_path, tiny_llama)), tmp_path / "run")
    files = {str(p.relative_to(made.path)) for p in made.path.rglob("*") if p.is_file()}
    assert files == {
        "manifest.json", "student.json", "history.jsonl", "model/config.json", "model/generation_config.json",
        "model/model.safetensors", "model/tokenizer.json", "model/tokenizer_config.json", "model/chat_template.jinja",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(made.path / "model")
    assert model.config.num_hidden_layers == 2 and model.config.use_cache
    assert AutoTokenizer.from_pretrained(made.path / "model").chat_template

    logs = [entry for entry in history(made) if "loss" in entry]
    measured = [entry for entry in history(made) if "eval_kl" in entry]
    steps = facts(made)["steps"]
    assert [entry["step"] for entry in logs] == list(range(1, steps + 1))
    assert [entry["step"] for entry in measured] == [round(steps / 2), steps]
    assert measured[1]["eval_kl"] < measured[0]["eval_kl"]
    assert facts(made)["layers"] == [0, 2]
    assert facts(made)["tokens"] == made.manifest["counts"]["tokens"] == logs[-1]["tokens"]
    assert made.manifest["counts"]["records"] + made.manifest["counts"]["held-out records"] == 40


def test_text_only_is_the_same_student_on_the_same_batches_without_a_teacher(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(
        write_recipe(
            tmp_path,
            tiny_llama,
            train={"controls": ["text_only"], "objectives": [{"kind": "forward_kl"}, {"kind": "hidden_cosine"}]},
        )
    )
    seen: dict[str, list[torch.Tensor]] = {"train": [], "train.text_only": []}
    began: dict[str, dict[str, torch.Tensor]] = {}
    from potstill.train import trainer as module

    original = module.DistillTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not seen[now]:
            began[now] = {name: p.detach().clone() for name, p in self.student.named_parameters()}
        seen[now].append(inputs["input_ids"])
        assert (self.module.teacher is None) == (now == "train.text_only")
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(module.DistillTrainer, "compute_loss", compute_loss)
    now = "train"
    ours = run_stage(recipe, tmp_path / "run")
    now = "train.text_only"
    control = run_stage(recipe, tmp_path / "run", Training("text_only"))
    assert len(seen["train"]) == len(seen["train.text_only"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    assert all(torch.equal(began["train"][name], began["train.text_only"][name]) for name in began["train"])
    rates = [[entry["learning_rate"] for entry in history(made) if "loss" in entry] for made in (ours, control)]
    assert rates[0] == rates[1]
    assert {k for k in history(control)[0] if k.endswith("/weight")} == {"hard_ce/weight"}
    assert history(control)[0]["hard_ce/weight"] == 1


def test_a_change_of_objectives_leaves_the_control_fresh(tmp_path: Path, tiny_llama: Path) -> None:
    objectives = [{"kind": "forward_kl"}]
    path = write_recipe(tmp_path, tiny_llama, train={"controls": ["text_only"], "objectives": objectives})
    base, other = load_recipe(path), load_recipe(path, ["train.objectives.0.weight=3"])
    assert stage(base).key(base, {}) != stage(other).key(other, {})
    assert stage(base, Training("text_only")).key(base, {}) == stage(other, Training("text_only")).key(other, {})
    shown = load_recipe(path, ["train.log_gradient_norms=true", "train.checkpoint_seconds=1", "train.controls=[]"])
    assert stage(base).key(base, {}) == stage(shown).key(shown, {})


def test_each_seed_is_a_training_of_its_own_and_the_first_stays_fresh(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, train={"controls": ["text_only"]})
    one, three = load_recipe(path), load_recipe(path, ["train.seeds=3"])
    names = [name for name in stage_names(three) if name.startswith("train")]
    assert names == [
        "train",
        "train.text_only",
        "train.seed1",
        "train.text_only.seed1",
        "train.seed2",
        "train.text_only.seed2",
    ]
    for training in one.required_train.trainings:
        assert stage(one, training).key(one, {}) == stage(three, training).key(three, {})
    assert trained_by(three, Training(None, 2)).seed == three.seed + 2
    keys = {stage(three, training).key(three, {})[0] for training in three.required_train.trainings}
    assert len(keys) == 6


def test_another_seed_sees_the_same_rows_in_another_order(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama, train={"seeds": 2}))
    first, second = (run_stage(recipe, tmp_path / "run", training) for training in recipe.required_train.trainings)
    assert facts(first)["steps"] == facts(second)["steps"] and facts(first)["tokens"] == facts(second)["tokens"]
    losses = [[entry["loss"] for entry in history(made) if "loss" in entry] for made in (first, second)]
    assert losses[0] != losses[1]


def test_a_control_of_equal_seconds_takes_as_many_steps_as_fit_into_them(tmp_path: Path, tiny_llama: Path) -> None:
    # 40 steps in 10 s against 40 in 8 s: 50 steps of the control take 10 s.
    assert steps_of_equal_seconds({"steps": 40, "seconds": 10.0}, {"steps": 40, "seconds": 8.0}) == 50
    assert steps_of_equal_seconds({"steps": 40, "seconds": 0.0}, {"steps": 40, "seconds": 0.0}) == 40
    train = {"controls": ["text_only", "text_only_equal_seconds"]}
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama, train=train))
    run, made = tmp_path / "run", Training("text_only_equal_seconds")
    assert stage(recipe, made).reads == ("train", "train.text_only")
    plain = {"train": run_stage(recipe, run), "train.text_only": run_stage(recipe, run, Training("text_only"))}
    file = plain["train"].path / "student.json"
    file.write_text(json.dumps({**facts(plain["train"]), "seconds": 1.5 * facts(plain["train.text_only"])["seconds"]}))
    control = run_stage(recipe, run, made, inputs=plain)
    assert facts(control)["steps"] == round(1.5 * facts(plain["train.text_only"])["steps"])


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"controls": ["text_only_equal_seconds"]}, "add text_only to the controls"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_controls_and_seeds_that_cannot_be_trained_are_refused(
    tmp_path: Path, tiny_llama: Path, train: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tmp_path, tiny_llama, train=train))


def test_an_adapter_is_merged_and_lies_beside(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama, student={"lora": {"r": 2}}))
    made = run_stage(recipe, tmp_path / "run")
    from peft import PeftModel

    merged = AutoModelForCausalLM.from_pretrained(made.path / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    del base.model.layers[1], base.model.layers[2]
    for index, layer in enumerate(base.model.layers):
        layer.self_attn.layer_idx = index
    adapted = PeftModel.from_pretrained(base, made.path / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs = merged(ids).logits, adapted(ids, use_cache=False).logits
        plain = base.base_model(ids, use_cache=False)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert plain is not None and facts(made)["trainable_parameters"] < facts(made)["parameters"]


def test_the_best_weights_are_handed_on_if_they_are_asked_for(tmp_path: Path, tiny_llama: Path) -> None:
    # The rate grows until the student is destroyed, so that the last weights are not the best.
    worse = ARGS | {"learning_rate": 10.0, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 16}
    path = write_recipe(tmp_path, tiny_llama, train={"keep": "best", "evaluations": 8, "args": worse})
    made = run_stage(load_recipe(path), tmp_path / "run")
    curve = {entry["step"]: entry["eval_nll"] for entry in history(made) if "eval_nll" in entry}
    assert facts(made)["kept_step"] == min(curve, key=curve.__getitem__) < facts(made)["steps"]


def test_the_best_student_and_the_best_control_are_chosen_by_one_criterion_on_groups_that_are_not_reported(
    tmp_path: Path, tiny_llama: Path
) -> None:
    objectives = [{"kind": "forward_kl"}]
    train = {"keep": "best", "evaluations": 8, "controls": ["text_only"], "objectives": objectives}
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama, data={"held_out": 0.5}, train=train))
    for training in (Training(), Training("text_only")):
        made = run_stage(recipe, tmp_path / "run", training)
        curve = {entry["step"]: entry["eval_nll"] for entry in history(made) if "eval_nll" in entry}
        assert facts(made)["kept_step"] == min(curve, key=curve.__getitem__)
    held_out = read_sides(recipe.data).held_out
    choosing = {record.id for record in held_out if selects(record.group)}  # type: ignore[union-attr]
    assert made.manifest["counts"]["held-out records"] == len(choosing)
    reported = read_held_out(recipe, None, made.path / "model", Work(tmp_path / "work", resumed=False))
    assert {row.record_id for row in reported.rows} == {r.id for r in held_out} - choosing  # type: ignore[union-attr]


def test_too_few_held_out_groups_to_choose_by_and_to_report_on_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, data={"held_out": 0.05}, train={"keep": "best"})
    with pytest.raises(DataError, match=r"of 2 groups that leaves \d to choose by") as caught:
        run_stage(load_recipe(path), tmp_path / "run")
    assert "keep: last" in str(caught.value)


def test_the_projector_is_kept_beside_the_model_and_never_in_it(tmp_path: Path, tiny_llama: Path) -> None:
    student = make_tiny_causal_lm(tmp_path / "narrow", layers=1, hidden=16, heads=2, kv_heads=1, seed=9)
    path = write_recipe(
        tmp_path,
        tiny_llama,
        student={"kind": "existing", "model": str(student)},
        train={"objectives": [{"kind": "hidden_cosine"}]},
    )
    document = path.read_text().replace("  layers: every_other\n", "")
    path.write_text(document)
    made = run_stage(load_recipe(path), tmp_path / "run")
    projectors = load_file(made.path / "projectors.safetensors")
    assert {tuple(w.shape) for w in projectors.values()} == {(32, 16)}
    assert not any("project" in name for name in load_file(made.path / "model" / "model.safetensors"))


def test_packed_training_uses_fewer_rows(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, train={"packing": True, "max_length": 256})
    made = run_stage(load_recipe(path), tmp_path / "run")
    loose = run_stage(load_recipe(path, ["train.packing=false"]), tmp_path / "loose")
    assert facts(made)["steps"] < facts(loose)["steps"] and facts(made)["tokens"] == facts(loose)["tokens"]


def test_records_that_are_cut_or_dropped_are_counted(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, train={"max_length": 40})
    with (tmp_path / "data.jsonl").open("a") as lines:
        asked = {"role": "user", "content": "a long question " * 9}
        lines.write("\n" + json.dumps({"messages": [asked, {"role": "assistant", "content": "b"}]}))
    counts = run_stage(load_recipe(path, ["data.held_out=0"]), tmp_path / "run").manifest["counts"]
    assert counts["dropped: nothing to learn"] == 1
    assert counts["cut at 40 tokens"] > 0
    assert counts["records"] == 40


def test_prompts_without_answers_are_nothing_to_learn_from(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(DataError, match="nothing to learn from"):
        run_stage(load_recipe(path), tmp_path / "run")


def test_the_best_weights_need_held_out_records(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, data={"held_out": 0}, train={"keep": "best"})
    with pytest.raises(DataError, match="held-out"):
        run_stage(load_recipe(path), tmp_path / "run")


def test_other_tokens_are_refused_unless_only_text_is_learned(tmp_path: Path, tiny_llama: Path) -> None:
    student = make_tiny_causal_lm(tmp_path / "other", layers=1, seed=9)
    tokenizer = (student / "tokenizer.json").read_text()
    changed = tokenizer.replace('"a"', '"@"').replace('"b"', '"a"').replace('"@"', '"b"')
    (student / "tokenizer.json").write_text(changed)
    path = write_recipe(tmp_path, tiny_llama)
    existing = f"  kind: existing\n  model: {student}\n"
    path.write_text(path.read_text().replace("  kind: from_teacher\n  layers: every_other\n", existing))
    with pytest.raises(TokenizerMismatch):
        run_stage(load_recipe(path), tmp_path / "run")
    run_stage(load_recipe(path, ["train.objectives=[{kind: hard_ce}]"]), tmp_path / "run")


def test_a_value_that_training_arguments_refuse_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama, train={"args": {"lr_scheduler_type": "cosinus"}})
    with pytest.raises(RecipeError, match="cosinus"):
        run_stage(load_recipe(path), tmp_path / "run")


def test_progress_says_tokens_loss_and_held_out_kl(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_llama))
    made = run_stage(recipe, tmp_path / "run", console=Console("lines"))
    said = capsys.readouterr().err
    assert f"training: {facts(made)['tokens']:,} tokens in" in said
    assert "held out, step" in said and "KL" in said
    assert "it/s" not in said, "the library's own bars are off"


def test_the_key_is_made_without_torch(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_recipe(tmp_path, tiny_llama)
    code = (
        "import sys; from potstill.recipe import load_recipe; from potstill.train.stage import stage\n"
        f"recipe = load_recipe({str(path)!r}); stage(recipe).key(recipe, {{}})\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what a student's key knows of ------------------------------------------------------------------------------


NET = """from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, pixels):
        return self.head(pixels.flatten(1))
"""


def images(folder: Path, **changes: Any) -> Recipe:
    document = {
        "name": "net",
        "task": "image_classification",
        "student": {"kind": "module", "source": "net.py:Net"},
        "data": {"kind": "digits"},
        "train": {"objectives": [{"kind": "hard_ce"}]},
        **changes,
    }
    return parse_recipe(document, base=folder)


def test_images_that_were_read_are_counted_apart_from_those_that_are_there(tmp_path: Path) -> None:
    """Capacity is a law of the images that were read, of every epoch."""
    (tmp_path / "net.py").write_text(NET)
    args = {"num_train_epochs": 2, "per_device_train_batch_size": 64}
    recipe = images(
        tmp_path,
        data={"kind": "digits", "train_limit": 200},
        train={"objectives": [{"kind": "hard_ce"}], "args": args},
    )
    counts = run_stage(recipe, tmp_path / "run").manifest["counts"]
    assert counts["images"] == 2 * counts["records"] and 0 < counts["records"] <= 200


def test_a_net_whose_code_or_weights_change_is_trained_anew(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "start.safetensors").write_bytes(b"one")
    recipe = images(tmp_path, student={"kind": "module", "source": "net.py:Net", "weights": "start.safetensors"})
    before = stage(recipe).key(recipe, {})[0]

    (tmp_path / "net.py").write_text(NET.replace("64, 10", "64, 10, bias=False"))
    other_code = stage(recipe).key(recipe, {})[0]
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "start.safetensors").write_bytes(b"two")
    other_weights = stage(recipe).key(recipe, {})[0]

    assert len({before, other_code, other_weights}) == 3


def test_a_model_from_nothing_is_trained_anew_when_its_tokens_change(tmp_path: Path) -> None:
    make_tiny_tokenizer().save_pretrained(tmp_path / "letters")
    student = {"kind": "from_config", "tokenizer": "letters", "config": {"model_type": "llama"}}
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    recipe = images(tmp_path, task="causal_lm", student=student, data="data.jsonl")
    before = stage(recipe).key(recipe, {})[0]
    with (tmp_path / "letters" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert stage(recipe).key(recipe, {})[0] != before

    gone = images(tmp_path, task="causal_lm", student=student | {"tokenizer": "lettres"}, data="data.jsonl")
    for refuses in (lambda recipe: check_recipe(recipe).refuse(), lambda recipe: run_stage(recipe, tmp_path / "run")):
        with pytest.raises(ModelError, match=r"student\.tokenizer: .*lettres: there is no such folder"):
            refuses(gone)


def test_a_student_of_an_ensemble_is_trained_anew_when_any_member_changes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    members = [make_tiny_convnet(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    inner = {"kind": "ensemble", "members": [{"kind": "local", "model": f"./{name}"} for name in "bc"]}
    teacher = {"kind": "ensemble", "members": [{"kind": "local", "model": "./a"}, inner]}
    recipe = images(tmp_path, teacher=teacher, train={"objectives": [{"kind": "forward_kl"}]})
    keys = {stage(recipe).key(recipe, {})[0]}

    for member in members:
        make_tiny_convnet(member, seed=9 + len(keys))
        keys.add(stage(recipe).key(recipe, {})[0])

    assert len(keys) == 4
