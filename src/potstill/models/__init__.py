"""Models on disk and in memory: find them, check them, open them, take them apart.

resolve.py      from a recipe's name to a folder
packages.py     models in Python packages
hub.py          models of the hub
cache.py        the cache folder
folder.py       a model's folder: whole, usable, its identity
facts.py        sizes, from configuration and headers
shapes.py       shapes that a decoder can be pruned to
gguf_header.py  the header of a GGUF file
gguf.py         its conversion
tokenizers.py   whether two models use the same tokenizer and template
labels.py       the names of classes
kinds.py        the task of a model, from its files

load.py         open a model or a tokenizer
tasks.py        the class that opens a model for a task
plain.py        modules of the user's own
quiet.py        silence while loading
saving.py       write a model
anatomy.py      where layers, head and inner model are
live.py         signals of a live model
taps.py         inner tensors by name
unchanged.py    look at a model without a trace
rounding.py     weights rounded to few bits

No torch here or in the first block, which is about files; the second, about loaded models, needs it.
"""

from potstill.models.cache import cache_dir
from potstill.models.folder import ModelSource, weights_digest
from potstill.models.resolve import locate, model_digests, resolve

__all__ = ["ModelSource", "cache_dir", "locate", "model_digests", "resolve", "weights_digest"]
