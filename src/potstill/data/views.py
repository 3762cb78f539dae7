"""Two views of one record: the teacher sees a system prompt that the student does not (context distillation).

What is learned is the same tokens in both (rule 7): the student learns to answer as the teacher does when it is told.
"""

from __future__ import annotations

from dataclasses import replace

from potstill.data.chat import ChatTokenizer
from potstill.data.tokenize import IGNORE, Tokenized, tokenize
from potstill.types import Message, Record, Reject


def tokenize_views(
    record: Record,
    chat: ChatTokenizer,
    max_length: int,
    *,
    teacher_system: str,
    teacher_chat: ChatTokenizer | None = None,
) -> Tokenized | Reject:
    """The student's view of a record, with the teacher's in `Tokenized.teacher`.

    Args:
        record: messages, or prompt and completion.
        chat: the student's tokenizer.
        max_length: of either view; where one is cut, the other is cut to the same learned tokens.
        teacher_system: the system prompt of the teacher's view, in place of the record's own.
        teacher_chat: the teacher's tokenizer, if it has a template of its own.

    Returns:
        Both views, or a reject: one of them cannot be learned, or the learned tokens are not the same.

    Raises:
        DataError: there is no chat template.
    """
    own = tokenize(record, chat, max_length)
    if isinstance(own, Reject):
        return own
    theirs = tokenize(with_system(record, teacher_system, instead=True), teacher_chat or chat, max_length)
    if isinstance(theirs, Reject):
        return theirs
    shared = min(len(own.learned), len(theirs.learned))
    if own.learned[:shared] != theirs.learned[:shared]:
        return Reject("the answer's tokens differ between the views", record.provenance.source, record.row)
    return replace(_first(own, shared), teacher=_first(theirs, shared))


def with_system(record: Record, system: str, *, instead: bool = False) -> Record:
    """A record with a system prompt, as messages. One that it has already stays, unless it is asked `instead`. A
    `text` stays as it is."""
    if record.text is not None:
        return record
    messages = record.messages
    if messages is None:
        messages = ({"role": "user", "content": record.prompt},)
        if record.completion is not None:
            messages += ({"role": "assistant", "content": record.completion},)
    if messages and messages[0]["role"] in ("system", "developer"):
        if not instead:
            return record
        messages = messages[1:]
    first: Message = {"role": "system", "content": system}
    return replace(record, messages=(first, *messages), prompt=None, completion=None)


def _first(row: Tokenized, count: int) -> Tokenized:
    """A row up to its learned token number `count`; whole if it has no more."""
    places = [place for place, label in enumerate(row.labels) if label != IGNORE]
    if len(places) <= count:
        return row
    length = places[count - 1] + 1
    return replace(row, input_ids=row.input_ids[:length], labels=row.labels[:length], cut=True)
