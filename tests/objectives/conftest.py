"""The peers of the `peers` group that are not in the extra [peers].

torchdistill asks for torchvision, and TextBrewer for tensorboard, neither of which their losses use. So
`make test-long` installs them without:

    pip install --no-deps torchdistill==1.1.5 textbrewer==0.2.1.post1
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def torchdistill() -> ModuleType:
    return pytest.importorskip(
        "torchdistill.losses.mid_level", reason="pip install --no-deps torchdistill==1.1.5 to compare with it"
    )


@pytest.fixture(scope="session")
def textbrewer() -> ModuleType:
    """Its losses alone: the package's own entry loads tensorboard."""
    spec = importlib.util.find_spec("textbrewer")
    if spec is None:
        pytest.skip("pip install --no-deps textbrewer==0.2.1.post1 to compare with it")
    if "textbrewer" not in sys.modules:
        package = ModuleType("textbrewer")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["textbrewer"] = package
    return importlib.import_module("textbrewer.losses")
