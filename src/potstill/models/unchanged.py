"""Look at a model without a trace: what a forward pass changes beside the result is restored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

_STRUCTURE = vars(nn.Module()).keys() - {"training"}
"""Attributes in which a module keeps its parameters, buffers, parts and hooks."""


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Restore the models' state and the random states after the context, also after an exception.

    The state of a model is that of all its modules: modes, buffers (running statistics, ranges of quantisation
    observers), and plain attributes (counters, tensors, caches, `torch.Generator`s). The random states are those of
    Python, NumPy and torch (the CPU's and the current accelerator's). Parameters, gradients, and the content of other
    objects that a module holds (its lists, say) are not restored.
    """
    parts = {id(part): part for model in models for part in model.modules()}
    restore = [_restorer(part) for part in parts.values()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            with torch.no_grad():
                for back in restore:
                    back()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the context; afterwards everything is as in `unchanged`, each module's mode too (rule
    8): a frozen part may have been in evaluation mode inside a model in training."""
    with unchanged(model):
        model.eval()
        yield


def _restorer(part: nn.Module) -> Callable[[], None]:
    attributes = {name: value for name, value in vars(part).items() if name not in _STRUCTURE}
    buffers = dict(part._buffers)
    held = [
        (tensor, tensor.detach().clone())
        for tensor in (*buffers.values(), *attributes.values())
        if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and not tensor.is_meta
    ]
    generators = [(value, value.get_state()) for value in attributes.values() if isinstance(value, torch.Generator)]

    def restore() -> None:
        for name in vars(part).keys() - attributes.keys() - _STRUCTURE:
            del vars(part)[name]
        vars(part).update(attributes)
        part._buffers.clear()
        part._buffers.update(buffers)
        for tensor, value in held:
            if tensor.shape != value.shape:
                tensor.data = value  # an observer of channels gives its ranges another shape
            elif not torch.equal(tensor, value):
                tensor.copy_(value)
        for generator, state in generators:
            generator.set_state(state)

    return restore
