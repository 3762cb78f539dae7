"""Held-out KL, NLL and top-1 agreement, token by token, never through whole-batch logits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from potstill.data.chat import ChatTokenizer
from potstill.data.collate import Collator
from potstill.errors import DataError, UserError
from potstill.train.loaders import loader
from potstill.train.rows import Row, rows_of
from potstill.train.saving import WholeCheckpoints


class MeasuresHeldOut(WholeCheckpoints):
    """A `Trainer` of a `DistillModule`, as far as evaluation goes."""

    collate: Collator
    eval_rows: list[Row] | dict[str, list[Row]]
    _chat: ChatTokenizer | None
    _reading: dict[str, Any]

    def _read(self, dataset: Any, name: str) -> list[Row]:
        return rows_of(dataset, self._chat, name=name, **self._reading)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The held-out rows of this process, each once, by length."""
        if isinstance(eval_dataset, str) and isinstance(self.eval_rows, dict):
            eval_dataset = self.eval_rows[eval_dataset]
        rows = self.eval_rows if eval_dataset is None else self._read(eval_dataset, "eval_dataset")
        if not rows or isinstance(rows, dict):
            raise UserError("there is nothing to measure on", where="eval_dataset", mend="give eval_dataset")
        by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        size = self.args.eval_batch_size
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        return loader(rows, batches[self.args.process_index :: self.args.world_size], self.collate, self.args)

    def _read_held_out(self, dataset: Any) -> list[Row] | dict[str, list[Row]]:
        if dataset is None:
            return []
        if isinstance(dataset, Mapping):
            return {name: self._read(part, f"eval_dataset[{name!r}]") for name, part in dataset.items()}
        return self._read(dataset, "eval_dataset")

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out KL(teacher ‖ student), NLL (both in nats) and top-1 agreement, per target token.

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
        totals = self._token_totals(loader)
        targets = totals.pop("targets")
        if not targets:
            raise DataError("no held-out token is learned, so nothing can be measured", where="eval_dataset")
        metrics = {f"{metric_key_prefix}_{name}": total / targets for name, total in totals.items()}
        metrics[f"{metric_key_prefix}_targets"] = targets
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - started, 3)
        metrics[f"{metric_key_prefix}_loss"] = metrics.get(
            f"{metric_key_prefix}_kl", metrics[f"{metric_key_prefix}_nll"]
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _token_totals(self, loader: DataLoader[Any]) -> dict[str, float]:
        model: Any = self.model
        training = model.training
        names = ("targets", *self.module.statistics)
        totals = torch.zeros(len(names), dtype=torch.float64)
        model.eval()
        self._set_optimizer_mode("eval")
        try:
            for inputs in loader:
                with torch.no_grad(), self.accelerator.autocast():
                    found = model(self._prepare_inputs(inputs))
                columns = [torch.ones_like(found["nll"]), *(found[name] for name in self.module.statistics)]
                totals += torch.stack([column.double().sum().cpu() for column in columns])
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        finally:
            model.train(training)
            self._set_optimizer_mode("train")
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), "sum")
        return dict(zip(names, totals.tolist(), strict=True))

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
            "predict() would keep the logits of every token", mend="use evaluate(), or trainer.student.generate(…)"
        )
