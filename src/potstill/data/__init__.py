"""Data: read, render through chat templates, mask, pack, collate.

source.py         what a source is: rows and their places
files.py          sources: files and folders
hub.py            sources: the `datasets` library
packages.py       sources: data sets in Python packages
image_sources.py  sources: images
reasoning_gym.py  sources: problems of reasoning-gym
store.py          records as Parquet, the reject ledger, and the records of another run

read.py           from a source to records
formats.py        from a row's columns to a record
sides.py          both sides of a recipe's data
split.py          which side a group is on
twins.py          near twins across the split
problems.py       a record as a prompt that is put to a model
refusals.py       refusals as training records
images.py         images with classes, and their sides

chat.py           the tokenizer for all rendering and encoding
template.py       chat templates
spans.py          the assistant's turns in a rendered conversation
thinking.py       reasoning, apart from the answer
tokenize.py       from a record to token ids and labels
encoder.py        the token ids of an encoder
masking.py        masking for masked language models
mappings.py       rows of a user's data set
reader.py         from a record to the training rows of a task
pack.py           several records in one row
collate.py        from rows to tensors

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
