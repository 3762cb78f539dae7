"""What of a drawing may stand in the page."""

from __future__ import annotations

import pytest

from potstill.measures import Interval
from potstill.report.charts import interval_figure
from potstill.report.svg import as_inline

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">'


def test_only_shapes_and_words_pass() -> None:
    svg = as_inline(
        f"{HEAD}<script>x</script><style>*{{}}</style><defs><g id='a'/></defs><image href='x'/><foreignObject/>"
        "<a xlink:href='javascript:x'><path d='M0'/></a>"
        "<path d='M1,1' style='fill:red' onclick='x' fill='#0072b2' stroke='none'/><text>a &lt;b&gt;</text></svg>",
        "label",
    )
    assert svg == (
        '<svg viewBox="0 0 9 9" role="img" aria-label="label">'
        '<path d="M1,1" stroke="none" class="fill-student" /><text>a &lt;b&gt;</text></svg>'
    )


def test_a_colour_that_has_no_class_is_a_defect() -> None:
    with pytest.raises(ValueError, match="#123456"):
        as_inline(f"{HEAD}<path d='M0' fill='#123456'/></svg>", "")


def test_a_label_is_escaped() -> None:
    assert 'aria-label="&quot;&gt;&lt;script&gt;"' in as_inline(f"{HEAD}<path d='M0'/></svg>", '"><script>')


def test_a_chart_says_in_words_what_it_shows_and_has_two_widths() -> None:
    rows = [("student", Interval(1.9, 1.8, 2.0), "1.90"), ("text_only", Interval(2.3, 2.1, 2.5), "2.30")]
    figure = interval_figure("KL", "", rows, axis="nats")
    assert "student 1.90 [1.8, 2]; text only 2.30 [2.1, 2.5]" in figure.wide
    assert 'width="470"' in figure.wide and figure.narrow is not None and 'width="320"' in figure.narrow


def test_models_differ_in_shape_and_not_only_in_colour() -> None:
    from potstill.report.palette import LOOKS

    assert len({look.shape for look in LOOKS.values()}) == len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    lines = [look.dash for name, look in LOOKS.items() if name != "teacher"]
    assert len(set(lines)) == len(LOOKS) - 1
