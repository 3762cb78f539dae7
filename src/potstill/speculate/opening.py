"""Open a target and its draft: the models, the frequent tokens, and whether both can decode together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.console import Console
from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.tree import Path as Node
from potstill.decoding.tree import Typical
from potstill.errors import ModelError
from potstill.frequent import frequent_tokens, learned_tokens
from potstill.heads import MedusaHeads, heads_of, load_heads
from potstill.models.anatomy import effective_head, text_config, why_no_head
from potstill.models.folder import ModelSource
from potstill.models.load import load_model, load_tokenizer, pick_device, pick_dtype
from potstill.models.resolve import resolve
from potstill.recipe.speculate import (
    ChainedDraftSettings,
    DraftSettings,
    LayersDraft,
    LookupDraftSettings,
    MedusaDraftSettings,
    ModelDraftSettings,
    OtherModelDraft,
    SpeculateSettings,
)
from potstill.recipe.teachers import LocalTeacher
from potstill.speculate.fitting import check_draft_tokenizer, check_rows

NEVER = 1e-9
"""A threshold below every draft's confidence: it costs the time of a threshold, and never stops."""


@dataclass(frozen=True)
class Target:
    """The open target.

    Attributes:
        source: its files.
        model: in evaluation mode.
        cached: the same, as decoding reads it.
        tokenizer: its tokenizer.
    """

    source: ModelSource
    model: PreTrainedModel
    cached: CachedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """Its precision."""
        return str(self.model.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class OpenDraft:
    """An open draft.

    Attributes:
        settings: of the recipe.
        label: in words.
        reader: the model that drafts, if one does; with its frequent tokens alone, if any.
        lookup: the lookup, if there is one; of all n-grams where the recipe has the shortest fitted.
        model: the drafting model of its own, which can be exported; None for lookups, early exits and heads.
        heads: Medusa heads.
        learned: the tokens that the model learned, if they are not all.
    """

    settings: DraftSettings
    label: str
    reader: CachedModel | None
    lookup: LookupDraft | None
    model: PreTrainedModel | None
    heads: MedusaHeads | None = None
    learned: Tensor | None = None

    @property
    def fits_lookup(self) -> bool:
        """Whether the recipe has the shortest n-gram of the lookup fitted."""
        own = self.settings.lookup if isinstance(self.settings, ChainedDraftSettings) else self.settings
        return isinstance(own, LookupDraftSettings) and own.shortest == "fit"

    @property
    def of_weights(self) -> DraftSettings:
        """The settings of the model or the heads; of a lookup alone, its own."""
        return self.settings.then if isinstance(self.settings, ChainedDraftSettings) else self.settings

    @property
    def typical(self) -> Typical | None:
        """The rule of typical acceptance, if it is asked for."""
        asked = self.of_weights.typical if isinstance(self.of_weights, MedusaDraftSettings) else None
        return None if asked is None else Typical(asked.epsilon, asked.delta)

    @property
    def threshold(self) -> float | str:
        """The threshold of the recipe."""
        own = self.of_weights
        return own.threshold if isinstance(own, ModelDraftSettings) else 0.0

    @property
    def choices(self) -> int:
        """Number of choices at each place that a tree may have; 1 for what drafts none."""
        own = self.of_weights
        if self.heads is not None and isinstance(own, MedusaDraftSettings):
            return min(own.ranks, self.heads.known)
        if self.reader is None or not isinstance(own, ModelDraftSettings):
            return 1
        known = self.reader.vocabulary
        return own.ranks if known is None else min(own.ranks, len(known))

    def drafting(self, threshold: float = 0.0, nodes: Sequence[Node] = ()) -> Draft:
        """The draft, for a decoder; of a tree, with its nodes, best first."""
        parts: list[Draft] = [] if self.lookup is None else [self.lookup]
        if self.heads is not None:
            parts.append(MedusaDraft(self.heads, nodes))
        if self.reader is not None:
            parts.append(ModelDraft(self.reader, threshold, nodes))
        return parts[0] if len(parts) == 1 else ChainedDraft(parts)

    def timed(self, nodes: Sequence[Node] = ()) -> Draft | None:
        """The draft as it is timed, never stopping early; None for a lookup."""
        if self.heads is not None:
            return MedusaDraft(self.heads, nodes)
        return None if self.reader is None else ModelDraft(self.reader, NEVER if self.threshold else 0.0, nodes)


def open_target(settings: LocalTeacher, dtype: str, console: Console, trained: Path | None = None) -> Target:
    """The target in one precision.

    Args:
        settings: of the teacher.
        dtype: `auto`, `float32` or `bfloat16`.
        console: shows what is fetched.
        trained: folder of the target after a training of its own (Medusa-2).

    Raises:
        ModelError: it cannot be opened, or its cache cannot be rolled back.
    """
    source = resolve(
        settings.model if trained is None else str(trained),
        revision=settings.revision if trained is None else None,
        trust_remote_code=settings.trust_remote_code,
        console=console,
    )
    chosen = pick_dtype(dtype, source, pick_device(settings.device))
    model = _open(source, str(chosen).removeprefix("torch."), settings.device, settings.trust_remote_code)
    return Target(source, model, CachedModel(model), load_tokenizer(source, settings.trust_remote_code))


def open_draft(
    settings: SpeculateSettings,
    target: Target,
    trained: Path | None,
    counts: Callable[[], Counter[int]],
    console: Console,
) -> OpenDraft:
    """The recipe's draft.

    Args:
        settings: of speculation.
        target: the open target.
        trained: artifact of the training of the draft; None where none was (yet).
        counts: how often each token occurs in the data, for frequent tokens.
        console: shows what is fetched.

    Raises:
        TokenizerMismatch: the draft has another tokenizer.
        ModelError: a model cannot be opened, has no such layers, or its cache cannot be rolled back.
    """
    looking = next((part for part in settings.models if isinstance(part, LookupDraftSettings)), None)
    lookup = None
    if looking is not None:
        lookup = LookupDraft(looking.longest, 1 if looking.shortest == "fit" else looking.shortest)
    looked = "a lookup in the text" if lookup is not None else ""
    if settings.heads_draft is not None:
        heads, label = _open_heads(settings, settings.heads_draft, target, trained, counts)
        return OpenDraft(settings.draft, f"{looked}, then {label}" if looked else label, None, lookup, None, heads)
    chosen = settings.model_draft
    if chosen is None:
        return OpenDraft(settings.draft, looked, None, lookup, None)
    own, label, learned = _model_of(chosen, target, None if trained is None else trained / "model", console)
    vocabulary, rows = None, target.cached.vocab_size
    if own is not None:
        rows = min(rows, int(text_config(own).vocab_size))
    if chosen.frequent is not None and chosen.frequent < target.cached.vocab_size:
        vocabulary = frequent_tokens(counts(), chosen.frequent, rows)
    if learned is not None:
        vocabulary = learned
    if vocabulary is not None:
        vocabulary = vocabulary.to(target.device)
        label += f", {len(vocabulary):,} frequent tokens"
    if own is None:
        assert isinstance(chosen, LayersDraft)
        reader = CachedModel(first_layers(target.model, chosen.layers), vocabulary, cache=target.cached)
    else:
        known = None if vocabulary is None else len(vocabulary)
        check_rows(int(text_config(own).vocab_size), target.cached.vocab_size, known)
        reader = CachedModel(own, vocabulary)
    label = f"{looked}, then {label}" if looked else label
    return OpenDraft(settings.draft, label, reader, lookup, own, learned=learned)


def _open_heads(
    settings: SpeculateSettings,
    draft: MedusaDraftSettings,
    target: Target,
    trained: Path | None,
    counts: Callable[[], Counter[int]],
) -> tuple[MedusaHeads, str]:
    """Trained heads, those of a folder, or before their training heads as they begin; and what they are called."""
    made, vocab = settings.heads, target.cached.vocab_size
    if draft.weights is not None:
        heads, label = load_heads(draft.weights), "Medusa heads"
    elif trained is not None:
        weights = load_file(trained / "projectors.safetensors")
        heads = heads_of({name.removeprefix(_OF_OBJECTIVE): weight for name, weight in weights.items()}, vocab)
        label = "Medusa heads, trained with the target" if settings.trains_target else "Medusa heads, trained"
    else:
        output = effective_head(target.model)
        if output is None or made is None:
            raise ModelError(
                f"Medusa heads begin as the output layer, which cannot be taken apart: {why_no_head(target.model)}",
                fix="use a draft of the target's layers: {kind: layers, layers: 2}",
            )
        known = made.frequent
        tokens = None if known is None or known >= vocab else frequent_tokens(counts(), known, vocab)
        heads, label = MedusaHeads(output.weight.shape[1], vocab, made.heads, tokens), "Medusa heads, not trained"
        heads.start_from(output.weight.to("cpu", torch.float32), output.scale)
    heads = heads.to(target.device, target.model.dtype).requires_grad_(False)
    if heads.token_map is not None:
        label += f", {len(heads.token_map):,} frequent tokens"
    return heads, f"{heads.heads} {label}"


_OF_OBJECTIVE = "medusa."
"""Prefix of the heads' weights among the projectors of a training."""


def _model_of(
    chosen: ModelDraftSettings, target: Target, trained: Path | None, console: Console
) -> tuple[PreTrainedModel | None, str, Tensor | None]:
    """The drafting model, None for an early exit of the target; what it is called; and the tokens that it learned, if
    they are not all."""
    if trained is not None:
        check_draft_tokenizer(target.source.name, target.tokenizer, trained)
        layers = f"the target's first {chosen.layers} layers" if isinstance(chosen, LayersDraft) else ""
        label = f"{layers}, trained" if layers else "the student"
        return open_folder(trained, target), label, learned_tokens(trained)
    if isinstance(chosen, OtherModelDraft):
        source = resolve(chosen.model, revision=chosen.revision, console=console)
        check_draft_tokenizer(target.source.name, target.tokenizer, source.path)
        own = _open(source, target.dtype, str(target.device), False)
        return own, source.name, learned_tokens(source.path)
    assert isinstance(chosen, LayersDraft)
    return None, f"the target's first {chosen.layers} layers", None


def open_folder(folder: Path, target: Target) -> PreTrainedModel:
    """A model's folder, in the target's precision and on its device."""
    return _open(resolve(str(folder), console=Console("quiet")), target.dtype, str(target.device), False)


def _open(source: ModelSource, dtype: str, device: str, trust_remote_code: bool) -> PreTrainedModel:
    model = load_model(source, task="causal_lm", dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            "a module of your own cannot decode", where=str(source.path), fix="use a model of transformers"
        )
    model.requires_grad_(False)
    return model
