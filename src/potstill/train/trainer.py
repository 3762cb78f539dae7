"""`DistillTrainer`: a `transformers.Trainer` whose loss is a list of objectives and whose model has a teacher.

Added here: the counts over the whole optimiser step (rule 1), the rows of each step (`steps.py`), the loss and held-out
KL inside the wrapped forward (`module.py`), and checkpoints that count only when whole (`checkpoints.py`). The loop,
mixed precision, DDP, schedules, optimisers and trackers are those of `transformers`.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from potstill.data.reader import TaskReader
from potstill.errors import DataError, UserError
from potstill.frequent import count_tokens, frequent_tokens
from potstill.models.anatomy import dims, learned_positions
from potstill.models.live import check_head, check_packing
from potstill.models.rounding import Bits, rounded
from potstill.models.saving import save_model
from potstill.models.tasks import task_of
from potstill.models.unchanged import unchanged
from potstill.quantities import counted
from potstill.recipe import Change, Masking, ObjectiveSettings, value_at
from potstill.signals import Batch
from potstill.tasks import SPECS
from potstill.teachers.base import Teacher, open_modules
from potstill.teachers.stored import StoredTeacher
from potstill.teachers.stored_several import StoredTeachers
from potstill.train.checkpoints import AT_LEAST_KEPT, CheckpointStore, facts_of, is_whole
from potstill.train.coerce import (
    built,
    check_capabilities,
    check_cut,
    check_same_outputs,
    check_stored,
    check_task,
    given_objectives,
    given_reader,
    given_student,
    given_teacher,
    given_tokenizer,
    refuse_arguments,
    refuse_metrics,
    say_batch_statistics,
)
from potstill.train.module import METRIC, DistillModule, batches_by_length, measure_held_out
from potstill.train.rows import Row, refuse_long_rows, rows_of, token_ids_of
from potstill.train.sharing import check_independent
from potstill.train.steps import FixedRows, MicroBatches, loader
from potstill.train.trainable import frozen, may_leave_out, unreached
from potstill.train.weights import load_projectors, load_student, save_projectors

logger = logging.getLogger(__name__)

FIRST_ROWS = 64
"""Maximum number of rows for the initial weights of projectors."""
RELATED_ROWS = 4
"""Angles need at least three examples."""


class DistillTrainer(Trainer):
    """Trains a student on objectives: a causal or masked language model, a classifier of texts or images, an encoder,
    or any module that gives logits. The student determines the task; objectives are the same for all tasks.

        trainer = DistillTrainer(model=student, teacher=teacher, args=TrainingArguments("out", learning_rate=5e-4),
                                 objectives=[ForwardKL(temperature=2.0), HardCE()],
                                 train_dataset=answers, processing_class=tokenizer)
        trainer.train()
        trainer.save_model("student")

    `evaluate()` returns `eval_kl`, `eval_nll` and `eval_top1_agreement` per target (a token or an example), at
    temperature 1, summed in fp32 over all targets and processes, and for classes `eval_accuracy`. The "loss" of an
    evaluation, by which `load_best_model_at_end` chooses, is the KL (the NLL without a teacher; for a sentence
    embedding its objectives). Logs hold `loss`, and for each objective `<name>/value`, `/count`, `/weight`.

    Args:
        model: the student: a model or module, or the name or path of one (opened in fp32).
        teacher: a model over the same tokens or classes, its name or path, or a `Teacher`. None if no objective needs
        one.
        args: plain `TrainingArguments`; they are copied, not changed.
        objectives: settings (`ForwardKL(temperature=2.0)`) or mappings (`{"kind": "forward_kl", "temperature": 2}`).
            Default: forward_kl and hard_ce.
        train_dataset: rows with `messages`, `prompt` and `completion`, `text`, or `input_ids` and `labels`. The
            assistant's words and the token that ends the turn are learned; for a text, everything. For classes: `text`
            (or `input_ids`, or `pixel_values`) and `label`.
        eval_dataset: the same, held out; or several by name.
        processing_class: the student's tokenizer.
        peft_config: an adapter for the student.
        callbacks, optimizers: as in `Trainer`.
        max_length: longer rows are cut at the end, and counted.
        packing: several rows in one, which do not see each other.
        masking: for a masked language model: how texts are masked in each epoch.
        reader: reads the rows of both data sets; by default from the student's task, its tokenizer and its classes.
        log_gradient_norms: at every logged step, the norm of each objective's own gradient (`<name>/grad_norm`,
            weight included, on the step's first micro-batch). It costs a forward and backward pass per objective and
            changes nothing else.
        rounded_to: the student computes with weights rounded to these bits, and keeps its own: round them at the end
            (`models.rounding.round_weights`).
        frequent: objectives over the vocabulary are over the K most frequent tokens of the training rows alone, for a
            language model that is asked for no others afterwards (a draft): its `module.tokens`. The output layer is
            then K rows of products. A teacher that gives samples of distributions cannot be cut to them.

    Raises:
        UserError: an argument that the loss cannot honour (fp16, `nn.DataParallel`, label smoothing, sharded weights,
            `compute_metrics`), with what to do instead.
        CapabilityError: an objective needs what the teacher cannot give.
        TokenizerMismatch: student and teacher have different tokenizers.
        DataError: rows that cannot be read, or nothing to learn.
    """

    def __init__(
        self,
        model: str | nn.Module,
        teacher: str | nn.Module | Teacher | None = None,
        args: TrainingArguments | None = None,
        objectives: Sequence[ObjectiveSettings | Mapping[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        compute_metrics: Any = None,
        *,
        max_length: int = 1024,
        packing: bool = False,
        masking: Masking | None = None,
        reader: TaskReader | None = None,
        log_gradient_norms: bool = False,
        rounded_to: Bits | None = None,
        frequent: int | None = None,
    ) -> None:
        args = _own_arguments(args)
        refuse_metrics(compute_metrics)
        processing_class = processing_class or given_tokenizer(model)
        student = given_student(model, peft_config)
        taught = given_teacher(teacher, student, args.device)
        task = task_of(student)
        self.reader = reader or given_reader(
            student, processing_class, max_length=max_length, masking=masking, seed=args.seed
        )
        self.collate, self.packing = self.reader.collator(), packing
        if isinstance(taught, (StoredTeacher, StoredTeachers)):
            self.collate = taught.joining(self.collate)
        self.train_rows = self._rows_of(train_dataset, "train_dataset") if train_dataset is not None else []
        self.eval_rows = self._read_held_out(eval_dataset)

        if taught is not None:
            check_same_outputs(taught, student, processing_class)
        settings = given_objectives(objectives)
        check_task(task, settings, packing=packing)
        check_capabilities(settings, taught)
        if frequent is not None:
            check_cut(taught)
        if isinstance(taught, (StoredTeacher, StoredTeachers)):
            check_stored(settings, taught)
        own = built(settings)
        for objective in own:
            objective.survey(ids for row in self.train_rows for ids in token_ids_of(row))
        with torch.random.fork_rng():
            # So that projectors do not use the random numbers of dropout.
            torch.manual_seed(args.seed)
            module = DistillModule(student, taught, own, self._frequent(frequent, dims(student).vocab))
        if isinstance(taught, (StoredTeacher, StoredTeachers)):
            taught.check_kept(module.asks["teacher"].taps)
        self._looks_for_unreached = args.ddp_find_unused_parameters is None
        if self._looks_for_unreached:
            # Parameters that the objectives do not reach are frozen during training if possible; `train` handles the
            # others.
            args.ddp_find_unused_parameters = False

        use_cache = getattr(module.config, "use_cache", None)
        super().__init__(
            model=module,
            args=args,
            data_collator=self.collate,
            train_dataset=self.train_rows or None,
            eval_dataset=self.eval_rows or None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if use_cache is not None:
            # transformers turns the cache off for training; it is never used here, and the student keeps its own
            # setting.
            module.config.use_cache = use_cache
        # The loss is already divided by the counts of the whole step.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        self.log_gradient_norms = log_gradient_norms
        self.rounded_to = rounded_to
        self.first_projectors: Mapping[str, Tensor] = {}
        """Initial weights of projectors, by name; they replace those that their objectives choose (another stage's,
        say)."""
        self.tokens_seen = 0
        """Tokens trained on so far, without padding, including resumed work."""
        self.seconds_before = self._began = 0.0
        self._since_log = StepMetrics(module.names)

    def _frequent(self, amount: int | None, vocab: int) -> Tensor | None:
        """The most frequent tokens of the training rows; None for all."""
        if amount is None or amount >= vocab:
            return None
        return frequent_tokens(count_tokens(ids for row in self.train_rows for ids in token_ids_of(row)), amount, vocab)

    @property
    def module(self) -> DistillModule:
        """Student and projectors, as they are trained."""
        module = self.model
        if not isinstance(module, DistillModule):
            raise TypeError(f"the trainer's model is a {type(module).__name__}, not the module that it made")
        return module

    @property
    def student(self) -> nn.Module:
        """The student, with its adapter if it has one."""
        return self.module.student

    @property
    def seconds_trained(self) -> float:
        """Seconds of training so far, including resumed work, but not what an interrupted attempt did after its last
        checkpoint."""
        return self.seconds_before + (time.monotonic() - self._began if self._began else 0.0)

    # ---- data ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training rows of this process, step by step."""
        source = self.step_source()
        if source.steps_per_epoch == 0:
            raise DataError(
                f"{counted(len(source.rows), 'row does', 'rows do')} not fill one step of {source.rows_per_step}",
                where="train_dataset",
                fix="give more rows, make the batch smaller, or set dataloader_drop_last=False",
            )
        dealt = MicroBatches(
            source,
            batch_size=self._train_batch_size,
            processes=self.args.world_size,
            process=self.args.process_index,
        )
        return loader(dealt, self.collate, self.args)

    def step_source(self) -> FixedRows:
        """The step source: the rows of each optimiser step.

        Raises:
            UserError: there are no rows.
        """
        if not self.train_rows:
            raise UserError("there is nothing to train on", where="train_dataset", fix="give train_dataset")
        return FixedRows(
            self.train_rows,
            self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            shuffle=self.args.train_sampling_strategy != "sequential",
            drop_last=self.args.dataloader_drop_last,
            visits=SPECS[self.reader.task].masks,
        )

    def tokens_in_all(self, max_steps: int) -> int:
        """Tokens of the whole training, without padding; an estimate if an epoch is cut short."""
        source = self.step_source()
        return round(source.tokens_per_epoch * max_steps / max(source.steps_per_epoch, 1))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The held-out rows of this process, each once, by length."""
        if isinstance(eval_dataset, str) and isinstance(self.eval_rows, dict):
            eval_dataset = self.eval_rows[eval_dataset]
        rows = self.eval_rows if eval_dataset is None else self._rows_of(eval_dataset, "eval_dataset")
        if not rows or isinstance(rows, dict):
            raise UserError("there is nothing to measure on", where="eval_dataset", fix="give eval_dataset")
        batches = batches_by_length(rows, self.args.eval_batch_size)
        return loader(batches[self.args.process_index :: self.args.world_size], self.collate, self.args)

    def _read_held_out(self, dataset: Any) -> list[Row] | dict[str, list[Row]]:
        if dataset is None:
            return []
        if isinstance(dataset, Mapping):
            return {name: self._rows_of(part, f"eval_dataset[{name!r}]") for name, part in dataset.items()}
        return self._rows_of(dataset, "eval_dataset")

    def _rows_of(self, dataset: Any, name: str) -> list[Row]:
        return rows_of(dataset, self.reader, packing=self.packing, name=name)

    # ---- the loss -----------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The micro-batches of one optimiser step, and each objective's count over all of them and all processes."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed from a checkpoint of the last step, in the middle of an epoch: nothing is left to do.
            return [], None
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counted = [self._counted(batch) for batch in batches]
        totals = torch.stack(counted).sum(0) if counted else torch.zeros(2 + len(self.module.names), dtype=torch.long)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(device), "sum")
        targets, tokens, counts = int(totals[0]), int(totals[1]), totals[2:].cpu()
        self.tokens_seen += tokens
        self._since_log.begin_step(targets, counts)
        return batches, counts

    def _counted(self, inputs: Mapping[str, Tensor]) -> Tensor:
        batch = Batch.from_inputs(inputs)
        return torch.stack([batch.count("targets"), batch.count("tokens"), *self.module.counts(batch)])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the global loss; `num_items_in_batch` are the counts of the step."""
        self.module.progress = self.progress
        outputs = model(inputs, num_items_in_batch)
        metrics = {name.removeprefix(METRIC): value for name, value in outputs.items() if name.startswith(METRIC)}
        self._since_log.add(outputs["sums"], metrics)
        # DDP averages gradients over the processes, but each process's share is of the global loss already.
        loss = outputs["loss"] * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    @property
    def progress(self) -> float:
        """The training progress in [0, 1], for weights and temperatures that change."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch, forward and backward."""
        with rounded(self.student, self.rounded_to):
            if self.log_gradient_norms and self._since_log.at_first_batch and self._will_log():
                self._since_log.gradient_norms = self._gradient_norms(self._prepare_inputs(inputs))
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _will_log(self) -> bool:
        step = self.state.global_step + 1
        return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)

    def _gradient_norms(self, inputs: dict[str, Any]) -> Tensor:
        """[objectives] norms of weight · ∂(Σ values ÷ count)/∂weights, each objective alone, on one micro-batch."""
        module = self.module
        module.progress = self.progress
        parameters = [p for p in module.parameters() if p.requires_grad]
        norms = []
        for index in range(len(module.names)):
            # Dropout, running statistics and observers must be the same as without this, for each objective.
            with unchanged(module, *open_modules(module.teacher)):
                module.train()
                counts = module.counts(Batch.from_inputs(inputs))
                # An objective whose count is 0 contributes nothing.
                alone = torch.zeros_like(counts)
                alone[index] = counts[index]
                with self.accelerator.autocast():
                    loss = module(inputs, alone)["loss"]
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            squares = [g.double().square().sum() for g in gradients if g is not None]
            norms.append(torch.stack(squares).sum().sqrt() if squares else loss.new_zeros((), dtype=torch.float64))
        return torch.stack(norms)

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimiser, with every projector among its parameters.

        Raises:
            UserError: the optimiser was given, and does not train a projector.
        """
        optimizer = super().create_optimizer(model)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for n, p in self.module.projectors.named_parameters() if p.requires_grad and id(p) not in trained]
        if missing:
            raise UserError(
                f"the optimizer trains no projector ({missing[0]}, …): the student would be matched through a map that "
                "stays as it was drawn",
                where="optimizers",
                fix="leave optimizers out and choose one by args.optim, or leave out objectives that project",
            )
        left = [n for n, p in self.student.named_parameters() if p.requires_grad and id(p) not in trained]
        if left:
            logger.warning(
                "the optimizer leaves %d of the student's tensors as they are: %s, …; freeze them if that is meant",
                len(left),
                left[0],
            )
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objectives' metrics since the last log, then log as usual."""
        if "loss" in logs and self._since_log.steps > 0:
            # The values of the last step.
            progress = self.module.progress
            weights = [value_at(o.settings.weight, progress) for o in self.module.objectives]
            logs |= self._since_log.summary(weights, self.accelerator)
            for name, objective in zip(self.module.names, self.module.objectives, strict=True):
                if isinstance(temperature := getattr(objective.settings, "temperature", None), Change):
                    logs[f"{name}/temperature"] = temperature.at(progress)
            logs["tokens"] = self.tokens_seen
            self._since_log = StepMetrics(self.module.names)
        super().log(logs, start_time)

    # ---- training -----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with `resume_from_checkpoint` True, from the newest whole checkpoint in `output_dir`.

        First the head, as the losses read it, is compared with the student's own logits (rule 14), packed rows with
        separate ones, and the teacher's signals with those beside another student.

        Raises:
            ModelError: they differ.
            UserError: the teacher would learn along.
            RunError: the given checkpoint is not whole, or there is none.
        """
        checkpoint = self._checkpoints.to_resume(resume_from_checkpoint)
        unreached: list[str] = []
        if self.train_rows:
            refuse_long_rows(self.train_rows, learned_positions(self.student), "train_dataset")
            first = self._first_rows()
            self._check_student(first[:2])
            if self.module.projectors:
                self._begin_projectors(first)
            if not self.module.asks["student"].response:
                # With gradient: as many rows as in a training step, and enough for relations among them.
                unreached = self._warn_of_unreached(first[: max(RELATED_ROWS, self._train_batch_size)])
            elif self.args.world_size > 1 and self._looks_for_unreached:
                self._configure_unused_parameters(first[:1])
        self.tokens_seen, self.seconds_before, self._began = 0, 0.0, time.monotonic()
        with frozen(self.module, unreached):
            return super().train(str(checkpoint) if checkpoint is not None else None, *args, **kwargs)

    def _first_rows(self) -> list[Row]:
        """The rows of the first steps, the same in every process and for any division of steps."""
        in_order = chain.from_iterable(self.step_source().order(0))
        return [self.train_rows[int(index)] for index in islice(in_order, FIRST_ROWS)]

    def _inputs_of(self, rows: Sequence[Row]) -> dict[str, Any]:
        prepared: dict[str, Any] = self._prepare_inputs(self.collate(rows))
        return prepared

    def _check_student(self, rows: Sequence[Row]) -> None:
        say_batch_statistics(self.student, self.args)
        batch = Batch.from_inputs(self._inputs_of(rows))
        if self.module.asks["student"].response:
            check_head(self.student, batch)
        if self.packing:
            check_packing(self.student, batch.text("student"))
        teacher, ask = self.module.teacher, self.module.asks["teacher"]
        if teacher is not None and ask and not isinstance(teacher, (StoredTeacher, StoredTeachers)):
            with unchanged(*open_modules(teacher)):
                check_independent(teacher, self.student, batch, ask)

    def _begin_projectors(self, rows: Sequence[Row]) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            self.module.initialise_projectors(self._inputs_of(rows))
        if self.first_projectors:
            self.module.projectors.load_state_dict(self.first_projectors, strict=False)

    def _configure_unused_parameters(self, rows: Sequence[Row]) -> None:
        """Let DDP look for unused parameters if a response may leave weights without gradient: an auxiliary head in
        every step, an expert in steps in which no token chose it. They are not frozen, since the next step may reach
        them."""
        if (handler := self.accelerator.ddp_handler) is not None:
            with self.accelerator.autocast():
                handler.find_unused_parameters = may_leave_out(self.module, self._inputs_of(rows))

    def _warn_of_unreached(self, rows: Sequence[Row]) -> list[str]:
        """Parameters that the objectives do not reach; they are frozen, since processes would wait for their
        gradients."""
        names = unreached(self.module, self._inputs_of(rows))
        if names:
            logger.warning(
                "%d of %d tensors get no gradient from these objectives and stay as they are: %s, …",
                len(names),
                sum(p.requires_grad for p in self.module.parameters()),
                names[0].removeprefix("student."),
            )
        return names

    # ---- measuring ----------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out KL(teacher ‖ student), NLL (both in nats), top-1 agreement, and accuracy of classes, per target.
        For a sentence embedding, which has no response, the objectives: Σ weight · Σ values ÷ count over all rows.

        The student computes in the precision of training. No logits are kept: values are summed token by token.
        """
        given = self.eval_rows if eval_dataset is None else eval_dataset
        if isinstance(given, Mapping):
            found: dict[str, float] = {}
            for name, part in given.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        loader, started = self.get_eval_dataloader(eval_dataset), time.monotonic()
        self.callback_handler.eval_dataloader = loader
        self._set_optimizer_mode("eval")
        try:
            with rounded(self.student, self.rounded_to):
                found = measure_held_out(
                    self.module,
                    self.model,
                    self._prepared(loader),
                    precision=self.accelerator.autocast,
                    sum_over_processes=self._sum_over_processes,
                )
        finally:
            self._set_optimizer_mode("train")
        # The first of these is the "loss" of the evaluation.
        found["loss"] = next(found[name] for name in ("kl", "nll", "objectives") if name in found)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - started, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _prepared(self, loader: DataLoader[Any]) -> Iterator[Mapping[str, Any]]:
        for inputs in loader:
            yield self._prepare_inputs(inputs)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _sum_over_processes(self, totals: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return totals
        summed: Tensor = self.accelerator.reduce(totals.to(self.args.device), "sum").cpu()
        return summed

    def _set_optimizer_mode(self, mode: str) -> None:
        # Schedule-free optimisers keep two sets of weights.
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: it would keep a whole batch's logits.

        Raises:
            UserError: always.
        """
        raise UserError(
            "predict() would keep the logits of every token", fix="use evaluate(), or trainer.student.generate(…)"
        )

    # ---- saving and resuming --------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> CheckpointStore:
        folder = Path(self.args.output_dir or "")
        return CheckpointStore(folder, writes=self.args.should_save, wait=self.accelerator.wait_for_everyone)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the student (its adapter, if it has one) and the tokenizer as a plain model; no projectors, no
        pickles."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir or "")
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.student, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        store, step = self._checkpoints, self.state.global_step
        with store.writing(
            step, {"step": step, "tokens": self.tokens_seen, "seconds": self.seconds_trained}
        ) as partial:
            self._write_checkpoint(partial, store)
        store.keep(self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(store.path(step)))

    def _write_checkpoint(self, partial: Path, store: CheckpointStore) -> None:
        self.store_flos()
        if self.args.should_save:
            self._save(str(partial))
            save_projectors(self.module.projectors, partial)
        if self.state.best_global_step:
            best = store.path(self.state.best_global_step)
            if self.state.best_global_step == self.state.global_step or is_whole(best):
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))
        if self.args.should_save:
            self._note_callbacks()
            self.state.save_to_json(str(partial / "trainer_state.json"))

    def _note_callbacks(self) -> None:
        """Store the state of callbacks that have one (early stopping, say) in the trainer's state."""
        states: dict[str, Any] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        noted: Any = {name: found[0] if len(found) == 1 else found for name, found in states.items()}
        self.state.stateful_callbacks = noted

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_weights(folder)
        facts = facts_of(folder)
        self.tokens_seen, self.seconds_before = int(facts["tokens"]), float(facts["seconds"])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None:
            raise UserError("no best checkpoint is known", where="load_best_model_at_end", fix="set an eval_strategy")
        logger.info("the best checkpoint is %s (%s)", best, self.state.best_metric)
        self._load_weights(Path(best))

    def _load_weights(self, folder: Path) -> None:
        load_student(self.student, folder)
        load_projectors(self.module.projectors, folder)


def _own_arguments(args: TrainingArguments | None) -> TrainingArguments:
    """A copy of the user's arguments, with those that potstill sets."""
    args = copy.copy(args) if args is not None else TrainingArguments("student")
    refuse_arguments(args)
    # Rows are made here; transformers would look for columns that the model's forward names.
    args.remove_unused_columns = False
    if args.metric_for_best_model in ("loss", "eval_loss"):
        # The loss of an evaluation is its KL.
        args.greater_is_better = False
    if args.save_total_limit is not None:
        args.save_total_limit = max(args.save_total_limit, AT_LEAST_KEPT)
    return args


# ---- the objectives' metrics since the last log ----------------------------------------------------------------------


class StepMetrics:
    """Sums over the micro-batches of this process, until they are logged.

    An objective's value is the mean over the steps of Σ values ÷ count, both over the whole step and all processes, as
    in the loss. Its count is the sum over the steps.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.steps = self.targets = 0
        self.counts = torch.zeros(len(names), dtype=torch.long)
        self.gradient_norms: Tensor | None = None
        self._of_step = self.counts
        self._values = torch.zeros(len(names), dtype=torch.float64)
        self._metrics: dict[str, Tensor] = {}
        self._batches = 0

    def begin_step(self, targets: int, counts: Tensor) -> None:
        """Begin an optimiser step, with its number of targets and each objective's count."""
        self.steps += 1
        self.targets += targets
        self.counts += counts
        self._of_step, self._batches = counts, 0

    @property
    def at_first_batch(self) -> bool:
        """Whether no micro-batch of the step has been computed yet."""
        return self._batches == 0

    def add(self, sums: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Add one micro-batch: Σ values per objective, and metrics summed over its targets."""
        self._batches += 1
        counts = self._of_step.clamp(min=1)
        # Keep them on their device: reading them at every micro-batch would make an accelerator wait.
        self._values = self._values.to(sums.device) + sums.detach() / counts.to(sums.device)
        for name, value in metrics.items():
            self._metrics[name] = self._metrics.get(name, 0) + value.detach()

    def summary(self, weights: Sequence[float], accelerator: Any) -> dict[str, float]:
        """The metrics to log, over all processes. Collective: call on every rank."""
        several = accelerator.num_processes > 1
        reduced = accelerator.reduce(self._values, "sum") if several else self._values
        values = (reduced.double() / self.steps).tolist()
        logs: dict[str, float] = {}
        for name, value, count, weight in zip(self.names, values, self.counts.tolist(), weights, strict=True):
            logs |= {f"{name}/value": value, f"{name}/count": count, f"{name}/weight": weight}
        if self.gradient_norms is not None:
            norms = accelerator.reduce(self.gradient_norms, "mean") if several else self.gradient_norms
            logs |= {f"{name}/grad_norm": norm for name, norm in zip(self.names, norms.tolist(), strict=True)}
        for name in sorted(self._metrics):
            total = accelerator.reduce(self._metrics[name], "sum") if several else self._metrics[name]
            logs[name] = float(total) / max(self.targets, 1)
        return logs
