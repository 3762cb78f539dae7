"""From a record to token ids and labels. Only the assistant's words are learned, and the token that ends its turn.

The text is encoded once, as a whole, so tokens are those that the model sees; a token that spans the beginning of an
answer makes the record a reject. A completion that was cut short (by the teacher's limit, or here by `max_length`)
gets no end token: the student must not learn to stop there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.data.chat import ChatTokenizer
from potstill.data.problems import with_system
from potstill.data.spans import Turn, Unlearnable, assistant_turns
from potstill.errors import DataError
from potstill.types import DataReason, Message, Record, Reject

IGNORE = -100
"""As `potstill.signals.IGNORE`, which needs torch."""


@dataclass(frozen=True)
class Tokenized:
    """One record as a model sees it.

    `labels[t]` is `input_ids[t]` where that token is learned (or, for a masked model, may be masked), else IGNORE.
    `label` is the number of the row's class, where that is learned. `cut`: learned tokens were cut off at
    `max_length`. `note` is for the user (text that the chat template adds). `teacher` is
    the teacher's view, if its prompt differs (see `tokenize_views`). `weights` say how often each token counts as a
    target (empty: once).
    """

    input_ids: list[int]
    labels: list[int]
    record_id: str = ""
    group: str = ""
    cut: bool = False
    note: str = ""
    teacher: Tokenized | None = None
    label: int | None = None
    weights: list[float] = field(default_factory=list)
    before_cut: str = field(default="", compare=False)
    """Of a row that was cut: the `rendered` digest of the whole."""

    @property
    def rendered(self) -> str:
        """A digest of the row's tokens and learned positions before it was cut at any length: what a stored signal is
        of."""
        return self.before_cut or _rendered(self.input_ids, self.labels)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> list[int]:
        """The learned tokens, in order."""
        return [label for label in self.labels if label != IGNORE]


def tokenize(record: Record, chat: ChatTokenizer, max_length: int) -> Tokenized | Reject:
    """The ids and labels of a record, or why it cannot be learned from.

    A `prompt` is the user's turn where the model has a chat template, with its `completion` the assistant's; without
    a template they are joined as they stand, and the end token follows. Of a `text` every token is learned (but the
    first, which nothing predicts), and none is added.

    Args:
        record: what to learn.
        chat: the student's tokenizer.
        max_length: tokens beyond it are cut off at the end.

    Raises:
        DataError: messages and no chat template, or a completion to finish and no end token.
    """
    if record.is_prompt:
        return Reject.of(record, DataReason.NOTHING_TO_LEARN, detail="a prompt without an answer")
    try:
        ids, labels, note = _labelled(record, chat)
    except Unlearnable as unlearnable:
        return Reject.of(record, unlearnable.reason, detail=unlearnable.detail)
    labels[:1] = [IGNORE] * len(labels[:1])
    cut = any(label != IGNORE for label in labels[max_length:])
    before_cut = _rendered(ids, labels) if len(ids) > max_length else ""
    ids, labels = ids[:max_length], labels[:max_length]
    if all(label == IGNORE for label in labels):
        why = f"within max_length {max_length}" if cut else "no token is learned"
        return Reject.of(record, DataReason.NOTHING_TO_LEARN, detail=why)
    return Tokenized(ids, labels, record.id, record.group, cut, note, before_cut=before_cut)


def _rendered(ids: Sequence[int], labels: Sequence[int]) -> str:
    import numpy as np  # reading a record needs neither

    from potstill.store.files import tokens_digest

    learned = np.flatnonzero(np.array(labels[1:], np.int64) != IGNORE)  # positions whose next token is learned
    return tokens_digest(np.array(ids, np.int64), learned)


def prompt_ids(
    prompt: str | Sequence[Message], chat: ChatTokenizer, tools: Sequence[Mapping[str, Any]] | None = None
) -> list[int]:
    """The token ids that a model answers: the conversation with the generation prompt.

    A plain prompt is the user's turn where there is a chat template, and is continued verbatim otherwise. `tokenize`
    does the same, so an answer is learned after exactly the tokens that it was generated from.

    Raises:
        DataError: messages and no chat template, or the template refuses them.
    """
    if isinstance(prompt, str):
        if chat.template is None:
            return [*chat.leading, *chat.encode(prompt).ids]
        prompt = ({"role": "user", "content": prompt},)
    return chat.encode(chat.render(prompt, tools, add_generation_prompt=True)).ids


def ids_of(prompt: Record, chat: ChatTokenizer) -> list[int]:
    """The token ids of a prompt, rendered by a chat template or as it stands. Raises as `prompt_ids`."""
    return prompt_ids(prompt.messages if prompt.messages is not None else prompt.prompt or "", chat, prompt.tools)


def _labelled(record: Record, chat: ChatTokenizer) -> tuple[list[int], list[int], str]:
    """Ids, labels, and a note for the user, before the cut at `max_length`."""
    if record.text is not None:
        ids = [*chat.leading, *chat.encode(record.text).ids]
        return ids, [IGNORE] * len(chat.leading) + ids[len(chat.leading) :], ""
    messages = record.messages
    if messages is None:
        question, answer = record.prompt or "", record.completion or ""
        if chat.template is None:
            return _joined(question, answer, record.finished, chat)
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    text, turns = assistant_turns(messages, record.tools, chat)
    if not record.finished:
        # No end token: the answer would have gone on.
        last = turns[-1]
        text, turns[-1] = text[: last.words_end], replace(last, end=last.words_end)
    ids, offsets = chat.encode(text)
    note = next((f"the chat template adds {turn.added!r} to answers" for turn in turns if turn.added), "")
    return ids, _labels(text, ids, offsets, turns, chat), note


def _labels(
    text: str, ids: list[int], offsets: list[tuple[int, int]], turns: Sequence[Turn], chat: ChatTokenizer
) -> list[int]:
    """Labels on the tokens of the turns. A token on both sides of a boundary is an error."""
    labels = [IGNORE] * len(ids)
    at = 0
    for turn in turns:
        while at < len(ids) and offsets[at][1] <= turn.start:
            at += 1
        if at < len(ids) and offsets[at][0] < turn.start:
            raise Unlearnable(DataReason.TOKEN_OVER_START, repr(text[slice(*offsets[at])]))
        while at < len(ids) and offsets[at][0] < turn.end:
            beyond = text[turn.end : offsets[at][1]]
            # Only white space after an end token may belong to the token.
            if beyond and (beyond.strip() or not chat.special_pattern.match(text, offsets[at][0])):
                raise Unlearnable(DataReason.TOKEN_OVER_END, repr(text[slice(*offsets[at])]))
            labels[at] = ids[at]
            at += 1
    return labels


def _joined(prompt: str, completion: str, finished: bool, chat: ChatTokenizer) -> tuple[list[int], list[int], str]:
    text = prompt + completion
    ids, offsets = chat.encode(text)
    labels = _labels(text, ids, offsets, [Turn(len(prompt), len(text), len(text))], chat)
    if finished:
        if chat.eos_id is None:
            raise DataError(
                "the tokenizer has no end token, so no student could learn to stop",
                fix="set eos_token in its tokenizer_config.json",
            )
        ids, labels = [*ids, chat.eos_id], [*labels, chat.eos_id]
    return [*chat.leading, *ids], [IGNORE] * len(chat.leading) + labels, ""


# ---- a view of its own for the teacher ----------------------------------------------------------------------------


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
    taught = tokenize(with_system(record, teacher_system, instead=True), teacher_chat or chat, max_length)
    if isinstance(taught, Reject):
        return taught
    shared = min(len(own.learned), len(taught.learned))
    if own.learned[:shared] != taught.learned[:shared]:
        return Reject.of(record, DataReason.VIEWS_DIFFER)
    return replace(_up_to(own, shared), teacher=_up_to(taught, shared))


def _up_to(row: Tokenized, count: int) -> Tokenized:
    """The row up to its learned token number `count`; unchanged if it has fewer."""
    places = [place for place, label in enumerate(row.labels) if label != IGNORE]
    if len(places) <= count:
        return row
    length = places[count - 1] + 1
    return replace(row, input_ids=row.input_ids[:length], labels=row.labels[:length], cut=True, before_cut=row.rendered)
