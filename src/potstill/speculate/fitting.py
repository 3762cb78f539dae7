"""Whether a draft can write ahead of a target, as far as tokens tell. No torch at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
