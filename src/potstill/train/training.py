"""One training of a recipe, from its records to the files of the artifact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from potstill.data.reader import TaskReader
from potstill.errors import RecipeError, RunError
from potstill.frequent import forget_others, save_tokens
from potstill.models.load import load_tokenizer
from potstill.models.quiet import quiet_loading
from potstill.models.rounding import round_weights
from potstill.models.saving import save_model
from potstill.recipe import Recipe, TrainStage
from potstill.recipe.train import PRUNED, Training
from potstill.stage import Context
from potstill.students import BuiltStudent
from potstill.tasks import SPECS
from potstill.teachers import Teacher
from potstill.train import checkpoints
from potstill.train.arguments import training_arguments
from potstill.train.callbacks import ConsoleProgress, EvaluateEvenly, SaveBySeconds
from potstill.train.inputs import Rows, find_models, make_student, make_teacher, read_rows
from potstill.train.trainable import frozen, initialise, matching
from potstill.train.trainer import DistillTrainer
from potstill.train.weights import save_projectors

_LABELS = {
    "student": "training",
    "text_only": "training on the text alone",
    "text_only_equal_seconds": "training on the text alone, for as many seconds",
    "rounded_afterwards": "training in full precision, to be rounded afterwards",
}
_RUN_SUMMARY = "train_runtime"


class TrainingRun:
    """One training under way.

    Args:
        recipe: of this training; a control's, or that of another seed, differs from the context's.
        context: of the stage.
        training: which of the recipe's trainings it is.
    """

    def __init__(self, recipe: Recipe, context: Context, training: Training) -> None:
        self.recipe, self.settings, self.context, self.training = recipe, recipe.required_train, context, training
        self.checkpoints = context.out / "checkpoints"
        self.models = find_models(recipe, context.console)

    def run(self) -> None:
        """Train, from the last whole checkpoint if there is one, and write the artifact.

        Raises:
            PotstillError: any problem of data, models or settings.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RunError(
                "several processes would write one run folder",
                fix="start potstill without torchrun; DistillTrainer in a script of your own runs under it",
            )
        reader, rows = self._read()
        with quiet_loading():
            pruned = self.context.inputs.get(PRUNED)
            folder = pruned.path if pruned is not None else None
            built = make_student(self.recipe, self.models, reader, rows, self.context.console, folder)
            stages = self.settings.in_stages
            student: nn.Module = built.model
            done: list[DistillTrainer] = []
            for stage in stages:
                trainer = self._trainer(stage, student, reader, rows, done)
                self._train(stage, trainer)
                student = trainer.student
                done.append(trainer)
            self._save(done, built)

    def _read(self) -> tuple[TaskReader, Rows]:
        generated = self.context.inputs.get("generate")
        records = generated.path / "records.parquet" if generated is not None else None
        reader, rows = read_rows(self.recipe, records, self.models.tokenizer, self.context.work)
        if self.settings.keeps_best and not rows.held_out:
            raise RecipeError(
                "the best weights are chosen on held-out records, and none of them can be measured",
                where="train.keep",
                fix="hold more out (data.held_out), or keep: last",
            )
        return reader, rows

    def _folder(self, stage: TrainStage) -> Path:
        """The folder of a stage's checkpoints."""
        return self.checkpoints / stage.name if self.settings.stages else self.checkpoints

    def _trainer(
        self, stage: TrainStage, student: nn.Module, reader: TaskReader, rows: Rows, done: Sequence[DistillTrainer]
    ) -> DistillTrainer:
        settings = self.settings
        arguments = training_arguments(self.recipe, self._folder(stage), self.models.device, len(rows.train), stage)
        taught = any(o.needs().teacher for o in stage.objectives)
        if stage.initialise:
            initialise(student, matching(student, stage.initialise, f"train.stages ({stage.name})"), self.recipe.seed)
        trainer = DistillTrainer(
            model=student,
            teacher=self._teacher if taught else None,
            args=arguments,
            objectives=stage.objectives,
            train_dataset=rows.train,
            eval_dataset=rows.held_out or None,
            processing_class=self._tokenizer,
            callbacks=self._callbacks(stage, bool(rows.held_out)),
            max_length=settings.max_length,
            packing=settings.packing,
            reader=reader,
            log_gradient_norms=settings.log_gradient_norms,
            rounded_to=settings.quantize.weights
            if settings.quantize is not None and settings.quantize.learned
            else None,
            frequent=settings.frequent,
        )
        if stage.keep_projections and done:
            trainer.first_projectors = _of_the_same_objectives(done[-1], trainer)
        trainer.remove_callback(PrinterCallback)
        self.context.work.facts["arguments"] = {
            name: value for name, value in arguments.to_dict().items() if name in _recorded_arguments(self.recipe)
        }
        return trainer

    def _callbacks(self, stage: TrainStage, measured: bool) -> list[TrainerCallback]:
        settings = self.settings
        # A stage with a successor keeps its weights, so that an interrupted run resumes after it.
        last = stage == settings.in_stages[-1]
        callbacks: list[TrainerCallback] = [SaveBySeconds(settings.checkpoint_seconds, at_the_end=not last)]
        return [*callbacks, EvaluateEvenly(settings.evaluations)] if measured else callbacks

    @property
    def _unit(self) -> str:
        """The unit that training counts."""
        return SPECS[self.recipe.task].trained_unit

    @cached_property
    def _teacher(self) -> Teacher | None:
        captured = [a.path / "store" for name, a in self.context.inputs.items() if name.partition(".")[0] == "capture"]
        return make_teacher(self.models, captured)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        folder = self.models.tokenizer
        return None if folder is None else load_tokenizer(folder, self.models.trust_remote_code)

    def _train(self, stage: TrainStage, trainer: DistillTrainer) -> None:
        """Train one stage, from its last whole checkpoint if there is one (of its last step, if it had ended)."""
        label = _LABELS[self.training.model] + (f", {stage.name}" if self.settings.stages else "")
        if self.settings.seeds > 1:
            label += f", seed {self.training.seed + 1} of {self.settings.seeds}"
        progress = ConsoleProgress(self.context.console, label, self._unit)
        progress.trainer = trainer
        trainer.add_callback(progress)
        folder = self._folder(stage)
        checkpoint, torn = checkpoints.last_whole(folder) if folder.is_dir() else (None, [])
        for left in torn:
            self.context.work.warn(f"{left.name} was not whole and was passed over")
        names = matching(trainer.student, stage.freeze, f"train.stages ({stage.name})")
        try:
            with frozen(trainer.student, names):
                trainer.train(str(checkpoint) if checkpoint is not None else None)
        finally:
            progress.close()

    def _save(self, done: Sequence[DistillTrainer], built: BuiltStudent) -> None:
        out, last = self.context.out, done[-1]
        steps = [trainer.state.global_step for trainer in done]
        with (out / "history.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(entry) + "\n" for entry in self._history(done))
        stage = self.settings.in_stages[-1]
        kept = last.state.best_global_step if stage.keep == "best" else last.state.global_step
        facts = {
            **built.facts,
            "steps": sum(steps),
            "tokens": sum(trainer.tokens_seen for trainer in done),
            "seconds": round(sum(trainer.seconds_trained for trainer in done), 3),
            "kept": stage.keep,
            "kept_step": sum(steps[:-1]) + int(kept or 0),
        }
        if (quantize := self.settings.quantize) is not None:
            facts["quantized"] = {
                **quantize.key_fields(),
                "bits": round(round_weights(last.student, quantize.weights), 2),
            }
        if self.settings.stages:
            facts["stages"] = [
                {"name": stage.name, "steps": count, "seconds": round(trainer.seconds_trained, 1)}
                for stage, count, trainer in zip(self.settings.stages, steps, done, strict=True)
            ]
        (out / "student.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        self.context.work.count("steps", sum(steps))
        self.context.work.count(self._unit, facts["tokens"])
        save_projectors(last.module.projectors, out)
        for folder in ("model", "adapter"):
            # Remains of an attempt that was interrupted here.
            shutil.rmtree(out / folder, ignore_errors=True)
        student: Any = last.student.eval()
        if isinstance(student, PeftModel):
            student.save_pretrained(str(out / "adapter"))
            student = student.merge_and_unload()
        tokens = last.module.tokens
        if tokens is not None:
            forget_others(student, tokens)
        save_model(student, out / "model")
        if tokens is not None:
            save_tokens(tokens, out / "model")
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(str(out / "model"))

    def _history(self, done: Sequence[DistillTrainer]) -> Iterator[dict[str, Any]]:
        """The logs of all stages, with steps numbered continuously."""
        before = 0
        for stage, trainer in zip(self.settings.in_stages, done, strict=True):
            for entry in trainer.state.log_history:
                if _RUN_SUMMARY not in entry:
                    named = {"stage": stage.name} if self.settings.stages else {}
                    rest = {name: value for name, value in entry.items() if name != "step"}
                    yield {"step": before + entry["step"], **named, **rest}
            before += trainer.state.global_step


def _of_the_same_objectives(before: DistillTrainer, now: DistillTrainer) -> dict[str, Tensor]:
    """The projections that the next stage takes over: of objectives with the same settings, except the weight."""
    settings = [
        {
            name: o.settings.model_copy(update={"weight": 1.0})
            for name, o in zip(t.module.names, t.module.objectives, strict=True)
        }
        for t in (before, now)
    ]
    same = {name for name, found in settings[0].items() if settings[1].get(name) == found}
    weights = before.module.projectors.state_dict()
    return {name: weight for name, weight in weights.items() if name.partition(".")[0] in same}


def _recorded_arguments(recipe: Recipe) -> set[str]:
    """The arguments to record in the manifest: those of the recipe, and the most important defaults."""
    important = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "lr_scheduler_type")
    given = recipe.required_train.args
    return {*given, *important, "warmup_steps", "max_grad_norm", "bf16", "optim", "weight_decay", "use_cpu"}
