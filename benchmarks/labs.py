"""How long the labs of the course take, each step run as a reader would, and how long one waits without news.

    python -m benchmarks.labs --json
    python -m benchmarks.labs --lab 1 --lab 4 --json

Each lab runs from the command line in a folder of its own runs. News are the events that the lab's page follows: the
beginning of a run, a move of a bar, a loss, a sentence. Run it on a quiet machine; a step that this version cannot do
counts as not done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.claims import Aim, claims_of, command_line

MODULE = "benchmarks.labs"
LABS = (1, 2, 3, 4)
AIMS = [
    *(Aim(f"lab {number}, all steps", "s", most=900) for number in LABS),
    Aim("longest silence of a step", "s", most=90),
    Aim("steps done, of those of the labs that were run", "", least=1.0),
]


def do_lab(runs: Path, number: int) -> subprocess.CompletedProcess[str]:
    """Do all steps of a lab from the command line. The last line of its output is the result, as JSON."""
    command = [
        sys.executable,
        "-m",
        "potstill.cli",
        "learn",
        "--runs",
        str(runs),
        "run",
        str(number),
        "--yes",
        "--json",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_lab(runs: Path, number: int) -> dict[str, Any]:
    """Do a lab; seconds by step, and the longest time between two events."""
    done = do_lab(runs, number)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result = json.loads(lines[-1]) if lines else {}
    if result.get("event") != "result":
        raise SystemExit(f"lab {number} ended with code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    own = runs / ".studio" / "labs" / str(number) / "events.jsonl"
    begun, *_, ended = noted(own)
    # The page follows the run that a step makes by that run's own file.
    times = sorted(time for log in (own, *runs.glob("*/events.jsonl")) for time in noted(log) if begun <= time <= ended)
    return {
        "seconds": {key: step["seconds"] for key, step in result["steps"].items()},
        "passed": {key: step["passed"] for key, step in result["steps"].items()},
        "silence": max((after - before for before, after in pairwise(times)), default=0.0),
    }


def noted(log: Path) -> list[float]:
    """When the events of a file happened."""
    return [float(json.loads(line)["time"]) for line in log.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Run labs, and print what they took."""
    parser = command_line(MODULE, __doc__)
    parser.add_argument("--lab", type=int, action="append", choices=LABS, help="this one alone; may be given again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {number: run_lab(Path(folder), number) for number in arguments.lab or LABS}
    passed = [done for lab in found.values() for done in lab["passed"].values()]
    values: dict[str, float | None] = {
        f"lab {number}, all steps": round(sum(lab["seconds"].values()), 1) for number, lab in found.items()
    }
    values["longest silence of a step"] = round(max(lab["silence"] for lab in found.values()), 1)
    values["steps done, of those of the labs that were run"] = sum(passed) / len(passed)
    claims = claims_of(AIMS, values)
    if arguments.json:
        print(json.dumps({"benchmark": "labs", "labs": found, "claims": claims}))
        return
    for number, lab in found.items():
        print(f"lab {number}: " + ", ".join(f"{key} {seconds:.0f} s" for key, seconds in lab["seconds"].items()))
    for claim in claims:
        print(f"{claim['name']:<50} {claim['value'] or '':>8} {claim['unit']:<3} {claim['aim']:<8} {claim['met']}")


if __name__ == "__main__":
    main()
