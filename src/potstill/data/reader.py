"""From a record to the training rows of a task, and from rows to batches. No torch until batches are made.

| task                                         | a row is                            | a batch is made by |
|----------------------------------------------|-------------------------------------|--------------------|
| `causal_lm`                                  | `Tokenized`, with labels            | `Collator`         |
| `masked_lm`                                  | `Tokenized`, a piece of a text      | `MaskingCollator`  |
| `sequence_classification`                    | `Tokenized`, with a `label`         | `ExampleCollator`  |
| `sentence_embedding`                         | `Tokenized`, perhaps with a `label` | `ExampleCollator`  |
| `image_classification`                       | `Pixels`                            | `ImageCollator`    |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from potstill.data.chat import ChatTokenizer
from potstill.data.encoder import EncoderTokenizer
from potstill.data.formats import Unusable
from potstill.data.images import Pixels
from potstill.data.mappings import (
    class_of,
    conversation_of,
    given_columns,
    labelled_tokens,
    pixels_of,
    refuse_masked,
    text_of,
    tokens_of,
)
from potstill.data.sides import Example
from potstill.data.tokenize import IGNORE, Tokenized, tokenize, tokenize_views
from potstill.errors import DataError, ModelError
from potstill.recipe import DataSettings, Masking, Recipe
from potstill.recipe.data import ImageSettings
from potstill.tasks import SPECS, Task
from potstill.types import DataReason, Record, Reject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Tokenized | Pixels
Collate = Callable[[Sequence[Any]], dict[str, Any]]


class TaskReader(Protocol):
    """Turns the examples of a data set into training rows for one task.

    `pad_id` is the padding token (0 for images); `max_length` is the maximum number of tokens in a row: as given, or
    the model's own limit if that is lower.
    """

    task: Task
    pad_id: int
    max_length: int

    def rows(self, example: Example) -> list[Row | Reject]:
        """The training rows of an example: one, or several where a long text is cut into pieces; or why there is
        none."""
        ...

    def row(self, example: Example) -> Row | Reject:
        """One row, cut off at the end at `max_length` (`cut` says so)."""
        ...

    def rows_of_mapping(self, mapping: Mapping[str, Any], where: str) -> list[Row | Reject]:
        """The rows of one item of a `datasets.Dataset` or a list of mappings; or why there are none.

        Raises:
            DataError: it cannot be read; `where` names it.
        """
        ...

    def collator(self) -> Collate:
        """The function that makes batches of rows. Loads torch."""
        ...


def reader_for(
    task: Task,
    *,
    tokenizer: Path | PreTrainedTokenizerBase | None = None,
    data: DataSettings | None = None,
    max_length: int = 1024,
    classes: Sequence[str] = (),
    masking: Masking | None = None,
    seed: int = 0,
    teacher_system: str | None = None,
) -> TaskReader:
    """The reader of a task.

    Args:
        task: what the student is for.
        tokenizer: the folder of the student's tokenizer, or a loaded one; None for images, and for a causal model
            whose rows are all tokenised.
        data: gives `mean` and `std` of images.
        max_length: longer texts are cut.
        classes: the names of the classes, in the order of their numbers.
        masking: for masked models; the published shares by default.
        seed: for masked models: changes the mask.
        teacher_system: for causal models: a system prompt in the teacher's view only.

    Raises:
        DataError: no tokenizer, no classes, or no room for text within `max_length`.
        ModelError: the tokenizer cannot be read, or has no mask token for a masked model.
    """
    spec = SPECS[task]
    named = _at_least_two(task, classes) if spec.has_classes else tuple(classes)
    if spec.reads_images:
        return ImageReader(named, data if isinstance(data, ImageSettings) else None)
    if spec.writes:
        return CausalReader(_chat(tokenizer) if tokenizer is not None else None, max_length, teacher_system)
    if tokenizer is None:
        fix = "give the folder of the student's tokenizer"
        raise DataError("text needs a tokenizer", where=f"task {task}", fix=fix)
    encoder = _encoder(tokenizer)
    if spec.masks:
        return MaskedReader(encoder, max_length, masking or Masking(), seed)
    return ExampleReader(task, encoder, max_length, named)


def _chat(tokenizer: Path | PreTrainedTokenizerBase) -> ChatTokenizer:
    if isinstance(tokenizer, Path):
        return ChatTokenizer.from_folder(tokenizer)
    return ChatTokenizer.from_transformers(tokenizer)


def _encoder(tokenizer: Path | PreTrainedTokenizerBase) -> EncoderTokenizer:
    if isinstance(tokenizer, Path):
        return EncoderTokenizer.from_folder(tokenizer)
    return EncoderTokenizer.from_transformers(tokenizer)


def reader_of(recipe: Recipe, tokenizer: Path | None, classes: Sequence[str]) -> TaskReader:
    """The reader of a recipe that trains, for the classes that its data have. Raises as `reader_for`."""
    return reader_for(
        recipe.task,
        tokenizer=tokenizer,
        data=recipe.data,
        max_length=recipe.required_train.max_length,
        classes=classes,
        masking=recipe.required_train.masking,
        seed=recipe.seed,
        teacher_system=recipe.required_train.teacher_system,
    )


def _at_least_two(task: Task, classes: Sequence[str]) -> tuple[str, ...]:
    if len(classes) > 1:
        return tuple(classes)
    if classes:
        raise DataError(
            f"everything is of class {classes[0]!r}: there is nothing to tell apart",
            where="data",
            fix="give records of two classes or more",
        )
    raise DataError(
        f"{task} learns classes, and no record has one", where="data", fix="give a column label beside text"
    )


class CausalReader:
    """Reads conversations and texts for a causal language model: see `tokenize`.

    Args:
        chat: the student's tokenizer; None where every row is tokenised already.
        max_length: longer rows are cut at the end.
        teacher_system: a system prompt in the teacher's view only: rows then hold two views, see `tokenize_views`.

    Raises:
        DataError: a system prompt, and no chat template to render it.
    """

    task: Task = "causal_lm"

    def __init__(self, chat: ChatTokenizer | None, max_length: int, teacher_system: str | None = None) -> None:
        if teacher_system is not None and chat is not None and not chat.templates:
            raise DataError(
                "the tokenizer has no chat template, so the teacher cannot be shown a system prompt",
                where="train.teacher_system",
                fix="use an instruct model, whose tokenizer has one, or leave train.teacher_system out",
            )
        self._chat, self.max_length, self.teacher_system = chat, max_length, teacher_system
        self.pad_id = chat.pad_id if chat is not None else 0

    @property
    def chat(self) -> ChatTokenizer:
        """The student's tokenizer. Raises DataError if there is none."""
        if self._chat is None:
            raise DataError("text needs a tokenizer", where="data", fix="give processing_class=tokenizer")
        return self._chat

    def rows(self, example: Example) -> list[Row | Reject]:
        """One row, or why not."""
        return [self.row(example)]

    def row(self, example: Example) -> Row | Reject:
        """Its tokens and labels. Raises as `tokenize`, and DataError if there is no tokenizer."""
        record = _record(example)
        if self.teacher_system is None:
            return tokenize(record, self.chat, self.max_length)
        return tokenize_views(record, self.chat, self.max_length, teacher_system=self.teacher_system)

    def rows_of_mapping(self, mapping: Mapping[str, Any], where: str) -> list[Row | Reject]:
        """Reads messages, prompt and completion, text, or `input_ids` and `labels`."""
        given = given_columns(mapping, self.task, where)
        if "input_ids" in given:
            return [self._already_tokenized(given, where)]
        try:
            return [tokenize(conversation_of(given, where), self.chat, self.max_length)]
        except Unusable as unusable:
            return [Reject(unusable.reason, where, 0)]

    def _already_tokenized(self, given: Mapping[str, Any], where: str) -> Row | Reject:
        ids, labels = labelled_tokens(given, where)
        cut = any(label != IGNORE for label in labels[self.max_length :])
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        if not any(label != IGNORE for label in labels[1:]):
            return Reject(DataReason.NOTHING_TO_LEARN, where, 0)
        return Tokenized(ids, labels, cut=cut)

    def collator(self) -> Collate:
        """Pads on the right. `Batch.from_inputs` shifts the labels by one."""
        from potstill.data.collate import Collator

        return Collator(self.pad_id)


