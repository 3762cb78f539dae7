"""A recipe is checked before anything loads, and slips are answered with the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.recipe import HiddenCosine, LocalTeacher, Recipe, SequenceProgram, Uniform, dump_recipe, load_recipe
from potstill.recipe.evaluate import EvaluateSettings, SolveSettings

TEXT = """
name: half
teacher: {kind: local, model: some-model}
student: {kind: from_teacher}
data: {kind: jsonl, path: prompts.jsonl}
generate: {kind: sequence, samples: 2, temperature: 0.7}
train:
  objectives:
    - {kind: forward_kl, weight: 5.0, temperature: 2.0}
    - {kind: hard_ce, weight: 2.0}
    - {kind: hidden_cosine}
  controls: [text_only]
  args: {learning_rate: 5e-4}
evaluate:
export: [{kind: huggingface}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(TEXT)
    return file


def test_an_empty_section_is_present(path: Path) -> None:
    assert load_recipe(path).evaluate is not None


def test_exponents_without_a_point_are_numbers(path: Path) -> None:
    assert load_recipe(path).train.args["learning_rate"] == pytest.approx(5e-4)


def test_overrides_reach_into_lists_and_sections(path: Path) -> None:
    recipe = load_recipe(path, ["train.objectives.0.weight=3", "student.layers={uniform: 6}", "seed=7"])
    assert recipe.train.objectives[0].weight == 3
    assert recipe.student.layers == Uniform(uniform=6)
    assert recipe.seed == 7


def test_paths_are_relative_to_the_recipe(path: Path) -> None:
    assert load_recipe(path).data.path == path.parent / "prompts.jsonl"


def test_the_resolved_recipe_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    resolved = tmp_path / "elsewhere" / "recipe.yaml"
    resolved.parent.mkdir()
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trian={}", "unknown key 'trian'; did you mean 'train'?"),
        ("train.packign=true", "unknown key 'train.packign'; did you mean 'packing'?"),
        ("train.objectives.0.wieght=3", "unknown key 'train.objectives.0.wieght'; did you mean 'weight'?"),
        ("teacher.modle=x", "unknown key 'teachers.main.modle'; did you mean 'model'?"),
        ("generate.kind=sequense", "unknown kind 'sequense'; did you mean 'sequence'?"),
        ("student.layers={unifrom: 3}", "unknown layer choice 'unifrom'; did you mean 'uniform'?"),
        ("student.layers=uniform", "'uniform' is not a choice of layers; give {uniform: 6}"),
        ("train.args.learning_rat=1", "not a field of TrainingArguments; did you mean 'learning_rate'?"),
        ("train.args.fp16=true", "use bf16"),
        ("train.args.seed=1", "use the recipe's seed"),
        ("generate.samples=0", "generate.samples: should be greater than 0, not 0"),
        ("generate.temperature=0", "greedy answers are all the same"),
        ("generate.beams=2", "beam search is deterministic"),
        ("data.held_out=0", "evaluate needs held-out records"),
        ("train.teacher=other", "teacher 'other' is not among the teachers (main)"),
        ("student=null", "train needs a student"),
        ("train.objectives.7.weight=2", "the list has 3 entries"),
        ("train.objectives=[{kind: hard_ce, weight: 0}]", "every objective has weight 0"),
        ("name=../elsewhere", "name: "),
        ("name", "not of the form key.sub=value"),
        ("data.system={% if x", "the value is not valid YAML"),
    ],
)
def test_a_slip_is_answered_with_the_fix(path: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [override])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.held_out=1.0", "data.held_out: should be less than 1, or 'own', not 1.0"),
        ("train.objectives=[]", "train.objectives: should have at least 1 entry"),
        ("train.objectives=[{kind: forward_kld}]", "train.objectives.0: unknown kind 'forward_kld'; did you mean"),
    ],
)
def test_one_slip_is_one_line_that_names_keys_alone(path: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    (line,) = caught.value.what.splitlines()
    assert line.startswith(expected)


def test_a_stage_without_the_one_it_reads_is_refused(path: Path) -> None:
    document = yaml.safe_load(TEXT)
    del document["train"]
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError, match="evaluate reads what train makes"):
        load_recipe(path)


def test_a_teacher_that_cannot_give_what_an_objective_needs_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalTeacher, "capabilities", frozenset({"generate"}))
    with pytest.raises(RecipeError, match="forward_kl needs dense or head or top_logprobs of its teacher"):
        load_recipe(path)
    load_recipe(path, ["train.objectives=[{kind: hard_ce}]"])
    monkeypatch.setattr(LocalTeacher, "capabilities", frozenset({"head", "taps"}))
    with pytest.raises(RecipeError, match=r"generate \(sequence\) needs generate of its teacher"):
        load_recipe(path)


def test_every_problem_is_named_at_once_with_its_file(path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, ["generate.samples=0", "trian={}"])
    message = str(error.value)
    assert message.startswith(str(path))
    assert "generate.samples" in message
    assert "trian" in message


def test_a_missing_recipe_suggests_the_nearest_file(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'recipe.yaml'"):
        load_recipe(path.with_name("recpie.yaml"))


def test_a_key_given_twice_is_refused(path: Path) -> None:
    path.write_text(TEXT + "seed: 1\nseed: 2\n")
    with pytest.raises(RecipeError, match="'seed' is given twice"):
        load_recipe(path)


def test_yaml_cannot_build_objects(path: Path) -> None:
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)


