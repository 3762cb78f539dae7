"""Linear layers of few rows on a CPU: of several ways to multiply, the one that is fastest on this machine.

Decoding multiplies each weight matrix by few rows: by one for each token alone, by γ + 1 in a block. What it costs is
to read the weights, and a good kernel reads them about once. Which kernel is good depends on the number of rows and on
the processor: `nn.Linear` may take twice as long for two rows as for one, and longer for three than for four. So each
way is timed once per shape and number of rows, over matrices that no cache holds, and the fastest is taken. All of them
compute the same product; only rounding differs, as it does between blocks of different lengths anyway.

Ways are often alike within the noise of their timing, and another rounding may turn a near-tie. So the choice is kept
in the cache folder: every process on this machine takes the same, and a seed gives the same text.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.artifacts import write_atomically
from potstill.errors import ModelError
from potstill.models.cache import cache_dir

Way = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x [r, K], a weight [N, K] and a bias [N] or None to x · weightᵀ + bias [r, N]."""

LEAST_BYTES = 4 * 2**20
"""Matrices of one shape that are smaller than this all together stay in a cache, and are left alone."""
_TIMED_BYTES = 64 * 2**20
_REPETITIONS = 4
_MARGIN = 0.95
"""Another way than the plain one has to take less than this part of its time."""
_MOST = 8
"""Numbers of rows that are told apart; more are taken for sixteen."""
_MANY = 16


class _Case(NamedTuple):
    """What a choice depends on."""

    shape: tuple[int, int]
    dtype: torch.dtype
    biased: bool
    rows: int
    threads: int

    def __str__(self) -> str:
        bias = " + bias" if self.biased else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.shape[0]} x {self.shape[1]} {dtype}{bias}, rows {self.rows}, threads {self.threads}"


_chosen: dict[_Case, Way] = {}


class FewRows(nn.Linear):
    """A linear layer that shares its weight with another, and multiplies in the fastest way. Without gradients.

    Attributes:
        alike: weights of this shape of the same model, on which ways are timed; its own among them.
    """

    alike: Sequence[Tensor]

    def forward(self, input: Float[Tensor, "*B K"]) -> Float[Tensor, "*B N"]:
        return linear(input, self.weight, self.bias, self.alike)


def linear(
    input: Float[Tensor, "*B K"], weight: Float[Tensor, "N K"], bias: Tensor | None, alike: Sequence[Tensor]
) -> Float[Tensor, "*B N"]:
    """`nn.functional.linear`, in the fastest way where that is known to matter.

    Args:
        input: the rows.
        weight: of the layer.
        bias: of the layer [N].
        alike: weights of the same shape, on which ways are timed.
    """
    rows = input.numel() // weight.shape[1]
    if rows == 0 or weight.device.type != "cpu" or torch.is_grad_enabled():
        return nn.functional.linear(input, weight, bias)
    product = way(weight, bias, rows, alike)(input.reshape(rows, weight.shape[1]), weight, bias)
    return product.view(*input.shape[:-1], weight.shape[0])


def with_few_rows(model: PreTrainedModel) -> PreTrainedModel:
    """A view of a model whose linear layers are `FewRows` of the same weights; the model itself where that is of no use
    (on an accelerator, or small). Modules are those of now: one that is replaced later is replaced in the model alone.
    """
    alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            alike[tuple(module.weight.shape)].append(module.weight)
    large = {shape: found for shape, found in alike.items() if sum(w.nbytes for w in found) >= LEAST_BYTES}
    return _view(model, large, {}) if large else model


def _view(module: Any, alike: dict[tuple[int, ...], list[Tensor]], made: dict[int, Any]) -> Any:
    if id(module) in made:  # a module that is used twice
        return made[id(module)]
    view = made[id(module)] = copy.copy(module)
    if type(module) is nn.Linear and tuple(module.weight.shape) in alike:
        view.__class__ = FewRows
        view.alike = alike[tuple(module.weight.shape)]
        return view
    view._modules = {
        name: None if child is None else _view(child, alike, made) for name, child in view._modules.items()
    }
    return view


