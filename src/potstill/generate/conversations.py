"""Exports of real conversations → training conversations, as Vicuna did with ShareGPT's (Chiang et al. 2023).

HTML becomes Markdown, user and assistant alternate strictly, broken conversations are left out, duplicates count once,
and a conversation longer than the context is split between pairs of turns. Everything left out is in the reject
ledger.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill.answering.base import Answering
from potstill.artifacts import Work
from potstill.errors import DataError, MissingExtra, ModelError
from potstill.generate.program import Item, SideOfRecord
from potstill.recipe.programs import ConversationsProgram
from potstill.registry import implements
from potstill.types import Message, Reason, Record, Reject, digest, group_of

if TYPE_CHECKING:
    from potstill.data.chat import ChatTokenizer
    from potstill.verify.base import Verifier


class Piece(NamedTuple):
    """Pairs `start` to `stop` (exclusive). A piece that does not fit is a single pair that is too long."""

    start: int
    stop: int
    fits: bool
    tokens: int


def split_pairs(pairs: int, tokens_of: Callable[[int, int], int], limit: int | None) -> Iterator[Piece]:
    """Consecutive pieces that cover all pairs, each as long as the limit allows.

    Args:
        pairs: how many there are.
        tokens_of: tokens of a piece as it is rendered; never fewer with a pair more.
        limit: the most tokens of a piece; None for no limit.
    """
    if not pairs:
        return
    if limit is None or (whole := tokens_of(0, pairs)) <= limit:
        yield Piece(0, pairs, True, 0 if limit is None else whole)
        return
    start = 0
    while start < pairs:
        stop, tokens = start + 1, tokens_of(start, start + 1)
        fits = tokens <= limit
        while fits and stop < pairs and (more := tokens_of(start, stop + 1)) <= limit:
            stop, tokens = stop + 1, more
        yield Piece(start, stop, fits, tokens)
        start = stop


_HELP = r"contact us through our help center at \S+"
_MESSAGES = (
    r"!?too many requests in 1 hour\. try again later",
    "there was an error generating a response",
    r"(?:an error occurred|something went wrong)\. (?:either the engine you requested does not exist or there was "
    rf"another issue processing your request\. )?if this issue persists,? please {_HELP}",
    "something went wrong, please try reloading the conversation",
    "network error",
    r"this content may violate our \[?content policy(?:\]\(\S+\))?(?:\. if you believe this to be in error, please "
    r"submit your feedback \W+ your input will aid our research in this area)?",
    r"the server had an error while processing your request(?:\. sorry about that!(?: you can retry your request, or "
    rf"{_HELP} if the error persists)?)?",
)
_NOTICES = re.compile(rf"(?:(?:{'|'.join(_MESSAGES)})[.!]*(?: |\Z))+")
"""What stands in the place of an answer where the window had something to say: these messages and nothing else, in
lower case and with one space between words."""


@implements(ConversationsProgram)
class Conversations:
    """The program of `kind: conversations`."""

    def __init__(self, settings: ConversationsProgram) -> None:
        self.settings = settings
        self.words = [(w, re.compile(rf"\b{re.escape(w)}\b", re.IGNORECASE)) for w in settings.without_words]

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """The pieces and rejects of each conversation, in order.

        Raises:
            ModelError: the tokenizer cannot be opened.
            DataError: it has no chat template.
            MissingExtra: a package that is needed is not installed.
        """
        markdown = Markdown() if self.settings.html != "never" else None
        chat = self._tokenizer()
        ids, pairs = dict[int, int](), dict[int, int]()
        with ExitStack() as stack:
            verifier: Verifier | None = None
            if self.settings.language is not None:
                from potstill.verify import open_verifier

                verifier = stack.enter_context(open_verifier(self.settings.language))
            for record in records:
                if isinstance(record, Reject):
                    yield record
                    continue
                for item in self._cleaned(record, markdown, work):
                    if isinstance(item, Reject):
                        yield item
                    elif (twice := _earlier(item, ids, pairs)) is not None:
                        yield twice
                    else:
                        yield from self._judged(item, verifier, chat, work)

    def _tokenizer(self) -> ChatTokenizer | None:
        from potstill.data.chat import ChatTokenizer
        from potstill.models.resolve import locate

        if self.settings.max_length is None or self.settings.tokenizer is None:
            return None
        source = locate(self.settings.tokenizer)
        if source is None:
            raise ModelError(
                f"the tokenizer {self.settings.tokenizer!r} is not on disk",
                where="generate.tokenizer",
                fix="name a folder, or a model that was fetched before",
            )
        chat = ChatTokenizer.from_folder(source.path)
        if not chat.templates:
            raise DataError(
                "the tokenizer has no chat template, so no length of a conversation can be told",
                where=f"generate.tokenizer: {self.settings.tokenizer}",
                fix="name one that has (an instruct model's), or set max_length: null",
            )
        return chat

    # ---- one conversation -------------------------------------------------------------------------------------

    def _cleaned(self, record: Record, markdown: Markdown | None, work: Work) -> Iterator[Record | Reject]:
        """The conversation without broken turns at its ends, or why it is left out."""
        turns = _turns(record)
        if turns is None:
            yield Reject.of(record, "a text is no conversation")
            return
        system = [m for m in turns[:1] if m["role"] == "system"]
        turns = turns[len(system) :]
        early = 0
        while early < len(turns) and turns[early]["role"] == "assistant":
            yield Reject.of(record, "an answer before the first question", str(turns[early].get("content", "")))
            early += 1
        turns = turns[early:]
        if (fault := _out_of_turn(turns)) is not None:
            yield Reject.of(record, *fault)
            return
        if len(turns) % 2:
            yield Reject.of(record, "a last question without an answer", str(turns[-1].get("content", "")))
            turns = turns[:-1]
        if not turns:
            yield Reject.of(record, "no pair of question and answer")
            return
        kept: list[Message] = []
        for turn in turns:
            try:
                text = self._plain(turn, markdown, work)
            except ValueError as error:
                yield Reject.of(record, str(error), str(turn["content"]))
                return
            if (why := self._broken(turn["role"], text)) is not None:
                yield Reject.of(record, why[0], text, why[1])
                return
            kept.append({**turn, "content": text})
        group = record.group
        if early:
            group = group_of(str(turns[0]["content"]) if not system else [*system, turns[0]])
        yield replace(record, messages=(*system, *kept), prompt=None, completion=None, group=group)

    def _plain(self, turn: Message, markdown: Markdown | None, work: Work) -> str:
        """A turn's text, as Markdown. Raises `ValueError` with the reason if there is none."""
        text = turn.get("content")
        if not isinstance(text, str):
            raise ValueError("a turn without text")
        if markdown is None:
            return text.strip()
        # A user's turn is no HTML, though it may be about HTML.
        if self.settings.html == "always" or (turn["role"] == "assistant" and is_html(text)):
            text = markdown.of(text)
            work.count("turns from HTML to Markdown")
        return text.strip()

    def _broken(self, role: str, text: str) -> tuple[str, str] | None:
        if not text:
            return "an empty turn", role
        if "\ufffd" in text:
            return "characters that could not be decoded", role
        if any(unicodedata.category(c) == "Cc" and c not in "\n\r\t" for c in text):
            return "control characters", role
        if role == "assistant" and _NOTICES.fullmatch(" ".join(text.lower().split())):
            return "an error message in the place of an answer", ""
        for word, pattern in self.words:
            if pattern.search(text):
                return "an unwanted word", word
        return None

    def _judged(
        self, record: Record, verifier: Verifier | None, chat: ChatTokenizer | None, work: Work
    ) -> Iterator[Record | Reject]:
        if verifier is not None:
            whole = "\n\n".join(str(m["content"]) for m in record.messages or () if m["role"] != "system")
            verdict = verifier.verify(record, whole)
            if verdict.outcome == "reject":
                yield Reject.of(record, "another language", detail=verdict.reason)
                return
            if verdict.outcome == "cannot_judge":
                work.count("conversations too short to tell their language (kept)")
            record = replace(record, verdicts=(*record.verdicts, verdict))
        yield from self._pieces(record, chat, work)

    def _pieces(self, record: Record, chat: ChatTokenizer | None, work: Work) -> Iterator[Record | Reject]:
        """Its pairs, each in one piece or in a reject. Pieces have the group of the whole; `sample` is their number."""
        messages = record.messages or ()
        lead = len(messages) % 2  # the system prompt, which every piece begins with
        system, turns = messages[:lead], messages[lead:]
        pairs = len(turns) // 2

        def tokens_of(start: int, stop: int) -> int:
            if chat is None:
                return 0
            return len(chat.encode(chat.render((*system, *turns[2 * start : 2 * stop]), record.tools)).ids)

        try:
            pieces = list(split_pairs(pairs, tokens_of, self.settings.max_length))
        except DataError as refusal:
            if refusal.fix is not None:
                raise
            yield Reject.of(record, Reason.TEMPLATE_REFUSES, detail=refusal.what)
            return
        if len(pieces) > 1:
            work.count("conversations split")
        for number, piece in enumerate(pieces):
            part = turns[2 * piece.start : 2 * piece.stop]
            if not piece.fits:
                detail = f"pair {piece.start + 1} of {pairs}: {piece.tokens:,} tokens of {self.settings.max_length:,}"
                yield Reject.of(record, "a pair of turns is longer than max_length", str(part[0]["content"]), detail)
                continue
            work.count("pairs of turns kept", piece.stop - piece.start)
            metadata = dict(record.metadata)
            if len(pieces) > 1:
                metadata["pairs"] = [piece.start + 1, piece.stop]
            yield replace(record, messages=(*system, *part), sample=number, metadata=metadata)


