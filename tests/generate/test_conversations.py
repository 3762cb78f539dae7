"""From exports of a chat window to conversations to learn from: every turn comes out once, or is in the ledger."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from generate.run_generate import main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.answering.base import NoTeacher
from potstill.artifacts import Artifact, Work, read_artifact
from potstill.data import load_records, load_rejects
from potstill.data.chat import ChatTokenizer
from potstill.data.tokenize import Tokenized, tokenize
from potstill.errors import RecipeError
from potstill.generate.conversations import Conversations
from potstill.recipe import ConversationsProgram
from potstill.types import Record, Reject, group_of
from tiny_models import make_tiny_causal_lm

RECIPE = """
name: shared
data: {kind: jsonl, path: shared.jsonl, format: sharegpt, held_out: 0, licence: CC0-1.0}
generate: {kind: conversations, max_length: null}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("model") / "tiny")


def turns(*said: str, first: str = "human") -> list[dict[str, str]]:
    other = {"human": "gpt", "gpt": "human"}
    speakers = [first if n % 2 == 0 else other[first] for n in range(len(said))]
    return [{"from": speaker, "value": text} for speaker, text in zip(speakers, said, strict=True)]


def convert(folder: Path, conversations: list[dict[str, object]], *overrides: str) -> Artifact:
    (folder / "shared.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations))
    (folder / "recipe.yaml").write_text(RECIPE)
    assert main(str(folder / "recipe.yaml"), str(folder / "run"), *overrides) == 0
    artifact = read_artifact(folder / "run" / "generate")
    assert artifact is not None
    return artifact


def came_of(artifact: Artifact) -> tuple[list[list[str]], list[Reject]]:
    records = load_records(artifact.path / "records.parquet")
    return [[str(m["content"]) for m in r.messages or ()] for r in records], load_rejects(
        artifact.path / "rejects.jsonl"
    )


def test_no_teacher_is_needed_and_none_is_claimed(tmp_path: Path) -> None:
    artifact = convert(tmp_path, [{"id": "a", "conversations": turns("Hi?", "<p>Hello <em>you</em>.</p>")}])
    assert came_of(artifact) == ([["Hi?", "Hello *you*."]], [])
    (record,) = load_records(artifact.path / "records.parquet")
    assert (record.provenance.teacher, record.provenance.licence) == ("", "CC0-1.0")
    assert record.group == group_of("Hi?")
    assert record.metadata == {"id": "a"} and artifact.manifest["facts"]["teacher"] == {}
    card = (artifact.path / "README.md").read_text()
    assert "1 records out of conversations that were given" in card and "Teacher" not in card


def test_what_a_person_wrote_is_no_html(tmp_path: Path) -> None:
    said = ["<div>Why is this not centred?</div>", "<p>Because.</p>"]
    assert came_of(convert(tmp_path, [{"conversations": turns(*said)}]))[0] == [[said[0], "Because."]]
    always = convert(tmp_path, [{"conversations": turns(*said)}], "generate.html=always")
    assert came_of(always)[0] == [["Why is this not centred?", "Because."]]
    never = convert(tmp_path, [{"conversations": turns(*said)}], "generate.html=never")
    assert came_of(never)[0] == [said]


@pytest.mark.parametrize(
    "answer",
    [
        "3 / 4",
        "3 / 4\n\nbecause a half and a quarter are that.",
        "Copy12 chars / 3 words\nis what it showed.",
        "Network errors occur when a cable is cut.",
        "Network error: what it means.\nThe cable is cut.",
        "Something went wrong.",
        "An error occurred. If this issue persists, restart it.",
    ],
)
def test_no_answer_is_taken_for_what_the_window_says(tmp_path: Path, answer: str) -> None:
    said = ["Well?", answer, "2 / 3\n\nis what?", "A fraction."]
    assert came_of(convert(tmp_path, [{"conversations": turns(*said)}])) == ([said], [])


@pytest.mark.parametrize(
    "notice",
    [
        "network error",
        "!Too many requests in 1 hour. Try again later.",
        "Something went wrong, please try reloading the conversation.",
        "<p>An error occurred. Either the engine you requested does not exist or there was another issue processing "
        "your request. If this issue persists please contact us through our help center at "
        '<a href="https://help.openai.com">help.openai.com</a>.</p>',
        "There was an error generating a response\n\nNetwork error.",
        "This content may violate our [content policy](https://h/policy). If you believe this to be in error, please "
        "submit your feedback \u2014 your input will aid our research in this area.",
        "The server had an error while processing your request. Sorry about that! You can retry your request, or "
        "contact us through our help center at help.openai.com if the error persists.",
    ],
)
def test_what_the_window_says_in_the_place_of_an_answer_is_left_out(tmp_path: Path, notice: str) -> None:
    rows: list[dict[str, object]] = [{"conversations": turns("a", notice)}, {"conversations": GOOD}]
    kept, rejects = came_of(convert(tmp_path, rows))
    assert kept == [["And this?", "Is fine."]]
    assert [r.reason for r in rejects] == ["an error message in the place of an answer"]


GOOD = turns("And this?", "Is fine.")


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (turns("a", "b") + turns("c", "d", first="gpt"), "turns do not alternate"),
        ([*turns("a", "b"), {"from": "system", "value": "s"}, *turns("c", "d")], "a turn of another role"),
        (turns("a", "<p> </p>"), "an empty turn"),
        (turns("a", "b\ufffd"), "characters that could not be decoded"),
        (turns("a", "b\x00c"), "control characters"),
        (turns("a", "Too many requests in 1 hour. Try again later."), "an error message in the place of an answer"),
        (turns("a"), "a last question without an answer"),
        (turns("What says Acme?", "Much."), "an unwanted word"),
    ],
)
def test_what_is_broken_is_left_out_with_its_reason(
    tmp_path: Path, conversation: list[dict[str, str]], reason: str
) -> None:
    rows: list[dict[str, object]] = [{"conversations": conversation}, {"conversations": GOOD}]
    kept, rejects = came_of(convert(tmp_path, rows, "generate.without_words=[acme]"))
    assert kept == [["And this?", "Is fine."]]
    assert reason in [r.reason for r in rejects] and {r.row for r in rejects} == {1}


