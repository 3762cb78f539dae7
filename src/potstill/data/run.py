"""The records that another run generated, as data: `run:<folder>`."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.artifacts import Artifact, read_artifact
from potstill.data.source import Row, existing
from potstill.data.store import load_records
from potstill.errors import DataError
from potstill.recipe.data import RunData
from potstill.registry import implements


@implements(RunData)
class RunSource:
    """Records of a run's `generate` artifact, as they are: group, sample and provenance stay theirs."""

    def __init__(self, settings: RunData) -> None:
        self.settings = settings

    def rows(self) -> Iterator[Row]:
        """Every record of both sides, which are found anew by this recipe's `held_out` and `split_seed`."""
        artifact = self._artifact()
        path = artifact.path / "records.parquet"
        for number, record in enumerate(load_records(path), 1):
            yield Row(record, f"run:{self.settings.path.name}", number, f"{path}, row {number}")

    def digests(self) -> dict[str, str]:
        """The artifact's own digest."""
        return {"data": self._artifact().output_digest}

    def _artifact(self) -> Artifact:
        folder = existing(self.settings.path.expanduser(), "run")
        artifact = read_artifact(folder / "generate")
        if artifact is None:
            raise DataError(
                "the run has no generated records",
                where=str(folder),
                fix="finish its generate stage first (`potstill generate`)",
            )
        return artifact
