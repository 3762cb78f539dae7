"""A conversation with the process that holds models (`worker.py`): of the playground, and of a local tutor."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import PotstillError

_MEMORY = "it may have run out of memory: choose a run with smaller models"


@dataclass
class Session:
    """The worker and what it has written. One at a time: models are large, and the machine is small."""

    process: asyncio.subprocess.Process | None = None
    number: int = 0
    models: dict[str, str] = field(default_factory=dict)
    prompt: str | list[dict[str, str]] = ""
    colour: str = "kl"
    temperature: float = 0.7
    columns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    state: str = ""
    rounds: dict[str, Any] | None = None
    """Of a text that was drafted: `rounds`, and how many tokens were `drafted` and `accepted`."""
    error: dict[str, str] | None = None
    answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    asked: int = 1_000_000
    reading: asyncio.Task[None] | None = None

    async def send(self, **request: Any) -> None:
        """To the worker, which is started if there is none."""
        if self.process is None or self.process.returncode is not None:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "potstill.studio.worker", stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=1 << 22,
            )  # fmt: skip
            self.reading = asyncio.create_task(self._read(self.process))
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        await self.process.stdin.drain()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            if said.get("token") == self.number:
                self.state = "writing"
                self.columns[said["of"]].append(said)
            elif said.get("done") == self.number:
                self.state = "stopped" if said["stopped"] else "done"
                self.rounds = said if "rounds" in said else None
            elif "at" in said or said.get("error") in self.answers:
                waiting = self.answers.pop(said.get("at") or said["error"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(said)
            elif said.get("error") == self.number:
                self.state, self.error = "failed", {name: said[name] for name in ("what", "where", "fix")}
        if self.state in ("loading", "writing"):
            self.state = "failed"
            self.error = {"what": "the process with the models ended", "where": "", "fix": _MEMORY}

    async def write(
        self,
        models: dict[str, str],
        prompt: str | list[dict[str, str]],
        temperature: float,
        tokens: int,
        *,
        draft: str | None = None,
    ) -> None:
        """Begin a text of each model; one that is being written is stopped.

        Args:
            models: a model's name by its role.
            prompt: the user's words, or the messages of a conversation.
            draft: the role that drafts for the first one, which alone writes then.
        """
        await self.stop()
        self.number += 1
        self.models, self.prompt, self.temperature = models, prompt, temperature
        self.columns = {role: [] for role in (list(models)[:1] if draft else models)}
        self.state, self.error, self.rounds = "loading", None, None
        request = {"models": models, "prompt": prompt, "temperature": temperature, "tokens": tokens, "seed": 0}
        await self.send(write=self.number, **request, **({"draft": draft} if draft else {}))

    async def stop(self) -> None:
        """End the text that is being written; what there is of it stays."""
        if self.state in ("loading", "writing"):
            await self.send(stop=True)

    async def at(self, of: str, place: int, temperature: float) -> dict[str, Any]:
        """All models' distributions at a token. Raises: PotstillError."""
        self.asked += 1
        number = self.asked
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answers[number] = future
        await self.send(at=number, of=of, place=place, temperature=temperature, likeliest=10)
        said = await asyncio.wait_for(future, 30)
        if "error" in said:
            raise PotstillError(said["what"])
        return said

    async def close(self) -> None:
        """End the worker."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
