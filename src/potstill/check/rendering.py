"""How teacher and student see real records: their templates' renderings, where a turn begins and ends, how long a row
may be. Reads tokenizers and configurations; no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from potstill.artifacts import read_json
from potstill.check.findings import Finding, warning
from potstill.check.inputs import Inputs
from potstill.data.chat import ChatTokenizer
from potstill.data.template import TemplateRefusal
from potstill.data.thinking import CLOSE, OPEN
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError
from potstill.models.facts import size_in
from potstill.models.folder import ModelSource
from potstill.models.tokenizers import first_difference
from potstill.quantities import counted
from potstill.recipe import Existing, FromConfig, TeacherSettings
from potstill.types import Message, Record

_RECORDS = 50
"""Maximum number of records that are rendered, spread over the data."""


def templates_render_alike(inputs: Inputs) -> Iterator[Finding]:
    """Real records rendered by the teacher's template and by the student's, with the first difference."""
    own, teacher = inputs.own_tokenizer, _asked_teacher(inputs)
    if own is None or teacher is None:
        return  # the student has the teacher's tokenizer
    theirs = inputs.chat(teacher)
    mine = inputs.chat_in(own)
    if theirs is None or theirs.template is None or mine.template is None:
        return
    chosen = _conversations(inputs)
    for messages in chosen:
        one, other = _rendered(theirs, messages), _rendered(mine, messages)
        if one != other:
            yield warning(
                "teachers",
                f"teacher and student render a record of the data differently: {first_difference(one, other)}",
            )
            return
    if chosen:
        yield Finding("teachers", f"both templates render {counted(len(chosen), 'record')} of the data alike")


def turns_end_alike(inputs: Inputs) -> Iterator[Finding]:
    """The token that the student learns to end with is one at which the teacher stops."""
    teacher, reader = _asked_teacher(inputs), inputs.reader
    source = inputs.source(teacher) if teacher is not None else None
    theirs = inputs.chat(teacher) if teacher is not None else None
    if source is None or theirs is None or reader is None:
        return
    stops = _stop_ids(source, theirs)
    ends: Counter[int] = Counter()
    for record in _spread(inputs.records("train")):
        if not record.finished or record.text is not None:
            continue
        for row in reader.rows(record):
            if isinstance(row, Tokenized) and not row.cut and row.learned:
                ends[row.learned[-1]] += 1
    wrong = {token: count for token, count in ends.items() if token not in stops}
    if wrong and stops:
        shown = ", ".join(repr(theirs.decode([token])) for token in sorted(wrong)[:3])
        named = ", ".join(repr(theirs.decode([token])) for token in sorted(stops))
        yield warning(
            "teachers",
            f"{sum(wrong.values())} of {ends.total()} answers end with {shown}, and the teacher stops at {named}: the "
            "student learns an end that its teacher never writes",
        )
    elif ends:
        yield Finding("teachers", f"the teacher stops where the student's answers end ({ends.total()} records)")


def turns_begin_alike(inputs: Inputs) -> Iterator[Finding]:
    """An answer of the data begins where the template has the teacher begin; a template that opens reasoning, or drops
    it, is named."""
    teacher = _asked_teacher(inputs)
    chat = inputs.chat(teacher) if teacher is not None else None
    if chat is None or chat.template is None:
        return
    opened = dropped = 0
    asked = [messages for messages in _conversations(inputs) if messages[-1]["role"] == "assistant"]
    for messages in asked:
        prompt, whole = _rendered(chat, messages[:-1], prompt=True), _rendered(chat, messages)
        answer = str(messages[-1].get("content") or "")
        dropped += OPEN in answer and OPEN not in whole[len(prompt) :] and OPEN not in prompt[-len(OPEN) - 2 :]
        if prompt.rpartition(OPEN)[1] and CLOSE not in prompt.rpartition(OPEN)[2] and CLOSE not in answer:
            opened += 1
        elif not whole.startswith(prompt):
            yield warning(
                "teachers",
                "the template has the teacher begin its answer elsewhere than a record's answer begins: "
                + first_difference(prompt, whole[: len(prompt) + 1], ("to be answered it", "with its answer it")),
            )
            return
    if opened:
        yield warning(
            "teachers",
            f"the template opens reasoning ({OPEN}) for the teacher, and {opened} of {len(asked)} answers have none: "
            "give data with reasoning, or a template without it",
        )
    if dropped:
        yield warning("teachers", f"the template drops the reasoning of {dropped} of {len(asked)} answers")


def rows_fit_the_contexts(inputs: Inputs) -> Iterator[Finding]:
    """Rows are no longer than either model was made for."""
    longest = inputs.figures.get("longest_row")
    if not longest or not inputs.task.writes:
        return
    known = {"teacher": inputs.facts(_asked_teacher(inputs)), "student": None}
    student = inputs.recipe.student
    if isinstance(student, Existing):
        known["student"] = inputs.facts(student)
    contexts = {
        who: size_in(found.config, "max_position_embeddings") for who, found in known.items() if found is not None
    }
    if student is not None and student.begins_with_teacher and "teacher" in contexts:
        contexts["student"] = contexts["teacher"]
    if isinstance(student, FromConfig):
        contexts["student"] = size_in(inputs.student_config() or {}, "max_position_embeddings")
    named = {who: length for who, length in contexts.items() if length}
    if not named:
        return
    listed = ", ".join(f"{who} {length:,}" for who, length in named.items())
    text = f"rows have up to {longest:,} tokens; contexts: {listed}"
    yield Finding("train", text) if longest <= min(named.values()) else warning("train", text)


def _asked_teacher(inputs: Inputs) -> TeacherSettings | None:
    """The teacher of training, or else the one that writes; None where nothing is rendered."""
    if not inputs.task.writes:
        return None
    teachers, generate = inputs.recipe.teachers, inputs.recipe.generate
    if inputs.teacher is not None:
        return inputs.teacher
    found: TeacherSettings | None = teachers.get(generate.teacher) if generate is not None else None
    return found


def _conversations(inputs: Inputs) -> list[Sequence[Message]]:
    """Some training records as messages."""
    return [found for record in _spread(inputs.records("train")) if (found := _messages(record)) is not None]


def _messages(record: Record) -> Sequence[Message] | None:
    if record.messages is not None:
        return record.messages
    if record.prompt is None:
        return None
    question: Message = {"role": "user", "content": record.prompt}
    return (question, {"role": "assistant", "content": record.completion}) if record.completion else (question,)


def _spread(records: Sequence[Record]) -> Sequence[Record]:
    return records[:: -(-len(records) // _RECORDS)] if records else ()


def _rendered(chat: ChatTokenizer, messages: Sequence[Message], *, prompt: bool = False) -> str:
    try:
        return chat.render(messages, add_generation_prompt=prompt)
    except (DataError, TemplateRefusal) as error:
        return f"refused: {error}"


def _stop_ids(source: ModelSource, chat: ChatTokenizer) -> set[int]:
    """As `decoding.generator.stop_token_ids`, from files."""
    stated = read_json(source.path / "generation_config.json").get("eos_token_id")
    ids = {int(token) for token in (stated if isinstance(stated, list) else [stated]) if token is not None}
    return ids if chat.eos_id is None else ids | {chat.eos_id}
