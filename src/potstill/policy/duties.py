"""Duties carried out: the papers in an exported folder, beside the student's weights.

NOTICE            attributions, notices, statements of change, restrictions, conditions, and overrides
LICENSE…          copies of the licences that ask for one
provenance.json   what the student was made from, for whoever uses it next
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifacts import write_atomically
from potstill.errors import printable
from potstill.policy.fingerprints import nearest
from potstill.policy.gate import Rulings
from potstill.policy.provenance import FILE, uses_of_models
from potstill.policy.recognise import licence_files, model_folder, read_licence
from potstill.policy.table import Do, Duty, Source, table
from potstill.recipe import Recipe

NOTICE = "NOTICE"


def of_kind(rulings: Rulings, do: Do) -> list[Duty]:
    """The duties of one kind."""
    return [duty for duty in rulings.duties if duty.do == do]


def conflicts(rulings: Rulings) -> list[str]:
    """Duties that contradict each other, as sentences: two licences that both ask to be the student's, two beginnings
    of one name, restrictions to pass on under a licence that allows none."""
    found = []
    licences = sorted({duty.source for duty in of_kind(rulings, "share_alike")})
    if len(licences) > 1:
        found.append(f"{' and '.join(licences)} each ask that the student be under it alone")
    prefixes = sorted({duty.text for duty in of_kind(rulings, "name_prefix")})
    # "Llama 3" begins with "Llama": one name meets both.
    longest = max(prefixes, key=len, default="")
    if any(not longest.startswith(prefix) for prefix in prefixes):
        found.append(f"the student's name cannot begin with each of {', '.join(map(repr, prefixes))}")
    strict = sorted({duty.source for duty in of_kind(rulings, "noncommercial") + of_kind(rulings, "restrictions")})
    if licences and any(source not in licences for source in strict):
        found.append(
            f"{licences[0]} allows no further restrictions, and {', '.join(strict)} ask for some to be passed on"
        )
    return found


def named(name: str, rulings: Rulings) -> str:
    """A student's name with the beginning that a licence asks for: `half` becomes `Llama-half`."""
    prefix = max((duty.text for duty in of_kind(rulings, "name_prefix")), key=len, default="")
    if not prefix or name.casefold().startswith(prefix.casefold()):
        return name
    return f"{prefix}-{name}"


def displayed(name: str, rulings: Rulings) -> list[str]:
    """Texts that licences ask to be displayed with the student, such as "Built with Llama"."""
    return list(dict.fromkeys(duty.text.replace("{name}", name) for duty in of_kind(rulings, "display")))


def licence_of_student(rulings: Rulings) -> str:
    """The id of the licence that the student must be under; empty if none asks for it, or several do."""
    licences = {duty.source for duty in of_kind(rulings, "share_alike")}
    return licences.pop() if len(licences) == 1 else ""


@dataclass(frozen=True)
class Copies:
    """Copies of licences to make: files by the id of their source, and sources whose text is not on this machine."""

    files: dict[str, Path]
    missing: tuple[Source, ...]


def copies(recipe: Recipe, rulings: Rulings) -> Copies:
    """The texts of the licences that ask for a copy: from `policy.texts`, else from the folders of the models that the
    recipe names, and the exports of the runs that it names."""
    wanted = [table().sources[source] for source in dict.fromkeys(d.source for d in of_kind(rulings, "copy_licence"))]
    at_hand = {match.source: file for file, match in _texts_at_hand(recipe) if match is not None and match.exact}
    files = {source.id: recipe.policy.texts.get(source.id) or at_hand.get(source.id) for source in wanted}
    found = {id_: Path(file) for id_, file in files.items() if file is not None and Path(file).is_file()}
    return Copies(found, tuple(source for source in wanted if source.id not in found))


def _texts_at_hand(recipe: Recipe) -> Iterator[tuple[Path, Any]]:
    for _, settings, _ in uses_of_models(recipe, "all"):
        model = str(getattr(settings, "model", "") or "")
        if getattr(settings, "remote", False) or not model:
            continue
        folders = [model_folder(model, getattr(settings, "revision", None))]
        if model.startswith("run:"):
            folders += sorted(Path(model.removeprefix("run:")).expanduser().glob("export.*"))
        for file in (file for folder in folders if folder is not None for file in licence_files(folder)):
            yield file, nearest(read_licence(file))


def write_papers(folder: Path, recipe: Recipe, rulings: Rulings) -> list[str]:
    """Write NOTICE, licence copies and `provenance.json` into an exported folder. A NOTICE that is there already (of
    the model that the student began with) is kept below.

    Returns:
        What could not be done, as sentences.
    """
    write_atomically(folder / FILE, json.dumps(rulings.to_dict()["provenance"], indent=1, sort_keys=True) + "\n")
    found = copies(recipe, rulings)
    there = {path.read_bytes() for path in licence_files(folder)}
    for source, file in found.files.items():
        if file.read_bytes() not in there:
            shutil.copyfile(file, folder / f"LICENSE.{source}")
    notice = folder / NOTICE
    before = notice.read_text(encoding="utf-8", errors="replace") if notice.is_file() else ""
    if rulings.duties or rulings.provenance.overrides:
        write_atomically(
            notice, printable(notice_text(recipe, rulings, found)) + (f"\n----\n\n{before}" if before else "")
        )
    undone = [
        f"a copy of the {source.name} must go along, and is not here ({source.address})" for source in found.missing
    ]
    return undone + conflicts(rulings)


def notice_text(recipe: Recipe, rulings: Rulings, found: Copies) -> str:
    """The text of NOTICE."""
    name = named(recipe.report.title or recipe.name, rulings)
    paragraphs = [f"{name}: made with potstill."]
    if of_kind(rulings, "changed"):
        paragraphs.append("It differs from what it was made from: that was changed, and trained further.")
    paragraphs += displayed(name, rulings)
    paragraphs += [duty.text for duty in of_kind(rulings, "notice")]
    paragraphs += list(dict.fromkeys(_attribution(ruling.use.name, ruling.source) for ruling in rulings.rulings))
    for duty in of_kind(rulings, "share_alike"):
        paragraphs.append(f"This student is under the {_name(duty)} ({duty.clause}).")
    for duty in of_kind(rulings, "restrictions"):
        paragraphs.append(
            f"Whoever uses this student or passes it on is bound by the use restrictions of the {_name(duty)} "
            f"({duty.clause}): {duty.text}."
        )
    for duty in of_kind(rulings, "use_policy"):
        paragraphs.append(f"The use policy of the {_name(duty)} holds ({duty.clause}): {duty.text}.")
    for duty in of_kind(rulings, "noncommercial"):
        paragraphs.append(f"No commercial use: {_name(duty)}, {duty.clause}.")
    for duty in of_kind(rulings, "condition"):
        paragraphs.append(f"A condition of the {_name(duty)} ({duty.clause}): {duty.text}.")
    paragraphs += [f"The text of the {source.name} is at {source.address}." for source in found.missing]
    for override in rulings.provenance.overrides:
        paragraphs.append(f"Overridden: {override.source}, by {override.by} on {override.on}: {override.reason}")
    return "\n\n".join(dict.fromkeys(paragraphs)) + "\n"


def _attribution(name: str, source: str) -> str:
    known = table().sources.get(source)
    licence = f"under the {known.name}" if known is not None and known.was_read else "under a licence that is not known"
    address = f" ({known.address})" if known is not None and known.address else ""
    return f"It was made from {name}, {licence}{address}."


def _name(duty: Duty) -> str:
    return table().sources[duty.source].name
