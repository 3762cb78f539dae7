"""Lab 3: verified chains, a broken verifier, and a draft that is accepted and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from potstill.data import load_records
from potstill.decoding.generator import write
from potstill.errors import UserError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.resolve import resolve
from potstill.studio.course.lab1 import percent
from potstill.studio.course.labs import Bench, Block, Outcome, bars, run_link, table
from potstill.studio.records import find_rejects
from potstill.studio.workspace import read_run
from potstill.types import Sampling

TEACHER = """\
name: {name}
student:
  kind: from_config
  tokenizer: "{here}/additions_tokenizer"
  config: {model_type: llama, vocab_size: 17, hidden_size: 128, intermediate_size: 352, num_hidden_layers: 5,
           num_attention_heads: 4, num_key_value_heads: 4, max_position_embeddings: 128}
data: {kind: "{here}/additions.py:Additions", worked: true, size: 20000, seed: 1, held_out: 0.01}
train:
  objectives: [{kind: hard_ce}]
  max_length: 64
  evaluations: 4
  args: {max_steps: 460, per_device_train_batch_size: 64, learning_rate: 3.0e-3, lr_scheduler_type: linear,
         warmup_steps: 0.1, weight_decay: 0.0, bf16: true}
evaluate: {speed: false, controls: []}
"""

CHAINS = """\
name: {name}
teacher: {kind: local, model: "run:../learn-3-teacher"}
data: {kind: "{here}/additions.py:Additions", size: 600, seed: 2, held_out: 0.25}
generate: {kind: reasoning, verify: VERIFY, samples: 4, temperature: 0.7, max_new_tokens: 48, batch_size: 150}
student: {kind: from_teacher, layers: [0, 2, 4]}
train:
  objectives: [{kind: hard_ce}]
  max_length: 64
  evaluations: 2
  args: {max_steps: 340, per_device_train_batch_size: 64, learning_rate: 1.0e-3, lr_scheduler_type: linear,
         warmup_steps: 0.1, weight_decay: 0.0, bf16: true}
evaluate: {speed: false, controls: [], solve: {verify: {kind: numeric}, max_new_tokens: 48}}
"""


def teacher(bench: Bench) -> Outcome:
    """A teacher of sums, stopped before it is sure."""
    run = bench.run("learn-3-teacher", TEACHER)
    measures = bench.measures(run)
    nll = measures.models["student"].get("nll")
    shown = "" if nll is None else f" Its loss on unseen sums is {nll.value:.3f} nats a token."
    blocks: list[Block] = [
        {"kind": "text", "text": "4821+3977=1+7+0=08, 2+7+0=09, 8+9+0=17, 4+3+1=08, The answer is 8798"}
    ]
    return Outcome(
        True, f"A million numbers learned to work sums step by step.{shown}", [*blocks, run_link(run.name, "it")]
    )


def chains(bench: Bench) -> Outcome:
    """Four chains a problem, the verdicts on them, and a student of the right ones."""
    _teacher(bench)
    run = bench.run("learn-3-verified", CHAINS.replace("VERIFY", "{kind: numeric}"))
    kept = load_records(run / "generate" / "records.parquet")
    rejects = find_rejects(read_run(run))
    blocks: list[Block] = []
    for record in kept[:2]:
        blocks.append({"kind": "quote", "who": f"accepted: {record.prompt}", "text": record.completion or ""})
    for row in rejects.rows[:2]:
        blocks.append(
            {"kind": "quote", "who": f"{row.label}: {row.facts.get('detail', '')}", "text": row.turns[0].text}
        )
    blocks.append(bars("Chains", [("kept", len(kept)), *((n, c) for n, c in rejects.choices.items())]))
    blocks.append(run_link(run.name, "its records, rejects and student"))
    return Outcome(
        bool(kept), f"{len(kept)} chains were kept; {rejects.matches} were not, each with its reason.", blocks
    )


def compare(bench: Bench) -> Outcome:
    """Verified chains against all of them."""
    _teacher(bench)
    verified = bench.run("learn-3-verified", CHAINS.replace("VERIFY", "{kind: numeric}"))
    everything = bench.run("learn-3-all", CHAINS.replace("VERIFY", "{kind: numeric}, accept_all: true"))
    return _solved(bench, {"verified chains": verified, "all chains": everything})


def broken(bench: Bench) -> Outcome:
    """A verifier that lets through what is off by up to 2,000."""
    _teacher(bench)
    verified = bench.run("learn-3-verified", CHAINS.replace("VERIFY", "{kind: numeric}"))
    bad = bench.run("learn-3-broken", CHAINS.replace("VERIFY", "{kind: numeric, absolute_tolerance: 2000}"))
    kept = load_records(bad / "generate" / "records.parquet")
    wrong = sum(not ends_in(record.completion or "", str(record.metadata["reference"])) for record in kept)
    outcome = _solved(bench, {"a sound verifier": verified, "a broken one": bad})
    outcome.says = f"The broken verifier accepted {len(kept)} chains, {wrong} of them with a wrong sum. {outcome.says}"
    return outcome


def ends_in(chain: str, number: str) -> bool:
    """Whether a chain's last number is this one."""
    return chain.rstrip(". ").rpartition(" ")[2] == number


