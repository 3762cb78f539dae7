"""Models on disk and in memory: where they are, whether they can be used, how they are opened and taken apart.

What is here is torch-free; `models.load` and the rooms beside it are not.
"""

from potstill.models.cache import cache_dir
from potstill.models.folder import ModelSource, weights_digest
from potstill.models.resolve import locate, model_digests, resolve

__all__ = ["ModelSource", "cache_dir", "locate", "model_digests", "resolve", "weights_digest"]
