"""Which licence or terms a model, an endpoint or a data set is under: from its files, its metadata, its name.

Everything that is found counts: where a card states one licence and the text beside it is another, both are asked. A
name is the weakest evidence, and only counts where there is nothing else. Reads files; fetches nothing; no torch.
"""

from __future__ import annotations

import codecs
import ipaddress
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from potstill.errors import PotstillError
from potstill.models.folder import stated_bases, stated_licence
from potstill.models.gguf_header import read_header
from potstill.models.packages import PACKAGES
from potstill.models.resolve import locate
from potstill.policy.fingerprints import MOST_CHARACTERS, nearest
from potstill.policy.table import table
from potstill.recipe import DataSettings, EndpointTeacher, LicenceStatement
from potstill.recipe.data import (
    ArrayData,
    DatasetsFolder,
    DigitsData,
    FileData,
    IDXData,
    PackagedData,
    ReasoningGymData,
    TextFolder,
)
from potstill.recipe.policy import Licence

_LICENCE_FILE = re.compile(r"(?:.*[^a-z])?(?:licen[sc]e|copying)(?:[^a-z].*)?", re.IGNORECASE)
"""Names of files with a licence's text: `LICENSE`, `license.txt`, `MODEL_LICENSE`."""
_NO_TEXT = (".py", ".json", ".yaml", ".yml", ".toml", ".png", ".svg")
_JOINED = re.compile(r"\s+(?:and|or|with)\s+|[()]", re.IGNORECASE)
_UNSTATED = ("", "other", "unknown", "none", "not stated")


@dataclass(frozen=True)
class Evidence:
    """One sign of a licence. `source` is an id of the table, or empty where the sign leads to none; `how` says where
    it was found, `stated` what stood there."""

    source: str
    how: str
    stated: str = ""


NOTHING = Evidence("", "nothing states it")


def identify(stated: str) -> tuple[str, ...]:
    """The ids of the table that a stated licence names: an id, an alias, or an expression of several (`MIT AND
    CC0-1.0`; of `OR`, too, all are asked). A part that the table lacks gives an empty id."""
    known = table().by_alias
    text = " ".join(stated.replace("_", "-").casefold().split())
    if text in known:
        return (known[text],)
    parts = [part.strip() for part in _JOINED.split(text)]
    return tuple(dict.fromkeys(known.get(part, "") for part in parts if part)) or ("",)


def licence_of_model(settings: Any) -> tuple[Evidence, ...]:
    """The signs of the licence of a teacher, or of a model that a student starts from: what the recipe states, and
    what is found."""
    stated = _of_recipe(getattr(settings, "licence", None))
    model = str(getattr(settings, "model", "") or "")
    found: tuple[Evidence, ...] = ()
    if isinstance(settings, EndpointTeacher):
        found = (*_of_host(settings.base_url), *_of_name(model))
    elif model:
        revision = getattr(settings, "revision", None)
        found = (*_of_files(model, revision), *_of_bases(model, revision)) or _of_name(model)
    return _together(stated, found) or (NOTHING,)


def own_licence_of_model(settings: Any) -> tuple[Evidence, ...]:
    """The signs of the licence that a student of potstill itself has, apart from those of what it was made from: the
    recipe, and the files beside its weights."""
    model = str(getattr(settings, "model", "") or "")
    found = () if model.startswith("run:") else _of_files(model, getattr(settings, "revision", None))
    return _together(_of_recipe(getattr(settings, "licence", None)), found)


def licence_of_data(data: DataSettings) -> tuple[Evidence, ...]:
    """The signs of the licence of a data source."""
    return own_licence_of_data(data) or (NOTHING,)


def own_licence_of_data(data: DataSettings) -> tuple[Evidence, ...]:
    """The signs of the licence of a data source; empty if there are none."""
    return _together(_of_recipe(data.licence), tuple(_of_data(data)))