def _turns(record: Record) -> list[Message] | None:
    if record.messages is not None:
        return list(record.messages)
    if record.prompt is None:
        return None
    asked: list[Message] = [{"role": "user", "content": record.prompt}]
    return asked if record.completion is None else [*asked, {"role": "assistant", "content": record.completion}]


def _out_of_turn(turns: list[Message]) -> tuple[str, str, str] | None:
    """Reason, text and detail if user and assistant do not alternate, else None."""
    for place, turn in enumerate(turns):
        role, expected = str(turn["role"]), ("user", "assistant")[place % 2]
        text = str(turn.get("content", ""))
        if role not in ("user", "assistant"):
            return "a turn of another role", text, f"turn {place + 1}: {role}"
        if role != expected:
            return "turns do not alternate", text, f"turn {place + 1}: {role} again"
    return None


def _earlier(record: Record, ids: dict[int, int], pairs: dict[int, int]) -> Reject | None:
    """The reject of a conversation that was there before: by the export's own id, or by its first question and answer.
    `ids` and `pairs` map 64 bits of hashes to rows."""
    own = record.metadata.get("id")
    if own is not None:
        if (row := ids.get(key := _key(str(own)))) is not None:
            return Reject.of(record, "same id as an earlier conversation", detail=f"row {row}: {own}")
        ids[key] = record.row
    first = [str(m["content"]) for m in record.messages or () if m["role"] != "system"][:2]
    if (row := pairs.get(key := _key(first))) is not None:
        return Reject.of(record, "same first pair as an earlier conversation", detail=f"row {row}")
    pairs[key] = record.row
    return None


