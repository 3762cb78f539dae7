"""A student that is already there."""

from __future__ import annotations

from potstill.models.load import load_model
from potstill.models.resolve import resolve
from potstill.recipe.students import Existing
from potstill.registry import implements
from potstill.students.base import Materials, Plain


@implements(Existing)
class ExistingModel:
    """A model of a directory, a hub id or another run, in fp32."""

    def __init__(self, settings: Existing) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises ModelError where the model cannot be found, fetched or opened."""
        trust = self.settings.trust_remote_code
        source = resolve(
            self.settings.model,
            revision=self.settings.revision,
            trust_remote_code=trust,
            console=materials.console,
        )
        model = load_model(source, dtype="float32", device="cpu", trust_remote_code=trust)
        return Plain(
            model, {"layers": None, "model": source.name, "revision": source.revision, "digest": source.digest}
        )
