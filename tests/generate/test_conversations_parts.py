"""HTML keeps its code, and a split conversation keeps every pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.generate.conversations import Markdown, is_html, split_pairs

CODE = "def f(a_b):\n\n    return a_b * 2 < 3  # *not* _emphasis_\n"
WINDOW = (
    '<div class="markdown"><p>Use <code>snake_case</code> &amp; <strong>run</strong> 2 * 3:</p><ol><li><p>First</p>'
    '<pre><div class="bg-black"><div><span>python</span><button>Copy code</button></div><div>'
    '<code class="hljs language-python"><span class="hljs-keyword">def</span> f(a_b):\n\n'
    "    <span>return</span> a_b * 2 &lt; 3  # *not* _emphasis_\n</code></div></div></pre></li><li>Then</li></ol></div>"
)


def test_code_keeps_every_character_in_a_fence_with_its_language() -> None:
    inner = "\n".join(f"   {line}" if line else "" for line in CODE.rstrip("\n").split("\n"))
    expected = f"Use `snake_case` & **run** 2 * 3:\n\n1. First\n\n   ```python\n{inner}\n   ```\n2. Then"
    assert Markdown().of(WINDOW) == expected


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<pre>bashCopy codels -l\n</pre>", "```bash\nls -l\n```"),
        ("<pre><code>```\nx\n```</code></pre>", "````\n```\nx\n```\n````"),  # a fence longer than those inside
        ("<pre><code>\n    indented\n</code></pre>", "```\n    indented\n```"),
        ("<p>a</p><script>alert(1)</script><p>b</p>", "a\n\nb"),
        ("<h2>Title</h2><ul><li>x</li><li>y</li></ul>", "## Title\n\n- x\n- y"),
        ('<p>So <span class="katex"><math><annotation>x^2</annotation></math><span>x2</span></span>.</p>', "So $x^2$."),
        ("<table><tr><th>a</th></tr><tr><td>1</td></tr></table>", "| a |\n| --- |\n| 1 |"),
    ],
)
def test_html_becomes_markdown(html: str, markdown: str) -> None:
    assert Markdown().of(html) == markdown


def test_html_is_known_by_how_it_begins() -> None:
    assert is_html('  <div class="x">a</div>') and is_html("<p>a") and is_html("<br/>")
    assert not is_html("What does <div> do?") and not is_html("<T>(x: T)") and not is_html("a < b")


def test_the_windows_own_counters_are_taken_off_only_beside_the_answer() -> None:
    page = "<div><button>&lt;</button><span>2<!-- --> / <!-- -->3</span><button>&gt;</button></div>"
    count = "<div>Copy<span>12 chars / 3 words</span></div>"
    for answer in ("Hello", "3 / 4", "<span>3 / 4</span>", "<div>3 / 4</div><p>because</p>", "Copy12 chars / 3 words"):
        inner = f'<div class="markdown prose"><p>{answer}</p></div>'
        assert Markdown().of(f"<div>{page}{inner}{count}</div>") == Markdown().of(inner) != ""


@pytest.mark.parametrize("html", ["<p>3 / 4</p>", "<div>3 / 4</div>", "<div>3 / 4</div><div>because</div>"])
def test_where_no_element_holds_the_answer_nothing_is_taken_for_a_counter(html: str) -> None:
    assert Markdown().of(html).startswith("3 / 4") and ("because" in Markdown().of(html)) == ("because" in html)


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 25), st.integers(0, 4))
def test_every_pair_is_in_exactly_one_piece_in_order(lengths: list[int], limit: int, system: int) -> None:
    def tokens_of(start: int, stop: int) -> int:
        return system + sum(lengths[start:stop])

    pieces = list(split_pairs(len(lengths), tokens_of, limit))
    assert [pair for piece in pieces for pair in range(piece.start, piece.stop)] == list(range(len(lengths)))
    for piece in pieces:
        assert piece.tokens == tokens_of(piece.start, piece.stop)
        if not piece.fits:
            assert piece.stop == piece.start + 1 and piece.tokens > limit
        else:
            assert piece.tokens <= limit
            # It is as long as it may be: the next pair would not have fitted.
            assert piece.stop == len(lengths) or tokens_of(piece.start, piece.stop + 1) > limit


def test_the_last_pair_that_overflows_is_not_lost() -> None:
    # The splitter of the published code forgets it: it closes the piece before, and the loop ends.
    pieces = list(split_pairs(3, lambda a, b: 4 * (b - a), 8))
    assert [(p.start, p.stop, p.fits) for p in pieces] == [(0, 2, True), (2, 3, True)]
