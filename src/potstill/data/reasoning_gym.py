"""Problems of reasoning-gym, each with its reference answer in the record's metadata.

A child process with PYTHONHASHSEED=0 makes them: some generators (isomorphic_strings, polynomial_multiplication,
ransom_note, word_ladder) give other problems under another hash seed, and all draw from the global random state.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from potstill.data.source import SourceRow
from potstill.errors import DataError, MissingExtra, did_you_mean
from potstill.recipe.data import ReasoningGymData
from potstill.registry import implements
from potstill.types import Record, group_of
from potstill.verify.gym import REFUSED


@implements(ReasoningGymData)
class ReasoningGymSource:
    """`size` problems of one generator. `Record.metadata` holds the reference and the whole entry, which the
    generator's scorer needs."""

    def __init__(self, settings: ReasoningGymData) -> None:
        self.settings = settings

    def rows(self) -> Iterator[SourceRow]:
        """A prompt per problem.

        Raises:
            MissingExtra: reasoning-gym is not installed.
            DataError: an unknown generator, one that cannot be judged, or settings that it does not take.
        """
        where = f"reasoning-gym:{self.settings.name}"
        for number, entry in enumerate(self._problems(where), 1):
            question = str(entry["question"])
            facts = {"reference": entry["answer"], "reasoning_gym": {"name": self.settings.name, "entry": entry}}
            record = Record(prompt=question, group=group_of(question), metadata=facts)
            yield SourceRow(record, f"{where}@{_version()}", number, f"{where}, problem {number}")

    def digests(self) -> dict[str, str]:
        """The version of reasoning-gym; the settings are in the stage's key already."""
        _check_installed()
        return {"data": f"reasoning-gym@{_version()}"}

    def _problems(self, where: str) -> list[dict[str, Any]]:
        _check_installed()
        if self.settings.name in REFUSED:
            raise DataError(
                f"this generator is refused: {REFUSED[self.settings.name]}",
                where=where,
                fix="chain_sum, gsm_symbolic, leg_counting, gcd, time_intervals and syllogism are known to be good",
            )
        asked = {"name": self.settings.name, "seed": self.settings.seed, "size": self.settings.size}
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-W",
                "ignore",
                "-c",
                "from potstill.data import reasoning_gym; reasoning_gym.answer()",
            ],
            input=json.dumps({**asked, "config": self.settings.config}),
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"the generator failed: {last}", where=where)
        # Generators may print; the last line is the answer.
        made = json.loads(done.stdout.splitlines()[-1], parse_constant=str)
        if "known" in made:
            raise DataError(f"no such generator{did_you_mean(self.settings.name, made['known'])}", where=where)
        if "refused" in made:
            raise DataError(
                f"the generator does not take its settings: {made['refused']}", where=where, fix="see data.config"
            )
        problems: list[dict[str, Any]] = made["problems"]
        return problems


def _check_installed() -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtra("reasoning-gym", "reasoning", "data from reasoning-gym")


def _version() -> str:
    return metadata.version("reasoning-gym")


def answer() -> None:
    """Entry point of the child process: settings as JSON on standard input, problems as JSON on standard output."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    asked = json.load(sys.stdin)
    made: dict[str, Any]
    if asked["name"] not in DATASETS:
        made = {"known": sorted(DATASETS)}
    else:
        try:
            problems = reasoning_gym.create_dataset(
                asked["name"], seed=asked["seed"], size=asked["size"], **asked["config"]
            )
            made = {"problems": [problems[index] for index in range(asked["size"])]}
        except (TypeError, ValueError, AssertionError) as error:
            made = {"refused": str(error)}
    print("\n" + json.dumps(made, default=str))
