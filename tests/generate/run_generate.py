"""Runs the stage `generate` of a recipe as the pipeline does, in a process of its own that tests can kill.

python run_generate.py RECIPE RUN [key=value …]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import generate.fake_teacher  # noqa: F401 (registers the teacher)

from potstill.artifacts import write_artifact
from potstill.console import Console
from potstill.errors import PotstillError
from potstill.generate.stage import stage
from potstill.recipe import load_recipe
from potstill.stage import Context


def main(path: str, run: str, *overrides: str) -> int:
    recipe, folder = load_recipe(path, overrides), Path(run)
    made = stage(recipe)
    try:
        key, digests = made.key(recipe, {})
        with write_artifact(folder, made.name, key, settings=made.settings, inputs=digests, seed=recipe.seed) as work:
            made.write(Context(recipe, folder, {}, work, Console("quiet")))
    except PotstillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
