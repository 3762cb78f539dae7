"""The stages of speculative decoding. No torch until they work.

speculate.advice   before a draft is trained: its cost, and what it could gain
speculate.train    the training of the draft, by the trainer of the stage `train`
speculate          the draft as it is used: acceptance, forecast, trials, export
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from potstill.recipe import Recipe
from potstill.recipe.speculate import OtherModelDraft, StudentDraft
from potstill.stage import Context, Stage

CONTRACT = 3
ADVICE = "speculate.advice"


def stage(recipe: Recipe, name: str) -> Stage:
    """One of the stages `speculate.advice` and `speculate`.

    An artifact holds `speculation.json` (`potstill.speculation.Speculation`), and that of `speculate` the exported
    drafts, a folder for each engine.
    """
    settings = recipe.required_speculate
    section = settings.key_fields()
    train = section.pop("train")
    reads = ["generate"] if recipe.generate is not None else []
    if settings.texts == "stored":
        reads.append("capture")
        section["captured_length"] = recipe.captured_length
    if (heads := settings.heads) is not None:  # they are measured before they are trained
        section["heads"] = {"heads": heads.heads, "frequent": heads.frequent}
    if name == ADVICE:
        # What is trained later changes nothing here, but whether anything is: an untrained draft is measured.
        section |= {"export": False, "trained": False}
    elif train is not None:
        reads += [ADVICE, "speculate.train"]
    if isinstance(settings.model_draft, StudentDraft):
        reads.append("train")
    target = recipe.teachers[settings.target]
    plain = {"speculate": section, "target": target.key_fields(), "data": recipe.data.key_fields()}
    return Stage(name, CONTRACT, tuple(reads), plain, partial(_sources, recipe), _write)


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the data, and of the weights of target and draft."""
    from potstill.data import source_digests
    from potstill.models import model_digests

    settings = recipe.required_speculate
    draft = settings.model_draft
    digests = dict(source_digests(recipe.data)) | model_digests("target", [recipe.teachers[settings.target]])
    return digests | (model_digests("draft", [draft]) if isinstance(draft, OtherModelDraft) else {})


def _write(context: Context) -> None:
    from potstill.speculate.speculating import Speculating

    Speculating(context).run()
