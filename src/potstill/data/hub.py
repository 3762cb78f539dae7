"""Data sets of the `datasets` library: folders that it saved, and ids of the hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from potstill.artifacts import file_digest
from potstill.data.formats import with_class_name
from potstill.data.source import SourceRow, existing
from potstill.errors import DataError, did_you_mean
from potstill.recipe.data import DatasetsFolder, HubData
from potstill.registry import implements

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 30


@implements(DatasetsFolder)
class DatasetsFolderSource:
    """A folder written by `save_to_disk`: of one data set, or of several splits."""

    def __init__(self, settings: DatasetsFolder) -> None:
        self.settings = settings

    def rows(self) -> Iterator[SourceRow]:
        """Every row of the split."""
        import datasets

        folder = self._folder()
        try:
            loaded = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"not a whole folder of datasets.save_to_disk: {error}", where=str(folder)) from error
        if isinstance(loaded, datasets.DatasetDict):
            if self.settings.split not in loaded:
                raise DataError(
                    f"no split {self.settings.split!r}{did_you_mean(self.settings.split, map(str, loaded))}",
                    where=str(folder),
                    fix="set data.split",
                )
            loaded = loaded[self.settings.split]
        return _rows(loaded, self.settings.source_column("label"), folder.name, str(folder))

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file, by name, without the cache files that `datasets` leaves in the folder."""
        folder = self._folder()
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
        return {f"data/{p.relative_to(folder)}": file_digest(p) for p in files}

    def _folder(self) -> Path:
        folder = existing(self.settings.path.expanduser(), "folder")
        if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            raise DataError(
                "not a folder that datasets.save_to_disk wrote",
                where=str(folder),
                fix="use kind: text, parquet, jsonl …",
            )
        return folder


@implements(HubData)
class HubSource:
    """A data set of the hub, at the commit that the revision names now."""

    def __init__(self, settings: HubData) -> None:
        self.settings = settings

    def rows(self) -> Iterator[SourceRow]:
        """Every row of the split.

        Raises:
            DataError: no such data set, revision, configuration or split; or the hub cannot be reached.
        """
        import datasets

        commit = self.commit()
        name = f"hub:{self.settings.id}@{commit[:12]}"
        try:
            with _quiet_unless_watched():
                loaded = datasets.load_dataset(
                    self.settings.id, self.settings.name, split=self.settings.split, revision=commit
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"cannot be loaded: {error}", where=name, fix="check data.name and data.split") from error
        files = [Path(str(file["filename"])) for file in loaded.cache_files]
        if not all(commit in file.parts for file in files):
            # Without a network `datasets` uses whatever version is cached.
            fix = "try again where the hub can be reached, or name that version in data.revision"
            raise DataError("only another version of it is cached", where=name, fix=fix)
        return _rows(loaded, self.settings.source_column("label"), name, name)

    def digests(self) -> dict[str, str]:
        """The commit."""
        return {"data": f"hub:{self.settings.id}@{self.commit()}"}

    def commit(self) -> str:
        """The commit that the revision stands for: asked of the hub, unless the revision is a commit itself.

        Raises:
            DataError: there is no such data set or revision, or the hub cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if self.settings.revision is not None and _COMMIT.fullmatch(self.settings.revision):
            return self.settings.revision
        where = f"hub:{self.settings.id}"
        # OSError, and the error class of the HTTP library that the hub's client uses.
        unreachable = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
        try:
            info = HfApi().dataset_info(self.settings.id, revision=self.settings.revision, timeout=_TIMEOUT_SECONDS)
        except HFValidationError as error:
            raise DataError(f"not an id of the hub: {error}", where=where) from error
        except GatedRepoError as error:
            fix = "accept its terms on its page, then `hf auth login`"
            raise DataError("the data set is gated", where=where, fix=fix) from error
        except RepositoryNotFoundError as error:
            fix = "check data.id; a private one needs `hf auth login`"
            raise DataError("the hub has no such data set", where=where, fix=fix) from error
        except RevisionNotFoundError as error:
            raise DataError(f"the data set has no revision {self.settings.revision!r}", where=where) from error
        except HfHubHTTPError as error:
            raise DataError(f"the hub refuses: {str(error).splitlines()[0]}", where=where) from error
        except unreachable as error:
            raise DataError(
                f"the hub cannot be reached: {error}",
                where=where,
                fix="try again, or set data.revision to a commit (40 hex digits): then the cache will do",
            ) from error
        if info.sha is None:
            raise DataError("the hub names no commit of the data set", where=where, fix="set data.revision to a commit")
        return info.sha


def _rows(loaded: datasets.Dataset, label: str, source: str, where: str) -> Iterator[SourceRow]:
    names = getattr(loaded.features.get(label), "names", None)
    for number, row in enumerate(loaded, 1):
        assert isinstance(row, Mapping)
        yield SourceRow(with_class_name(row, label, names), source, number, f"{where}, row {number}")


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """No progress bars of `datasets` where nobody looks at them."""
    import datasets

    quiet = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            datasets.enable_progress_bars()
