"""Data: read, render through chat templates, mask, pack, collate.

Importing this loads neither torch nor transformers. Tensors are made in `potstill.data.collate`.
"""

from __future__ import annotations

# These bind the kinds of sources to their settings.
from potstill.data import files, hub, image_sources, packages, reasoning_gym, store
from potstill.data.chat import ChatTokenizer, Encoded
from potstill.data.images import Pixels
from potstill.data.pack import Packed, pack
from potstill.data.read import ReadResult, read_records, source_digests, split_of
from potstill.data.reader import TaskReader, reader_for, reader_of
from potstill.data.sides import Example, Sides, read_sides
from potstill.data.source import Source, SourceRow
from potstill.data.split import Split, SplitSide, check_selection, selects
from potstill.data.store import load_records, load_rejects, save_records, save_rejects
from potstill.data.tokenize import Tokenized, prompt_ids, tokenize, tokenize_views

SOURCES = (files, hub, image_sources, packages, reasoning_gym, store)

__all__ = [
    "ChatTokenizer",
    "Encoded",
    "Example",
    "Packed",
    "Pixels",
    "ReadResult",
    "SourceRow",
    "SplitSide",
    "Sides",
    "Source",
    "Split",
    "TaskReader",
    "Tokenized",
    "check_selection",
    "load_records",
    "load_rejects",
    "pack",
    "prompt_ids",
    "read_records",
    "read_sides",
    "reader_for",
    "reader_of",
    "save_records",
    "save_rejects",
    "selects",
    "source_digests",
    "split_of",
    "tokenize",
    "tokenize_views",
]
