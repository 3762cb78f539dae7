"""Open a model or a tokenizer from disk, for a task, on a chosen device and in a chosen precision."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.models.folder import ModelSource, check_remote_code, is_module, read_config
from potstill.models.kinds import check_task, own_task, task_in
from potstill.models.labels import check_same_labels, labels_in, name_classes
from potstill.models.plain import load_module
from potstill.models.quiet import quiet_loading
from potstill.models.tasks import opener_of
from potstill.tasks import SPECS, Task

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; `auto` is the first accelerator, else the processor.

    Raises:
        ModelError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    fix = "use device: auto, or one of: " + ", ".join(_devices())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"{name!r} is no device", fix=fix) from error
    if device.type == "meta" or str(device) not in _devices():
        raise ModelError(f"there is no device {name!r} on this machine", fix=fix)
    return device


def _devices() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda", *cuda] if cuda else []), *(["mps"] if torch.backends.mps.is_available() else [])]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (emulation always works, and is slower)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        # Linux's names: AVX-512 BF16 and AMX on x86 (`flags`), BF16 on Arm (`Features`).
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def pick_dtype(dtype: str, source: ModelSource, device: torch.device) -> torch.dtype:
    """A precision by name. `auto` is the stored precision if the device is fast in it, else fp32 (fp16 counts as bf16:
    potstill does not compute in fp16)."""
    if dtype != "auto":
        return _DTYPES[dtype]
    config = {} if is_module(source.path) else read_config(source.path)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return torch.bfloat16 if stored in ("bfloat16", "float16") and has_fast_bf16(device) else torch.float32


def load_model(
    source: ModelSource,
    *,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attn_implementation: str | None = None,
    quantization: str = "none",
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model, in evaluation mode. An encoder opened for another task gets a new head, with a warning.

    Args:
        source: from `resolve`. A folder with `module.json` is a module of the user's own.
        task: the task to open it for; None for the one it was saved with.
        labels: class names, for a classifier. They must equal those of an existing head; a new head gets as many
            rows.
        dtype: `float32`, `bfloat16`, or `auto` (see `pick_dtype`).
        device: as for `pick_device`; unused with a `device_map` (accelerate's: `auto`, `balanced`, …).
        attn_implementation: as in `transformers`; None leaves the choice to it.
        quantization: `none`, `bnb_8bit` or `bnb_4bit` (bitsandbytes, while loading).
        trust_remote_code: run the code in the model's folder.

    A new head is initialised by `transformers`, with torch's global generator.

    Raises:
        ModelError: the model cannot be used this way, its classes are others, its weights do not fit its
            configuration, or something requested is missing (the attention implementation, bitsandbytes, the device).
    """
    model, new = open_model(
        source,
        task=task,
        labels=labels,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    if new:
        warnings.warn(f"{source.name}: {new_head(new)}", stacklevel=2)
    return model


def new_head(names: Sequence[str]) -> str:
    """The warning about new weights."""
    shown = ", ".join(names[:3]) + (", …" if names[3:] else "")
    return f"the head is new, its weights are random ({shown}): train it before it is asked or distilled"


def open_model(
    source: ModelSource,
    *,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attn_implementation: str | None = None,
    quantization: str = "none",
    trust_remote_code: bool = False,
) -> tuple[nn.Module, tuple[str, ...]]:
    """As `load_model`, but returns the names of new weights instead of warning."""
    place = pick_device(device)
    chosen = pick_dtype(dtype, source, place)
    if is_module(source.path):
        return _open_module(source, task, labels).to(place, chosen), ()
    config = read_config(source.path)
    check_task(config, task, where=str(source.path))
    check_remote_code(config, trust_remote_code=trust_remote_code, where=str(source.path))
    own = task_in(config, where=str(source.path))
    task = task or own
    asked: dict[str, Any] = {
        "dtype": chosen,
        **_classes(config, labels if SPECS[task].has_classes else None, task, source),
    }
    if attn_implementation is not None:
        asked["attn_implementation"] = attn_implementation
    if quantization != "none":
        asked["quantization_config"] = _bitsandbytes(quantization, chosen)
    if device_map is not None or quantization != "none":
        asked["device_map"] = device_map or {"": str(place)}
    try:
        with quiet_loading():
            loaded: Any = opener_of(task).from_pretrained(
                source.path,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **asked,
            )
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model cannot be opened: {what}", where=str(source.path), fix=_fix(attn_implementation)
        ) from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    new = _new_weights(model, found) if task != own or not _has_head(config, task) else ()
    _check_complete(found, new, source)
    if "device_map" not in asked:
        torch.nn.Module.to(model, place)
    model.eval()
    return model, new if SPECS[task].has_response else ()  # the pooler of a text encoder is unused


def _open_module(source: ModelSource, task: Task | None, labels: Sequence[str] | None) -> nn.Module:
    if task is not None and not SPECS[task].reads_images:
        raise ModelError(f"a module of your own is no model for the task {task}", where=str(source.path))
    module = load_module(source.path)
    if labels:
        name_classes(module, labels)
    return module


def _classes(
    config: Mapping[str, Any], labels: Sequence[str] | None, task: Task, source: ModelSource
) -> dict[str, Any]:
    """The arguments of `from_pretrained` for classes."""
    if labels is None:
        return {}
    where = str(source.path)
    if own_task(config) == task and _has_head(config, task):
        found = labels_in(config)
        if found is None:
            raise ModelError(
                "the classes of this model have no names, so it cannot be known whether they are the data's",
                where=where,
                fix=f"write id2label and label2id into its config.json; the data have: {', '.join(labels)}",
            )
        check_same_labels(found, labels, who="the model", where=where)
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
    }


def _has_head(config: Mapping[str, Any], task: Task) -> bool:
    return not SPECS[task].has_classes or any("Classification" in str(a) for a in config.get("architectures") or [])


def _new_weights(model: PreTrainedModel, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Weights that were missing in the folder, outside the encoder: the head, and the pooler that some heads read."""
    inside = f"{model.base_model_prefix}." if model.base_model is not model else ""
    names = sorted(str(name) for name in found.get("missing_keys") or ())
    return tuple(n for n in names if not n.startswith(inside) or n.removeprefix(inside).startswith("pooler."))


def load_tokenizer(source: ModelSource | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, chat template included.

    Raises:
        ModelError: it cannot be opened.
    """
    path = source.path if isinstance(source, ModelSource) else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ImportError, ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"the tokenizer cannot be opened: {error}", where=str(path), fix="fetch the model again"
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _check_complete(found: Mapping[str, Any], new: Sequence[str], source: ModelSource) -> None:
    """Raise for missing weights, which `transformers` initialises randomly and only logs. A new head is allowed."""
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = [str(name[0] if isinstance(name, tuple) else name) for name in found.get(problem) or ()]
        names = sorted(name for name in names if name not in new)
        if names:
            problems = {"missing_keys": "are missing", "mismatched_keys": "have another shape than config.json says"}
            shown = ", ".join(names[:3]) + (", …" if names[3:] else "")
            raise ModelError(
                f"{len(names)} weights {problems.get(problem, 'cannot be read')}: {shown}",
                where=str(source.path),
                fix="fetch the model again, or save it again from the model it came from",
            )


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization: {quantization} needs bitsandbytes", fix="pip install bitsandbytes")
    if quantization == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")


def _fix(attn_implementation: str | None) -> str:
    if attn_implementation not in (None, "sdpa", "eager"):
        return f"attn_implementation: {attn_implementation} is not installed or does not fit here; sdpa always does"
    return "the line above is transformers' own; a newer transformers may know this model"
