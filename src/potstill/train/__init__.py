"""Training: `DistillTrainer` on `transformers.Trainer`, and the stage around it.

stage.py        the stages `train`, of student and controls
training.py     one training of a recipe, from its records to the files of the artifact
inputs.py       its inputs: records as rows, the student, the teacher
arguments.py    its `TrainingArguments`
pruning.py      the stage `train.pruned`: which student a pruned one becomes
probe.py        `potstill check --probe`

trainer.py      `DistillTrainer`
coerce.py       its arguments, from any accepted form
rows.py         rows from a user's data set
steps.py        the rows of an optimiser step, and its micro-batches
module.py       student and projectors in one module, whose forward computes the loss
trainable.py    which parameters are trained
sharing.py      a teacher must not change with its student
checkpoints.py  checkpoints that count only when they are whole
weights.py      weights in and out of a checkpoint
callbacks.py    when to save and to evaluate; progress

`DistillTrainer` is loaded on first use, so that the stage's key can be computed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.train.trainer import DistillTrainer

__all__ = ["DistillTrainer"]


def __getattr__(name: str) -> Any:
    if name == "DistillTrainer":
        from potstill.train.trainer import DistillTrainer

        return DistillTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
