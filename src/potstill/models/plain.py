"""Modules of the user's own: built from a Python file, and saved in self-contained folders.

    model.safetensors   the weights
    module.json         the file's name, the class or function in it, its arguments, and the file's SHA-256
    <file>.py           a copy of the file, where the module was built from one

The user named the file, so it is run as code; a copy that differs from its digest is not run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from potstill.errors import ModelError, did_you_mean
from potstill.models.folder import MODULE
from potstill.models.labels import labels_of, name_classes

WEIGHTS = "model.safetensors"
_ORIGIN = "_potstill_origin"


@dataclass(frozen=True)
class ModuleOrigin:
    """The origin of a module: its file, the class or function in it, the arguments, and the file's digest when it
    ran."""

    file: Path
    name: str
    arguments: Mapping[str, Any]
    sha256: str


def build_module(source: str, arguments: Mapping[str, Any], base: Path | None = None) -> nn.Module:
    """Call a class or function of a Python file.

    Args:
        source: `path/to/file.py:Name`.
        arguments: plain data, so that it can be saved.
        base: the folder that a relative path starts from (the recipe's folder).

    Raises:
        ModelError: no such file or name, the call fails, or it returns no module.
    """
    filename, _, name = source.rpartition(":")
    file = (base or Path()) / filename
    if not file.is_file():
        raise ModelError("there is no such file", where=str(file), fix="paths are relative to the recipe")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    made = getattr(_run(file, sha256), name, None)
    if not callable(made):
        known = [k for k, v in vars(_run(file, sha256)).items() if callable(v) and not k.startswith("_")]
        raise ModelError(f"there is no class or function {name!r}{did_you_mean(name, known)}", where=str(file))
    try:
        module = made(**arguments)
    except Exception as error:
        raise ModelError(
            f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())}) fails: {error}", where=str(file)
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} gives no torch.nn.Module but a {type(module).__name__}", where=str(file))
    setattr(module, _ORIGIN, ModuleOrigin(file.resolve(), name, dict(arguments), sha256))
    return module


def origin_of_module(module: nn.Module) -> ModuleOrigin | None:
    """The origin of a module built by `build_module` or `load_module`; None for other modules."""
    origin: ModuleOrigin | None = getattr(module, _ORIGIN, None)
    return origin


def save_module(module: nn.Module, folder: Path) -> None:
    """Write a module's weights, and the file that it was built from, if any.

    A module that was built in the user's own program is saved without code: open its weights there with
    `safetensors.torch.load_model`; `load_module` cannot.

    Raises:
        ModelError: the file has changed since the module was built, so a copy would not be its code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels, origin = labels_of(module), origin_of_module(module)
    document: dict[str, Any] = {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "labels": list(labels) if labels is not None else None,
        "source": None,
    }
    if origin is not None:
        copied = folder / origin.file.name
        if copied.resolve() != origin.file:
            if origin.file.is_file():
                shutil.copyfile(origin.file, copied)
            if not copied.is_file() or _digest(copied) != origin.sha256:
                copied.unlink(missing_ok=True)
                raise _changed(origin.file)
        document |= {
            "source": copied.name,
            "name": origin.name,
            "arguments": dict(origin.arguments),
            "sha256": origin.sha256,
        }
    save_model(module, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / MODULE).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_module(folder: Path) -> nn.Module:
    """The module in a folder that `save_module` wrote, on the processor, in evaluation mode. Runs the file in it.

    Raises:
        ModelError: the code was not saved with it, is gone or changed, or the weights do not fit.
    """
    try:
        document = json.loads((folder / MODULE).read_text(encoding="utf-8"))
        source, labels = document["source"], document["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{MODULE} cannot be read: {error}", where=str(folder), fix="save the module again (save_module)"
        ) from error
    if source is None:
        raise ModelError(
            f"the code of this module ({document.get('class')}) was not saved with it",
            where=str(folder),
            fix="name the module by its file, as path/to/file.py:Name, when it is made; or build it in your own "
            f"program, and open {WEIGHTS} with safetensors.torch.load_model",
        )
    file = folder / str(source)
    if not file.is_file() or _digest(file) != document["sha256"]:
        raise _changed(file)
    module = build_module(f"{source}:{document['name']}", document["arguments"], base=folder)
    load_weights(module, folder / WEIGHTS)
    if labels is not None:
        name_classes(module, labels)
    return module.eval()


def load_weights(module: nn.Module, file: Path) -> None:
    """Read a module's weights from a safetensors file.

    Raises:
        ModelError: the file is not there, or its names and shapes are not the module's.
    """
    if not file.is_file():
        raise ModelError("there are no weights", where=str(file), fix="give a safetensors file")
    try:
        load_model(module, str(file))
    except (RuntimeError, OSError) as error:
        raise ModelError(
            f"these weights are not those of {type(module).__name__}: {' '.join(str(error).split())[:300]}",
            where=str(file),
            fix="give the arguments with which it was made, or leave the weights out",
        ) from error


def _run(file: Path, sha256: str) -> ModuleType:
    """The file as a module, run once for each content."""
    name = f"potstill_module_{sha256[:16]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelError("the file is no Python file", where=str(file), fix="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(f"the file cannot be run: {type(error).__name__}: {error}", where=str(file)) from error
    return module


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _changed(file: Path) -> ModelError:
    there = "has changed since the module was made" if file.is_file() else "is gone"
    return ModelError(
        f"the code of this module {there}",
        where=str(file),
        fix="bring back the file as it was: weights are of no use without the code that they were trained in",
    )
