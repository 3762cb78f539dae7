"""Held-out KL, NLL, top-1 agreement and accuracy, target by target, never through whole-batch logits; and where there
is no response to measure, the objectives themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.data.reader import Collate, TaskReader
from potstill.errors import DataError, UserError
from potstill.recipe import value_at
from potstill.signals import Batch
from potstill.train.loaders import loader
from potstill.train.rows import Row, length_of, rows_of
from potstill.train.saving import WholeCheckpoints


class MeasuresHeldOut(WholeCheckpoints):
    """A `Trainer` of a `DistillModule`, as far as evaluation goes."""

    reader: TaskReader
    collate: Collate
    packing: bool
    eval_rows: list[Row] | dict[str, list[Row]]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The held-out rows of this process, each once, by length."""
        if isinstance(eval_dataset, str) and isinstance(self.eval_rows, dict):
            eval_dataset = self.eval_rows[eval_dataset]
        rows = self.eval_rows if eval_dataset is None else self._rows_of(eval_dataset, "eval_dataset")
        if not rows or isinstance(rows, dict):
            raise UserError("there is nothing to measure on", where="eval_dataset", fix="give eval_dataset")
        by_length = sorted(range(len(rows)), key=lambda i: -length_of(rows[i]))
        size = self.args.eval_batch_size
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        return loader(rows, batches[self.args.process_index :: self.args.world_size], self.collate, self.args)

    def _read_held_out(self, dataset: Any) -> list[Row] | dict[str, list[Row]]:
        if dataset is None:
            return []
        if isinstance(dataset, Mapping):
            return {name: self._rows_of(part, f"eval_dataset[{name!r}]") for name, part in dataset.items()}
        return self._rows_of(dataset, "eval_dataset")

    def _rows_of(self, dataset: Any, name: str) -> list[Row]:
        return rows_of(dataset, self.reader, packing=self.packing, name=name)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out KL(teacher ‖ student), NLL (both in nats), top-1 agreement, and accuracy of classes, per target. Of
        a sentence embedding, which has no response, the objectives: Σ weight · Σ values ÷ count over all rows.

        The student computes with the precision of training and without dropout, and is put back into the mode it was
        in (rule 8). No logits are kept: values are summed token by token.
        """
        given = self.eval_rows if eval_dataset is None else eval_dataset
        if isinstance(given, Mapping):
            found: dict[str, float] = {}
            for name, part in given.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        loader, started = self.get_eval_dataloader(eval_dataset), time.monotonic()
        self.callback_handler.eval_dataloader = loader
        found = self._means(loader) if self.module.statistics else {"objectives": self._objectives(loader)}
        # By the first of these "the loss" of an evaluation is known.
        found["loss"] = next(found[name] for name in ("kl", "nll", "objectives") if name in found)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - started, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _means(self, loader: DataLoader[Any]) -> dict[str, float]:
        """The mean of each statistic over all targets, and how many these are."""
        names, model = ("targets", *self.module.statistics), self._wrapped

        def of_batch(inputs: dict[str, Any]) -> Tensor:
            found = model(inputs)
            columns = [torch.ones_like(found["nll"]), *(found[name] for name in self.module.statistics)]
            return torch.stack([column.double().sum().cpu() for column in columns])

        targets, *sums = self._summed(loader, of_batch, torch.zeros(len(names), dtype=torch.float64)).tolist()
        if not targets:
            raise DataError("no held-out token is learned, so nothing can be measured", where="eval_dataset")
        means = {name: total / targets for name, total in zip(self.module.statistics, sums, strict=True)}
        return means | {"targets": targets}

    def _objectives(self, loader: DataLoader[Any]) -> float:
        """Σ weight · Σ values ÷ count, as training would have it at this moment, on all rows."""
        module, model = self.module, self._wrapped

        def of_batch(inputs: dict[str, Any]) -> Tensor:
            counts = module.counts(Batch.from_inputs(inputs))
            sums = model(inputs, torch.ones_like(counts))["sums"]
            return torch.stack([sums.double().cpu(), counts.double().cpu()])

        sums, counts = self._summed(loader, of_batch, torch.zeros(2, len(module.names), dtype=torch.float64))
        weights = torch.tensor([value_at(o.settings.weight, module.progress) for o in module.objectives])
        return float((weights * sums / counts.clamp(min=1)).sum())

    def _summed(self, loader: DataLoader[Any], of_batch: Callable[[dict[str, Any]], Tensor], totals: Tensor) -> Tensor:
        """What a function gives for each batch, summed over all batches and processes; the model in evaluation mode,
        and nothing with a gradient."""
        model = self._wrapped
        training = model.training
        model.eval()
        self._set_optimizer_mode("eval")
        try:
            for inputs in loader:
                with torch.no_grad(), self.accelerator.autocast():
                    totals = totals + of_batch(self._prepare_inputs(inputs))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        finally:
            model.train(training)
            self._set_optimizer_mode("train")
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), "sum").cpu()
        return totals

    @property
    def _wrapped(self) -> Any:
        """The module, in whatever wraps it for several processes."""
        return self.model

    def _set_optimizer_mode(self, mode: str) -> None:
        # Schedule-free optimisers keep two sets of weights.
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Whole-batch logits are not kept.

        Raises:
            UserError: always.
        """
        raise UserError(
            "predict() would keep the logits of every token", fix="use evaluate(), or trainer.student.generate(…)"
        )
