"""Whatever is done to a shipped recipe, it is read or refused with a message: no traceback, no misspelt key accepted.

Mutations are drawn from a seed: a tenth of the campaign is part of `make test`.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.check import check_recipe
from potstill.errors import PotstillError
from potstill.recipe import dump_recipe, load_recipe

SHIPPED = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.name for path in SHIPPED.glob("*.yaml"))
NAMED_BY_THE_USER = ("teachers", "against")
"""Mappings whose keys are names that the user gives."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    10**30,
    0.5,
    -0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "abc",
    "-1",
    "1e12",
    1e12,
    "x" * 300,
    "a/" * 3000,
    "~nouser/x",
    "/nowhere/at/all",
    "run:",
    "run:~nouser",
    "hub:",
    ":",
    "package:nothing",
    "x.gguf",
    ".",
    "..",
    "a b/c d",
    "model.py:Net",
    ".py:",
    "\x1b[31mred",
    "٣",
    "²",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {"kind": "local"},
    {"kind": None},
    {"kind": ["local"]},
    {1: 2},
)

TEXTS: tuple[tuple[str, str], ...] = (
    ("[", "[" * 3000),
    (" ", " {" * 500),
    ("name:", "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nname:"),
    ("name:", "name: &n\n  <<: *n\nname:"),
    ("name:", "? [1, 2]\n: 3\nname:"),
    ("name:", "? {a: b}\n: 3\nname:"),
    ("name:", "1.5: x\nname:"),
    ("name:", "null: x\nname:"),
    ("name:", "on: x\nname:"),
    ("name:", "seed: 2024-99-99\nname:"),
    ("name:", "seed: !!timestamp 2024-99-99\nname:"),
    ("name:", "seed: !!timestamp x\nname:"),
    ("name:", "seed: !!int x\nname:"),
    ("name:", "seed: !!binary x\nname:"),
    ("name:", "seed: !!set {a, b}\nname:"),
    ("name:", "seed: !!python/object/apply:os.system [true]\nname:"),
    ("name:", f"seed: {'9' * 5000}\nname:"),
    ("name:", f"seed: 0x{'f' * 5000}\nname:"),
    ("name:", 'task: "\\0"\nname:'),
    ("name:", 'task: "\\ud800"\nname:'),
    ("name:", "\t- x\nname:"),
    ("name:", "--- {}\n---\nname:"),
    ("name:", "*undefined\nname:"),
    (":", ": :"),
    (":", ""),
    ("{", ""),
    ("}", "]"),
    ("\n", ""),
    ("\n", "\n\n- x\n"),
)


def mutations(count: int, seed: int) -> Iterator[tuple[str, str, bool]]:
    """Texts of mutated recipes: what was done, the text, and whether it must be refused."""
    draw = random.Random(seed)
    documents = {name: yaml.safe_load((SHIPPED / name).read_text()) for name in RECIPES}
    for number in range(count):
        name = draw.choice(RECIPES)
        document = copy.deepcopy(documents[name])
        if isinstance(document["data"], dict) and document["data"].get("size"):
            document["data"]["size"] = 200  # problems are made anew for every check
        if number % 5 < 2:
            what = misspell(document, draw)
            yield f"{name}: {what}", yaml.safe_dump(document), True
        elif number % 5 < 4:
            what = replace_value(document, draw)
            yield f"{name}: {what}", yaml.safe_dump(document), False
        else:
            text = yaml.safe_dump(document)
            old, new = draw.choice(TEXTS)
            places = [i for i in range(len(text)) if text.startswith(old, i)]
            at = draw.choice(places) if places else 0
            yield f"{name}: {old!r} → {new[:40]!r} at {at}", text[:at] + new + text[at + len(old) :], False


def places_in(value: Any, inside: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every (container, key, name of the container) of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inner):
        yield value, key, inside
        yield from places_in(part, str(key) if isinstance(value, dict) else inside)


def misspell(document: Any, draw: random.Random) -> str:
    """Drop, double or swap a letter of some key that is not a name of the user's."""
    mappings = [(m, key) for m, key, of in places_in(document) if isinstance(m, dict) and of not in NAMED_BY_THE_USER]
    mapping, key = draw.choice(mappings)
    at = draw.randrange(len(key))
    wrong = draw.choice((key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key[:at] + "x" + key[at + 1 :]))
    if not wrong or wrong == key:
        wrong = key + "s"
    mapping[wrong] = mapping.pop(key)
    return f"{key} → {wrong}"


def replace_value(document: Any, draw: random.Random) -> str:
    """Put a value of another kind, or out of all range, in some place."""
    container, key, _ = draw.choice(list(places_in(document)))
    container[key] = copy.deepcopy(draw.choice(VALUES))
    return f"{key} = {str(container[key])[:40]}"


@pytest.fixture
def mutated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[str]]:
    """Reads and checks mutations, and gives what went wrong."""
    folder = tmp_path / "recipes"
    shutil.copytree(SHIPPED, folder)
    monkeypatch.chdir(tmp_path)

    def go(count: int, seed: int) -> list[str]:
        wrong = []
        for what, text, must_be_refused in mutations(count, seed):
            path = folder / "mutated.yaml"
            path.write_text(text)
            try:
                recipe = load_recipe(path)
                if must_be_refused:
                    wrong.append(f"accepted: {what}")
                json.dumps(check_recipe(recipe).to_dict())
                path.write_text(dump_recipe(recipe))
                load_recipe(path)
            except PotstillError as error:
                str(error).encode()
                if len(str(error)) > 4000:
                    wrong.append(f"{len(str(error)):,} characters of message: {what}")
            except Exception as error:  # noqa: BLE001 - every kind of traceback is a finding
                wrong.append(f"{type(error).__name__} ({str(error)[:200]}): {what}")
        return wrong

    return go


