"""Sweeps are paired by seed, resumable run by run, and say how sure they are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from potstill import cli
from potstill.console import Console
from potstill.errors import RecipeError, RunError
from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.measures import Interval, Measures, MetricSpec, ModelMeasures
from potstill.recipe import Recipe
from potstill.sweep import runs as sweep_runs
from potstill.sweep.file import first_runs_of, load_sweep, runs_of
from potstill.sweep.paired import Table, difference, mean_over
from potstill.sweep.result import gather, picture_of
from potstill.sweep.runs import Runner, planned, run_all, run_sweep, settled
from tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "benchmarks" / "comparisons").glob("*.yaml"))
QUIET = Console("quiet")

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "teacher": {"kind": "local", "model": "teacher", "device": "cpu"},
    "student": {"kind": "from_teacher"},
    "data": {"kind": "jsonl", "path": "data.jsonl", "held_out": 0.5},
    "train": {
        "objectives": [{"kind": "forward_kl", "temperature": 2.0}],
        "max_length": 64,
        "evaluations": 1,
        "args": {"max_steps": 4, "learning_rate": 1e-3, "use_cpu": True},
    },
    "evaluate": {"resamples": 100, "samples_shown": 0, "speed": False},
}
SWEEP: dict[str, Any] = {
    "recipe": "recipe.yaml",
    "seeds": [0, 1],
    "measure": "kl",
    "baseline": "alone",
    "arms": {"kd": {}, "alone": {"train.objectives": [{"kind": "hard_ce"}]}},
}


SOLVES = {"evaluate.solve": {"verify": {"kind": "numeric"}}}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    document = {k: v for k, v in {**SWEEP, **changes}.items() if v is not None}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def run_command(*arguments: str) -> int:
    """`potstill …`, in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


# ---- how sure ------------------------------------------------------------------------------------------------


def table(values: Any, groups: Any = None) -> Table:
    names = tuple(str(i) for i in range(len(values)))
    return Table(tuple((n, 0) for n in names), names if groups is None else groups, np.asarray(values, dtype=float))


def test_the_interval_over_seeds_is_that_of_scipys_paired_t_test() -> None:
    arm, base = {0: 0.91, 1: 0.93, 2: 0.90, 3: 0.94}, {0: 0.90, 1: 0.90, 2: 0.89, 3: 0.90}
    found = difference(arm, base, {}, measure="accuracy", confidence=0.9, resamples=10)
    theirs = stats.ttest_rel(list(arm.values()), list(base.values())).confidence_interval(0.9)
    assert found is not None
    assert found.over_seeds is not None
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx((theirs.low, theirs.high))
    assert found.value == pytest.approx(0.0225)


def test_a_mean_of_two_by_hand() -> None:
    # t(0.975, 1 degree of freedom) = 12.706; s/√2 = 1.
    found = mean_over([1.0, 3.0], 0.95)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((2.0, -10.706, 14.706), abs=1e-3)
    assert mean_over([1.0], 0.95) is None