def _key(value: str | list[str]) -> int:
    return int(digest(value)[:16], 16)


# ---- HTML of chat windows as Markdown: code keeps every character, in a fence with its language ----------------------


_TAGS = "div|p|ol|ul|li|pre|h[1-6]|table|blockquote|span|strong|em|code|br|b|i|u|s|del|a|hr|section|html|body"
_BEGINS = re.compile(rf"\s*<(?:!doctype\b|(?:{_TAGS})(?:\s[^<>]*)?/?>)", re.IGNORECASE)
_COPY = re.compile(r"\A\s*([\w+#.-]*?)\s*Copy code\s*")
_CONTROL = re.compile(r"\d+ / \d+|(?:Copy)?\d+ chars / \d+ words")
_ANSWER = ".markdown, .prose"
"""The element that holds an answer in a chat window."""


def is_html(text: str) -> bool:
    """Whether a text begins with an HTML tag, as the turns of a chat window do."""
    return _BEGINS.match(text) is not None


class Markdown:
    """Turns HTML into Markdown.

    Raises:
        MissingExtra: markdownify is not installed.
    """

    def __init__(self) -> None:
        if find_spec("markdownify") is None:
            raise MissingExtra("markdownify", "generate", "turning HTML into Markdown")
        self._converter = _converter()

    def of(self, html: str) -> str:
        """The Markdown of a piece of HTML. Raises `ValueError` where it cannot be parsed."""
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup

        try:
            soup = BeautifulSoup(html, "html.parser")
        except (ParserRejectedMarkup, AssertionError) as error:
            raise ValueError("HTML that cannot be parsed") from error
        for nothing in soup(["script", "style", "button", "svg", "noscript"]):
            nothing.decompose()
        _drop_controls(soup)
        for formula in soup.select(".katex"):
            _plain_formula(formula)
        try:
            return str(self._converter.convert_soup(soup)).strip()
        except RecursionError as error:
            raise ValueError("HTML that is nested too deeply") from error


def _drop_controls(soup: Any) -> None:
    """Remove the window's own counters: "2 / 3" beside a regenerated answer, "Copy123 chars / 45 words" below it.

    Each is an element beside the one that holds the answer. If no element is known to hold the answer, nothing is
    removed: "3 / 4" may be the answer.
    """
    answers = soup.select(_ANSWER)
    if not answers:
        return
    inside = {id(part) for answer in answers for part in (answer, *answer.find_all(True), *answer.parents)}
    for element in soup(["div", "span"]):
        text = "" if id(element) in inside or element.decomposed else " ".join(element.get_text().split())
        if _CONTROL.fullmatch(text):
            element.decompose()


def _plain_formula(formula: Any) -> None:
    """A page contains a formula three times: as TeX, as MathML, and drawn. Keep the TeX."""
    tex = formula.find("annotation")
    if tex is None:
        return
    display = formula.find_parent(class_="katex-display")
    written = tex.get_text().strip()
    (display or formula).replace_with(f"$${written}$$" if display is not None else f"${written}$")


def _converter() -> Any:
    from markdownify import ATX, MarkdownConverter

    class Converter(MarkdownConverter):
        def convert_pre(self, el: Any, text: str, parent_tags: Any) -> str:
            code = el.find("code")
            source, language = (code or el).get_text(), ""
            if code is not None:
                named = (c for c in code.get("class") or () if c.startswith(("language-", "lang-")))
                language = next(named, "").partition("-")[2]
            elif (copy := _COPY.match(source)) is not None:
                source, language = source[copy.end() :], copy[1]
            source = source.strip("\n")
            if not source.strip():
                return ""
            longest = max((len(run) for run in re.findall(r"`+", source)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"\n\n{fence}{language}\n{source}\n{fence}\n\n"

    # No escapes: a model would learn to write them.
    return Converter(heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False, autolinks=False)
