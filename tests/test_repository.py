"""What the repository says of itself is true: its tree, its commands, its recipes, its speed at start."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
import yaml
from optional import BROWSERS, COMPILERS

from potstill.tasks import SPECS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "potstill"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TOP = ("recipes", "benchmarks", "docs", "tests")

MOST_LINES = 700
MOST_FRAGMENTS = 40
HEAVY = ("torch", "transformers", "datasets", "pandas")


def rooms() -> set[str]:
    """The rooms of the package as the tree writes them: `cli.py`, `recipe/`."""
    files = {p.name for p in SOURCE.glob("*.py")} - {"__init__.py"}
    return files | {f"{p.name}/" for p in SOURCE.iterdir() if any(p.glob("*.py"))}


def fenced(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    blocks = re.findall(r"^```(.*)\n((?s:.*?))^```$", page.read_text(encoding="utf-8"), flags=re.M)
    return [text for of, text in blocks if of == language]


def commands(page: Path) -> list[str]:
    """What the console blocks of a page have the reader type."""
    lines = "\n".join(fenced(page, "console")).splitlines()
    return [line[2:].partition(" #")[0].strip() for line in lines if line.startswith("$ ")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- the tree ------------------------------------------------------------------------------------------------


def test_the_readme_tree_is_the_tree() -> None:
    tree = next(block for block in fenced(ROOT / "README.md", "") if block.startswith("src/potstill/"))
    shown = re.findall(r"^ {2}(\S+) {2,}\S", tree, flags=re.M)
    assert sorted(shown) == sorted(rooms())
    assert re.findall(r"^(\S+)/ {2,}\S", tree, flags=re.M) == list(TOP)
    assert all((ROOT / folder).is_dir() for folder in TOP)


def test_no_file_asks_for_a_door() -> None:
    lengths = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    assert {p: n for p, n in lengths.items() if n > MOST_LINES} == {}


def fragments() -> dict[str, str]:
    """Modules that one other file of their room imports, as it is loaded, and nobody else: module → importer.

    Not counted: what `__init__` imports (the face of a room), what is imported when a function runs (which keeps torch
    out of the start), and what is found by its name (a stage; a kind, which implements its settings).
    """
    graph = grimp.build_graph("potstill", cache_dir=None)
    files = {
        ".".join(("potstill", *path.relative_to(SOURCE).with_suffix("").parts)): path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py"
    }
    found = dict[str, str]()
    for module, text in files.items():
        importers = graph.find_modules_that_directly_import(module)
        if len(importers) != 1 or re.search(r"^@implements\(|^def stage\(", text, flags=re.M):
            continue
        (importer,) = importers
        if importer not in files or importer.split(".")[1] != module.split(".")[1]:
            continue
        lines = files[importer].splitlines()
        places = graph.get_import_details(importer=importer, imported=module)
        if any(not lines[place["line_number"] - 1].startswith(" ") for place in places):
            found[module] = importer
    return found


def test_few_files_belong_into_the_only_one_that_imports_them() -> None:
    """A file that one other file imports needs an idea of its own."""
    found = fragments()
    assert 0 < len(found) <= MOST_FRAGMENTS, "\n".join(f"{one} <- {by}" for one, by in sorted(found.items()))


def test_the_map_of_a_room_names_its_files() -> None:
    """A docstring of `__init__` that lists files lists those that there are."""
    gone = list[str]()
    for face in SOURCE.rglob("__init__.py"):
        named = re.findall(r"\b(\w+\.py)\b", ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))) or "")
        gone += [name(face.parent / file) for file in named if not (face.parent / file).is_file()]
    assert gone == []


def test_every_room_has_its_tests() -> None:
    untested = [room for room in rooms() if room.endswith("/") and not list((ROOT / "tests" / room).glob("test_*.py"))]
    assert untested == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = ("src", "tests", "recipes", "benchmarks", "docs", ".ci")
    files = [
        p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    files += [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]  # of a work tree it is a file
    named = re.compile("|".join(["/work" + "/", "/home" + "/", "/root" + "/", "py" + r"pi\.org", "python" + "hosted"]))
    texts = [p for p in files if p.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".jsonl", ""}]
    assert [name(p) for p in texts if named.search(p.read_text(encoding="utf-8"))] == []


def compared_strings(source: str) -> set[str]:
    """The string constants that a Python file compares with (`==`, `in`, `case`)."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        parts += [node.value] if isinstance(node, ast.MatchValue) else []
        found |= {
            c.value
            for part in parts
            for c in ast.walk(part)
            if isinstance(c, ast.Constant) and isinstance(c.value, str)
        }
    return found


