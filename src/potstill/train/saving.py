"""Checkpoints of a `Trainer` that are whole or do not count (rule 15), and a student that is saved as a plain model.

checkpoint-<step>/
  config.json, model.safetensors (or the adapter), tokenizer …   the student: opens with from_pretrained
  projectors.safetensors                                         what is trained along and never exported
  optimizer.pt, scheduler.pt, rng_state*.pth                     the library's pickles, read with weights_only=True
  trainer_state.json                                             the library's record: step, logs, best so far
  complete.json                                                  every file's size; written last
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from potstill.artifacts import disk_error
from potstill.errors import RunError
from potstill.models.saving import save_model
from potstill.train import checkpoints
from potstill.train.module import DistillModule
from potstill.train.weights import load_projectors, load_student, save_projectors

logger = logging.getLogger(__name__)


class WholeCheckpoints(Trainer):
    """A `Trainer` of a `DistillModule`, as far as saving and resuming go."""

    tokens_seen = 0
    """Tokens (padding aside) trained on so far, resumed work included."""

    seconds_before = 0.0
    """Seconds of training that a checkpoint brought along."""

    _began = 0.0

    @property
    def seconds_trained(self) -> float:
        """Seconds of training so far, resumed work included, that of an interrupted attempt after its last checkpoint
        left out."""
        return self.seconds_before + (time.monotonic() - self._began if self._began else 0.0)

    @property
    def module(self) -> DistillModule:
        """Student and projectors, as they are trained."""
        module = self.model
        assert isinstance(module, DistillModule)
        return module

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir or "")

    # ---- the student, as a plain model ------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The student (its adapter, if it has one) and the tokenizer; no projector and no pickle."""
        folder = Path(output_dir) if output_dir is not None else self._folder
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.module.student, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    # ---- saving -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, step = self._folder, self.state.global_step
        facts = {"step": step, "tokens": self.tokens_seen, "seconds": self.seconds_trained}
        partial, final = checkpoints.aside(folder, step), folder / f"checkpoint-{step}"
        try:
            if self.args.should_save:
                if partial.exists():
                    shutil.rmtree(partial)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._write_checkpoint(partial, final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.seal(partial, final, facts)
                best = self.state.best_model_checkpoint
                if self.args.save_total_limit:
                    checkpoints.rotate(folder, self.args.save_total_limit, Path(best) if best else None)
            self.accelerator.wait_for_everyone()
        except OSError as error:
            raise disk_error(error, folder) from error
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _write_checkpoint(self, partial: Path, final: Path) -> None:
        self.store_flos()
        if self.args.should_save:
            self._save(str(partial))
            save_projectors(self.module.projectors, partial)
        if self.state.best_global_step:
            best = final.with_name(f"checkpoint-{self.state.best_global_step}")
            if best == final or checkpoints.is_whole(best):
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))
        if self.args.should_save:
            self._note_callbacks()
            self.state.save_to_json(str(partial / "trainer_state.json"))

    def _note_callbacks(self) -> None:
        """The state of callbacks that have one (early stopping, say) goes into the trainer's."""
        states: dict[str, Any] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        noted: Any = {name: found[0] if len(found) == 1 else found for name, found in states.items()}
        self.state.stateful_callbacks = noted

    # ---- resuming ---------------------------------------------------------------------------------------------

    def checkpoint_to_resume(self, asked: str | bool | None) -> Path | None:
        """The checkpoint that training goes on from: the one named, or with True the newest whole one.

        Raises:
            RunError: the one named is not whole, or there is none.
        """
        folder = self._folder
        if self.args.should_save and folder.is_dir():
            checkpoints.sweep(folder)
        if not asked:
            return None
        if asked is True:
            found, passed_over = checkpoints.last_whole(folder) if folder.is_dir() else (None, [])
            for torn in passed_over:
                logger.warning("%s is not whole and is passed over", torn)
            if found is None:
                raise RunError(
                    "there is no whole checkpoint to resume from", where=str(folder), fix="train from the start"
                )
            return found
        if not checkpoints.is_whole(Path(asked)):
            raise RunError(
                "this checkpoint is not whole",
                where=str(asked),
                fix="resume_from_checkpoint=True takes the newest that is",
            )
        return Path(asked)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_weights(folder)
        facts = checkpoints.facts_of(folder)
        self.tokens_seen, self.seconds_before = int(facts["tokens"]), float(facts["seconds"])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        logger.info("the best checkpoint is %s (%s)", best, self.state.best_metric)
        self._load_weights(Path(best))

    def _load_weights(self, folder: Path) -> None:
        load_student(self.module.student, folder)
        load_projectors(self.module.projectors, folder)
