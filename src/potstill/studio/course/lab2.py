"""Lab 2: three small students by three sets of objectives, and what a byte per token buys."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from potstill.data import load_records
from potstill.errors import UserError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.resolve import resolve
from potstill.quantities import counted
from potstill.studio.course.lab1 import TEACHER
from potstill.studio.course.labs import Bench, Block, Outcome, bars, run_link, table

PROMPTS = """\
Name a fruit that is yellow.
What colour is the sky at noon?
Write one sentence about rain.
Give a reason to sleep early.
What do bees make?
Name a tool for cutting wood.
Say hello in a friendly way.
What is two plus three?
Describe snow in one sentence.
Name an animal that swims.
What do you need to bake bread?
Give a word that means happy.
Why do people wear hats?
What is a bridge for?
Name a musical instrument.
Write a short note to a neighbour.
What is the opposite of cold?
Name something found in a kitchen.
How do plants get water?
Suggest a name for a cat.
What is a library?
Give one rule for crossing a street.
Describe the sea in one sentence.
What does a clock show?
Name a month in winter.
Write a title for a story about a lamp.
What is glass made of?
Give a tip for remembering names.
Why does ice float?
Name a shape with three sides.
What is a map?
Finish the sentence: In the morning I
"""

ANSWERS = """\
name: {name}
teacher: {kind: local, model: smollm2-135m-instruct}
data: {kind: jsonl, path: prompts.jsonl, format: prompt, held_out: 0.25}
generate: {kind: sequence, max_new_tokens: 32, temperature: 0.7, batch_size: 32}
"""

STUDENT = """\
name: {name}
teacher: {kind: local, model: smollm2-135m-instruct}
student: {kind: from_teacher, layers: LAYERS}
data: "run:../learn-2-answers"
train:
  objectives: OBJECTIVES
  max_length: 96
  evaluations: 2
  args: {max_steps: STEPS, per_device_train_batch_size: 4, learning_rate: 5.0e-4, lr_scheduler_type: cosine,
         warmup_steps: 0.1}
evaluate: {speed: false, controls: [], samples_shown: 0}
"""

ARMS = {
    "text": "[{kind: hard_ce}]",
    "soft": "[{kind: forward_kl, weight: WEIGHT, temperature: TEMPERATURE}]",
    "soft-hidden": "[{kind: forward_kl, weight: WEIGHT, temperature: TEMPERATURE}, {kind: hidden_cosine}]",
}
"""What a student is asked to match, by the end of its run's name."""


def answers(bench: Bench) -> Outcome:
    """The teacher writes once; all students learn from the same text."""
    folder = bench.workspace.folder / "learn-2-answers"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS.splitlines())
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    run = bench.run("learn-2-answers", ANSWERS)
    records = load_records(run / "generate" / "records.parquet")
    blocks: list[Block] = []
    for record in records[:3]:
        told = {str(m["role"]): str(m["content"]) for m in record.messages or ()}
        blocks.append({"kind": "quote", "who": told.get("user", ""), "text": told.get("assistant", "")})
    blocks.append(run_link(run.name, "all answers, with their provenance"))
    return Outcome(
        bool(records),
        f"The teacher answered {counted(len(records), 'prompt')}; a quarter of them is never trained on.",
        blocks,
    )


def students(bench: Bench) -> Outcome:
    """Three students, the same but for their objectives."""
    if not (bench.workspace.folder / "learn-2-answers" / "generate").is_dir():
        raise UserError("the teacher has not answered yet", fix="do step 1 of this lab first")
    steps = number(bench, "steps", 4, 400)
    temperature, weight = number(bench, "temperature", 0.1, 20), number(bench, "weight", 0.01, 100)
    layers = bench.fields["layers"].strip()
    rows, made = [], []
    for arm, objectives in ARMS.items():
        recipe = STUDENT.replace("OBJECTIVES", objectives).replace("STEPS", f"{steps:.0f}").replace("LAYERS", layers)
        recipe = recipe.replace("WEIGHT", f"{weight:g}").replace("TEMPERATURE", f"{temperature:g}")
        run = bench.run(f"learn-2-{arm}", recipe)
        measures, seconds = bench.measures(run), bench.seconds(run, "train")
        student = measures.models["student"]
        kl, agreement, nll = student.get("kl"), student.get("top1_agreement"), student.get("nll")
        assert kl is not None and agreement is not None and nll is not None
        rows.append([_CALLED[arm], f"{kl.value:.2f} [{kl.low:.2f}, {kl.high:.2f}]",
                     f"{100 * agreement.value:.0f} %", f"{nll.value:.2f}", f"{seconds:.0f}"])  # fmt: skip
        made.append((kl.value, _CALLED[arm], run.name))
    best = min(made)
    blocks = [
        table(["objectives", "KL to the teacher", "agreement", "NLL", "seconds of training"], rows),
        *(run_link(name, called) for _, called, name in made),
    ]
    says = (
        f"Nearest to the teacher on what it never saw: {best[1]}, with a KL of {best[0]:.2f}. Do the intervals overlap?"
    )
    return Outcome(len(rows) == len(ARMS), says, blocks)


