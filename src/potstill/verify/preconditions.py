"""Rejects problems that lack what a verifier needs, before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.errors import DataError
from potstill.recipe.verify import (
    AllOf,
    Composite,
    JSONSchema,
    Judge,
    Math,
    PythonTests,
    ReasoningGym,
    ReferenceSettings,
    Regex,
    VerifierSettings,
)
from potstill.types import Record
from potstill.verify.base import references


def refuse_unjudgeable(verify: VerifierSettings, problems: Sequence[Record], *, called: str, where: str) -> None:
    """Refuse problems if a verifier could accept no answer to any of them.

    Args:
        verify: settings of the verifier. `all` needs what each member needs, `any` and `first` what one of them does.
        problems: with their reference answers in their metadata.
        called: number and name of the problems, as the error states them.
        where: the section that names the verifier; its key `reference` names the column of a record's own answer.

    Raises:
        DataError: no problem's metadata has what the verifier needs.
    """
    lacking = _lacking(verify, problems)
    if lacking is None:
        return
    leaf, key = lacking
    if key == getattr(leaf, "reference", None):
        raise DataError(
            f"none of the {called} has a reference answer: no metadata[{key!r}] in the data, and no answer of its own",
            where=where,
            fix=f"give data with answers, or name where they stand: {where}.reference, and the same name as "
            f"reference of the verifier ({leaf.kind})",
        )
    raise DataError(
        f"none of the {called} has what the verifier ({leaf.kind}) judges by: no metadata[{key!r}] in the data",
        where=where,
        fix=f"give the data a column metadata, an object with {key!r} in it",
    )


def _lacking(verify: VerifierSettings, problems: Sequence[Record]) -> tuple[VerifierSettings, str] | None:
    """The verifier, and the key that no metadata has; None if some answer can be accepted."""
    if isinstance(verify, Composite):
        found = [_lacking(member, problems) for member in verify.of]
        of_some = next((lacking for lacking in found if lacking is not None), None)
        return of_some if isinstance(verify, AllOf) or all(found) else None
    key = _key(verify)
    return None if key is None or any(references(problem, key) for problem in problems) else (verify, key)


def _key(leaf: VerifierSettings) -> str | None:
    """The metadata key without which a verifier judges nothing."""
    if isinstance(leaf, (ReferenceSettings, Math)) or (isinstance(leaf, Judge) and leaf.form == "pairwise"):
        return leaf.reference
    if isinstance(leaf, PythonTests):
        return leaf.tests
    stated = leaf.pattern if isinstance(leaf, Regex) else leaf.json_schema if isinstance(leaf, JSONSchema) else None
    return leaf.key if isinstance(leaf, (Regex, JSONSchema, ReasoningGym)) and stated is None else None
