"""Write any model to a folder, so that `load_model` opens it again."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from potstill.models.plain import save_module
from potstill.models.quiet import quiet_loading
from potstill.models.tasks import is_plain


def save_model(model: nn.Module, folder: Path) -> None:
    """`save_pretrained` for a model of `transformers` (of one wrapped by peft, the adapter alone), `save_module` for
    any other. Does not write the tokenizer.

    Raises:
        ModelError: as `save_module`.
    """
    if is_plain(model):
        save_module(model, folder)
        return
    with quiet_loading():
        model.save_pretrained(folder)  # type: ignore[operator]