def test_a_plug_in_is_validated_by_its_own_settings(path: Path) -> None:
    plugin = path.with_name("mine.py")
    plugin.write_text(
        "from typing import Literal\n"
        "from potstill.recipe import ObjectiveSettings\n"
        "class Mine(ObjectiveSettings):\n"
        "    kind: Literal['mine'] = 'mine'\n"
        "    sharpness: float = 1.0\n"
    )
    recipe = load_recipe(path, ["train.objectives.0={kind: 'mine.py:Mine', sharpness: 2}"])
    assert recipe.train.objectives[0].sharpness == 2
    resolved = path.parent / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    with pytest.raises(RecipeError, match="did you mean 'sharpness'"):
        load_recipe(path, ["train.objectives.0={kind: 'mine.py:Mine', sharpnes: 2}"])
    with pytest.raises(RecipeError, match="no class 'Mien' in the plug-in; did you mean 'Mine'"):
        load_recipe(path, ["train.objectives.0={kind: 'mine.py:Mien'}"])


def test_cosmetic_settings_stay_out_of_the_key(path: Path) -> None:
    base = load_recipe(path).train.key_fields()
    assert load_recipe(path, ["train.checkpoint_seconds=5"]).train.key_fields() == base
    assert load_recipe(path, ["train.max_length=5"]).train.key_fields() != base


def test_what_is_not_asked_for_is_no_part_of_the_key() -> None:
    solve = SolveSettings.model_validate({"verify": {"kind": "numeric"}})
    assert "solve" not in EvaluateSettings().key_fields()
    assert EvaluateSettings(solve=solve).key_fields()["solve"] == solve.key_fields()
    assert "decontaminate" not in SequenceProgram().key_fields()
    assert EvaluateSettings(controls=()).key_fields()["controls"] == []  # what is set to nothing is


def test_layer_pairs_are_read_as_pairs(path: Path) -> None:
    recipe = load_recipe(path, ["train.objectives.2.layers=[[1, 2], [3, 6]]"])
    objective = recipe.train.objectives[2]
    assert isinstance(objective, HiddenCosine)
    assert objective.layers == ((1, 2), (3, 6))


def test_the_recipe_loads_no_torch(path: Path) -> None:
    code = f"import sys, potstill.recipe as r; r.load_recipe({str(path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_no_document_breaks_the_parser(document: object) -> None:
    from potstill.recipe import parse_recipe

    if isinstance(document, dict):
        with pytest.raises(RecipeError):
            parse_recipe(document, base=Path())
    for section in ("train", "data", "student", "generate", "export", "evaluate"):
        try:
            made = parse_recipe({"name": "x", "data": "x.jsonl", section: document}, base=Path())
        except RecipeError:
            continue
        assert isinstance(made, Recipe)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("capture: {kind: threshold, bytes_per_tokn: 20}", "'capture.bytes_per_tokn'; did you mean 'bytes_per_token'?"),
        ("speculate: {draft: {kind: layers, layers: 2, frequnt: 9}}", "did you mean 'frequent'?"),
        (
            "speculate: {draft: {kind: chained, then: {kind: model, model: x, thresold: 1}}}",
            "did you mean 'threshold'?",
        ),
        ("speculate: {draft: {kind: medusa, typical: {epsilom: 0.1}}}", "did you mean 'epsilon'?"),
        ("speculate: {train: {objectives: [{kind: forward_kl, temprature: 2}]}}", "did you mean 'temperature'?"),
    ],
)
def test_a_typo_in_a_variant_is_answered_with_the_variants_own_keys(path: Path, section: str, expected: str) -> None:
    path.write_text(TEXT + section)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluate.controls=untrained", "evaluate.controls: should be a list, [a, b], not 'untrained'"),
        ("train.masking=3", "train.masking: should be a mapping, {key: value}, not 3"),
        ("generate.samples=few", "generate.samples: should be a whole number, not 'few'"),
        ("student.layers=[a]", "student.layers.0: should be a whole number, not 'a'"),
        ("data.licence={id: 3}", "data.licence.id: should be a text, not 3"),
        ("teacher.model=", "teachers.main.model: should be a text, not None"),
        ('teacher.model=""', "teachers.main.model: should have at least 1 character"),
        ("export=huggingface", "export: should be a list, [a, b], not 'huggingface'"),
    ],
)
def test_a_value_of_a_wrong_type_is_answered_in_words_of_a_recipe(path: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [override])
    assert expected in str(error.value)
    assert not any(word in str(error.value) for word in ("tuple", "dictionary", "instance", "Uniform", "Statement"))


def test_the_paths_of_a_draft_are_relative_to_the_recipe(path: Path) -> None:
    for draft, place in (
        ("{kind: model, model: ./draft}", lambda settings: settings.model),
        ("{kind: medusa, weights: draft}", lambda settings: settings.weights),
        ("{kind: chained, then: {kind: medusa, weights: draft}}", lambda settings: settings.then.weights),
    ):
        path.write_text(f"{TEXT}speculate: {{draft: {draft}}}")
        assert str(place(load_recipe(path).required_speculate.draft)) == str(path.parent / "draft")


def test_heads_are_not_trained_for_a_draft_of_layers(path: Path) -> None:
    path.write_text(f"{TEXT}speculate: {{train: {{objectives: [{{kind: medusa}}]}}}}")
    with pytest.raises(RecipeError, match="medusa trains heads, and draft is 'layers'"):
        load_recipe(path)
