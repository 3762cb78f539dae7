"""Teachers: sources of answers and signals.

base.py             the contract
local.py            a model on this machine
ensemble.py         several as one
stored.py           a store of signals; stored_several.py several stores
endpoint.py         a model behind a server
endpoint_client.py  its requests, many at a time
endpoint_pace.py    how many at a time, and how often
endpoint_wire.py    requests and responses
prices.py           the price of its tokens
opening.py          open a model to be measured
origin.py           names, origins and licences

Modules are loaded on first use: a teacher behind a server needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.teachers.base import Teacher
    from potstill.teachers.endpoint import EndpointModel
    from potstill.teachers.ensemble import Ensemble
    from potstill.teachers.local import LocalModel
    from potstill.teachers.stored import StoredTeacher
    from potstill.teachers.stored_several import StoredTeachers

_NAMES = {
    "EndpointModel": "endpoint",
    "Ensemble": "ensemble",
    "LocalModel": "local",
    "StoredTeacher": "stored",
    "StoredTeachers": "stored_several",
    "Teacher": "base",
}

__all__ = ["EndpointModel", "Ensemble", "LocalModel", "StoredTeacher", "StoredTeachers", "Teacher"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
