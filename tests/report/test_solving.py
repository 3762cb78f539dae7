"""What models solve stands wherever accuracy would: verdict, cards, tables, charts, the model card, the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report.synthetic import Shape, measures_of, write_run

from potstill.measures import Interval, Measures
from potstill.report.card import render_card
from potstill.report.findings import Findings, read_findings
from potstill.report.page import render_page
from potstill.report.plots import against_figures
from potstill.report.sections import cards_of, differences_table, models_table, solving_table
from potstill.report.verdict import judge
from potstill.show import describe_run, print_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    folder = tmp_path_factory.mktemp("run")
    recipe, inputs = write_run(folder, Shape(solve=True))
    (folder / "recipe.yaml").write_text("name: synthetic\n")
    return folder, read_findings(recipe, inputs, None)


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    measures = measures_of(Shape(solve=True))
    measures.save(tmp_path / "measures.json")
    assert Measures.load(tmp_path / "measures.json") == measures
    assert measures.solving is not None


def test_the_verdict_says_what_it_solves_and_only_then() -> None:
    measures = measures_of(Shape(solve=True))
    said = (
        "It solves 42.5 % [33.0, 52.0] of 80 held-out problems, its teacher 80.0 % [70.0, 88.0] (−37.5 [−47.0, −28.0] "
        "points)."
    )
    assert judge(measures).kept.endswith(said)
    assert "solves" not in judge(measures_of(Shape())).text
    near = replace(measures.comparison("student", "teacher", "solved"), difference=Interval(-0.1, -0.3, 0.1))
    unclear = replace(measures, comparisons=(near,))
    assert "points, which shows no difference)" in judge(unclear).kept


def test_tables_have_it_and_why_answers_are_not_solved(run: tuple[Path, Findings]) -> None:
    measures = run[1].measures
    table = models_table(measures)
    column = list(table.head).index("solved")
    assert [row[column] for row in table.rows][:2] == ["80.0 % [70.0, 88.0]", "42.5 % [33.0, 52.0]"]
    why = solving_table(measures)
    assert why is not None
    # Of what befell no answer there is no column.
    assert list(why.head) == ["", "solved", "cut at 256 tokens", "not judged"]
    assert [row[2:] for row in why.rows] == [("3", "0"), ("3", "2"), ("3", "0"), ("80", "0")]
    assert solving_table(measures_of(Shape())) is None
    rows = [row for row in differences_table(measures).rows if row[1] == "share of problems solved"]
    assert rows == [
        (
            "student − teacher",
            "share of problems solved",
            "−37.5 [−47.0, −28.0] points",
            "student is worse",
        ),
        ("student − text only", "share of problems solved", "+12.5 [+3.0, +22.0] points", "student is better"),
    ]


def test_cards_and_charts_have_it(run: tuple[Path, Findings]) -> None:
    card = next(card for card in cards_of(run[1]) if card.label == "Share of problems solved")
    assert (card.value, card.note) == ("42.5 %", "teacher 80.0 %")
    titles = [figure.title for figure in against_figures(run[1])]
    assert "Share of problems solved" in titles


def test_page_and_model_card_say_it(run: tuple[Path, Findings]) -> None:
    page, card = render_page(run[1]), render_card(run[1])
    assert "<h2>Problems solved</h2>" in page
    assert "Greedy answers to 80 held-out problems of the data, in 78 groups, judged by numeric@1." in page
    assert "<dt>Solved</dt>" in page
    assert "Problems solved by greedy answers, of 80 held-out ones, as numeric@1 judges" in card
    assert "| student | 42.5 % [33.0, 52.0] | 3 | 2 |" in card


def test_the_terminal_says_it(run: tuple[Path, Findings], capsys: pytest.CaptureFixture[str]) -> None:
    print_run(describe_run(run[0]))
    printed = capsys.readouterr().out
    assert "solved" in printed
    assert "0.425" in printed
