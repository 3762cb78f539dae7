"""An existing model as the student."""

from __future__ import annotations

from typing import Any

from potstill.models.load import new_head, open_model
from potstill.models.resolve import resolve
from potstill.recipe.students import Existing
from potstill.registry import implements
from potstill.students.base import Materials, Plain


@implements(Existing)
class ExistingModel:
    """A model in a directory, on the hub or of another run, in fp32. An encoder for another task, or without a head,
    gets a head for the task."""

    def __init__(self, settings: Existing) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises ModelError where the model cannot be found, fetched or opened for the task, or has other classes."""
        trust = self.settings.trust_remote_code
        source = resolve(
            self.settings.model,
            revision=self.settings.revision,
            trust_remote_code=trust,
            console=materials.console,
        )
        model, new = open_model(
            source,
            task=materials.task,
            labels=materials.labels,
            dtype="float32",
            device="cpu",
            trust_remote_code=trust,
        )
        facts: dict[str, Any] = {
            "layers": None,
            "model": source.name,
            "revision": source.revision,
            "digest": source.digest,
        }
        if new:
            materials.console.say(f"{source.name}: {new_head(new)}")
            facts["new_weights"] = list(new)
        return Plain(model, facts)