def _together(stated: tuple[Evidence, ...], found: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
    """A statement replaces signs that lead nowhere; signs of a known licence stand beside it."""
    return (*stated, *(evidence for evidence in found if evidence.source)) if stated else found


# ---- what is stated ----------------------------------------------------------------------------------------------


def _of_recipe(licence: Licence | None) -> tuple[Evidence, ...]:
    if not licence:
        return ()
    how, text = "the recipe", licence
    if isinstance(licence, LicenceStatement):
        how, text = f"{licence.attested_by}, {licence.on}: {licence.why}", licence.id
    return tuple(Evidence(source, how, str(text)) for source in identify(str(text)))


def _stated(text: str, how: str) -> Iterator[Evidence]:
    if text.strip().casefold() not in _UNSTATED:
        yield from (Evidence(source, how, text) for source in identify(text))


# ---- models ------------------------------------------------------------------------------------------------------


def model_folder(model: str, revision: str | None) -> Path | None:
    """The folder of a model on this disk (for a GGUF file, the one that it lies in); None if it is not here."""
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path.parent
    try:
        source = locate(model, revision)
    except PotstillError:
        return None  # the check says what is wrong with it
    return source.path if source is not None else None


def _of_files(model: str, revision: str | None) -> tuple[Evidence, ...]:
    found: list[Evidence] = []
    if model in PACKAGES:
        found += _stated(PACKAGES[model].licence, "the package")
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        found += _of_gguf(path)
    folder = model_folder(model, revision)
    if folder is not None:
        found += _of_texts(folder)
        found += _stated(stated_licence(folder), "the model card")
    return tuple(dict.fromkeys(found))


def _of_bases(model: str, revision: str | None) -> Iterator[Evidence]:
    """The licences of the models that its card, or its GGUF file, says it was made from, by their names."""
    path, folder = Path(model).expanduser(), model_folder(model, revision)
    stated = [(base, "the model card's base model") for base in (stated_bases(folder) if folder is not None else ())]
    if path.suffix.lower() == ".gguf" and path.is_file():
        stated += [(base, "the GGUF file's base model") for base in _bases_in_gguf(path)]
    for base, how in stated:
        yield from (replace(evidence, how=how) for evidence in _of_name(base))


def _gguf_metadata(file: Path) -> Mapping[str, Any]:
    try:
        return read_header(file).metadata
    except PotstillError:
        return {}


def _bases_in_gguf(file: Path) -> Iterator[str]:
    """`general.base_model.0.repo_url`, or organisation and name where there is no address."""
    metadata = _gguf_metadata(file)
    for number in range(_MOST_BASES):
        base = {key: str(metadata.get(f"general.base_model.{number}.{key}") or "") for key in _OF_BASE}
        named = "/".join(part.replace(" ", "-") for part in (base["organization"], base["name"]) if part)
        if name := base["repo_url"].partition("huggingface.co/")[2] or named:
            yield name


_OF_BASE = ("repo_url", "organization", "name")
_MOST_BASES = 16


def _of_gguf(file: Path) -> Iterator[Evidence]:
    metadata = _gguf_metadata(file)
    licence = str(metadata.get("general.license") or "")
    named = str(metadata.get("general.license.name") or "")
    yield from _stated(named if licence in ("", "other") else licence, "the GGUF file")


def licence_files(folder: Path) -> list[Path]:
    """The files of a folder that hold the text of a licence, by name."""
    try:
        named = [file for file in folder.iterdir() if _LICENCE_FILE.fullmatch(file.name)]
        return sorted(file for file in named if file.suffix.lower() not in _NO_TEXT and file.is_file())
    except OSError:
        return []


def read_licence(file: Path) -> str:
    """The text of a licence; of a file that is too long for one, the beginning. A byte order mark says how it is
    written; without one it is read as UTF-8. Raises: OSError."""
    with file.open("rb") as raw:
        first = raw.read(4)
    encoding = next((name for mark, name in _MARKS if first.startswith(mark)), "utf-8")
    with file.open(encoding=encoding, errors="replace") as text:
        return text.read(MOST_CHARACTERS + 1)


_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before that of UTF-16, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def _of_texts(folder: Path) -> Iterator[Evidence]:
    for file in licence_files(folder):
        try:
            match = nearest(read_licence(file))
        except OSError:
            continue
        if match is None:
            yield Evidence("", file.name, "a text that is not known")
        elif match.exact:
            yield Evidence(match.source, file.name, table().sources[match.source].name)
        else:
            changed = f"{match.missing} of {match.of} word sequences missing, {match.more} more"
            yield Evidence("", file.name, f"resembles {match.source}, and is another text ({changed})")


def _of_name(model: str) -> tuple[Evidence, ...]:
    """The licences of a model of that name, as its maker publishes it."""
    name = model.casefold()
    patterns = [(source.id, source.models) for source in table().sources.values()]
    found = [
        licence
        for licence, models in (*patterns, *table().named)
        if any(re.search(pattern, name) for pattern in models)
    ]
    return tuple(Evidence(licence, "its name", model) for licence in dict.fromkeys(found))


def _of_host(base_url: str) -> Iterator[Evidence]:
    """The terms of whoever runs a server; none for a machine of one's own."""
    host = (urlsplit(base_url).hostname or "").casefold().replace("\u3002", ".").removesuffix(".")
    if _is_own(host):
        return
    sources = [
        source.id
        for source in table().sources.values()
        if any(host == name or host.endswith(f".{name}") for name in source.hosts)
    ]
    yield from (Evidence(source, "its host", host) for source in sources or [""])


def _is_own(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # `134744072` and `0x8080808` are 8.8.8.8
        except (OSError, ValueError):
            return "." not in host or host.endswith((".local", ".internal", ".lan", ".localhost"))
    return (getattr(address, "ipv4_mapped", None) or address).is_private


# ---- data --------------------------------------------------------------------------------------------------------


def _of_data(data: DataSettings) -> Iterator[Evidence]:
    match data:
        case PackagedData():
            from potstill.data.packages import SETS

            if data.name in SETS:
                yield from _stated(SETS[data.name].licence, "the data set's package")
        case ReasoningGymData():
            yield Evidence("apache-2.0", "the package reasoning-gym", "Apache-2.0")
        case DatasetsFolder():
            yield from _of_dataset_info(data.path.expanduser())
            yield from _beside(data.path.expanduser())
        case DigitsData():
            yield Evidence("bsd-3-clause", "the package scikit-learn", "BSD-3-Clause")
        case IDXData():
            if data.path.is_relative_to("/usr/share/datasets"):
                yield from _of_debian(f"dataset-{data.path.name}")
            yield from _beside(data.path.expanduser())
        case ArrayData() | FileData() | TextFolder():
            path = data.path.expanduser()
            yield from _beside(path if path.is_dir() else path.parent)


def _of_debian(package: str) -> Iterator[Evidence]:
    """The first `License:` of a Debian package's machine-readable copyright file, which is of its upstream files."""
    file = Path("/usr/share/doc") / package / "copyright"
    if file.is_file():
        match = re.search(r"^License: *(\S.*)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        yield from _stated(match[1], f"the Debian package {package}") if match is not None else ()


def _beside(folder: Path) -> Iterator[Evidence]:
    """A dataset card or a licence's text in the folder of the data."""
    yield from _stated(stated_licence(folder), "the card beside the data")
    yield from _of_texts(folder)


def _of_dataset_info(folder: Path) -> Iterator[Evidence]:
    """`license` in the `dataset_info.json` of `datasets`."""
    for file in sorted(folder.glob("**/dataset_info.json")):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(document, dict):
            yield from _stated(str(document.get("license") or ""), "dataset_info.json")
