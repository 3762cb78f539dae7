"""Time to compare one instruction with a pool by ROUGE-L.

    python -m benchmarks.rouge --json                 52,000 instructions, 500 new ones

Each instruction is a shipped seed with some words replaced by words drawn by their frequency in all seeds, so that
lengths, frequent words and near duplicates resemble real pools. `plain` computes the LCS with every text of the pool by
the same library, without bounds; both must agree.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import machine, print_result, say
from potstill.generate.rouge import Pool, rouge_tokens

SEEDS = Path(__file__).parents[1] / "recipes" / "seeds.jsonl"
ABOVE = 0.7
AIMS = [Aim("a comparison with 52,000 instructions, mean", "ms", most=8.0)]


def instructions(amount: int, seed: int) -> list[str]:
    """Synthetic instructions: 15 to 100 % of a seed's words are replaced."""
    drawn = random.Random(seed)
    rows = [json.loads(line) for line in SEEDS.read_text(encoding="utf-8").splitlines()]
    texts = [rouge_tokens(f"{row['instruction']} {row['input']}") for row in rows]
    words = [word for text in texts for word in text]
    made = []
    for _ in range(amount):
        share = drawn.uniform(0.15, 1.0)
        made.append(" ".join(drawn.choice(words) if drawn.random() < share else w for w in drawn.choice(texts)))
    return made


def plain_most(texts: list[list[str]], new: str) -> float:
    """The largest F over the whole pool."""
    from rapidfuzz.distance import LCSseq

    tokens = rouge_tokens(new)
    return max((2.0 * LCSseq.similarity(tokens, text) / (len(tokens) + len(text)) for text in texts), default=0.0)


def main() -> None:
    parser = command_line("benchmarks.rouge", __doc__)
    parser.add_argument("--pool", type=int, default=52_000)
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--plain", type=int, default=20, help="how many are also compared without bounds")
    options = parser.parse_args()
    about = machine(torch.device("cpu"))
    pool, texts = Pool(), instructions(options.pool, 0)
    started = time.process_time()
    for text in texts:
        pool.add(text)
    say(f"{len(pool):,} instructions in the pool after {time.process_time() - started:.1f} s")
    new = instructions(options.new, 1)
    milliseconds, found = [], []
    for text in new:
        started = time.process_time()
        found.append(pool.most_similar(text, ABOVE))
        milliseconds.append(1000 * (time.process_time() - started))
    tokens = [rouge_tokens(text) for text in texts]
    plain = []
    for text, similar in zip(new[: options.plain], found, strict=False):
        started = time.process_time()
        most = plain_most(tokens, text)
        plain.append(1000 * (time.process_time() - started))
        if (most if most > ABOVE else None) != (similar.f if similar is not None else None):
            raise SystemExit(f"another verdict without bounds: {most} and {similar} on {text!r}")
    row: dict[str, Any] = {
        "variant": "pool",
        "pool": len(pool),
        "cpu_ms_median": round(statistics.median(milliseconds), 3),
        "cpu_ms_mean": round(statistics.mean(milliseconds), 3),
        "cpu_ms_99": round(sorted(milliseconds)[int(0.99 * len(milliseconds))], 3),
        "similar_share": round(sum(s is not None for s in found) / len(found), 3),
    }
    rows = [row]
    if plain:
        rows.append({"variant": "plain", "pool": len(pool), "cpu_ms_mean": round(statistics.mean(plain), 1)})
    ratios = {"pool / limit of 8 ms": round(row["cpu_ms_mean"] / 8, 4)}
    claims = claims_of(AIMS, {AIMS[0].name: row["cpu_ms_mean"]})
    print_result("rouge", about, rows, ratios, only_json=options.json, claims=claims)


if __name__ == "__main__":
    main()