def test_the_interval_over_records_is_of_the_mean_over_seeds_and_near_scipys_bootstrap() -> None:
    random = np.random.default_rng(0)
    base = {seed: random.normal(0.0, 1.0, 300) for seed in (0, 1)}
    arm = {seed: values + random.normal(0.2, 0.5, 300) for seed, values in base.items()}
    means = {seed: float(arm[seed].mean()) for seed in arm}, {seed: float(base[seed].mean()) for seed in base}
    pairs = {seed: (table(arm[seed]), table(base[seed])) for seed in arm}
    found = difference(*means, pairs, measure="nll", confidence=0.95, resamples=4000)
    averaged = np.mean([arm[s] - base[s] for s in arm], axis=0)
    theirs = stats.bootstrap((averaged,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found is not None
    assert found.over_records is not None
    assert found.over_records.value == pytest.approx(averaged.mean())
    width = theirs.high - theirs.low
    assert found.over_records.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert found.over_records.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_groups_are_drawn_and_not_their_targets() -> None:
    one = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 10)
    zero, names = np.zeros(200), tuple(str(i // 10) for i in range(200))
    by_group = difference({0: 0.1}, {0: 0.0}, {0: (table(one, names), table(zero, names))}, **HOW)
    by_target = difference({0: 0.1}, {0: 0.0}, {0: (table(one), table(zero))}, **HOW)
    assert by_group is not None and by_group.over_records is not None
    assert by_target is not None and by_target.over_records is not None
    widths = [i.over_records.high - i.over_records.low for i in (by_group, by_target)]  # type: ignore[union-attr]
    assert widths[0] > 2 * widths[1]


HOW: dict[str, Any] = {"measure": "accuracy", "confidence": 0.95, "resamples": 1000}


def test_better_needs_both_intervals_and_the_right_direction() -> None:
    same_each_seed = {0: 0.2, 1: 0.2, 2: 0.2}, {0: 0.1, 1: 0.1, 2: 0.1}
    clear, unclear = np.full(50, 0.1), np.tile([2.1, -1.9], 25)
    for values, verdict in ((clear, "better"), (unclear, "not told apart")):
        pairs = {seed: (table(values), table(np.zeros(50))) for seed in (0, 1, 2)}
        assert difference(*same_each_seed, pairs, **HOW).verdict == verdict  # type: ignore[union-attr]
    assert difference(*same_each_seed, {}, **{**HOW, "measure": "kl"}).verdict == "worse"  # type: ignore[union-attr]
    seeds_disagree = {0: 0.4, 1: 0.0}, {0: 0.1, 1: 0.1}
    pairs = {seed: (table(clear), table(np.zeros(50))) for seed in (0, 1)}
    assert difference(*seeds_disagree, pairs, **HOW).verdict == "not told apart"  # type: ignore[union-attr]


def test_only_seeds_of_both_are_compared() -> None:
    found = difference({0: 1.0, 1: 5.0}, {0: 0.5}, {}, **HOW)
    assert found is not None
    assert (found.value, found.over_seeds) == (0.5, None)
    assert difference({1: 5.0}, {0: 0.5}, {}, **HOW) is None


def test_each_seed_may_have_texts_of_its_own_for_the_same_prompts() -> None:
    """The interval over records is that of all seeds' targets, resampled by prompt."""
    rng = np.random.default_rng(3)
    pairs, all_groups, all_differences = {}, list[str](), list[float]()
    for seed in (0, 1):
        groups = tuple(f"prompt {i % 10}" for i in range(40 + 10 * seed))
        targets = tuple((f"{seed} {i}", 0) for i in range(len(groups)))
        values = rng.normal(0.3, 0.1, len(groups))
        pairs[seed] = Table(targets, groups, values), Table(targets, groups, np.zeros(len(groups)))
        all_groups += groups
        all_differences += values.tolist()
    found = difference({0: 0.3, 1: 0.3}, {0: 0.0, 1: 0.0}, pairs, **HOW)
    assert found is not None and found.over_records is not None
    whole = PairedBootstrap(all_groups, resamples=1000, confidence=0.95, seed=0)
    assert found.over_records == whole.difference(np.array(all_differences), np.zeros(len(all_differences)))


def test_arms_on_different_records_are_refused() -> None:
    other = Table((("elsewhere", 0), ("1", 0)), ("a", "b"), np.zeros(2))
    with pytest.raises(RunError, match="different held-out records"):
        difference({0: 1.0}, {0: 0.5}, {0: (table([1.0, 1.0]), other)}, **HOW)


# ---- what a sweep says ----------------------------------------------------------------------------------


def test_a_sweep_puts_an_arm_for_each_value_in_the_place_of_its_own(tmp_path: Path) -> None:
    along = {"arm": "kd", "key": "train.objectives.0.temperature", "values": [1, 4.5]}
    sweep = load_sweep(write(tmp_path, along=along))
    assert list(sweep.all_arms) == ["kd=1", "kd=4.5", "alone"]
    runs = runs_of(sweep, tmp_path / "runs")
    first = [(run.arm, run.seed, run.recipe.seed, run.folder.name) for run in runs][:3]
    assert first == [("kd=1", 0, 0, "kd=1-0"), ("kd=4.5", 0, 0, "kd=4.5-0"), ("alone", 0, 0, "alone-0")]
    assert [run.recipe.train.objectives[0].temperature for run in runs[:2]] == [1, 4.5]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"armes": {}}, "unknown key 'armes'; did you mean 'arms'?"),
        ({"baseline": "alnoe"}, "baseline: no arm 'alnoe'; did you mean 'alone'?"),
        ({"measure": "acuracy"}, "'acuracy' is no measure of a student; did you mean 'accuracy'?"),
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"seeds": None}, "seeds is missing"),
        ({"arms": {"alone": {}}}, "one arm is nothing to compare"),
        ({"baseline": None}, "baseline is missing"),
        ({"grid": {"seed": [1, 2]}}, "give either arms, or a grid"),
        ({"capacity": [{"loss": 1.0, "token": 5}]}, "unknown key 'capacity.0.token'; did you mean 'tokens'?"),
        ({"capacity": [{"loss": 1.0, "tokens": 5}], "measure": "accuracy"}, "capacity is about a loss"),
        ({"along": {"arm": "k", "key": "x", "values": [1, 2]}}, "along.arm: no arm 'k'"),
        ({"before": [{"recpie": "x"}]}, "unknown key 'before.0.recpie'; did you mean 'recipe'?"),
        ({"along": {"arm": "kd", "kye": "x", "values": [1, 2]}}, "unknown key 'along.kye'; did you mean 'key'?"),
        ({"arms": {"kd": {"trian.max_length": 3}, "alone": {}}}, "arm 'kd'"),
        (
            {"measure": "accuracy"},
            "an evaluation of causal_lm has no accuracy\n  fix: measure one of: kl, nll, top1_agreement",
        ),
        ({"measure": "solved"}, "an evaluation of causal_lm has no solved"),
        ({"seeds": 3}, "seeds: should be a list, [a, b], not 3"),
        ({"seeds": []}, "seeds: should have at least 1 entry"),
    ],
)
def test_a_slip_is_found_before_anything_runs(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        runs_of(load_sweep(write(tmp_path, **changes)), tmp_path)
    assert expected in str(error.value)


def test_a_recipe_that_comes_first_and_is_missing_is_found_by_a_dry_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        planned(load_sweep(write(tmp_path, before=["teacher.yaml"])), tmp_path, None)


def test_a_recipe_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in RECIPE.items() if k != "evaluate"}))
    with pytest.raises(RecipeError, match="arm 'kd': nothing is measured"):
        runs_of(load_sweep(path), tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_comparison_is_one(path: Path, tmp_path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.claim
    assert len(runs_of(sweep, tmp_path)) == len(sweep.seeds) * len(sweep.all_arms)
    assert all(recipe.train is not None for recipe, _ in first_runs_of(sweep))


# ---- what is run ---------------------------------------------------------------------------------------------


def measured(kl: float) -> Measures:
    model = ModelMeasures("student", 10, 40, 2, {"nll": Interval(kl + 1, kl, kl + 2), "kl": Interval(kl, kl, kl)})
    return Measures({"student": model}, {}, (), groups=2, records=2, targets=2, confidence=0.95, resamples=10)


class Pretended:
    """Runs that are over at once; each can be told to fail the first time."""

    def __init__(self, fail: str = "") -> None:
        self.ran: list[str] = []
        self.seeds: list[int] = []
        self.fail = fail

    @property
    def runner(self) -> Runner:
        return Runner(self, self.fresh)

    def __call__(self, recipe: Recipe, folder: Path, console: Console, shared: Sequence[Path] = ()) -> None:
        if folder.name == self.fail:
            self.fail = ""
            raise RunError("killed on purpose")
        self.ran.append(folder.name)
        self.seeds.append(recipe.seed)
        assert recipe.train is not None
        (folder / "evaluate").mkdir(parents=True)
        taught = recipe.train.objectives[0].kind == "forward_kl"
        measured(1.0 + 0.1 * recipe.seed - 0.5 * taught).save(folder / "evaluate" / "measures.json")

    @staticmethod
    def fresh(run: Any) -> bool:
        return (run.folder / "evaluate" / "measures.json").is_file()


def test_a_run_that_fails_does_not_stop_the_others_and_is_all_that_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = load_sweep(write(tmp_path))
    runs, pretended = runs_of(sweep, tmp_path / "runs"), Pretended(fail="kd-1")
    failed = run_all(runs, [], QUIET, runner=pretended.runner)
    assert failed == {"kd-1": "killed on purpose"}
    assert pretended.ran == ["kd-0", "alone-0", "alone-1"]
    assert run_all(runs, [], QUIET, runner=pretended.runner) == {}
    assert pretended.ran == ["kd-0", "alone-0", "alone-1", "kd-1"]
    kd, alone = gather(sweep, runs)
    assert kd.values["kl"] == pytest.approx({0: 0.5, 1: 0.6})
    assert alone.differences == {}
    found = kd.differences["kl"]
    assert found is not None
    assert (found.value, found.over_records, found.verdict) == (pytest.approx(-0.5), None, "better")


def test_recipes_that_make_teachers_run_first_in_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({**RECIPE, "name": "the-teacher"}))
    second = {"recipe": "teacher.yaml", "run": "another", "set": {"seed": 5}}
    sweep, pretended = load_sweep(write(tmp_path, before=["teacher.yaml", second])), Pretended()
    run_sweep(sweep, QUIET, runner=pretended.runner)
    assert pretended.ran == ["the-teacher", "another", "kd-0", "alone-0", "kd-1", "alone-1"]
    assert (tmp_path / "runs" / "the-teacher").is_dir()
    assert pretended.seeds[:2] == [0, 5]


def test_one_arm_alone_then_all_with_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path, pretended = write(tmp_path, also=["nll"], claim="KD beats none"), Pretended()
    monkeypatch.setattr(
        sweep_runs.run_sweep, "__kwdefaults__", {"folder": None, "only": None, "runner": pretended.runner}
    )
    assert run_command("sweep", str(path), "--json", "--quiet", "--only", "kd", "--run", "here") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["missing"] == {"alone-0": "not run yet", "alone-1": "not run yet"}
    assert result["arms"][0]["kl"]["seeds"] == pytest.approx({"0": 0.5, "1": 0.6})
    assert run_command("sweep", str(path), "--quiet", "--run", "here") == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "here" / "result.json").read_text())
    assert result["arms"][0]["kl"]["difference"]["value"] == pytest.approx(-0.5)
    assert result["arms"][0]["nll"]["difference"]["verdict"] == "better"
    assert any(line.startswith("kd") and "-0.5000 better" in line for line in lines)
    words = "".join(ElementTree.fromstring((tmp_path / "here" / "plot.svg").read_text()).itertext())
    assert all(word in words for word in ("KD beats none", "kd", "alone", "kl, held out"))
    assert run_command("sweep", str(path), "--only", "kdd") == 2
    assert "did you mean 'kd'" in capsys.readouterr().err