def _solved(bench: Bench, runs: dict[str, Path]) -> Outcome:
    rows: list[list[str]] = []
    values: list[tuple[str, float]] = []
    for called, run in runs.items():
        measures = bench.measures(run)
        for name in ("teacher", "student") if not rows else ("student",):
            solved = measures.models[name].get("solved") if name in measures.models else None
            if solved is not None:
                rows.append([called if name == "student" else "their teacher", percent(solved)])
                values.append((rows[-1][0], 100 * solved.value))
    blocks = [table(["learned from", "held-out sums solved"], rows), bars("Solved", values, " %", 100.0)]
    blocks += [run_link(run.name, called) for called, run in runs.items()]
    students = [value for name, value in values if name != "their teacher"]
    gap = students[0] - students[-1] if len(students) > 1 else 0.0
    return Outcome(len(students) > 1, f"{gap:+.1f} points between the two students, in one seed.", blocks)


def _teacher(bench: Bench) -> None:
    if not (bench.workspace.folder / "learn-3-teacher" / "train").is_dir():
        raise UserError("there is no teacher of sums yet", fix="do step 1 of this lab first")


def draft(bench: Bench) -> Outcome:
    """A student drafts, its teacher verifies: which tokens are accepted, and with which probability."""
    _teacher(bench)
    if not (bench.workspace.folder / "learn-3-verified" / "train").is_dir():
        raise UserError("there is no student of sums yet", fix="do step 2 of this lab first")
    opened = []
    for name in ("learn-3-teacher", "learn-3-verified"):
        opened.append(
            load_model(resolve(f"run:{bench.workspace.folder / name}", console=bench.console), dtype="float32")
        )
    big, small = opened
    tokenizer = load_tokenizer(resolve(f"run:{bench.workspace.folder / 'learn-3-teacher'}", console=bench.console))
    sums = [s.strip() for s in bench.fields["sums"].split(",") if s.strip()][:4]
    blocks: list[Block] = []
    shares: list[float] = []
    for text in sums:
        ids = tokenizer(text if text.endswith("=") else f"{text}=")["input_ids"]
        drawn = write(small, [ids], Sampling(60, temperature=1.0), samples=[0], most_new=60,  # type: ignore[arg-type]
                      stop_ids=[tokenizer.eos_token_id], pad_id=0, seed=1)[0]  # fmt: skip
        p, q = (_next(model, ids, drawn) for model in (big, small))
        chance = [min(1.0, p[t][i] / max(q[t][i], 1e-12)) for t, i in enumerate(drawn)]
        shares += [float(torch.minimum(torch.tensor(a), torch.tensor(b)).sum()) for a, b in zip(p, q, strict=True)]
        tokens = [
            {"text": tokenizer.decode([i]), "class": f"k{min(9, int(10 * (1 - c)))}",
             "title": f"accepted with probability {c:.2f}: p = {p[t][i]:.2f}, q = {q[t][i]:.2f}"}
            for t, (i, c) in enumerate(zip(drawn, chance, strict=True))
        ]  # fmt: skip
        blocks.append({"kind": "tokens", "title": text, "tokens": tokens,
                       "note": "The darker, the likelier refused. Point at a token for p and q."})  # fmt: skip
    alpha = sum(shares) / max(len(shares), 1)
    says = f"On average {100 * alpha:.0f} % of the draft's probability is the teacher's too (α = Σ min(p, q)). "
    rounds = (1 - alpha**5) / (1 - alpha) if alpha < 1 else 5.0
    says += f"At γ = 4 that would be {rounds:.2f} tokens a round, if acceptances were independent."
    return Outcome(bool(blocks), says, blocks)


def _next(model: Any, prompt: list[int], written: list[int]) -> list[list[float]]:
    """The distributions [V] from which each written token was drawn."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + written])).logits[0]
    found: list[list[float]] = logits[len(prompt) - 1 : -1].float().softmax(-1).tolist()
    return found
