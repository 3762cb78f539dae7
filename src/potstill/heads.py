"""Medusa heads, which predict the tokens behind the next one from a model's last hidden state: the module and its
files.

Head i reads the state at a position and predicts the token at offset i + 2 (offset 1 is the model's own). It is a
residual block, x + SiLU(Wx) with W = 0 at first, and a linear map that begins as the model's output layer.
Cai et al. 2024 (arXiv 2401.10774), §2.1.

The parameters have the names that vLLM's loader reads (`vllm/model_executor/models/medusa.py`):
`blocks.i.layers.0.weight`, `lm_heads.i.weight`, and `token_map` where the heads know frequent tokens alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.errors import ModelError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class MedusaHeads(nn.Module):
    """The heads of one target.

    Args:
        hidden: width of the target.
        vocab: number of its token ids.
        heads: their number; head i predicts the token at offset i + 2.
        tokens: the only token ids that the heads know, ascending; None for all.
    """

    token_map: Tensor | None

    def __init__(self, hidden: int, vocab: int, heads: int, tokens: Int[Tensor, " K"] | None = None) -> None:
        super().__init__()
        rows = vocab if tokens is None else len(tokens)
        self.vocab = vocab
        self.blocks = nn.ModuleList(_ResidualBlock(hidden) for _ in range(heads))
        self.lm_heads = nn.ModuleList(nn.Linear(hidden, rows, bias=False) for _ in range(heads))
        self.register_buffer("token_map", tokens)

    @property
    def heads(self) -> int:
        """Their number."""
        return len(self.blocks)

    @property
    def known(self) -> int:
        """The number of tokens that they know."""
        return self.vocab if self.token_map is None else len(self.token_map)

    @torch.no_grad()
    def start_from(self, weight_VH: Float[Tensor, "V H"], scale: float = 1.0) -> None:
        """Begin as the target's output layer."""
        own = weight_VH if self.token_map is None else weight_VH[self.token_map]
        for head in self.lm_heads:
            head.weight.copy_(own * scale)  # type: ignore[operator]

    def forward(self, hidden: Float[Tensor, "N H"]) -> list[Float[Tensor, "N K"]]:
        """The logits of each head."""
        pairs = zip(self.blocks, self.lm_heads, strict=True)
        return [head(block(hidden)) for block, head in pairs]

    def choices(self, hidden: Float[Tensor, "N H"], ranks: int) -> Int[Tensor, "N heads R"]:
        """The most probable tokens of each head, best first."""
        best = torch.stack([logits.topk(ranks, -1).indices for logits in self(hidden)], 1)
        return best if self.token_map is None else self.token_map[best]

    def rows_of(self, tokens: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The row of each token in the heads' output; −1 for tokens that they do not know."""
        if self.token_map is None:
            return tokens
        rows = torch.full((self.vocab,), -1, device=tokens.device)
        rows[self.token_map] = torch.arange(len(self.token_map), device=tokens.device)
        return rows[tokens]


class _ResidualBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden, bias=False)])
        nn.init.zeros_(self.layers[0].weight)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor) -> Tensor:
        changed: Tensor = nn.functional.silu(self.layers[0](hidden))
        return hidden + changed


# ---- files ---------------------------------------------------------------------------------------------------------


def save_heads(heads: MedusaHeads, folder: Path) -> None:
    """Write the heads as vLLM reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = heads.lm_heads[0].in_features
    config = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": hidden,
        "vocab_size": heads.vocab,
        "truncated_vocab_size": heads.known,
        "num_heads": heads.heads,
        "num_hidden_layers": 1,
        "medusa_fc_bias": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in heads.state_dict().items()}, folder / WEIGHTS
    )


def load_heads(folder: Path) -> MedusaHeads:
    """Read heads that `save_heads` wrote.

    Raises:
        ModelError: the files are missing, or not of Medusa heads.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ModelError(
            f"there are no Medusa heads: no {' and no '.join(missing)}",
            where=str(folder),
            fix="give a folder that speculate exported",
        )
    try:
        stated = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if stated["model_type"] != "medusa" or stated["num_hidden_layers"] != 1:
            raise ValueError(f"{stated['model_type']} with {stated['num_hidden_layers']} layers")
        return heads_of(load_file(folder / WEIGHTS), int(stated["vocab_size"]))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"these are no Medusa heads: {error}", where=str(folder), fix="give a folder that speculate exported"
        ) from error


def heads_of(weights: Mapping[str, Tensor], vocab: int) -> MedusaHeads:
    """Heads with these weights.

    Raises:
        KeyError, RuntimeError: a weight is missing, or of another shape.
    """
    count = sum(name.startswith("lm_heads.") for name in weights)
    heads = MedusaHeads(weights["lm_heads.0.weight"].shape[1], vocab, count, weights.get("token_map"))
    heads.load_state_dict(dict(weights))
    return heads.requires_grad_(False)