def test_nothing_but_the_table_compares_a_task_with_a_string() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.name != "tasks.py"]
    compared = {name(path): compared_strings(path.read_text(encoding="utf-8")) & set(SPECS) for path in files}
    for template in SOURCE.rglob("*.jinja"):
        quoted = re.findall(r"[=!]= *['\"](\w+)['\"]", template.read_text(encoding="utf-8"))
        compared[name(template)] = set(quoted) & set(SPECS)
    assert not {path: tasks for path, tasks in compared.items() if tasks}


def test_builds_that_are_not_isolated_find_what_builds_them() -> None:
    makefile, pins = ((ROOT / f).read_text(encoding="utf-8") for f in ("Makefile", "constraints.txt"))
    first = re.search(r"^\t@\$\(PIP\) (hatchling .*)$", makefile, flags=re.M)
    assert first is not None and "--no-build-isolation" in makefile
    builders = first[1].split()
    # Some dependencies of reasoning-gym are source distributions of setuptools, which before 70.1 needs wheel.
    assert {"hatchling", "setuptools", "wheel"} <= set(builders)
    assert all(re.search(rf"^{name}==", pins, flags=re.M) for name in builders)


def test_the_walks_in_the_design_name_functions_that_exist() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| `([\w/]+\.py)` \| `(\w+)` \|", design, flags=re.M)
    assert len(steps) > 20
    gone = [(file, name) for file, name in steps if f"def {name}(" not in (SOURCE / file).read_text(encoding="utf-8")]
    assert gone == []