class _EncoderReader:
    """Base of the readers for encoders of text."""

    def __init__(self, tokenizer: EncoderTokenizer, max_length: int) -> None:
        self.tokenizer, self.pad_id = tokenizer, tokenizer.pad_id
        self.max_length = min(max_length, tokenizer.longest or max_length)
        tokenizer.pieces("", self.max_length)  # raises if there is no room

    def _pieces(self, record: Record) -> list[Tokenized] | Reject:
        """A text in pieces, each with the id and group of the whole text; or why there are none."""
        if record.text is None:
            return Reject.of(record, DataReason.NOT_A_TEXT, detail="an encoder reads the column text")
        pieces = self.tokenizer.pieces(record.text, self.max_length)
        if all(map(all, (piece.special for piece in pieces))):
            return Reject.of(record, DataReason.NOTHING_TO_LEARN, detail="no token is text")
        rows = []
        for number, piece in enumerate(pieces):
            labels = [
                IGNORE if special else token for token, special in zip(piece.input_ids, piece.special, strict=True)
            ]
            name = record.id if len(pieces) == 1 else f"{record.id}.{number}"
            rows.append(Tokenized(piece.input_ids, labels, name, record.group))
        return rows


class MaskedReader(_EncoderReader):
    """Reads texts for a masked language model. A long text becomes several rows, so that none of it is lost. `labels`
    are the tokens that may be masked: all but the special ones."""

    task: Task = "masked_lm"

    def __init__(self, tokenizer: EncoderTokenizer, max_length: int, masking: Masking, seed: int = 0) -> None:
        super().__init__(tokenizer, max_length)
        self.masking, self.seed = masking, seed
        if tokenizer.mask_id is None:
            raise ModelError(
                "the tokenizer has no mask token, so nothing can be masked",
                where="task masked_lm",
                fix="use a model that was made for it (BERT, RoBERTa …), or set mask_token in tokenizer_config.json",
            )
        self._mask_id = tokenizer.mask_id

    def rows(self, example: Example) -> list[Row | Reject]:
        """Every piece of a text that has anything to mask."""
        pieces = self._pieces(_record(example))
        if isinstance(pieces, Reject):
            return [pieces]
        return [piece for piece in pieces if piece.learned]

    def row(self, example: Example) -> Row | Reject:
        """The first piece."""
        record = _record(example)
        pieces = self._pieces(record)
        return pieces if isinstance(pieces, Reject) else _first(pieces, record)

    def rows_of_mapping(self, mapping: Mapping[str, Any], where: str) -> list[Row | Reject]:
        """Every piece of a `text` that can be masked; or of `input_ids` without masks."""
        given = given_columns(mapping, self.task, where)
        if "input_ids" not in given:
            return self.rows(text_of(given, self.task, where))
        refuse_masked(given, where)
        [ids] = tokens_of(given, where)
        cut, ids = len(ids) > self.max_length, ids[: self.max_length]
        special = self.tokenizer.special_ids
        row = Tokenized(ids, [IGNORE if token in special else token for token in ids], cut=cut)
        return [row if row.learned else Reject(DataReason.NOTHING_TO_LEARN, where, 0, detail="no token is text")]

    def collator(self) -> Collate:
        """Masks anew in every epoch."""
        from potstill.data.collate import MaskingCollator
        from potstill.data.masking import Masker

        masker = Masker(self.masking, self._mask_id, self.tokenizer.ordinary_ids, self.seed)
        return MaskingCollator(self.pad_id, masker)


