"""A student, and its export in the engine that it is for, compared on the same prompts: is it the same model?

The student writes greedily in fp32 after each prompt. The export writes greedily too, and gives its distribution at
every token of the student's text, where KL(student ‖ export) is taken over the whole vocabulary, in nats.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from potstill.console import Console
from potstill.data import ChatTokenizer
from potstill.decoding.generator import stop_token_ids, write
from potstill.errors import ModelError
from potstill.models.folder import is_module
from potstill.models.plain import load_module
from potstill.models.quiet import quiet_loading
from potstill.models.tasks import is_plain, opener_of
from potstill.quantities import byte_size
from potstill.tasks import SPECS, Task, TaskSpec
from potstill.types import Sampling

_LONGEST = 64
"""Tokens of a text that an encoder reads in a comparison."""
GREEDY = Sampling(max_new_tokens=1, temperature=0.0)


class Engine(Protocol):
    """A program that runs an exported language model, with the model open in it.

    Attributes:
        title: its name and version, as the card prints them.
    """

    title: str

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of a text, special tokens read as such; None where the engine takes ids only."""
        ...

    def logits(self, ids: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Scores of the next token after each of these tokens, up to a constant per row."""
        ...

    def write(self, ids: Sequence[int], most_new: int, stop_ids: Sequence[int]) -> list[int]:
        """The tokens written greedily after these, up to and with the first of `stop_ids`."""
        ...


@dataclass(frozen=True)
class Comparison:
    """One file in one engine, compared with the student.

    Attributes:
        engine: name and version.
        prompts: number of prompts.
        tokens: number of tokens of the student's texts.
        kl: mean KL(student ‖ export), nats per token. kl_most: that of the farthest token.
        same_best: share of tokens for which both have the same most likely one.
        same_texts: number of prompts whose greedy texts are equal, token by token.
        gap: where they are not, the median difference of the student's two log-probabilities (its own token, the
            export's) at the first place that differs: near 0 is a tie. None if all are equal.
        same_ids: whether the engine's tokenizer gave the same ids for every prompt; None if it takes ids only.
        tolerance: largest allowed `kl`.
    """

    engine: str
    prompts: int
    tokens: int
    kl: float
    kl_most: float
    same_best: float
    same_texts: int
    gap: float | None
    same_ids: bool | None
    tolerance: float


def prompts(count: int) -> list[str]:
    """The first `count` of the 50 prompts of a comparison."""
    listed: list[str] = json.loads(resources.files("potstill.export").joinpath("prompts.json").read_text("utf-8"))
    return listed[:count]


@dataclass(frozen=True)
class _Asked:
    """One prompt: its text with template, its ids, and what the student writes behind it."""

    text: str
    ids: list[int]
    answer: list[int]
    log_p: Float[torch.Tensor, "N V"]

    @property
    def behind(self) -> slice:
        """The places of the tokens before each of the answer's."""
        return slice(len(self.ids) - 1, len(self.ids) + len(self.answer) - 1)


def compare(
    model: Path,
    engines: Mapping[str, AbstractContextManager[Engine]],
    tolerances: Mapping[str, float],
    *,
    count: int,
    most_new: int,
    console: Console,
    task: Task = "causal_lm",
    trust_remote_code: bool = False,
) -> dict[str, Comparison]:
    """Compare a student's folder with its exports, by name.

    Args:
        model: folder that `from_pretrained` opens; it is opened in fp32 on the processor.
        engines: each with an export open in it.
        tolerances: the largest mean KL of each.
        count: number of prompts. most_new: tokens written after each.
    """
    if not count:
        return {}
    student = open_student(model, task, trust_remote_code=trust_remote_code)
    chat = ChatTokenizer.from_folder(model)
    stop_ids = stop_token_ids(student, chat.eos_id)
    found: dict[str, list[_Found]] = {name: [] for name in engines}
    titles = {}
    with console.task("comparison", total=count * (1 + len(engines)), unit="texts") as progress:
        asked = []
        for prompt in prompts(count):
            asked.append(_ask(student, chat, prompt, most_new, stop_ids))
            progress.advance(1)
        for name, opening in engines.items():
            with opening as engine:
                titles[name] = engine.title
                for one in asked:
                    found[name].append(_look(engine, one, most_new, stop_ids))
                    progress.advance(1)
    return {name: _summary(titles[name], found[name], tolerances[name]) for name in engines}


class BatchEngine(Protocol):
    """A program that runs an exported encoder or classifier."""

    title: str

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output for a batch: logits, or the last hidden states."""
        ...


def compare_outputs(
    model: Path,
    task: Task,
    engines: Mapping[str, AbstractContextManager[BatchEngine]],
    tolerances: Mapping[str, float],
    *,
    count: int,
    image_shape: tuple[int, ...] | None,
    console: Console,
    trust_remote_code: bool = False,
) -> dict[str, Comparison]:
    """Compare an encoder's or a classifier's folder with its exports, on `count` texts (or images of noise).

    `kl` is over classes or vocabulary; for embeddings it is 1 − cos of the hidden states.
    """
    if not count:
        return {}
    spec = SPECS[task]
    student = open_student(model, task, trust_remote_code=trust_remote_code)
    inputs = [
        _image(student, image_shape, seed) if spec.reads_images else _text(model, p)
        for seed, p in enumerate(prompts(count))
    ]
    compared = {}
    with console.task("comparison", total=len(engines), unit="graphs") as progress, torch.no_grad():
        given = [_first(student(**one) if not is_plain(student) else student(*one.values())) for one in inputs]
        for name, opening in engines.items():
            with opening as engine:
                found = [engine.outputs({key: value.numpy() for key, value in one.items()}) for one in inputs]
                title = engine.title
            away = [_distances(a, torch.from_numpy(b), spec) for a, b in zip(given, found, strict=True)]
            far = torch.cat([one[0] for one in away])
            same = torch.cat([one[1] for one in away]).double()
            compared[name] = Comparison(
                title,
                count,
                len(far),
                float(far.mean()),
                float(far.max()),
                float(same.mean()),
                count,
                None,
                None,
                tolerances[name],
            )
            progress.advance(1)
    return compared


def _distances(given: torch.Tensor, found: torch.Tensor, spec: TaskSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row: KL (1 − cos for embeddings), and whether the largest entry is the same."""
    a, b = (x.double().reshape(-1, x.shape[-1]) for x in (given, found))
    if not spec.has_response:
        return 1 - torch.cosine_similarity(a, b), a.argmax(-1) == b.argmax(-1)
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)


