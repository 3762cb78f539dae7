"""A recipe with an endpoint for its teacher, in a folder, and what became of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from generate.run_generate import main

from potstill.artifacts import read_artifact

SCRIPT = Path(__file__).parent / "run_generate.py"
RECIPE = """
name: written
seed: 7
teacher: {kind: endpoint, base_url: %s, model: mock, timeout_seconds: %s}
data: {kind: jsonl, path: prompts.jsonl, format: prompt, held_out: 0.2}
generate: {kind: sequence, samples: %s, temperature: 0.7, max_new_tokens: 24}
"""


class EndpointRun:
    """Prompts, a recipe, and a run folder."""

    def __init__(self, folder: Path, url: str, *, prompts: int = 60, samples: int = 2, timeout: float = 20.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run = folder, folder / "run"
        self.requests = prompts * samples
        lines = [json.dumps({"prompt": f"Question {n}: {'why, ' * (n % 7)}what is a still?"}) for n in range(prompts)]
        (folder / "prompts.jsonl").write_text("\n".join(lines))
        (folder / "recipe.yaml").write_text(RECIPE % (url, timeout, samples))

    def here(self, *overrides: str) -> int:
        """Run it in this process; the exit code."""
        return main(str(self.folder / "recipe.yaml"), str(self.run), *overrides)

    def start(self, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        """Run it in a process of its own, which hears Ctrl-C however the tests were started: from a shell's background,
        say, its children would be told to ignore it."""
        command = [sys.executable, str(SCRIPT), str(self.folder / "recipe.yaml"), str(self.run), *overrides]
        return subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def finish(self, *overrides: str) -> None:
        """The same, to the end."""
        process = self.start(*overrides)
        _, errors = process.communicate()
        assert process.returncode == 0, errors

    @property
    def output(self) -> dict[str, bytes]:
        """The files of the artifact that hold no time."""
        folder = self.run / "generate"
        return {name: (folder / name).read_bytes() for name in ("records.parquet", "rejects.jsonl", "README.md")}

    @property
    def manifest(self) -> dict[str, Any]:
        artifact = read_artifact(self.run / "generate")
        assert artifact is not None
        return dict(artifact.manifest)
