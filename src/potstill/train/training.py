"""One training of a recipe, from its records to the files of the artifact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback

from potstill.data import ChatTokenizer
from potstill.errors import RecipeError, RunError
from potstill.models.load import load_tokenizer
from potstill.models.quiet import quiet_loading
from potstill.recipe import Recipe
from potstill.stage import Context
from potstill.students import BuiltStudent
from potstill.train import checkpoints
from potstill.train.arguments import training_arguments
from potstill.train.callbacks import ConsoleProgress, EvaluateEvenly, SaveBySeconds
from potstill.train.material import Rows, find_models, make_student, make_teacher, read_rows
from potstill.train.trainer import DistillTrainer
from potstill.train.weights import save_projectors

_LABELS = {"train": "training", "train.text_only": "training on the text alone"}
_RUN_SUMMARY = "train_runtime"


class Training:
    """Trains by a recipe, which may be a control's and so differ from the context's."""

    def __init__(self, recipe: Recipe, context: Context, name: str) -> None:
        assert recipe.train is not None
        self.recipe, self.settings, self.context, self.name = recipe, recipe.train, context, name
        self.checkpoints = context.out / "checkpoints"
        self.models = find_models(recipe, context.console)

    def run(self) -> None:
        """Train, from the last whole checkpoint if there is one, and write the artifact.

        Raises:
            PotstillError: whatever is wrong with data, models or settings.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RunError(
                "several processes would write one run folder",
                mend="start potstill without torchrun; DistillTrainer in a script of your own runs under it",
            )
        rows = self._rows()
        with quiet_loading():
            built = make_student(self.recipe, self.models, rows.train, self.context.console)
            trainer = self._train(built, rows)
            self._save(trainer, built)

    def _rows(self) -> Rows:
        generated = self.context.inputs.get("generate")
        records = generated.path / "records.parquet" if generated is not None else None
        rows = read_rows(self.recipe, records, ChatTokenizer.from_folder(self.models.tokenizer), self.context.work)
        if self.settings.keep == "best" and not rows.held_out:
            raise RecipeError(
                "the best weights are found on held-out records, and there are none",
                where="train.keep",
                mend="hold some out (data.held_out: 0.1), or keep: last",
            )
        return rows

    def _train(self, built: BuiltStudent, rows: Rows) -> DistillTrainer:
        console, settings = self.context.console, self.settings
        arguments = training_arguments(self.recipe, self.checkpoints, self.models.device, len(rows.train))
        taught = any(o.needs().teacher for o in settings.all_objectives)
        progress = ConsoleProgress(console, _LABELS[self.name])
        callbacks: list[TrainerCallback] = [SaveBySeconds(settings.checkpoint_seconds), progress]
        if rows.held_out:
            callbacks.append(EvaluateEvenly(settings.evaluations))
        trainer = DistillTrainer(
            model=built.model,
            teacher=make_teacher(self.models) if taught else None,
            args=arguments,
            objectives=settings.objectives,
            train_dataset=rows.train,
            eval_dataset=rows.held_out or None,
            processing_class=load_tokenizer(self.models.tokenizer, self.models.trust_remote_code),
            callbacks=callbacks,
            max_length=settings.max_length,
            packing=settings.packing,
            log_gradient_norms=settings.log_gradient_norms,
        )
        trainer.remove_callback(PrinterCallback)
        progress.trainer = trainer
        self.context.work.facts["arguments"] = {
            name: value for name, value in arguments.to_dict().items() if name in _told_arguments(self.recipe)
        }
        checkpoint, torn = checkpoints.last_whole(self.checkpoints) if self.checkpoints.is_dir() else (None, [])
        for folder in torn:
            self.context.work.warn(f"{folder.name} was not whole and was passed over")
        try:
            trainer.train(str(checkpoint) if checkpoint is not None else None)
        finally:
            progress.close()
        return trainer

    def _save(self, trainer: DistillTrainer, built: BuiltStudent) -> None:
        out = self.context.out
        history = [entry for entry in trainer.state.log_history if _RUN_SUMMARY not in entry]
        with (out / "history.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(_plain(entry)) + "\n" for entry in history)
        facts = {
            **built.facts,
            "steps": trainer.state.global_step,
            "tokens": trainer.tokens_seen,
            "seconds": round(trainer.seconds_trained, 1),
            "kept": self.settings.keep,
            "kept_step": trainer.state.best_global_step if self.settings.keep == "best" else trainer.state.global_step,
        }
        (out / "student.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        self.context.work.count("steps", trainer.state.global_step)
        self.context.work.count("tokens", trainer.tokens_seen)
        save_projectors(trainer.module.projectors, out)
        for folder in ("model", "adapter"):
            # Left half written by an attempt that was interrupted here.
            shutil.rmtree(out / folder, ignore_errors=True)
        student: Any = trainer.student.eval()
        if isinstance(student, PeftModel):
            student.save_pretrained(str(out / "adapter"))
            student = student.merge_and_unload()
        student.save_pretrained(str(out / "model"))
        assert trainer.processing_class is not None
        trainer.processing_class.save_pretrained(str(out / "model"))


def _told_arguments(recipe: Recipe) -> set[str]:
    """The arguments that a reader of the manifest may want: those of the recipe, and those that it left to us."""
    assert recipe.train is not None
    ours = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "lr_scheduler_type")
    return {*recipe.train.args, *ours, "warmup_steps", "max_grad_norm", "bf16", "optim", "weight_decay", "use_cpu"}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A log as JSON: the step first."""
    return {"step": entry["step"], **{name: value for name, value in entry.items() if name != "step"}}
