"""Rejects problems that lack what a verifier needs, before anything is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potstill.errors import DataError
from potstill.recipe.verify import (
    AllOf,
    Choice,
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
from potstill.verify.text import right_letters


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
    leaf = _useless(verify, lambda leaf: not _may_judge(leaf, problems))
    if leaf is None:
        unmatched = _useless(verify, lambda leaf: isinstance(leaf, Choice) and not _names_choices(leaf, problems))
        if unmatched is None:
            return
        raise DataError(
            f"none of the {called} has a reference that is one of its choices: a letter, a number or a text",
            where=where,
            fix="correct the column choices or the reference, or give the verifier more letters",
        )
    key = _key(leaf)
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


def _useless(verify: VerifierSettings, is_useless: Callable[[VerifierSettings], bool]) -> VerifierSettings | None:
    """The first member that is useless, if the whole is; None if some answer can be accepted."""
    if isinstance(verify, Composite):
        found = [_useless(member, is_useless) for member in verify.of]
        of_some = next((leaf for leaf in found if leaf is not None), None)
        return of_some if isinstance(verify, AllOf) or all(found) else None
    return verify if is_useless(verify) else None


def _may_judge(leaf: VerifierSettings, problems: Sequence[Record]) -> bool:
    """Whether some problem has what a verifier judges by."""
    key = _key(leaf)
    return key is None or any(references(problem, key) for problem in problems)


def _names_choices(leaf: Choice, problems: Sequence[Record]) -> bool:
    return any(right_letters(leaf, references(problem, leaf.reference), problem)[2] for problem in problems)


def _key(leaf: VerifierSettings) -> str | None:
    """The metadata key without which a verifier judges nothing."""
    if isinstance(leaf, (ReferenceSettings, Math)) or (isinstance(leaf, Judge) and leaf.form == "pairwise"):
        return leaf.reference
    if isinstance(leaf, PythonTests):
        return leaf.tests
    stated = leaf.pattern if isinstance(leaf, Regex) else leaf.json_schema if isinstance(leaf, JSONSchema) else None
    return leaf.key if isinstance(leaf, (Regex, JSONSchema, ReasoningGym)) and stated is None else None