def test_a_measure_that_decides_must_be_there_and_one_beside_it_may_be_missing(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, also=["accuracy"]))
    runs, pretended = runs_of(sweep, tmp_path / "runs"), Pretended()
    run_all(runs, [], QUIET, runner=pretended.runner)
    assert set(gather(sweep, runs)[0].values) == {"kl"}
    deciding = load_sweep(write(tmp_path, measure="accuracy"))
    with pytest.raises(RunError, match="accuracy was not measured"):
        gather(deciding, runs)


def test_what_is_there_after_each_run_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, seen = tmp_path / "here", []

    class Watched(Pretended):
        def __call__(self, recipe: Recipe, run: Path, console: Console, shared: Sequence[Path] = ()) -> None:
            if (folder / "result.json").is_file():
                result = json.loads((folder / "result.json").read_text())
                seen.append({arm["arm"]: arm.get("kl", {}).get("seeds") for arm in result["arms"]})
            super().__call__(recipe, run, console, shared)

    run_sweep(load_sweep(write(tmp_path)), QUIET, folder=folder, runner=Watched().runner)
    assert seen == [
        {"kd": {"0": 0.5}, "alone": None},
        {"kd": {"0": 0.5}, "alone": {"0": 1.0}},
        {"kd": {"0": 0.5, "1": pytest.approx(0.6)}, "alone": {"0": 1.0}},
    ]


