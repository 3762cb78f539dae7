"""Lab 1: a teacher's distribution, dark knowledge, a student with and without soft targets, the price of a token."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from potstill.console import Console
from potstill.data import Pixels, read_sides
from potstill.decoding.generator import write
from potstill.errors import UserError
from potstill.measures import Interval
from potstill.models.load import load_model, load_tokenizer
from potstill.models.resolve import resolve
from potstill.recipe import load_recipe
from potstill.report.verdict import judge
from potstill.studio.course.labs import Bench, Block, Outcome, bars, run_link, table
from potstill.types import Sampling

TEACHER = "smollm2-135m-instruct"
SHOWN = 12
"""Tokens of a distribution that are shown."""


def distribution(bench: Bench) -> Outcome:
    """The teacher's logits behind a prompt, kept whole, so that any temperature can be shown."""
    prompt = bench.fields["prompt"].strip()
    if not prompt:
        raise UserError("there is no sentence", where="prompt", fix="write its beginning")
    with bench.console.task("opening the teacher", total=2, unit="steps") as task:
        source = resolve(TEACHER, console=bench.console)
        tokenizer, model = load_tokenizer(source), load_model(source)
        task.advance(1, "reading the sentence")
        ids = torch.tensor([tokenizer(prompt)["input_ids"][-256:]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1].float().numpy()
        task.advance(1)
    np.save(bench.folder / "distribution.npy", logits.astype(np.float32))
    top = np.argsort(-logits)[:SHOWN]
    tokens = [shown_token(str(tokenizer.decode([int(i)]))) for i in top]
    entropies = {t: entropy(logits, t) for t in (1.0, 2.0, 4.0)}
    words = ", ".join(f"{np.exp(h):,.0f} at T = {t:g}" for t, h in entropies.items())
    says = (
        f"{source.name} read {ids.shape[1]} tokens. Its distribution is as broad as that of so many equally likely "
        f"tokens: {words}."
    )
    return Outcome(True, says, [{"kind": "distribution", "ids": top.tolist(), "tokens": tokens, "prompt": prompt}])


def shown_token(text: str) -> str:
    """A token with its white space visible where it is nothing else."""
    return text.strip() or text.replace("\n", "⏎").replace(" ", "␣") or "∅"


def softmax(logits: Any, temperature: float) -> Any:
    """Probabilities [V] at a temperature."""
    z = logits.astype(np.float64) / temperature
    weights = np.exp(z - z.max())
    return weights / weights.sum()


def entropy(logits: Any, temperature: float) -> float:
    """In nats."""
    p = softmax(logits, temperature)
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum())


DIGITS = """\
name: {name}
task: image_classification
student: {kind: module, source: "{here}/nets.py:LargeNet", arguments: {width: 32, dropout: 0.3}}
data: {kind: digits, held_out: 0.8}
train:
  objectives: [{kind: hard_ce}]
  evaluations: 4
  args: {num_train_epochs: 40, per_device_train_batch_size: 32, learning_rate: 2.0e-3, lr_scheduler_type: cosine,
         warmup_steps: 0.1, weight_decay: 0.01}
evaluate: {speed: false}
"""

STUDENT = """\
name: {name}
task: image_classification
teacher: {kind: local, model: "run:../learn-1-teacher"}
student: {kind: module, source: "{here}/nets.py:SmallNet", arguments: {width: 16}}
data: {kind: digits, held_out: 0.8}
train:
  objectives:
    - {kind: forward_kl, weight: 1.0, temperature: 4.0}
    - {kind: hard_ce, weight: 0.1}
  controls: [text_only]
  evaluations: 6
  args: {num_train_epochs: 60, per_device_train_batch_size: 32, learning_rate: 3.0e-3, lr_scheduler_type: cosine,
         warmup_steps: 0.1}
evaluate: {speed: false}
"""


def dark(bench: Bench) -> Outcome:
    """Train the teacher of digits, and find the sevens that look most like ones to it."""
    run = bench.run("learn-1-teacher", DIGITS)
    measures = bench.measures(run)
    recipe = load_recipe(run / "recipe.yaml")
    sides = read_sides(recipe.data)
    model = load_model(resolve(f"run:{run}", console=Console("quiet")), task="image_classification", device="cpu")
    held = [image for image in sides.held_out if isinstance(image, Pixels) and image.label is not None]
    pixels = np.stack([np.asarray(image.pixels) for image in held])
    with torch.no_grad():
        probabilities = model(seen(pixels)).softmax(-1).numpy()
    labels = np.array([image.label for image in held])
    right = probabilities.argmax(1) == labels
    ones_of_sevens = np.where((labels == 7) & right, probabilities[:, 1], -1.0)
    blocks: list[Block] = []
    for index in np.argsort(-ones_of_sevens)[:3]:
        top = sorted(enumerate(probabilities[index].tolist()), key=lambda pair: -pair[1])[:4]
        blocks.append(
            {
                "kind": "digit",
                "pixels": pixels[index].tolist(),
                "title": f"A 7, and to the teacher {100 * probabilities[index, 1]:.1f} % a 1",
                "values": [[f"{label}", 100 * p] for label, p in top],
            }
        )
    mean = probabilities[(labels == 7) & right].mean(0)
    rest = sorted(((f"{d}", 100 * float(p)) for d, p in enumerate(mean) if d != 7), key=lambda pair: -pair[1])[:5]
    blocks.append(bars("What the teacher gives, over all sevens, to other digits", rest, " %"))
    blocks.append(run_link(run.name, "the teacher's run"))
    accuracy = measures.models["student"].get("accuracy")
    passed = accuracy is not None and accuracy.value > 0.8
    shown = "unknown" if accuracy is None else f"{100 * accuracy.value:.1f} %"
    return Outcome(passed, f"The teacher is right on {shown} of {len(held):,} digits that it never saw.", blocks)