def _text(model: Path, text: str) -> dict[str, torch.Tensor]:
    chat = ChatTokenizer.from_folder(model)
    ids = torch.tensor([[*chat.leading, *chat.encode(text).ids][:_LONGEST]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image(student: Any, shape: tuple[int, ...] | None, seed: int) -> dict[str, torch.Tensor]:
    shape = shape or image_shape_of(student.config)
    return {"pixel_values": torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))}


def image_shape_of(config: Any) -> tuple[int, ...]:
    """Channels, height and width of the images that a model of `transformers` reads."""
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(config.num_channels), int(height), int(width)


def _first(output: Any) -> torch.Tensor:
    """Logits, or the last hidden states."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def open_student(
    model: Path,
    task: Task = "causal_lm",
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """A student's folder, open on the processor in evaluation mode; a module of the user's own as one."""
    if is_module(model):
        return load_module(model).eval()
    with quiet_loading():
        opened: Any = opener_of(task).from_pretrained(
            model, dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code
        )
    opened.eval()
    return opened


def refuse_far(compared: Mapping[str, Comparison], where: Path) -> None:
    """Refuse exports that are not the student.

    Raises:
        ModelError: one is farther away than its tolerance, or its tokenizer gives other ids.
    """
    for name, found in compared.items():
        if found.same_ids is False:
            raise ModelError(
                f"{found.engine} reads the texts of {name} as other tokens than the student does",
                where=str(where),
                fix="use kind: huggingface, whose tokenizer is the student's own",
            )
        if not found.kl <= found.tolerance:
            raise ModelError(
                f"{name} in {found.engine} is {found.kl:.2g} nats per token away from the student, "
                f"more than the {found.tolerance:.2g} that are allowed",
                where=str(where),
                fix="store it in more bits, or allow more: set `tolerance` of this export",
            )


def check_section(compared: Mapping[str, Comparison], *, sizes: Mapping[str, int], asked: int) -> str:
    """The section of a model card about its files and how they were checked, as Markdown."""
    lines = ["", "## Files, and how they were checked", ""]
    if not compared:
        names = ", ".join(f"`{name}` ({byte_size(amount)})" for name, amount in sizes.items())
        return "\n".join([*lines, f"{names}: not opened and not compared (`check_prompts: 0`).", ""])
    tokens = max(found.tokens for found in compared.values())
    lines += [
        f"Each file was opened by the engine that it is for and compared with the student in fp32, on {asked} prompts "
        f"and the {tokens:,} tokens that the student writes greedily after them. KL is KL(student ‖ file), the mean in "
        "nats per token; a file beyond its tolerance is not exported.",
        "",
        "| File | Size | Engine | KL | Tolerance | Farthest token | Same best token | Greedy texts equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in compared.items():
        gap = f" (median gap where not: {found.gap:.2g} nats)" if found.gap is not None else ""
        lines.append(
            f"| {name} | {byte_size(sizes[name])} | {found.engine} | {found.kl:.2g} | {found.tolerance:.2g} | "
            f"{found.kl_most:.2g} | {found.same_best:.1%} | {found.same_texts} of {found.prompts}{gap} |"
        )
    return "\n".join([*lines, ""])


def as_facts(compared: Mapping[str, Comparison]) -> dict[str, Any]:
    """The comparisons as plain data."""
    return {name: asdict(found) for name, found in compared.items()}


# ---- one prompt ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    kl: list[float]
    same_best: list[bool]
    same_text: bool
    gap: float | None
    same_ids: bool | None


def _ask(student: PreTrainedModel, chat: ChatTokenizer, prompt: str, most_new: int, stop_ids: Sequence[int]) -> _Asked:
    if chat.template is None:
        text, ids = prompt, [*chat.leading, *chat.encode(prompt).ids]
    else:
        text = chat.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
        ids = chat.encode(text).ids
    [answer] = write(
        student, [ids], GREEDY, samples=[0], most_new=most_new, stop_ids=stop_ids, pad_id=chat.pad_id, seed=0
    )
    with torch.no_grad():
        logits = student(torch.tensor([[*ids, *answer]])).logits[0].float()
    behind = slice(len(ids) - 1, len(ids) + len(answer) - 1)
    return _Asked(text, ids, answer, logits[behind].log_softmax(-1))


def _look(engine: Engine, asked: _Asked, most_new: int, stop_ids: Sequence[int]) -> _Found:
    scores = torch.from_numpy(engine.logits([*asked.ids, *asked.answer])[asked.behind]).double()
    # Files may have rows for ids without a token, which are left out.
    log_q = scores[:, : asked.log_p.shape[1]].log_softmax(-1)
    log_p = asked.log_p.double()
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    written = engine.write(asked.ids, most_new, stop_ids)
    place = next((i for i, (a, b) in enumerate(zip(asked.answer, written, strict=False)) if a != b), None)
    gap = None
    if place is not None:
        gap = float(log_p[place, asked.answer[place]] - log_p[place, written[place]])
    ids = engine.tokenize(asked.text)
    return _Found(
        kl.tolist(),
        (log_p.argmax(-1) == log_q.argmax(-1)).tolist(),
        written == asked.answer,
        gap,
        None if ids is None else ids == asked.ids,
    )


def _summary(engine: str, found: Sequence[_Found], tolerance: float) -> Comparison:
    kl = [value for one in found for value in one.kl]
    same = [value for one in found for value in one.same_best]
    gaps = [one.gap for one in found if one.gap is not None]
    read = [one.same_ids for one in found if one.same_ids is not None]
    return Comparison(
        engine,
        prompts=len(found),
        tokens=len(kl),
        kl=statistics.fmean(kl),
        kl_most=max(kl),
        same_best=statistics.fmean(same),
        same_texts=sum(one.same_text for one in found),
        gap=statistics.median(gaps) if gaps else None,
        same_ids=all(read) if read else None,
        tolerance=tolerance,
    )