def store(bench: Bench) -> Outcome:
    """A student that learns from stored distributions, beside the one whose teacher was there."""
    if not (bench.workspace.folder / "learn-2-answers" / "generate").is_dir():
        raise UserError("the teacher has not answered yet", fix="do step 1 of this lab first")
    size = number(bench, "bytes", 6, 1000)
    recipe = STUDENT.replace("OBJECTIVES", "[{kind: forward_kl}]").replace("STEPS", "18")
    recipe = recipe.replace("evaluate: {", "evaluate: {teacher: live, ")  # as the other student was measured
    recipe = recipe.replace("LAYERS", "every_other") + f"capture: {{kind: threshold, bytes_per_token: {size:g}}}\n"
    run = bench.run("learn-2-store", recipe)
    kept = json.loads((run / "capture" / "fidelity.json").read_text(encoding="utf-8"))
    rows = []
    for name, called in (("learn-2-store", "stored signals"), ("learn-2-soft", "the teacher itself")):
        if (bench.workspace.folder / name / "evaluate").is_dir():
            kl = bench.measures(bench.workspace.folder / name).models["student"].get("kl")
            assert kl is not None
            rows.append([called, f"{kl.value:.2f} [{kl.low:.2f}, {kl.high:.2f}]"])
    says = (
        f"Each token took {kept['bytes_per_token']:.1f} bytes, and {kept['store_bytes'] / 1000:,.0f} kB hold them all: "
        "its 49,152 probabilities would take 98,304 in 16 bits. No teacher was in memory while the student learned."
    )
    return Outcome(True, says, [table(["learned from", "KL to the teacher"], rows), run_link(run.name, "the run")])


_CALLED = {"text": "the text alone", "soft": "soft targets", "soft-hidden": "soft targets and last hidden state"}


def number(bench: Bench, name: str, low: float, high: float) -> float:
    """A field as a number. Raises: UserError."""
    try:
        value = float(bench.fields[name].replace(",", "."))
    except ValueError as error:
        raise UserError(f"{bench.fields[name]!r} is no number", where=name) from error
    if not low <= value <= high:
        raise UserError(f"{value:g} is out of range", where=name, fix=f"between {low:g} and {high:g}")
    return value


# ---- what a byte buys --------------------------------------------------------------------------------------------


def estimates(p: Any, draws: int, generator: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    """Ways to keep a distribution p [V]: bytes, squared bias and mean squared error of each, over the vocabulary.

    Ids take 2 bytes and probabilities 2. Of what is drawn, the mean over `draws` estimates the bias; its own noise
    (variance / draws) is taken off.
    """
    found: dict[str, tuple[float, float, float]] = {}
    order = np.argsort(-p)
    for k in (12, 50):
        kept = np.zeros_like(p)
        kept[order[:k]] = p[order[:k]] / p[order[:k]].sum()
        error = float(((kept - p) ** 2).sum())
        found[f"top-{k}, rescaled"] = (4.0 * k, error, error)
    for n in (12, 50):
        counts = generator.multinomial(n, p / p.sum(), size=draws) / n
        error = float(((counts - p) ** 2).sum(1).mean())
        variance = float(counts.var(0, ddof=1).sum())
        bias = max(float(((counts.mean(0) - p) ** 2).sum()) - variance / draws, 0.0)
        found[f"{n} drawn"] = (4.0 * n, bias, error)
    return found


def byte(bench: Bench) -> Outcome:
    """Bias and error of stored distributions of the real teacher, by bytes a token."""
    source = resolve(TEACHER, console=bench.console)
    tokenizer, model = load_tokenizer(source), load_model(source, dtype="float32")
    ids = torch.tensor([tokenizer(" ".join(PROMPTS.splitlines()))["input_ids"][:64]])
    with bench.console.task("reading", total=ids.shape[1], unit="tokens") as task:
        with torch.no_grad():
            rows = model(ids).logits[0].softmax(-1).double().numpy()
        generator = np.random.default_rng(0)
        sums: dict[str, list[tuple[float, float, float]]] = {}
        for p in rows:
            for name, values in estimates(p, 32, generator).items():
                sums.setdefault(name, []).append(values)
            task.advance(1)
    means = {name: np.mean(values, axis=0) for name, values in sums.items()}
    shown = [[name, f"{m[0]:,.0f}", f"{m[1]:.5f}", f"{m[2]:.5f}"] for name, m in means.items()]
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    shown.append(["hidden state", f"{2 * width:,}", "0", "0 (but for rounding)"])
    shown.append(["whole, 16 bits", f"{2 * rows.shape[1]:,}", "0", "0 (but for rounding)"])
    bias = [(name, float(m[1])) for name, m in means.items()]
    lost = 100 * float(np.mean([1 - np.sort(p)[-50:].sum() for p in rows]))
    says = (
        f"Over {len(rows)} tokens the top 50 leave out {lost:.1f} % of the probability. What is drawn has the larger "
        "error and no bias: over many tokens errors average out, and a bias does not."
    )
    return Outcome(True, says, [table(["kept", "bytes a token", "squared bias", "mean squared error"], shown),
                                bars("Squared bias", bias)])  # fmt: skip