def seen(pixels: Any) -> torch.Tensor:
    """Images [N,8,8] of 0 to 255 as a model of digits sees them: [N,1,8,8] of −1 to 1."""
    return (torch.tensor(pixels, dtype=torch.float32)[:, None] / 255 - 0.5) / 0.5


def students(bench: Bench) -> Outcome:
    """The same student with soft targets and without."""
    teacher = bench.run("learn-1-teacher", DIGITS)
    run = bench.run("learn-1-student", STUDENT)
    measures = bench.measures(run)
    rows = []
    for name, called in (("teacher", "teacher"), ("student", "with soft targets"), ("text_only", "labels alone")):
        m = measures.models.get(name)
        if m is not None and (accuracy := m.get("accuracy")) is not None:
            kl = m.get("kl")
            rows.append([called, f"{m.parameters:,}", percent(accuracy), "–" if kl is None else f"{kl.value:.3f}"])
    blocks = [
        table(["", "parameters", "right, of unseen digits", "KL to the teacher"], rows),
        run_link(run.name, "the two trainings"),
        run_link(teacher.name, "their teacher"),
    ]
    return Outcome("text_only" in measures.models, judge(measures).worth, blocks)


def percent(value: Interval) -> str:
    """`97.7 % [96.9, 98.5]`."""
    return f"{100 * value.value:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def price(bench: Bench) -> Outcome:
    """Tokens a second, one answer at a time and sixteen at once, and what a million cost."""
    try:
        dollars = float(bench.fields["dollars"].replace(",", "."))
    except ValueError as error:
        raise UserError("the price of an hour is no number", where="dollars", fix="write it as 0.10") from error
    if not 0 <= dollars < 1e6:
        raise UserError("the price of an hour is out of range", where="dollars", fix="write it as 0.10")
    source = resolve(TEACHER, console=bench.console)
    tokenizer, model = load_tokenizer(source), load_model(source)
    prompt = tokenizer("Write about the sea.")["input_ids"]
    rates = {}
    tokens = 32
    with bench.console.task("writing", total=3 * tokens, unit="tokens") as task:
        for batch in (1, 16):
            write(model, [prompt], Sampling(2), samples=[0], most_new=2, stop_ids=[], pad_id=0, seed=0)  # type: ignore[arg-type]
            started = time.monotonic()
            for seed in range(2 if batch == 1 else 1):
                written = write(
                    model,  # type: ignore[arg-type]
                    batch * [prompt],
                    Sampling(tokens, temperature=0.7),
                    samples=batch * [0],
                    most_new=tokens,
                    stop_ids=[],
                    pad_id=0,
                    seed=seed,
                    wrote=lambda count: task.advance(1),
                )
            seconds = time.monotonic() - started
            rates[batch] = (2 if batch == 1 else 1) * sum(map(len, written)) / seconds
    per_token = {batch: dollars / 3600 / rate for batch, rate in rates.items()}
    rows = [[f"here, {b} at a time", f"{rates[b]:,.0f}", f"{1e6 * per_token[b]:,.2f}"] for b in rates]
    rows += [[name, "–", f"{cost:,.2f}"] for name, cost in served_prices()]
    gain = rates[16] / rates[1]
    says = f"Sixteen answers at once cost 1/{gain:.1f} of what one at a time costs, a token, on this machine."
    return Outcome(len(rows) > 1, says, [table(["", "tokens a second", "dollars per million tokens"], rows)])


def served_prices() -> list[tuple[str, float]]:
    """Prices of tokens written by some servers, from the table of `genai-prices`, offline."""
    import genai_prices

    found = []
    for name in ("gpt-4o-mini", "gpt-4o", "claude-3-5-haiku-latest"):
        try:
            price = genai_prices.calc_price(genai_prices.Usage(output_tokens=1_000_000), name)
            found.append((f"{name}, from a server", float(price.total_price)))
        except (LookupError, ValueError):
            continue
    return found
