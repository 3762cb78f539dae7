"""Write a draft for other engines, and measure its acceptance through the files that were written.

    draft/            the draft as a model of `transformers`: `model.generate(…, assistant_model=draft)`
    medusa/           or heads, by the names that vLLM reads
    transformers.json what to give `generate`
    vllm.json         vLLM's `--speculative-config`
    sglang.json       SGLang's server arguments

Engines read these files, not the model that was measured. A draft that lost its embeddings, head or vocabulary on the
way is hardly ever accepted, and nothing else shows it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import LookupDraft
from potstill.decoding.sampler import Sampler
from potstill.errors import ModelError
from potstill.frequent import save_tokens
from potstill.heads import MedusaHeads, load_heads, save_heads
from potstill.models.saving import save_model
from potstill.recipe.speculate import ChainedDraftSettings, LayersDraft
from potstill.recipe.students import First, FromTeacher
from potstill.speculate.fitting import check_draft_tokenizer
from potstill.speculate.forecast import Floats
from potstill.speculate.opening import OpenDraft, Target, open_folder
from potstill.speculate.traces import Text, agreement, head_ranks
from potstill.speculation import Exported
from potstill.students import build_student

FOLDER, HEADS = "draft", "medusa"
_TOLERANCE = 1e-3
"""Of the mean acceptance, between the draft in memory and the draft that was read back in the same precision: room for
a near-tie that turns, not for anything else."""


def export_draft(
    out: Path, target: Target, draft: OpenDraft, texts: Sequence[Text], sampler: Sampler, gamma: int
) -> Exported:
    """Write the draft and the engines' settings.

    Args:
        out: folder of the artifact.
        target: the model that it drafts for.
        draft: to write.
        texts: of the target, on which acceptance is compared.
        sampler: the one that the target wrote them with.
        gamma: number of drafted tokens a round.

    Raises:
        ModelError: the acceptance of the draft that was read back differs from that of the draft in memory.
    """
    settings = draft.settings
    if draft.heads is not None:
        return _export_heads(out, target, draft, draft.heads, texts)
    if draft.reader is None:
        assert draft.lookup is not None
        _write(out, _of_lookup(draft.lookup, gamma))
        return Exported("", 0.0, 0.0, gamma, "a lookup has no weights: the settings of the engines' own lookups")
    folder = out / FOLDER
    own = draft.model if draft.model is not None else _early_exit(target, draft)
    _save(own, folder, target)
    _write(out, _of_model(gamma))
    notes = [
        "above temperature 0 both servers draft the likeliest token alone, and fewer stand, unless told otherwise "
        "(vLLM: draft_sample_method: probabilistic; SGLang: --speculative-use-rejection-sampling)"
    ]
    if draft.reader.vocabulary is not None:
        notes.append("the engines have no drafts of frequent tokens alone: this one drafts all")
    if draft.learned is not None:
        save_tokens(draft.learned, folder)
        notes[-1] += f", of which it has learned {len(draft.learned):,}"
    if isinstance(settings, ChainedDraftSettings):
        notes.append("the engines chain no lookup: this is the model alone")
    check_draft_tokenizer(target.source.name, target.tokenizer, folder)
    in_memory = mean_alpha(target, own, texts, sampler)
    served = mean_alpha(target, open_folder(folder, target), texts, sampler)
    if not abs(served - in_memory) <= _TOLERANCE:
        shutil.rmtree(folder)
        raise ModelError(
            f"the exported draft is not the one that was measured: {served:.1%} of its tokens are accepted, and "
            f"{in_memory:.1%} of the other's",
            where=str(folder),
            fix="set speculate.export: false, and report it: the model cannot be saved and opened again",
        )
    return Exported(FOLDER, served, in_memory, gamma, "; ".join(notes))


def _export_heads(out: Path, target: Target, draft: OpenDraft, heads: MedusaHeads, texts: Sequence[Text]) -> Exported:
    folder = out / HEADS
    save_heads(heads, folder)
    _write(out, {"vllm.json": {"method": "medusa", "model": HEADS, "num_speculative_tokens": heads.heads}})
    read = load_heads(folder).to(target.device, target.model.dtype)
    served, in_memory = (_accuracy(target, which, texts) for which in (read, heads))
    if not np.allclose(served, in_memory, rtol=0, atol=_TOLERANCE):
        shutil.rmtree(folder)
        raise ModelError(
            f"the exported heads are not those that were measured: their best choices are right at {_shares(served)} "
            f"of the positions, and those of the others at {_shares(in_memory)}",
            where=str(folder),
            fix="set speculate.export: false, and report it: the heads cannot be saved and opened again",
        )
    notes = ["vLLM drafts one token of each head, no tree; the other engines have no heads of this form"]
    if draft.lookup is not None:
        notes.append("the engines chain no lookup: these are the heads alone")
    return Exported(HEADS, float(served[0]), float(in_memory[0]), heads.heads, "; ".join(notes))


def _accuracy(target: Target, heads: MedusaHeads, texts: Sequence[Text]) -> Floats:
    """The share of positions at which each head's best choice is the text's token."""
    ranks = np.concatenate([head_ranks(target.model, heads, text, 1) for text in texts])
    return np.asarray((ranks == 0).mean(0), dtype=float)


def _shares(values: Floats) -> str:
    return ", ".join(f"{value:.1%}" for value in values)


def mean_alpha(target: Target, model: PreTrainedModel, texts: Sequence[Text], sampler: Sampler) -> float:
    """The mean acceptance per token of a draft with the whole vocabulary."""
    reader = CachedModel(model)
    found = [agreement(target.cached, reader, text, sampler, target.device).alpha for text in texts]
    return float(np.concatenate(found).mean())


def _early_exit(target: Target, draft: OpenDraft) -> PreTrainedModel:
    """The target's first layers as a model of its own, of the target's weights."""
    settings = draft.of_weights
    assert isinstance(settings, LayersDraft)
    from potstill.console import Console

    built = build_student(
        FromTeacher(layers=First(first=settings.layers)),
        teacher=target.source,
        tokenizer_source=target.source.path,
        seed=0,
        console=Console("quiet"),
    )
    model = built.model.to(target.device, target.model.dtype).eval()
    assert isinstance(model, PreTrainedModel)
    return model


def _save(model: PreTrainedModel, folder: Path, target: Target) -> None:
    save_model(model, folder)
    target.tokenizer.save_pretrained(folder)
    generation = target.source.path / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)


def _of_model(gamma: int) -> Mapping[str, Mapping[str, Any]]:
    """By file, what each engine is given. Paths are relative to the artifact."""
    return {
        "transformers.json": {"assistant_model": FOLDER, "num_assistant_tokens": gamma},
        "vllm.json": {"method": "draft_model", "model": FOLDER, "num_speculative_tokens": gamma},
        "sglang.json": {
            "speculative_algorithm": "STANDALONE",
            "speculative_draft_model_path": FOLDER,
            "speculative_num_steps": gamma,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": gamma + 1,
        },
    }


def _of_lookup(lookup: LookupDraft, gamma: int) -> Mapping[str, Mapping[str, Any]]:
    return {
        "transformers.json": {"prompt_lookup_num_tokens": gamma, "max_matching_ngram_size": lookup.longest},
        "vllm.json": {
            "method": "ngram",
            "num_speculative_tokens": gamma,
            "prompt_lookup_min": lookup.shortest,
            "prompt_lookup_max": lookup.longest,
        },
        "sglang.json": {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": gamma + 1},
    }


def _write(out: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