# ---- what the pages say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_make_target_in_the_docs_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    code = " ".join(re.findall(r"`[^`\n]+`", page.read_text(encoding="utf-8"))) + "\n".join(fenced(page, "console"))
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_potstill_command_in_the_docs_parses(page: Path) -> None:
    import typer

    from potstill.cli import app

    group = typer.main.get_command(app)
    inline = re.findall(r"`(potstill [a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
    for command in [c for c in commands(page) + inline if c.startswith("potstill ")]:
        verb, *arguments = shlex.split(command)[1:]
        assert verb in group.commands, f"{command!r}: no such verb"  # type: ignore[attr-defined]
        if command in commands(page):
            group.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_recipe_in_the_docs_is_one(page: Path) -> None:
    from potstill.recipe import parse_recipe

    for block in fenced(page, "yaml"):
        document = yaml.safe_load(block)
        if "name" in document:
            parse_recipe(document, base=ROOT / "recipes", where=name(page))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_verb_has_a_page() -> None:
    import typer

    from potstill.cli import app

    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")}
    assert verbs - {"show"} <= pages
    assert "potstill show" in (ROOT / "docs" / "run.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_every_shipped_recipe_is_one(recipe: Path) -> None:
    from potstill.recipe import dump_recipe, load_recipe, parse_recipe

    loaded = load_recipe(recipe)
    again = parse_recipe(yaml.safe_load(dump_recipe(loaded)), base=recipe.parent)
    assert again == loaded


# ---- starting fast -------------------------------------------------------------------------------------------


def loaded_by(start: str, cwd: Path) -> str:
    """Which of the heavy packages are loaded when a program ends."""
    watch = f"import atexit, sys; atexit.register(lambda: print('loaded:', {{*{HEAVY!r}}} & {{*sys.modules}}))"
    command = [sys.executable, "-c", f"{watch}\n{start}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "start",
    ["import potstill.recipe", "import potstill.pipeline", "from potstill.cli import main; main(['--help'])"],
    ids=["recipe", "pipeline", "--help"],
)
def test_starting_loads_no_torch(start: str) -> None:
    assert loaded_by(start, ROOT) == "loaded: set()"


def test_a_static_check_loads_no_torch(tmp_path: Path) -> None:
    from potstill.init import write_starter

    write_starter(tmp_path)
    assert loaded_by("from potstill.cli import main; main(['check', 'recipe.yaml'])", tmp_path) == "loaded: set()"


# ---- tests that do not run -----------------------------------------------------------------------------------

SKIPPING = """
import pytest

def test_of_the_page(chromium): ...

@pytest.mark.skip(reason="the moon is full")
def test_that_is_skipped(): ...

@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_expected_to_fail(): assert False
"""


def _pytest_over(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Pytest with this project's conftest over a file that skips, without a browser."""
    (tmp_path / "test_skipping.py").write_text(SKIPPING, encoding="utf-8")
    outside = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("PYTEST")}
    environment = outside | {"PYTHONPATH": str(ROOT / "tests"), "CHROMIUM": "no-such-browser"} | environment
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-ra", "-c", os.devnull, "."]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_without_a_browser_the_page_tests_say_how_to_get_one(tmp_path: Path) -> None:
    done = _pytest_over(tmp_path)
    assert done.returncode == 0
    assert "apt-get install chromium" in done.stdout


def test_in_ci_a_test_that_did_not_run_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    done = _pytest_over(tmp_path, CI="true")
    assert done.returncode == 1
    assert "the moon is full" in done.stdout
    assert "no-such-browser" in done.stdout
    assert re.search(r"1 xfailed, 2 errors", done.stdout)


def test_every_file_that_needs_an_optional_program_runs_once_without_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (paths,) = re.findall(r"^MAY_NEED := (.*)$", makefile, flags=re.M)
    (hidden,) = re.findall(r"^OPTIONAL := (.*)$", makefile, flags=re.M)
    assert {*BROWSERS, *COMPILERS, "bwrap", "unshare"} == {*hidden.split()}
    needs = re.compile(
        r"(?:mark\.needs|\brequire)\((?!\"(?:fashion-mnist|resettable peaks|llama\.cpp|licence texts"
        r"|openvino|sentence-transformers))|\bchromium\b"
    )
    users = [p for p in (ROOT / "tests").rglob("test_*.py") if needs.search(p.read_text(encoding="utf-8"))]
    covered = [ROOT / path for path in paths.split()]
    assert [name(p) for p in users if not any(p.is_relative_to(folder) for folder in covered)] == []


def test_a_program_is_hidden_from_the_path_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\n")
    (tmp_path / "other").write_text("#!/bin/sh\n")
    for made in tmp_path.iterdir():
        made.chmod(0o755)
    script = "command -v bwrap; command -v other >/dev/null && echo other; echo CI=$CI; exit 7"
    done = subprocess.run(
        [ROOT / ".ci" / "without", "bwrap", "--", "sh", "-c", script],
        env=os.environ | {"CI": "true", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "other\nCI=\n"), done.stderr


def test_no_test_measures_wall_clock_time() -> None:
    """Benchmarks do. A test may wait for something, and may know that a pause was not cut short."""
    upper = re.compile(
        r"assert .*(?:perf_counter|monotonic|time\.time|seconds|elapsed|took|duration)\S* *<(?!=? *deadline)"
    )
    found = [
        f"{name(path)}: {line.strip()}"
        for path in (ROOT / "tests").rglob("*.py")
        if not path.stem.endswith("_simulated")  # their seconds are those of a clock of their own
        for line in path.read_text(encoding="utf-8").splitlines()
        if upper.search(line) and "deadline" not in line
    ]
    assert found == []


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(before: str | None, after: str) -> None:
    outside = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment = outside if before is None else outside | {"OMP_WAIT_POLICY": before}
    code = (
        "import potstill.cli, sys, os, subprocess; assert 'torch' not in sys.modules; "
        "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"OMP_WAIT_POLICY\"])'], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == after


def test_the_tests_that_make_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    named = re.search(r"^MAY_NEED := (.*)$", makefile, re.MULTILINE)
    assert named is not None
    assert [name for name in named[1].split() if not (ROOT / name).exists()] == []