def test_ends_without_a_partner_are_taken_off_and_said(tmp_path: Path) -> None:
    artifact = convert(tmp_path, [{"conversations": turns("Welcome!", "a", "b", "c", first="gpt")}])
    kept, rejects = came_of(artifact)
    assert kept == [["a", "b"]]
    assert [(r.reason, r.excerpt) for r in rejects] == [
        ("an answer before the first question", "Welcome!"),
        ("a last question without an answer", "c"),
    ]
    (record,) = load_records(artifact.path / "records.parquet")
    assert record.group == group_of("a")


def test_the_same_conversation_counts_once_by_id_and_by_first_pair(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "x", "conversations": turns("a", "b")},
        {"id": "x", "conversations": turns("other", "pair")},
        {"id": "y", "conversations": turns("a", "<p>b</p>", "longer", "now")},
        {"id": "z", "conversations": turns("a", "another answer")},
    ]
    kept, rejects = came_of(convert(tmp_path, rows))
    assert kept == [["a", "b"], ["a", "another answer"]]
    assert [(r.row, r.reason) for r in rejects] == [
        (2, "same id as an earlier conversation"),
        (3, "same first pair as an earlier conversation"),
    ]


def test_another_language_is_left_out_by_the_verifier_and_its_verdict_is_kept(tmp_path: Path) -> None:
    english = "The museum opens at nine o'clock and closes in the late afternoon, except on Mondays."
    german = "Das Museum öffnet um neun Uhr und schließt am späten Nachmittag, außer am Montag."
    rows: list[dict[str, object]] = [
        {"conversations": turns("When is the museum open, and on which days is it closed?", english)},
        {"conversations": turns("Wann hat das Museum geöffnet, und wann ist es geschlossen?", german)},
        {"conversations": turns("1+1", "2")},
    ]
    artifact = convert(tmp_path, rows, "generate.language={languages: [en], other_share: 0.5}")
    kept, rejects = came_of(artifact)
    assert [k[1] for k in kept] == [english, "2"]
    assert [(r.row, r.reason) for r in rejects] == [(2, "another language")] and "de" in rejects[0].detail
    verdicts = [r.verdicts[0].outcome for r in load_records(artifact.path / "records.parquet")]
    assert verdicts == ["accept", "cannot_judge"]