def write_trainings(folder: Path, kl: Sequence[float], refusals: float) -> None:
    """What `evaluate` leaves of several trainings of one run, on three targets."""
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True)
    mean = sum(kl) / len(kl)
    metrics = {"kl": Interval(mean, mean, mean), "refusal_rate": Interval(refusals, refusals - 0.1, refusals)}
    student = ModelMeasures("student", 10, 40, 2, metrics, {"kl": tuple(kl)})
    teacher = ModelMeasures("teacher", 20, 80, 4, {"refusal_rate": Interval(1.0, 0.9, 1.0)})
    spec = MetricSpec("refusal_rate", "Refuses what is harmful", "refuses", "share", True)
    models = {"student": student, "teacher": teacher}
    Measures(
        models, {"refusal_rate": spec}, (), groups=3, records=3, targets=3, confidence=0.95, resamples=10, seeds=len(kl)
    ).save(evaluate / "measures.json")
    columns = {f"kl_student{f'_seed{n}' if n else ''}": [value - 0.1, value, value + 0.1] for n, value in enumerate(kl)}
    names = ["a", "b", "c"]
    table = pa.table({"record_id": names, "group": names, "position": [0, 0, 0], **columns})
    pq.write_table(table, evaluate / "tokens.parquet")


def test_each_training_of_a_run_is_a_seed(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, seeds=[5], set={"train.seeds": 3}))
    runs = runs_of(sweep, tmp_path / "runs")
    write_trainings(runs[0].folder, (1.0, 1.1, 1.2), 0.5)
    write_trainings(runs[1].folder, (2.0, 2.2, 2.1), 0.9)
    kd, alone = gather(sweep, runs)
    assert alone.values["kl"] == {5: 2.0, 6: 2.2, 7: 2.1}
    found = kd.differences["kl"]
    assert found is not None and found.over_seeds is not None and found.over_records is not None
    # By hand: −1, −1.1, −0.9, whose standard deviation is 0.1; t(0.975, 2) = 4.303. Targets differ by their mean alone.
    assert found.over_seeds.high == pytest.approx(-1 + 4.303 * 0.1 / 3**0.5, abs=1e-4)
    assert found.over_records.value == pytest.approx(-1)


