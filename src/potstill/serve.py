"""`potstill serve RUN`: a server of others with the settings of a run's student. potstill has no server of its own.

llama.cpp's server where the run has a GGUF export and `llama-server` is installed; else `transformers serve`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from potstill.artifacts import read_json
from potstill.errors import MissingExtra, RunError, UserError, did_you_mean, missing_run

ENGINES = ("transformers", "llama.cpp")
HOST = "127.0.0.1"
LLAMA_SERVER = "llama-server"


@dataclass(frozen=True)
class Server:
    """A command that serves a model, and how it is asked.

    Attributes:
        command: program and arguments.
        environment: variables in addition to the present ones.
        address: of its API, which is OpenAI's.
        model: the model's name in requests.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    address: str
    model: str

    @property
    def text(self) -> str:
        """The command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])


def server_for(run: Path, engine: str | None, port: int) -> Server:
    """The server of a run's student, or of the model in a folder or GGUF file.

    Args:
        run: folder of a run; a model's folder; a folder of GGUF files, or one of these.
        engine: one of `ENGINES`; None: llama.cpp where there are a GGUF file and its server, else transformers.

    Raises:
        RunError: there is no model for this engine.
        UserError: there is no such engine, or llama.cpp's server is not installed.
        MissingExtra: the packages of `transformers serve` are not.
    """
    if engine is not None and engine not in ENGINES:
        raise UserError(f"there is no engine {engine!r}{did_you_mean(engine, ENGINES)}", where="--engine")
    if not run.exists():
        raise missing_run(run)
    file, folder = _gguf(run), _model(run)
    if engine is None:
        engine = "llama.cpp" if file is not None and (shutil.which(LLAMA_SERVER) or folder is None) else "transformers"
    if engine == "llama.cpp":
        if file is None:
            raise RunError(
                "there is no GGUF file", where=str(run), fix="add {kind: gguf} to `export` of the recipe, and run it"
            )
        return _llama_server(file, run, port)
    if folder is None:
        raise RunError(
            "there is no model of transformers",
            where=str(run),
            fix="add {kind: huggingface} to `export` of the recipe, and run it",
        )
    return _transformers(folder, port)


def run_server(server: Server) -> None:
    """Become the server: this process is replaced, so that signals reach it alone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(server.command[0], server.command, {**os.environ, **server.environment})


def _llama_server(file: Path, run: Path, port: int) -> Server:
    program = shutil.which(LLAMA_SERVER)
    if program is None:
        raise UserError(
            f"{LLAMA_SERVER} of llama.cpp is not installed",
            where=str(run),
            fix="install llama.cpp, or use --engine transformers",
        )
    name = (run if run.is_dir() else file.parent).resolve().name
    # The length of the context is the model's (0), the template the one in the file (--jinja).
    settings = ("--ctx-size", "0", "--jinja", "--alias", name, "--host", HOST, "--port", str(port))
    return Server((program, "--model", str(file), *settings), {}, f"http://{HOST}:{port}/v1", name)


def _transformers(folder: Path, port: int) -> Server:
    for package in ("fastapi", "uvicorn", "openai"):
        if find_spec(package) is None:
            raise MissingExtra(package, "serve", "transformers serve")
    model = str(folder.resolve())
    command = (sys.executable, "-m", "transformers.cli.transformers", "serve", model)
    # The folder has everything: nothing is looked for on a hub.
    return Server(
        (*command, "--host", HOST, "--port", str(port)), {"HF_HUB_OFFLINE": "1"}, f"http://{HOST}:{port}/v1", model
    )


def _gguf(run: Path) -> Path | None:
    """The GGUF file: itself, or the first of a folder or of a run's exports."""
    if run.is_file():
        return run if run.suffix.lower() == ".gguf" else None
    found = [*sorted(run.glob("*.gguf")), *sorted(run.glob("export.gguf*/*.gguf"))]
    return next((path for path in found if path.is_file()), None)


def _model(run: Path) -> Path | None:
    """The folder with the model: an export, whose generation settings have the end tokens; else the trained one."""
    folders = [run, *sorted(run.glob("export.huggingface*")), run / "train" / "model"]
    return next((folder for folder in folders if read_json(folder / "config.json").get("model_type")), None)
