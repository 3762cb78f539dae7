"""Whether a draft can write ahead of a target, as far as tokens and files tell. No torch at import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import ModelError, TokenizerMismatch
from potstill.models.tokenizers import check_same_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_draft_tokenizer(name: str, target: Path | PreTrainedTokenizerBase, draft: Path) -> None:
    """Refuse a draft whose tokens are others than the target's.

    Args:
        name: the target's.
        target: its folder, or its tokenizer.
        draft: the draft's folder.

    Raises:
        TokenizerMismatch: names the difference, and what would work instead.
    """
    try:
        check_same_tokenizer(target, draft, templates=False)
    except TokenizerMismatch as mismatch:
        raise TokenizerMismatch(
            f"this draft cannot write ahead of {name}; as teacher and student: {mismatch.what}",
            where=str(draft),
            fix="use a draft with the target's tokenizer: {kind: layers, layers: 2}, the student of a recipe that "
            "distils this target ({kind: student}), or no model at all ({kind: lookup})",
        ) from mismatch


def check_rows(draft: int, target: int, frequent: int | None) -> None:
    """Refuse a draft whose output layer has another number of rows, unless it drafts frequent tokens alone. Padding
    rows are no tokens, and ids beyond the target's have no probability there.

    Raises:
        ModelError: it has.
    """
    if frequent is None and draft != target:
        raise ModelError(
            f"the draft's output layer has {draft:,} rows and the target's {target:,}",
            where="speculate.draft",
            fix=f"set speculate.draft.frequent to at most {min(draft, target):,}, so that only tokens of both are "
            "drafted",
        )


def check_heads(folder: Path, sizes: Mapping[str, int | None]) -> None:
    """Refuse a folder without Medusa heads, or with those of another target.

    Args:
        folder: of the heads.
        sizes: `hidden_size` and `vocab_size` of the target; None where unknown.

    Raises:
        ModelError: says what is missing, or differs.
    """
    where, fix = "speculate.draft.weights", "give a folder that speculate exported"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"there are no Medusa heads: the folder {folder} {what}", where=where, fix=fix)
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        raise ModelError(f"there are no Medusa heads: {folder} has no {' and no '.join(missing)}", where=where, fix=fix)
    try:
        stated: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read: {error}", where=where, fix=fix) from error
    kind = stated.get("model_type") if isinstance(stated, dict) else None
    if kind != "medusa":
        raise ModelError(
            f"there are no Medusa heads: {folder}/config.json has model_type {kind}, not medusa", where=where, fix=fix
        )
    for name, wanted in sizes.items():
        if wanted is not None and (own := stated.get(name)) != wanted:
            raise ModelError(
                f"the heads are of a model with {name} {own}, and the target has {wanted:,}",
                where=where,
                fix="give heads that were trained on this target, or train some: train: {objectives: [{kind: medusa}]}",
            )
