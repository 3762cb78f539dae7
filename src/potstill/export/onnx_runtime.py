"""ONNX Runtime as an engine of a comparison, on the processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float


class OnnxRuntime:
    """A graph, open in ONNX Runtime.

    Args:
        file: the graph, its weights beside it.
        threads: number of threads.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self.title = f"onnxruntime {metadata.version('onnxruntime')}"

    def tokenize(self, text: str) -> None:
        """It reads ids."""
        return

    def logits(self, ids: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Logits after each token: half of the text at once, the rest behind its cache, so that both ways are seen."""
        half = max(1, len(ids) // 2)
        first, cache = self._read(ids[:half], self._empty())
        if half == len(ids):
            return first
        rest, _ = self._read(ids[half:], cache)
        return np.concatenate([first, rest])

    def write(self, ids: Sequence[int], most_new: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy text, token by token."""
        logits, cache = self._read(ids, self._empty())
        written = [int(logits[-1].argmax())]
        while len(written) < most_new and written[-1] not in stop_ids:
            logits, cache = self._read(written[-1:], cache)
            written.append(int(logits[-1].argmax()))
        return written

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output for a batch, for models that write no text."""
        named = {name: value for name, value in inputs.items() if name in self._inputs}
        found: np.ndarray = self._session.run(self._outputs[:1], named)[0]
        return found

    def _empty(self) -> dict[str, np.ndarray]:
        caches = {name: shape for name, shape in self._inputs.items() if name.startswith("past_key_values")}
        return {name: np.zeros((1, _number(s[1]), 0, _number(s[3])), np.float32) for name, s in caches.items()}

    def _read(
        self, ids: Sequence[int], cache: Mapping[str, np.ndarray]
    ) -> tuple[Float[np.ndarray, "T V"], dict[str, np.ndarray]]:
        past = next(iter(cache.values())).shape[2]
        positions = np.arange(past, past + len(ids))[None]
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, past + len(ids)), np.int64),
            "position_ids": positions,
        }
        named = {name: value for name, value in inputs.items() if name in self._inputs}
        found = dict(zip(self._outputs, self._session.run(None, {**named, **cache}), strict=True))
        grown = {f"past_key_values{name.removeprefix('present')}": v for name, v in found.items() if name != "logits"}
        return found["logits"][0], grown


def _number(size: Any) -> int:
    """A fixed size of a graph's input, which the tracer may have written as text."""
    return int(size)


@contextmanager
def opened(file: Path) -> Iterator[OnnxRuntime]:
    """The graph open in ONNX Runtime with as many threads as torch has, until the end of the block."""
    yield OnnxRuntime(file, torch.get_num_threads())
