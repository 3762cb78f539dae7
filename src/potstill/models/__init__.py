"""Models on disk and in memory: find them, check them, open them, take them apart.

No torch here or in the modules about files; `models.load` and the modules about loaded models need it.
"""

from potstill.models.cache import cache_dir
from potstill.models.folder import ModelSource, weights_digest
from potstill.models.resolve import locate, model_digests, resolve

__all__ = ["ModelSource", "cache_dir", "locate", "model_digests", "resolve", "weights_digest"]