def way(weight: Tensor, bias: Tensor | None, rows: int, alike: Sequence[Tensor]) -> Way:
    """The fastest way to multiply this many rows, timed at the first question on this machine.

    Args:
        weight: [N, K].
        bias: [N].
        rows: at least 1.
        alike: weights of the same shape.
    """
    if len(alike) * weight.nbytes < LEAST_BYTES:
        return nn.functional.linear
    known = rows if rows <= _MOST else _MANY
    case = _Case((weight.shape[0], weight.shape[1]), weight.dtype, bias is not None, known, torch.get_num_threads())
    if case not in _chosen:
        among = ways(known)
        _chosen[case] = among[kept_choice(str(case), among, lambda: _fastest(among, alike, bias, known))]
    return _chosen[case]


_PLAIN = "plain"


def ways(rows: int) -> dict[str, Way]:
    """All ways to multiply this many rows by name, the plain one first."""
    found: dict[str, Way] = {_PLAIN: nn.functional.linear}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found["onednn"] = _onednn
    if rows <= _MOST:
        found |= {f"turned {n}": _turned(n) for n in sorted({rows, 2, 4, 8}) if rows <= n <= 2 * rows}
    return found


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN, which `nn.Linear` asks only in half precision."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _turned(width: int) -> Way:
    """weight · xᵀ, with x filled up to `width` rows."""

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = len(x)
        if rows < width:
            x = nn.functional.pad(x, (0, 0, 0, width - rows))
        product = torch.mm(weight, x.t())[:, :rows].t().contiguous()
        return product if bias is None else product.add_(bias)

    return multiply


def _fastest(among: Mapping[str, Way], alike: Sequence[Tensor], bias: Tensor | None, rows: int) -> str:
    first = alike[0]
    some = list(alike[: max(1, _TIMED_BYTES // first.nbytes)])
    if first.nbytes > _TIMED_BYTES:  # one matrix is large: its first rows, which are a matrix too
        some = [first[: max(1, _TIMED_BYTES // (first.nbytes // len(first)))]]
        bias = None if bias is None else bias[: len(some[0])]
    x = torch.ones(rows, first.shape[1], dtype=first.dtype)
    # Of this thread, if it works alone: what others take from it on a busy machine does not count.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, float] = {}
    for name, multiply in among.items():
        try:
            multiply(x, some[0], bias)
        except (RuntimeError, NotImplementedError):  # not in this build of torch, or not in this precision
            continue
        seconds[name] = float("inf")
    for _ in range(_REPETITIONS):  # in turn, so that other load falls on all alike; the least is the quietest
        for name in seconds:
            begun = clock()
            for weight in some:
                among[name](x, weight, bias)
            seconds[name] = min(seconds[name], clock() - begun)
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < _MARGIN * seconds[_PLAIN] else _PLAIN


# ---- kept choices --------------------------------------------------------------------------------------------------


def kept_choice(case: str, known: Collection[str], choose: Callable[[], str]) -> str:
    """The way that this machine takes in a case: that of the first process that asked. Without a cache folder that can
    be written every process chooses for itself.

    Args:
        case: what the choice depends on, beside processor and torch.
        known: names of the ways.
        choose: the name of the fastest.
    """
    try:
        folder = cache_dir() / "kernels"
        folder.mkdir(exist_ok=True)
    except (ModelError, OSError):
        return choose()
    file = folder / f"{hashlib.sha256(_machine().encode()).hexdigest()[:16]}.json"
    if (kept := _kept(file).get(case, "")) in known:
        return kept
    chosen = choose()
    try:
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = _kept(file)
            if (kept := others.get(case, "")) in known:  # another process was first
                return kept
            write_atomically(file, json.dumps(others | {"": _machine(), case: chosen}, indent=1, sort_keys=True))
    except OSError:
        pass  # a full disk: this process alone knows
    return chosen


def _kept(file: Path) -> dict[str, str]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: choose again
        return {}
    return kept if isinstance(kept, dict) else {}


@lru_cache(maxsize=1)
def _machine() -> str:
    """What a cache folder that several machines share is told apart by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