def test_a_seed_that_two_runs_would_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="seed 1 is trained in the runs of seeds 0 and 1") as error:
        runs_of(load_sweep(write(tmp_path, set={"train.seeds": 3})), tmp_path)
    assert "3 apart" in str(error.value)
    assert len(runs_of(load_sweep(write(tmp_path, seeds=[0, 3], set={"train.seeds": 3})), tmp_path)) == 4


def test_further_metrics_of_the_pages_stand_beside_with_the_teachers(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, seeds=[0], set={"train.seeds": 3}, beside=["refusal_rate", "refusal_rat"]))
    runs = runs_of(sweep, tmp_path / "runs")
    write_trainings(runs[0].folder, (1.0, 1.1, 1.2), 0.5)
    write_trainings(runs[1].folder, (2.0, 2.2, 2.1), 0.9)
    _, text = settled(sweep, tmp_path, runs, {})
    said = "kd 50.0 % [40.0, 50.0], alone 90.0 % [80.0, 90.0], teacher 100.0 % [90.0, 100.0]"
    assert f"Refuses what is harmful: {said}" in text.splitlines()
    assert "refusal_rat: no run has it; did you mean 'refusal_rate'?" in text.splitlines()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["beside"][0]["values"]["teacher"] == {"value": 1.0, "low": 0.9, "high": 1.0}


def test_what_is_set_for_all_arms_gives_way_to_an_arms_own(tmp_path: Path) -> None:
    arms = {"kd": {}, "long": {"train.max_length": 128}}
    sweep = load_sweep(write(tmp_path, set={"train.max_length": 32}, arms=arms, baseline="kd"))
    runs = runs_of(sweep, tmp_path)
    assert [run.recipe.train.max_length for run in runs[:2]] == [32, 128]  # type: ignore[union-attr]


def test_a_sweep_is_drawn_along_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    along = {"arm": "kd", "key": "train.objectives.0.temperature", "values": [1, 4], "axis": "temperature T"}
    sweep = load_sweep(write(tmp_path, along=along))
    runs, pretended = runs_of(sweep, tmp_path / "runs"), Pretended()
    run_all(runs, [], QUIET, runner=pretended.runner)
    drawn = picture_of(sweep, gather(sweep, runs), 0.25)
    words = "".join(ElementTree.fromstring(drawn).itertext())
    assert all(word in words for word in ("temperature T", "alone", "teacher"))