def test_a_long_conversation_is_split_and_learned_on_the_assistants_turns_alone(tmp_path: Path, model: Path) -> None:
    said = [f"{'question' if n % 2 == 0 else 'answer'} number {n}" for n in range(12)]
    row: dict[str, object] = {"system": "Be brief.", "conversations": turns(*said)}
    artifact = convert(tmp_path, [row], "generate.max_length=150", f"generate.tokenizer={model}")
    records = load_records(artifact.path / "records.parquet")
    assert len(records) > 2 and len({r.group for r in records}) == 1
    assert [r.sample for r in records] == list(range(len(records)))
    assert [m["content"] for r in records for m in (r.messages or ())[1:]] == said
    chat = ChatTokenizer.from_folder(model)
    for record in records:
        assert (record.messages or ())[0] == {"role": "system", "content": "Be brief."}
        seen = tokenize(record, chat, 150)
        assert isinstance(seen, Tokenized) and not seen.cut
        answers = [str(m["content"]) for m in record.messages or () if m["role"] == "assistant"]
        assert chat.decode(seen.learned, skip_special_tokens=True).replace("\n", "") == "".join(answers)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["human", "gpt"]), st.integers(1, 60)), min_size=1, max_size=9), max_size=4
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_turn_comes_out_once_or_its_conversation_is_in_the_ledger(
    model: Path, tmp_path: Path, drawn: list[list[tuple[str, int]]]
) -> None:
    roles = {"human": "user", "gpt": "assistant"}
    records = []
    for row, conversation in enumerate(drawn, 1):
        messages = tuple(
            {"role": roles[who], "content": f"r{row}t{turn} " + "x" * length}
            for turn, (who, length) in enumerate(conversation)
        )
        records.append(Record(messages=messages, group=f"g{row}", row=row))
    program = Conversations(ConversationsProgram(max_length=120, tokenizer=str(model)))
    work = Work(tmp_path, resumed=False)
    items = list(program.write(records, NoTeacher(), side_of=lambda record: "train", work=work))
    kept = [(r.row, str(m["content"])) for r in items if isinstance(r, Record) for m in r.messages or ()]
    assert not [turn for turn, count in Counter(kept).items() if count > 1]
    for record in records:
        rejects = [i for i in items if isinstance(i, Reject) and i.row == record.row]
        whole = [i for i in rejects if i.reason in ("turns do not alternate", "no pair of question and answer")]
        named = {i.excerpt for i in rejects}
        ours = {text for row, text in kept if row == record.row}
        said = [str(m["content"]) for m in record.messages or ()]
        too_long = {i.excerpt for i in rejects if i.reason == "a pair of turns is longer than max_length"}
        if whole:
            assert not ours
            continue
        for text in said:
            # Of a pair that is too long, the ledger shows the question.
            in_ledger = text in named or (said.index(text) > 0 and said[said.index(text) - 1] in too_long)
            assert (text in ours) != in_ledger


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generate.max_length=100", "name the student's tokenizer"),
        ("generate.budget={requests: 3}", "no teacher is asked, so nothing is used"),
        ("generate.language={of: both}", "a conversation is looked at whole"),
        ("generate.html=perhaps", "auto"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        convert(tmp_path, [{"conversations": GOOD}], override)


def test_a_tokenizer_that_is_not_there_is_an_error_that_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(AssertionError):
        convert(tmp_path, [{"conversations": GOOD}], "generate.max_length=100", "generate.tokenizer=./model")
    assert "model" in capsys.readouterr().err


def test_the_shipped_recipe_is_run(tmp_path: Path, model: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "conversations.yaml"
    assert main(str(recipe), str(tmp_path), f"generate.tokenizer={model}") == 0
    artifact = read_artifact(tmp_path / "generate")
    assert artifact is not None
    kept, rejects = came_of(artifact)
    assert [len(turns) for turns in kept] == [4, 2, 2] and not rejects
    assert "```python\nfrom collections import Counter\n\ncounts = " in kept[0][1]
