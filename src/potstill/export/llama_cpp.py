"""llama.cpp as an engine of a comparison, by the package `cyllama`, which is built for the usual platforms: no compiler
is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from potstill.errors import ModelError

PACKAGE = "cyllama"


class LlamaCpp:
    """A GGUF file, open in llama.cpp on the processor, with a cache in float16 (its default).

    Args:
        file: the GGUF file.
        room: largest number of tokens of a text.
        threads: number of threads. More than there are free cores make it slower by far: they wait for each other.

    Raises:
        ModelError: llama.cpp cannot open it.
    """

    def __init__(self, file: Path, room: int = 1024, threads: int = 1) -> None:
        from cyllama.llama import llama_cpp

        llama_cpp.disable_logging()
        self._api = llama_cpp

        class Model(llama_cpp.LlamaModel):
            """0.2.18 reads this attribute in `get_logits_ith`, and does not have it."""

            n_vocab = property(lambda model: model.get_vocab().n_vocab)

        try:
            self._model = Model(path_model=str(file), params=llama_cpp.LlamaModelParams(), verbose=False)
        except Exception as error:
            raise ModelError(f"llama.cpp cannot open the file: {error}", where=str(file)) from error
        self._vocabulary = self._model.get_vocab()
        parameters = llama_cpp.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = room
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.LlamaContext(self._model, parameters, verbose=False)
        self.title = f"llama.cpp {_version()}"

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, special tokens read as such; no begin token is put before it."""
        ids: list[int] = self._vocabulary.tokenize(text, False, True)
        return ids

    def logits(self, ids: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Logits after each token."""
        self._context.kv_cache_clear()
        self._decode(ids, 0, every=True)
        return np.array([self._context.get_logits_ith(place) for place in range(len(ids))], dtype=np.float32)

    def write(self, ids: Sequence[int], most_new: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy text, token by token."""
        self._context.kv_cache_clear()
        self._decode(ids, 0)
        written: list[int] = []
        while len(written) < most_new and not (written and written[-1] in stop_ids):
            if written:
                self._decode(written[-1:], len(ids) + len(written) - 1)
            written.append(int(np.argmax(self._context.get_logits_ith(-1))))
        return written

    def close(self) -> None:
        """Free its memory."""
        self._context.close()
        self._model.close()

    def _decode(self, ids: Sequence[int], start: int, *, every: bool = False) -> None:
        batch: Any = self._api.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for place, token in enumerate(ids):
            batch.add(token, start + place, [0], every or place == len(ids) - 1)
        self._context.decode(batch)


@contextmanager
def opened(file: Path) -> Iterator[LlamaCpp]:
    """The file open in llama.cpp with as many threads as torch has, until the end of the block."""
    engine = LlamaCpp(file, threads=torch.get_num_threads())
    try:
        yield engine
    finally:
        engine.close()


def quantise(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file in one of llama.cpp's own mixtures (`q4_k_m`), by llama.cpp.

    Raises:
        ModelError: llama.cpp refuses.
    """
    from cyllama.llama import llama_cpp
    from gguf import LlamaFileType

    llama_cpp.disable_logging()
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = int(LlamaFileType[f"MOSTLY_{kind.upper()}"])
    parameters.nthread = torch.get_num_threads()
    try:
        llama_cpp.model_quantize(str(source), str(target), parameters)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp cannot store the weights as {kind}: {error}", where=str(source)) from error


def _version() -> str:
    """`b9190 (cyllama 0.2.18)`."""
    built = json.loads(resources.files(PACKAGE).joinpath("build_config.json").read_text("utf-8"))
    return f"{built['versions']['llama_cpp_version']} ({PACKAGE} {metadata.version(PACKAGE)})"
