"""A model's folder: whether it is whole, whether potstill can use it, and its identity. No torch.

Everything is read from `config.json`, the index and the headers of the weights; no weights are loaded.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import ModelError, did_you_mean_path
from potstill.models.cache import remembered_digest
from potstill.models.kinds import check_task, own_task
from potstill.recipe.reading import parse_yaml
from potstill.tasks import SPECS
from potstill.types import digest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_INDEX = "model.safetensors.index.json"
MODULE = "module.json"
"""The description of a module that is no model of `transformers` (`models/plain.py`)."""


@dataclass(frozen=True)
class ModelSource:
    """A model on disk, ready to load.

    Attributes:
        path: a folder with `config.json`, safetensors and tokenizer files (GGUF files are converted once). For a
            module of the user's own it holds `module.json`, the weights and the code.
        name: the model's short name (for a path its last part).
        revision: a commit or package version; empty if there is none.
        digest: of its files.
        licence: as the model states it; empty if it does not.
        notes: remarks that a report must show.
        stored_bytes: size of the GGUF file that it was converted from; None if it was not converted.
    """

    path: Path
    name: str
    revision: str
    digest: str
    licence: str
    notes: tuple[str, ...] = ()
    stored_bytes: int | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the user's own format: the GGUF file, or the safetensors files."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))


def weights_digest(path: Path) -> str:
    """One SHA-256 (hex) over everything that determines a model's output: weights, configuration, tokenizer,
    templates. Each file's digest is cached by path, size and modification time. From subfolders
    (`additional_chat_templates`, `1_Pooling`) everything but weights is included: weights there belong to checkpoints
    or other formats."""
    inside = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
    files = {file for pattern in (*inside, "*.safetensors") for file in path.glob(pattern)}
    files |= {file for pattern in inside for file in path.glob(f"*/{pattern}")}
    names = {file: file.relative_to(path).as_posix() for file in files}
    return digest({name: remembered_digest(file) for file, name in names.items() if name != "potstill.json"})


def is_module(path: Path) -> bool:
    """Whether a folder holds a module of the user's own rather than a model of `transformers`."""
    return (path / MODULE).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a folder.

    Raises:
        ModelError: there is none, or it is not JSON.
    """
    file = path / "config.json"
    if not file.is_file():
        fix = "give the folder that holds config.json, *.safetensors and the tokenizer's files"
        if (path / "adapter_config.json").is_file():
            fix = "this is an adapter: merge it first (peft's merge_and_unload, then save_pretrained)"
        elif ggufs := sorted(path.glob("*.gguf")):
            fix = f"name the GGUF file itself: {ggufs[0]}"
        raise ModelError("there is no config.json", where=str(path), fix=fix)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json is no JSON: {error}", where=str(path), fix="fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError("config.json is no JSON object", where=str(path), fix="fetch the model again")
    return config


def check_folder(path: Path) -> None:
    """Refuse a folder that is incomplete, that holds only pickled weights, or whose model potstill cannot use.

    Raises:
        ModelError: names the problem and the fix.
    """
    if is_module(path):
        _check_weights(path)
        return
    config = read_config(path)
    check_task(config, None, where=str(path))
    _check_weights(path)
    task = own_task(config)
    needed = task is not None and SPECS[task].reads_text
    if needed and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError("there is no tokenizer", where=str(path), fix="save it there with tokenizer.save_pretrained")


def _check_weights(path: Path) -> None:
    if (path / _INDEX).is_file():
        try:
            shards = set(json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{_INDEX} is damaged: {error}", where=str(path), fix="fetch the model again") from error
        missing = sorted(shard for shard in shards if not (path / shard).is_file())
        if missing:
            what = f"{len(missing)} of {len(shards)} weight files are missing ({missing[0]}, …)"
            raise ModelError(what, where=str(path), fix="fetch the model again")
        files = [path / str(shard) for shard in sorted(shards)]
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = [file.name for pattern in _PICKLES for file in sorted(path.glob(pattern))]
        if pickles:
            raise ModelError(
                f"its weights are pickled ({pickles[0]}), which can run any code when they are opened",
                where=str(path),
                fix="where you trust them, convert them: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
            )
        raise ModelError("there are no weights (*.safetensors)", where=str(path), fix="fetch the model again")
    for file in files:
        _check_length(file)


def _check_length(file: Path) -> None:
    """Check a safetensors file's length against its header: 8 bytes, the header, and the end of the last tensor."""
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            (header_size,) = struct.unpack("<Q", content.read(8))
            header = json.loads(content.read(header_size)) if header_size < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + header_size + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("is no safetensors file", where=str(file), fix="fetch the model again") from error
    if size != expected:
        what = f"is damaged: it has {size:,} bytes and should have {expected:,}"
        raise ModelError(what, where=str(file), fix="fetch the model again")


# ---- code of its own -------------------------------------------------------------------------------------------------


def check_remote_code(config: Mapping[str, Any], *, trust_remote_code: bool, where: str) -> None:
    """Refuse a model that needs its own code, unless the recipe says `trust_remote_code: true`.

    A model type that `transformers` implements is opened with that implementation, whatever code is in the folder.

    Raises:
        ModelError: names the code, and the fix.
    """
    code = config.get("auto_map")
    if not code or trust_remote_code:
        return
    # Takes a second and loads torch; only such models need it.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    if config.get("model_type") in {*MODEL_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}:
        return
    files = sorted({str(reference).rpartition(".")[0] + ".py" for reference in _flat(code)})
    raise ModelError(
        f"{config.get('model_type', 'the model')} runs code of its own ({', '.join(files)})",
        where=where,
        fix="read that code, and if you trust it say so in the recipe: trust_remote_code: true",
    )


def _flat(code: Any) -> list[str]:
    references = code.values() if isinstance(code, Mapping) else [code]
    return [str(r) for value in references for r in (value if isinstance(value, (list, tuple)) else [value]) if r]


# ---- licences ----------------------------------------------------------------------------------------------------


def stated_licence(path: Path) -> str:
    """The licence that a model's card states (`license`, or `license_name` where that is `other`); of several, all of
    them (`mit AND cc-by-4.0`); empty if none."""
    metadata = _card_metadata(path)
    stated = metadata.get("license") or ""
    licence = " AND ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
    return str(metadata.get("license_name") or licence) if licence.casefold() == "other" else licence


def stated_bases(path: Path) -> tuple[str, ...]:
    """The models that a model's card says it was made from (`base_model`), by name."""
    stated = _card_metadata(path).get("base_model") or ()
    return tuple(str(name) for name in (stated if isinstance(stated, list) else [stated]) if name)


def _card_metadata(path: Path) -> dict[str, Any]:
    """The front matter of the card in a folder; empty if there is none that can be read."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return {}
    front = _FRONT_MATTER.match(text)
    try:
        metadata = parse_yaml(front[1]) if front is not None else None
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


_FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)


def check_tokenizer_folder(path: Path, where: str) -> Path:
    """The folder of a tokenizer alone, if there is one.

    Raises:
        ModelError: there is none.
    """
    if not (path / "tokenizer.json").is_file():
        raise ModelError(
            "there is no tokenizer.json in this folder"
            if path.is_dir()
            else f"there is no such folder{did_you_mean_path(path)}",
            where=f"{where}: {path}",
            fix="paths are relative to the recipe",
        )
    return path
