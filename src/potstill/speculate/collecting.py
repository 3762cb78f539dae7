"""What a target writes while it is used, with its distributions, as something to learn from: training data for its
draft that cost no further pass of the target.

Each token of a text was chosen from logits that the verification computed anyway. A `Collector` reduces them to the
entries of a store (`store.estimators.threshold`: no bias), and keeps the latest texts in memory; `save` writes them as
a signal store beside the token ids, and `load_collected` opens both for a trainer. A distribution is the target's at
temperature 1, before processors, whatever the text was sampled with.

    store/        the distributions, joined to the texts by record
    texts.jsonl   of each text its record, token ids, and how many of them are the prompt
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import DataError
from potstill.models.anatomy import dims
from potstill.signals import Sparse
from potstill.store.codec import Entries, Grid
from potstill.store.estimators import entries_of, joined, threshold
from potstill.store.files import TOKENIZER, Planned, StoreWriter
from potstill.teachers.stored import StoredTeacher
from potstill.types import digest

STORE, TEXTS = "store", "texts.jsonl"


@dataclass(frozen=True)
class _Kept:
    """One text: its prompt, what was written behind it, and the distributions that it was written by."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]
    entries: Entries


class Collector:
    """A `Watcher` that keeps the latest texts of a target, each once.

    Args:
        target: that the decoder writes with.
        tau: probabilities of at least this are kept, the others sampled.
        most_tokens: number of written tokens that are kept; the oldest texts go first. In memory a token takes some 100
            bytes.
        seed: of the sampled entries.

    Raises:
        ValueError: tau or most_tokens is out of range.
    """

    def __init__(
        self, target: PreTrainedModel, *, tau: float = 0.02, most_tokens: int = 200_000, seed: int = 0
    ) -> None:
        if not 0 < tau <= 1 or most_tokens < 1:
            raise ValueError(f"tau is above 0 and at most 1, and most_tokens at least 1; not {tau} and {most_tokens}")
        self.tokens = 0
        """Number of written tokens that are kept."""
        self._tau, self._most, self._dims = tau, most_tokens, dims(target)
        self._name = str(getattr(target.config, "_name_or_path", ""))
        self._dice = torch.Generator().manual_seed(seed)
        self._texts: dict[str, _Kept] = {}
        self._prompts: list[tuple[int, ...]] = []
        self._growing: dict[int, tuple[list[int], list[Sparse], list[Tensor]]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    # ---- as a decoder calls it -------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Forget texts that were not written to their end."""
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._growing = {row: ([], [], []) for row in range(len(prompts))}

    @torch.no_grad()
    def wrote(self, logits_NV: Float[Tensor, "N V"], news: Mapping[int, Sequence[int]], ended: Collection[int]) -> None:
        """Keep a round's distributions, and the texts that end."""
        log_p = logits_NV.float().log_softmax(-1)
        tokens = torch.tensor([token for new in news.values() for token in new], device=log_p.device)
        own = log_p.gather(1, tokens[:, None]).squeeze(1).cpu()
        uniforms = torch.rand(len(tokens), generator=self._dice).to(log_p.device)
        kept, first = threshold(log_p, self._tau, uniforms), 0
        on_host = Sparse(
            kept.offsets.cpu(), kept.ids.cpu(), kept.weights.cpu(), kept.entropy.cpu(), kept.estimator, 1.0, kept.vocab
        )
        for row, new in news.items():
            written, parts, at_target = self._growing[row]
            written.extend(new)
            parts.append(_rows_of(on_host, first, first + len(new)))
            at_target.append(own[first : first + len(new)])
            first += len(new)
            if row in ended:
                self._keep(self._prompts[row], tuple(written), joined(parts), torch.cat(at_target))
                del self._growing[row]

    def _keep(self, prompt: tuple[int, ...], written: tuple[int, ...], sparse: Sparse, at_target: Tensor) -> None:
        entries = entries_of(sparse, at_target)
        record = digest([list(prompt), list(written)])
        if (before := self._texts.pop(record, None)) is not None:
            self.tokens -= len(before.written)
        self._texts[record] = _Kept(prompt, written, entries)
        self.tokens += len(written)
        while self.tokens > self._most and len(self._texts) > 1:
            oldest = next(iter(self._texts))
            self.tokens -= len(self._texts.pop(oldest).written)

    # ---- to learn from ---------------------------------------------------------------------------------------------

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write what is kept, for `load_collected`.

        Args:
            folder: new, or of the same texts.
            tokenizer: the target's, written beside, so that a trainer can compare it with the draft's.

        Raises:
            DataError: no text is kept.
            RunError: the folder holds something else, or cannot be written.
        """
        if not self._texts:
            raise DataError("no text was collected", fix="let the decoder write some to their end first")
        rows = {record: _row(record, kept.prompt, kept.written) for record, kept in self._texts.items()}
        identity = {
            "teacher": {"model": self._name},
            "dims": asdict(self._dims),
            "estimator": {"kind": "threshold", "tau": self._tau, "signal": "unbiased"},
            "temperature": 1.0,
            "max_length": max(map(len, rows.values())),
            "task": "causal_lm",
            "targets": "tokens",
            "labels": None,
        }
        grid, dice = Grid.threshold(self._dims.vocab, self._tau), np.random.default_rng(0)
        planned = [Planned(record, row.rendered, len(row.learned), len(row)) for record, row in rows.items()]
        with StoreWriter(folder / STORE, identity, grid, [planned]) as writer:
            missing = {place for _, place in writer.missing()}
            wanted = [text for place, text in enumerate(self._texts.items()) if place in missing]
            writer.append([(record, kept.entries, dice.random(kept.entries.ids.size)) for record, kept in wanted])
            if tokenizer is not None:
                tokenizer.save_pretrained(folder / STORE / TOKENIZER)
            writer.finish()
        lines = (
            json.dumps({"record": record, "input_ids": row.input_ids, "prompt": len(self._texts[record].prompt)})
            for record, row in rows.items()
        )
        (folder / TEXTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load_collected(folder: Path) -> tuple[list[Tokenized], StoredTeacher]:
    """Rows and teacher for a trainer: `DistillTrainer(draft, teacher, …, train_dataset=rows)`.

    Raises:
        DataError: the folder holds no collected texts.
    """
    try:
        lines = [json.loads(line) for line in (folder / TEXTS).read_text(encoding="utf-8").splitlines()]
        rows = [
            _row(line["record"], line["input_ids"][: line["prompt"]], line["input_ids"][line["prompt"] :])
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"there are no collected texts: {error}", where=str(folder / TEXTS), fix="give a folder of Collector.save"
        ) from error
    return rows, StoredTeacher(folder / STORE)


def _row(record: str, prompt: Sequence[int], written: Sequence[int]) -> Tokenized:
    return Tokenized([*prompt, *written], [IGNORE] * len(prompt) + list(written), record)


def _rows_of(sparse: Sparse, first: int, last: int) -> Sparse:
    begin, end = int(sparse.offsets[first]), int(sparse.offsets[last])
    return Sparse(
        sparse.offsets[first : last + 1] - begin,
        sparse.ids[begin:end],
        sparse.weights[begin:end],
        sparse.entropy[first:last],
        sparse.estimator,
        1.0,
        sparse.vocab,
    )
