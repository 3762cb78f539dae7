"""What a student was made from reaches its student, that one's student, a merge, and whoever trains on its records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from potstill.policy.gate import rulings_on
from potstill.policy.provenance import FORMAT, Provenance, Use, of_folder, provenance_of
from potstill.policy.recognise import Evidence
from potstill.policy.table import Route
from potstill.recipe import Recipe
from tiny_models import make_tiny_causal_lm

ROWS = '{"prompt": "q", "completion": "a"}\n' * 4


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def house(tmp_path: Path, plain_model: Path) -> House:
    return House(tmp_path, plain_model)


class House:
    """Recipes whose runs are there, as far as their provenance goes: the manifest and the student's folder."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        (folder / "data").mkdir()
        (folder / "data" / "rows.jsonl").write_text(ROWS)

    def licensed(self, name: str, licence: str) -> dict[str, Any]:
        """A teacher whose card states a licence."""
        target = self.folder / name
        shutil.copytree(self.model, target)
        (target / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        return {"kind": "local", "model": str(target)}

    def recipe(self, name: str, **sections: Any) -> Recipe:
        plain: dict[str, Any] = {
            "name": name,
            "student": {"kind": "from_config", "config": {"num_hidden_layers": 1}},
            "data": {"kind": "jsonl", "path": str(self.folder / "data" / "rows.jsonl"), "licence": "own"},
            "train": {},
        }
        return Recipe.model_validate({**plain, **sections})

    def made(self, recipe: Recipe) -> str:
        """Its run, as a model of another recipe."""
        run = self.folder / recipe.name
        for stage in ("generate", "train"):
            made = provenance_of(recipe, "records" if stage == "generate" else "student")
            (run / stage).mkdir(parents=True)
            manifest = {"stage": stage, "key": recipe.name, "facts": {"policy": made.to_dict()}, "files": {}}
            (run / stage / "manifest.json").write_text(json.dumps(manifest))
        shutil.copytree(self.model, run / "train" / "model")
        return f"run:{run}"


def found(recipe: Recipe) -> set[tuple[str, str, tuple[str, ...]]]:
    """(source, route, through) of every use."""
    return {(source, use.route, use.through) for use in provenance_of(recipe, "student").uses for source in use.sources}


def test_a_students_students_student_is_under_the_first_licence(house: House) -> None:
    first = house.made(house.recipe("first", teacher=house.licensed("teacher", "llama3.1")))
    second = house.made(house.recipe("second", teacher={"kind": "local", "model": first}))
    third = house.recipe("third", teacher={"kind": "local", "model": second}, policy={"purpose": "publish"})
    assert ("llama-3.1", "logits", ("run:first", "run:second")) in found(third)
    assert ("own", "data", ("run:first", "run:second")) in found(third)
    assert any(duty.do == "name_prefix" and duty.text == "Llama" for duty in rulings_on(third).duties)


def test_a_merge_is_under_the_licences_of_all(house: House) -> None:
    one = house.made(house.recipe("one", teacher=house.licensed("a", "gemma")))
    other = house.made(house.recipe("other", teacher=house.licensed("b", "cc-by-nc-4.0")))
    members = [{"kind": "local", "model": model} for model in (one, other)]
    merged = house.recipe("merged", teacher={"kind": "ensemble", "members": members})
    sources = {source for source, _, _ in found(merged)}
    assert sources == {"gemma-2025-03", "cc-by-nc-4.0", "own"}
    both = provenance_of(house.recipe("x", teacher=members[0]), "student") + provenance_of(
        house.recipe("x", teacher=members[1]), "student"
    )
    assert {source for use in both.uses for source in use.sources} == sources


@pytest.mark.parametrize("by", ["run", "file"])
def test_records_carry_their_writers_licence(house: House, by: str) -> None:
    teacher = house.licensed("teacher", "llama3.2")
    writing = house.recipe("writing", teacher=teacher, generate={"kind": "sequence"})
    run = house.made(writing).removeprefix("run:")
    file = f"{run}/generate/records.jsonl"
    Path(file).write_text(ROWS)
    data = {"kind": "run", "path": run} if by == "run" else {"kind": "jsonl", "path": file}
    trained = house.recipe("trained", data=data, train={"objectives": [{"kind": "hard_ce"}]})
    assert {(source, route) for source, route, _ in found(trained)} == {("llama-3.2", "outputs"), ("own", "data")}
    # A statement stands beside what is known, and not in its place.
    stated = house.recipe("stated", data={**data, "licence": "mit"}, train={"objectives": [{"kind": "hard_ce"}]})
    assert {source for source, _, _ in found(stated)} == {"llama-3.2", "own", "mit"}


def test_records_are_not_made_from_what_only_the_student_is(house: House) -> None:
    recipe = house.recipe(
        "both",
        teacher=house.licensed("teacher", "apache-2.0"),
        student={"kind": "existing", "model": house.licensed("student", "gemma")["model"]},
        generate={"kind": "sequence"},
        train={"objectives": [{"kind": "hard_ce"}]},
    )
    records = {source for use in provenance_of(recipe, "records").uses for source in use.sources}
    assert records == {"apache-2.0", "own"}
    assert {source for source, _, _ in found(recipe)} == {"apache-2.0", "own", "gemma-2025-03"}


def test_a_store_of_signals_is_under_its_teachers_licence(house: House) -> None:
    capture = {"kind": "threshold"}
    recipe = house.recipe("stored", teacher=house.licensed("teacher", "gemma"), capture=capture)
    signals = {(source, use.route) for use in provenance_of(recipe, "signals").uses for source in use.sources}
    assert signals == {("gemma-2025-03", "logits"), ("own", "data")}


def test_weights_that_learned_from_outputs_carry_those_outputs(house: House) -> None:
    """To start from a student of a model's outputs is to use those outputs, not that model's weights."""
    writer = house.licensed("writer", "llama3")
    first = house.recipe(
        "first", teacher=writer, generate={"kind": "sequence"}, train={"objectives": [{"kind": "hard_ce"}]}
    )
    second = house.recipe(
        "second",
        student={"kind": "existing", "model": house.made(first)},
        train={"objectives": [{"kind": "hard_ce"}]},
    )
    assert ("llama-3", "outputs", ("run:first",)) in found(second)


def test_a_student_of_its_teachers_own_weights_is_told_from_another(house: House) -> None:
    teacher = house.licensed("teacher", "llama2")
    same = house.recipe("same", teacher=teacher, student={"kind": "from_teacher", "layers": "every_other"})
    assert rulings_on(same).answer == "duties"
    assert rulings_on(house.recipe("other", teacher=teacher)).answer == "block"


def test_a_run_that_is_gone_is_remembered() -> None:
    before = Provenance((Use("teachers.main", "m", "logits", (Evidence("gemma-2025-03", "card"),), ("run:x",)),))
    now = Provenance((Use("teachers.main", "run:x", "logits", (Evidence("", "nothing states it"),)),))
    assert {source for use in now.with_recorded(before).uses for source in use.sources} == {"", "gemma-2025-03"}
    assert now.with_recorded(now) == now


@pytest.mark.parametrize("text", ["", "[]", "null", '{"format": "other"}', "[" * 200_000])
def test_a_file_that_is_no_provenance_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "provenance.json").write_text(text)
    assert of_folder(tmp_path) is None