def test_a_dry_run_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("sweep", str(write(tmp_path)), "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[0] == "kd-0: would run"
    assert not (tmp_path / "runs").exists()


# ---- killed --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_causal_lm(tmp_path / "teacher")
    words = "copper still spirit cask barley malt peat water yeast wash".split()
    rows = [{"prompt": f"What is {word}?", "completion": f"{word} it is"} for word in words]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(write(tmp_path, seeds=[3]))
    command = [sys.executable, "-m", "potstill.cli", "sweep", path, "--run", "killed", "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path) as working:
        second = tmp_path / "killed" / "alone-3"
        until = time.monotonic() + 300
        while not list(second.glob(".partial-train-*")) and time.monotonic() < until:
            assert working.poll() is None
            time.sleep(0.02)
        working.send_signal(signal.SIGKILL)
    assert not (second / "evaluate").exists()
    first = (tmp_path / "killed" / "kd-3" / "train" / "manifest.json").read_text()
    monkeypatch.chdir(tmp_path)
    results = []
    for folder in ("killed", "whole"):
        assert run_command("sweep", path, "--run", folder, "--quiet", "--json") == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert (tmp_path / "killed" / "kd-3" / "train" / "manifest.json").read_text() == first
    for one, other in zip(*(result["arms"] for result in results), strict=True):
        assert one["kl"]["seeds"] == pytest.approx(other["kl"]["seeds"], rel=1e-5)
    kd, _ = results[1]["arms"]
    assert kd["kl"]["difference"]["over_records"]["low"] <= kd["kl"]["difference"]["value"]
    assert kd["kl"]["difference"]["over_seeds"] is None


# ---- problems solved ---------------------------------------------------------------------------------------------


def write_solved(folder: Path, solved: list[bool], ids: str = "abcdefgh") -> None:
    """What `evaluate` leaves of eight problems, and a table of tokens beside them, which is another measure's."""
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True)
    share = sum(solved) / len(solved)
    model = ModelMeasures("student", 10, 40, 2, {"solved": Interval(share, share, share)})
    Measures({"student": model}, {}, (), groups=8, records=8, targets=9, confidence=0.95, resamples=10).save(
        evaluate / "measures.json"
    )
    names = list(ids)
    pq.write_table(
        pa.table({"record_id": names, "group": names, "solved_student": solved}), evaluate / "solved.parquet"
    )
    pq.write_table(
        pa.table({"record_id": ["t"], "group": ["t"], "position": [0], "nll_student": [1.0]}),
        evaluate / "tokens.parquet",
    )


SOLVED: dict[str, list[bool]] = {
    "kd-0": [True] * 8,
    "kd-1": [True] * 7 + [False],
    "alone-0": [False] * 8,
    "alone-1": [True] + [False] * 7,
}


def test_arms_are_compared_by_what_they_solve_problem_by_problem(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, measure="solved", set=SOLVES))
    runs = runs_of(sweep, tmp_path / "runs")
    for made in runs:
        write_solved(made.folder, SOLVED[made.folder.name])
    kd, alone = gather(sweep, runs)
    assert kd.values["solved"] == {0: 1.0, 1: 0.875}
    assert alone.values["solved"] == {0: 0.0, 1: 0.125}
    found = kd.differences["solved"]
    assert found is not None
    # By hand: seed by seed 1 and 0.75; problem by problem 0.5, six times 1, 0.5.
    assert found.value == pytest.approx(0.875)
    assert found.over_records is not None
    assert found.over_records.value == pytest.approx((0.5 + 6 * 1.0 + 0.5) / 8)
    # At least Student's interval over the eight: 0.875 ± t(7) · 0.2315 / √8; the studentised draws may reach farther.
    assert found.over_records.low <= 0.875 - 2.3646 * 0.0818
    assert found.over_records.high >= 0.875 + 2.3646 * 0.0818 - 1e-3
    assert found.over_seeds is not None and found.over_seeds.low < 0 < found.over_seeds.high
    assert found.verdict == "not told apart"


def test_arms_that_were_given_other_problems_are_refused(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, measure="solved", set=SOLVES, seeds=[0]))
    runs = runs_of(sweep, tmp_path / "runs")
    for made in runs:
        write_solved(made.folder, SOLVED[made.folder.name], "abcdefgh" if made.arm == "kd" else "abcdefgx")
    with pytest.raises(RunError, match="different held-out records") as caught:
        gather(sweep, runs)
    assert "evaluate.solve" in str(caught.value)


def test_where_nothing_was_solved_for_it_the_mend_is_named(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, measure="solved", set=SOLVES, seeds=[0]))
    runs = runs_of(sweep, tmp_path / "runs")
    for made in runs:
        (made.folder / "evaluate").mkdir(parents=True)
        measured(1.0).save(made.folder / "evaluate" / "measures.json")
    with pytest.raises(RunError, match="solved was not measured") as caught:
        gather(sweep, runs)
    assert "set evaluate.solve in the recipe" in str(caught.value)