class ExampleReader(_EncoderReader):
    """Reads texts for an encoder with one output per text. Longer texts are cut off at `max_length`."""

    def __init__(self, task: Task, tokenizer: EncoderTokenizer, max_length: int, classes: tuple[str, ...]) -> None:
        super().__init__(tokenizer, max_length)
        self.task, self.classes = task, classes

    def rows(self, example: Example) -> list[Row | Reject]:
        """One row, or why not."""
        return [self.row(example)]

    def row(self, example: Example) -> Row | Reject:
        """Its tokens and the number of its class, which only classification requires."""
        record = _record(example)
        pieces = self._pieces(record)
        if isinstance(pieces, Reject):
            return pieces
        label = self.classes.index(record.label) if record.label in self.classes else None
        if label is None and SPECS[self.task].has_classes:
            reason = DataReason.NO_LABEL if record.label is None else DataReason.UNKNOWN_CLASS
            return Reject.of(record, reason, detail=record.label or "")
        first = _first(pieces, record)
        nothing = [IGNORE] * len(first)
        return replace(first, labels=nothing, label=label)

    def rows_of_mapping(self, mapping: Mapping[str, Any], where: str) -> list[Row | Reject]:
        """Reads a `text`, or its `input_ids`, with the number of its class."""
        given = given_columns(mapping, self.task, where)
        try:
            label = class_of(given, self.classes, where) if self.classes else None
        except Unusable as unusable:
            if SPECS[self.task].has_classes:
                return [Reject(unusable.reason, where, 0)]
            label = None
        if "input_ids" in given:
            [ids] = tokens_of(given, where)
            if not ids:
                return [Reject(DataReason.NOTHING_TO_LEARN, where, 0, detail="no token")]
            cut, ids = len(ids) > self.max_length, ids[: self.max_length]
            return [Tokenized(ids, [IGNORE] * len(ids), cut=cut, label=label)]
        named = self.classes[label] if label is not None else None
        return self.rows(replace(text_of(given, self.task, where), label=named))

    def collator(self) -> Collate:
        """Pads on the right."""
        from potstill.data.collate import ExampleCollator

        return ExampleCollator(self.pad_id)


