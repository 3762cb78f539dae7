"""`potstill check`: whether a recipe can work, and its cost. Loads no weights and fetches nothing; torch is loaded only
for what it alone can judge (`loaded.py`).

A check is a list of preconditions: functions that read files and return findings. A run begins with the same list, so
that problems in files are found before anything is fetched, generated or trained.

    findings.py    errors, warnings and facts, and the figures behind them
    inputs.py      the files of a recipe, each read once
    data.py        both sides of the data
    models.py      teachers, student, and whether they fit each other
    rendering.py   how both see real records: templates, turns, contexts
    generation.py  prompts, verifiers, servers
    capture.py     what a store will hold, permit and take
    training.py    steps, evaluation, export
    measures.py    columns, questions and packages of measures
    speculation.py a draft and its target
    loaded.py      devices, parts of models by name, unusual arguments: with torch, where a recipe asks for them
    policy.py      licences and terms
    cost.py        time, memory and disk
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from potstill.check import (
    capture,
    cost,
    data,
    generation,
    loaded,
    measures,
    models,
    policy,
    rendering,
    speculation,
    training,
)
from potstill.check.findings import Finding, Findings
from potstill.check.inputs import Inputs
from potstill.check.measures import fetch_questions
from potstill.console import Console
from potstill.errors import PotstillError
from potstill.recipe import Recipe
from potstill.stage import stage_names

__all__ = ["PRECONDITIONS", "Finding", "Findings", "check_recipe", "fetch_questions", "probe_recipe"]

Precondition = Callable[[Inputs], Iterable[Finding] | None]

ALL = ("generate", "capture", "train", "evaluate", "report", "speculate", "export")

PRECONDITIONS: tuple[tuple[Precondition, tuple[str, ...]], ...] = (
    (data.data_are_read, ("generate", "capture", "train", "evaluate", "speculate")),
    (data.data_may_train, ("generate", "capture", "train")),
    (data.training_side_is_not_empty, ("generate", "capture", "train")),
    (data.sides_have_no_twins, ("train", "evaluate")),
    (data.intervals_have_two_groups, ("generate", "train", "evaluate")),
    (models.teachers_are_usable, ("generate", "capture", "train", "evaluate", "speculate")),
    (models.teachers_give_what_is_asked, ("generate", "capture", "train")),
    (models.unused_teachers, ("generate", "capture", "train")),
    (models.student_model_is_usable, ("generate", "train")),
    (models.student_learns, ("train",)),
    (models.ensembles_agree, ("generate", "capture", "train")),
    (models.student_can_be_built, ("generate", "train")),
    (models.adapter_fits, ("generate", "train")),
    (models.a_tokenizer_is_there, ("generate", "capture", "train")),
    (models.tokenizers_agree, ("generate", "capture", "train")),
    (models.heads_cover_the_tokens, ("generate", "capture", "train")),
    (models.classes_are_named, ("generate", "train")),
    (models.objectives_fit_the_models, ("generate", "train")),
    (speculation.draft_fits_its_target, ("generate", "capture", "train", "speculate")),
    (speculation.prompts_can_be_decoded, ("generate", "capture", "train", "speculate")),
    (speculation.target_can_be_rolled_back, ("generate", "capture", "train", "speculate")),
    (generation.conversations_can_be_counted, ("generate",)),
    (generation.endpoints_can_be_asked, ("generate",)),
    (generation.verifiers_can_be_opened, ("generate", "evaluate")),
    (generation.verifiers_can_judge, ("generate",)),
    (generation.seeds_suffice, ("generate",)),
    (data.prompts_can_be_asked, ("generate",)),
    (generation.generation_is_estimated, ("generate",)),
    (generation.prompts_fit, ("generate",)),
    (data.evaluation_sets_are_there, ("generate",)),
    (training.one_process, ("train",)),
    (training.objectives_are_listed, ("generate", "capture", "train")),
    (training.steps_are_counted, ("generate", "capture", "train")),
    (data.rows_can_be_made, ("generate", "train")),
    (data.rows_can_be_learned, ("capture", "train")),
    (capture.store_is_described, ("generate", "capture", "train")),
    (rendering.templates_render_alike, ("generate", "capture", "train")),
    (rendering.turns_begin_alike, ("generate", "capture", "train")),
    (rendering.turns_end_alike, ("generate", "capture", "train")),
    (rendering.rows_fit_the_contexts, ("capture", "train")),
    (training.best_weights_can_be_chosen, ("generate", "train")),
    (training.problems_can_be_solved, ("generate", "train", "evaluate")),
    (training.measures_have_their_teacher, ("generate", "train", "evaluate")),
    (measures.columns_are_there, ("generate", "capture", "train", "evaluate")),
    (measures.judges_are_others, ("generate", "capture", "train", "evaluate")),
    (measures.questions_are_there, ("generate", "capture", "train", "evaluate")),
    (loaded.lm_eval_has_its_tasks, ("generate", "capture", "train", "evaluate")),
    (training.exports_are_possible, ALL),
    (loaded.devices_are_here, ("generate", "capture", "train", "evaluate")),
    (loaded.attention_is_here, ("generate", "capture", "train", "evaluate")),
    (loaded.parts_are_found, ("generate", "train")),
    (loaded.adapter_is_low_rank, ("generate", "train")),
    (loaded.arguments_are_accepted, ("generate", "train")),
    (loaded.weights_fit_their_exports, ALL),
    (policy.licences_allow_it, ALL),
    (cost.conversions_are_announced, ("generate", "capture", "train")),
    (cost.memory_is_estimated, ("capture", "train")),
    (cost.disk_suffices, ("capture", "train")),
    (cost.time_is_estimated, ("generate", "capture", "train")),
)
"""Every precondition, in order, with the verbs that require it. A problem of a later stage thus stops a run before an
earlier stage has cost anything."""


def check_recipe(recipe: Recipe, verbs: Iterable[str] = ALL) -> Findings:
    """Check the preconditions of some verbs, by default of all.

    A recipe that cannot work raises nothing: its `Findings` have errors, each once. Data and models that would have to
    be fetched are named but not checked.
    """
    inputs, wanted = Inputs(recipe), set(verbs)
    found: list[Finding] = []
    seen: set[str] = set()
    for precondition, stands_before in PRECONDITIONS:
        if wanted.isdisjoint(stands_before):
            continue
        try:
            found += precondition(inputs) or ()
        except PotstillError as error:
            # Several preconditions may read the same file, and fail alike.
            if str(error) not in seen:
                seen.add(str(error))
                found.append(Finding.of(_topic(precondition), error))
    if "speculate" in wanted and recipe.speculate is not None and recipe.speculate.train is not None:
        of_draft = check_recipe(recipe.draft_training, ("train",)).found
        found += [finding for finding in of_draft if finding.topic in ("student", "train") or finding.level == "error"]
    found.append(Finding("stages", " → ".join(stage_names(recipe))))
    return Findings(tuple(found), inputs.figures)


def _topic(precondition: Precondition) -> str:
    """The topic of a precondition's error: that of its module."""
    topics = {
        data: "data",
        models: "teachers",
        rendering: "teachers",
        generation: "generate",
        capture: "capture",
        training: "train",
        measures: "evaluate",
        loaded: "train",
        speculation: "speculate",
        policy: "policy",
        cost: "cost",
    }
    return next(topic for module, topic in topics.items() if module.__name__ == precondition.__module__)


def probe_recipe(recipe: Recipe, console: Console) -> Findings:
    """Load teacher and student, compare heads with logits, try one batch, and time it. Loads torch.

    Raises:
        PotstillError: a model cannot be loaded, the tokenizers differ, or a head cannot be read.
    """
    from potstill.train.probe import probe_training

    started = time.monotonic()
    lines, figures = probe_training(recipe, console)
    figures = {**figures, "probe_seconds": round(time.monotonic() - started, 1)}
    return Findings(tuple(Finding("probe", line) for line in lines), figures)
