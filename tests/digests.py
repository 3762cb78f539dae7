"""Digests of what the shipped recipes write in a small size, to show that a change leaves behaviour as it was.

    python tests/digests.py demo reasoning > before.txt      # without names: all recipes; some minutes
    … change the code …
    python tests/digests.py demo reasoning > after.txt
    diff before.txt after.txt

One line per file: SHA-256 and path. Weights, tables and text are digested as they are; JSON, JSON Lines and the page
without times, rates, and digests of other files. Compare on one machine: floating-point sums differ between processors.
All runs use one folder and one thread, so that neither a path nor the number of cores is in a result.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

UNSTABLE = {"ended", "files", "inputs", "key", "seconds", "started", "stat", "versions"}
"""Keys of JSON that hold times, or digests of files that hold times."""
UNSTABLE_ENDINGS = ("_runtime", "_per_second", "_seconds")
PASSED_OVER = {".lock", "events.jsonl", "journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}


def stable(value: Any) -> Any:
    """A JSON value without its unstable keys."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in UNSTABLE and not k.endswith(UNSTABLE_ENDINGS)}
        return {k: stable(v) for k, v in kept.items()}
    return [stable(v) for v in value] if isinstance(value, list) else value


def stable_page(text: str) -> str:
    """A report without times and without the manifests that it shows."""
    text = re.sub(r"<pre[^>]*>\s*\{.*?</pre>", "<pre></pre>", html.unescape(text), flags=re.S)
    return re.sub(r"\b\d[\d.,]* (?:s|min|h)\b|\b\d{4}-\d\d-\d\dT[\d:]+Z", "…", text)


def digest_of(file: Path) -> str:
    """SHA-256 of what a file says, times aside."""
    if file.suffix == ".json":
        content = json.dumps(stable(json.loads(file.read_text(encoding="utf-8")))).encode()
    elif file.suffix == ".jsonl":
        lines = file.read_text(encoding="utf-8").splitlines()
        content = "\n".join(json.dumps(stable(json.loads(line))) for line in lines).encode()
    elif file.suffix == ".html":
        content = stable_page(file.read_text(encoding="utf-8")).encode()
    else:
        content = file.read_bytes()
    return hashlib.sha256(content).hexdigest()


def main(names: list[str]) -> None:
    from small_recipes import RECIPES, SMALL, run, steps

    from potstill.recipe import load_recipe

    folder = Path(tempfile.gettempdir()) / f"potstill-digests-{os.getuid()}"
    for name in names or sorted(SMALL):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        os.environ["POTSTILL_CACHE"] = str(folder / "cache")
        recipes = shutil.copytree(RECIPES[name].parent, folder / "recipes")
        changes = [*SMALL[name](folder), *steps(2, name), "evaluate.resamples=50"]
        run(load_recipe(recipes / RECIPES[name].name, changes), folder / "run")
        for file in sorted(path for path in (folder / "run").rglob("*") if path.is_file()):
            if file.name not in PASSED_OVER:
                print(digest_of(file), f"{name}/{file.relative_to(folder / 'run')}", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