# ---- a grid, and the capacity of students --------------------------------------------------------------------------

GRID: dict[str, Any] = {
    "arms": None,
    "baseline": None,
    "grid": {"student.layers": {1: {"first": 1}, "both": [0, 1]}, "train.args.max_steps": [2, 4]},
}


def test_a_grid_makes_an_arm_of_every_combination(tmp_path: Path) -> None:
    runs = runs_of(load_sweep(write(tmp_path, **GRID)), tmp_path)
    assert [run.arm for run in runs[:4]] == [
        "layers=1,max_steps=2",
        "layers=1,max_steps=4",
        "layers=both,max_steps=2",
        "layers=both,max_steps=4",
    ]
    assert runs[3].recipe.train is not None
    assert runs[3].recipe.train.args["max_steps"] == 4
    assert runs[3].recipe.student.layers == (0, 1)  # type: ignore[union-attr]


def test_questions_of_capacity_are_answered_from_sizes_tokens_and_losses_of_the_runs(tmp_path: Path) -> None:
    grid = {"student.layers": {n: {"first": n} for n in (1, 2, 3)}, "train.args.max_steps": [2, 4, 8]}
    asked = [{"loss": 1.5, "tokens": 4000}]
    sweep = load_sweep(write(tmp_path, **{**GRID, "grid": grid, "capacity": asked}))
    runs = runs_of(sweep, tmp_path / "runs")

    def pretend(recipe: Recipe, folder: Path, console: Console, shared: Sequence[Path]) -> None:
        layers, steps = recipe.student.layers.first, recipe.train.args["max_steps"]  # type: ignore[union-attr]
        parameters, tokens = 1000 * layers, 1000 * steps
        (folder / "evaluate").mkdir(parents=True)
        (folder / "train").mkdir()
        (folder / "train" / "manifest.json").write_text(json.dumps({"counts": {"tokens": tokens}}))
        kl = 0.5 + (parameters / 2000) ** -1.0 + 0.5 * (tokens / 4000) ** -0.5
        model = ModelMeasures("student", parameters, 4 * parameters, layers, {"kl": Interval(kl, kl, kl)})
        Measures({"student": model}, {}, (), groups=2, records=2, targets=2, confidence=0.95, resamples=10).save(
            folder / "evaluate" / "measures.json"
        )

    result, text = run_sweep(sweep, QUIET, folder=tmp_path / "runs", runner=Runner(pretend, Pretended.fresh))
    (answer,) = result["capacity"]["answers"]
    # 0.5 + (N / 2000)^−1 + 0.5 = 1.5 where N = 4000.
    assert answer["parameters"]["value"] == pytest.approx(4000, rel=1e-3)
    assert result["capacity"]["largest_run"]["parameters"] == 3000
    assert "kl ≤ 1.5 with 4,000 tokens: 4.0K parameters" in text
    assert len(runs) == 18


def test_too_few_runs_for_a_law_are_said_before_the_first_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"loss": 1.5, "tokens": 4000}]

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    sweep = load_sweep(write(tmp_path, **{**GRID, "capacity": asked}))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, Console("lines"), folder=tmp_path / "runs", runner=Runner(stopped, Pretended.fresh))
    assert "capacity: 8 runs are too few for a law, 9 are needed" in "".join(capsys.readouterr())


def test_runs_of_a_sweep_share_a_stage_of_the_same_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_causal_lm(tmp_path / "teacher")
    rows = [{"prompt": f"What is {word}?"} for word in "copper still spirit cask barley malt".split()]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    generate = {"kind": "sequence", "max_new_tokens": 4}
    recipe = {**RECIPE, "generate": generate, "data": {**RECIPE["data"], "format": "prompt"}}
    path = write(tmp_path, seeds=[3])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_sweep(load_sweep(path), Console("lines"), folder=tmp_path / "runs")
    assert "generate: taken over from" in capsys.readouterr().err
    files = [tmp_path / "runs" / arm / "generate" / "records.parquet" for arm in ("kd-3", "alone-3")]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    assert len({(f.parent / "manifest.json").read_text() for f in files}) == 1
