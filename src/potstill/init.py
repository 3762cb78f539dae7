"""`potstill init`: a recipe to start from, and prompts to try it with."""

from __future__ import annotations

import json
import re
from pathlib import Path

from potstill.artifacts import disk_error
from potstill.errors import RecipeError, RunError, did_you_mean
from potstill.shipped import shipped

RECIPE = """\
# potstill: one recipe, a section per stage. `potstill check recipe.yaml` says what it will do and cost.
name: my-student

# A directory, a GGUF file, a hub id, `run:<folder>` of another run, or a name that potstill knows.
teacher: {kind: local, model: smollm2-135m-instruct}

# The teacher's layers 0, 2, 4, …; or {uniform: 12}, {first: 6}, {by_influence: 15}, [0, 2, 4, 7, 9, 11].
student: {kind: from_teacher, layers: every_other}

# Prompts, conversations or texts: JSONL, JSON, CSV, Parquet, a folder of texts. A quarter is held out; a tenth will do
# where there are hundreds.
data: {kind: jsonl, path: prompts.jsonl, held_out: 0.25}

# The teacher answers the prompts. Leave this section out where the data already hold answers.
generate: {kind: sequence, max_new_tokens: 192, temperature: 0.7}

train:
  objectives:
    - {kind: forward_kl, weight: 1.0}
    - {kind: hidden_cosine, weight: 1.0}
  controls: [text_only]        # the same student, as many steps without the teacher's distribution
  args: {learning_rate: 5.0e-4, num_train_epochs: 2}   # any field of transformers.TrainingArguments

evaluate: {}
export: [{kind: huggingface}]
"""

PROMPTS = (
    "Explain to a ten-year-old why the sky is blue.",
    "My neighbour plays the drums at midnight. Help me write a polite note.",
    "List three things to check before buying a used bicycle.",
    "Turn this into one short sentence: The meeting, which had been planned for Monday, will now be held on Thursday.",
    "What is a palindrome? Give two examples.",
    "How do I keep basil alive on a windowsill?",
    "Write two lines of verse about an old lighthouse.",
    "Is this review positive or negative? 'The soup was cold and nobody seemed to care.'",
    "Name one advantage and one drawback of working from home.",
    "What happens to water when it freezes?",
    "Suggest a title for a story about a clock that runs backwards.",
    "In Python, how do I count the words in a string?",
)


def write_starter(folder: Path, recipe: str | None = None) -> list[Path]:
    """Write `recipe.yaml` and `prompts.jsonl` into a folder; or a recipe that comes with potstill, by name, with the
    files that it names.

    Raises:
        RecipeError: no recipe has that name.
        RunError: one of the files is there already, or the folder cannot be written.
    """
    if recipe is None:
        files = {
            folder / "recipe.yaml": RECIPE,
            folder / "prompts.jsonl": "".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS),
        }
    else:
        files = {folder / name: text for name, text in _files_of(recipe).items()}
    for path in files:
        if path.exists():
            raise RunError(
                "is there already, and is left as it is",
                where=str(path),
                fix="name another folder: potstill init FOLDER",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, folder) from error
    return list(files)


def _files_of(recipe: str) -> dict[str, str]:
    """A recipe that comes with potstill, as `recipe.yaml`, and the files and folders beside it that it names."""
    source = shipped("recipes")
    known = {file.stem: file for file in source.glob("*.yaml")} if source is not None else {}
    if source is None or recipe not in known:
        raise RecipeError(f"no recipe {recipe!r} comes with potstill{did_you_mean(recipe, known)}")
    text = known[recipe].read_text(encoding="utf-8")
    words = set(re.findall(r"[\w.-]+", text))
    beside = [path for path in sorted(source.iterdir()) if path.name in words and path.suffix != ".yaml"]
    files = [f for path in beside for f in (sorted(path.rglob("*")) if path.is_dir() else [path]) if f.is_file()]
    found = {file.relative_to(source).as_posix(): file for file in files if "__pycache__" not in file.parts}
    return {"recipe.yaml": text} | {name: file.read_text(encoding="utf-8") for name, file in found.items()}