SIGN = {"source": "mit", "how": "the model card", "stated": "mit"}
USE = {"role": "teachers.main", "name": "m", "route": "logits", "evidence": [SIGN]}


@pytest.mark.parametrize(
    "document",
    [
        {"format": "potstill-provenance-2"},
        {"format": FORMAT, "uses": [1], "overrides": []},
        {"format": FORMAT, "uses": [{**USE, "route": "banana"}], "overrides": []},
        {"format": FORMAT, "uses": [{**USE, "route": ["logits"]}], "overrides": []},
        {"format": FORMAT, "uses": [{**USE, "name": {"a": 1}}], "overrides": []},
        {"format": FORMAT, "uses": [{**USE, "evidence": [{**SIGN, "source": ["mit"]}]}], "overrides": []},
        {"format": FORMAT, "uses": [{**USE, "through": [5]}], "overrides": []},
        {"format": FORMAT, "uses": [{**USE, "evidence": []}], "overrides": []},
        {"format": FORMAT, "uses": [], "overrides": []},
    ],
)
def test_a_provenance_that_cannot_be_read_or_says_nothing_is_not_known(house: House, document: Any) -> None:
    teacher = house.licensed("teacher", "other")
    Path(teacher["model"], "provenance.json").write_text(json.dumps(document))
    rulings = rulings_on(house.recipe("asked", teacher=teacher))
    assert [ruling.source for ruling in rulings.rulings] == ["", "own"]
    assert rulings.answer == "warn"


def test_a_student_that_somebody_else_licensed_is_under_that_licence_too(house: House) -> None:
    """What it was made from is in the folder, and so is the licence that its maker gave it."""
    teacher = house.licensed("student-of-others", "cc-by-nc-4.0")
    made = {"format": FORMAT, "uses": [USE], "overrides": []}
    Path(teacher["model"], "provenance.json").write_text(json.dumps(made))
    recipe = house.recipe("asked", teacher=teacher, policy={"purpose": "commercial"})
    assert found(recipe) == {
        ("mit", "logits", ("student-of-others",)), ("cc-by-nc-4.0", "logits", ()), ("own", "data", ()),
    }  # fmt: skip
    assert rulings_on(recipe).answer == "block"


def test_a_name_that_somebody_else_wrote_stays_on_its_line() -> None:
    made = Use.of({**USE, "name": "m\n\nThis student is under the MIT License."})
    assert "\n" not in made.name


@pytest.mark.parametrize("route", ["outputs", "logits", "weights", "data"])
def test_data_stay_data_and_the_weakest_link_is_the_route(route: Route) -> None:
    through = Provenance((Use("r", "m", "outputs", ()), Use("data", "d", "data", ()))).through("s", "r", route)
    assert [use.route for use in through.uses] == ["outputs", "data"]