def test_two_hundred_mutations_are_read_or_refused(mutated: Callable[[int, int], list[str]]) -> None:
    assert mutated(200, 0) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_thousand_mutations_are_read_or_refused(mutated: Callable[[int, int], list[str]]) -> None:
    assert mutated(2000, 1) == []


# ---- what grows without bound --------------------------------------------------------------------------------


def aliases_of_aliases(line: str, first: str) -> str:
    """A document of eight lines, each of which repeats the one before ten times."""
    lines = [
        f"{b}: " + line.format(b=b, all=", ".join([f"*{a}"] * 10)) for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join([f"a: &a {first}", *lines])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\ndata: " + "[" * 3000, "nested deeper than 40 levels"),
        (aliases_of_aliases("&{b} [{all}]", "[x, x]"), "holds more than 20,000 values"),
        (aliases_of_aliases("&{b} {{<<: [{all}]}}", "{x: 1}"), "holds more than 20,000 values"),
        ("a: &a [*a]", "an alias stands inside what it repeats"),
        ("? [1, 2]\n: x", "a key should be a name"),
        ("null: x", "a key should be a name, not None: put it in quotes"),
        ("name: \a", "special characters are not allowed"),
        ("name: 1\nname: 2", "key 'name' is given twice"),
        ("seed: !!timestamp 2024-99-99", "a value cannot be read"),
        ("seed: " + "9" * 5000, "a value cannot be read"),
        ("seed: 0x" + "f" * 5000, "is a number of 20000 bits"),
        ('name: "\\0"', "name has a NUL character"),
        ('name: "\\ud800"', "name has half of a surrogate pair"),
        ("seed: .nan", "seed is not a number (nan)"),
        ("x" * 300_000, "has 300,000 bytes"),
        ("name: !!set {a, b}", "name is a set"),
    ],
)  # fmt: skip
def test_what_no_recipe_holds_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(PotstillError) as error:
        load_recipe(path)
    assert expected in str(error.value)
    assert len(str(error.value)) < 1000


def test_on_is_a_name_where_it_is_a_key(tmp_path: Path) -> None:
    """YAML 1.1 reads it as true; statements and overrides of `policy` have a key of that name."""
    path = tmp_path / "recipe.yaml"
    statement = '{id: cc-by-4.0, attested_by: A, on: "2026-11-27", why: it stands on the page}'
    path.write_text(f"name: x\ndata: {{kind: jsonl, path: rows.jsonl, licence: {statement}}}")
    recipe = load_recipe(path)
    assert recipe.data.licence_id == "cc-by-4.0"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_dates_times_and_numbers_in_quotes_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("2024-01-31", "12:30", "'5e-4'", "'1e5'", "'.5'"):
        path.write_text(f"name: x\ndata: {{kind: hub, id: a/b, revision: {text}}}")
        recipe = load_recipe(path)
        assert recipe.data.revision == text.strip("'")  # type: ignore[attr-defined]
        path.write_text(dump_recipe(recipe))
        assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.args.learning_rate=abc", "learning_rate should be a number, not 'abc'"),
        ("train.args.learning_rate=.nan", "is not a number"),
        ("train.args.learning_rate=-1", "should not be negative"),
        ("train.args.num_train_epochs=.inf", "should be a finite number"),
        ("train.args.per_device_train_batch_size=0", "should be above 0"),
        ("train.args.num_train_epochs=1e308", "should be at most 1,000,000"),
        ("train.args.optim=adamw", "should be one of adamw_torch"),
        ("train.args.hub_token=secret", "a key must not be"),
        ("generate.max_new_tokens=1e12", "should be less than or equal to 16777216"),
        ("generate.samples=yes", "should be a number, not true"),
        ("generate.temperature=.inf", "should be a finite number"),
        ("teacher.model=" + "x" * 300, "is too long for a path"),
        ("name=" + "x" * 300, "should have at most 100 characters"),
        ("data.path=" + "x" * 300, "is too long for a path"),
        ("student.config.num_hidden_layer=3", "did you mean 'num_hidden_layers'"),
        ("train.objectives.²=3", "the list has"),
    ],
)
def test_values_that_nothing_could_take_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    from potstill.init import write_starter

    overrides = [override]
    if override.startswith("student"):
        overrides = ["student={kind: from_config, config: {}}", override]
    with pytest.raises(PotstillError) as error:
        load_recipe(write_starter(tmp_path)[0], overrides)
    assert expected in str(error.value)


def test_a_teacher_of_a_user_that_is_not_known_is_refused_by_the_check(tmp_path: Path) -> None:
    from potstill.init import write_starter

    recipe = load_recipe(write_starter(tmp_path)[0], ["teacher.model=~nouser/x"])
    assert any("there is no such model" in finding.text for finding in check_recipe(recipe).errors)


def test_a_modules_arguments_are_those_of_its_function(tmp_path: Path) -> None:
    recipe = SHIPPED / "hinton_digits.yaml"
    for override, expected in (
        ("student.arguments.widht=3", "SmallNet takes no 'widht'; did you mean 'width'?"),
        ("student.arguments.width=wide", "arguments.width should be a whole number, not 'wide'"),
        ("student.source=convnets.py:SmalNet", "no class or function 'SmalNet'; did you mean 'SmallNet'?"),
    ):
        with pytest.raises(PotstillError) as error:
            load_recipe(recipe, [override])
        assert expected in str(error.value)