class ImageReader:
    """Reads images."""

    task: Task = "image_classification"
    pad_id = 0
    max_length = 1

    def __init__(self, classes: tuple[str, ...], data: ImageSettings | None = None) -> None:
        self.classes = classes
        self.mean, self.std = (data.mean, data.std) if data is not None else (0.5, 0.5)

    def rows(self, example: Example) -> list[Row | Reject]:
        """One row, or why not."""
        return [self.row(example)]

    def row(self, example: Example) -> Row | Reject:
        """The image itself."""
        if not isinstance(example, Pixels):
            return Reject.of(example, DataReason.NOT_AN_IMAGE)
        return example if example.label is not None else Reject(DataReason.NO_LABEL, "images", example.row)

    def rows_of_mapping(self, mapping: Mapping[str, Any], where: str) -> list[Row | Reject]:
        """Reads `pixel_values` and a `label`."""
        given = given_columns(mapping, self.task, where)
        pixels = pixels_of(given, where)
        try:
            return [Pixels(pixels, class_of(given, self.classes, where))]
        except Unusable as unusable:
            return [Reject(unusable.reason, where, 0)]

    def collator(self) -> Collate:
        """Stacks images, channels first, and normalises them."""
        from potstill.data.collate import ImageCollator

        return ImageCollator(self.mean, self.std)


def _record(example: Example) -> Record:
    if isinstance(example, Record):
        return example
    raise DataError("an image where a text is needed", where="data", fix="set task: image_classification")


def _first(pieces: Sequence[Tokenized], example: Record) -> Tokenized:
    return replace(pieces[0], record_id=example.id, cut=len(pieces) > 1)
