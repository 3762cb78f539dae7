"""Whole optimiser steps of the pair of `recipes/smollm2_half.yaml`, on the same batches: tokens/s and peak memory.

    python -m benchmarks.train_step --json

Teacher SmolLM2-135M-Instruct, student of every other layer, batches as that recipe's training deals them out: its
prompts with answers of 24 to 104 tokens (words of other prompts: only their number matters here). Forward KL at
temperature 1, AdamW, clipping at norm 1. Each variant has fresh processes of its own, rounds are interleaved.

    ours            DistillTrainer, objectives forward_kl alone
    gkd             TRL's experimental GKDTrainer, lmbda 0, beta 0: whole logits of every position
    distillation    TRL's DistillationTrainer, beta 0: its own chunked loss, on the batches instead of on generations

In `float32` both models are in fp32; in `bfloat16` the student's weights are fp32 under autocast and the teacher is in
bf16. The peers run without gradient checkpointing (TRL turns it on by default; it would cost them time). A worker takes
one step to warm up and then times the rest as a whole, data included. Peaks are above the loaded weights;
`peak_beyond_state_bytes` is what is left of them above gradients and optimiser state.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import PeakMemory, Row, Variant, has_peer, machine, print_result, ratio, run_interleaved
from potstill.console import Console
from potstill.data import ChatTokenizer, Tokenized, prompt_ids
from potstill.models import resolve
from potstill.models.saving import save_model
from potstill.recipe import ForwardKL, FromTeacher, load_recipe
from potstill.signals import IGNORE
from potstill.students import build_student
from potstill.train import DistillTrainer
from potstill.train.steps import FixedRows

MODULE = "benchmarks.train_step"
TEACHER = "smollm2-135m-instruct"
RECIPES = Path(__file__).parents[1] / "recipes"
ANSWER_TOKENS = (24, 104)
PEERS = ("gkd", "distillation")
DTYPES = ("float32", "bfloat16")
AIMS = [
    Aim("speed over gkd, its best dtype", "×", least=2.0),
    Aim("speed over distillation, its best dtype", "×", least=1.5),
    *(Aim(f"peak beyond state over {peer}, {dtype}", "×", most=0.5) for peer in PEERS for dtype in DTYPES),
]
UNEQUAL = 0.02
"""Maximum relative difference of the first step's losses, bf16 rounding included; beyond it, the variants do not
compute the same thing."""


def prepare(folder: Path, steps: int, batch_size: int) -> None:
    """Write the inputs of every worker: teacher, student, and the rows of the batches, in order."""
    source = resolve(TEACHER, console=Console())
    quiet = Console("quiet")
    built = build_student(FromTeacher(), teacher=source, tokenizer_source=source.path, seed=0, console=quiet)
    save_model(built.model, folder / "student")
    (folder / "teacher").symlink_to(source.path)
    prompts = [
        json.loads(line)["prompt"] for line in (RECIPES / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    chat = ChatTokenizer.from_folder(source.path)
    rows = recipe_rows(prompts, chat)
    order = FixedRows([Tokenized(r["prompt"] + r["answer"], []) for r in rows], batch_size)
    dealt = [rows[i] for step in order.order(0)[:steps] for i in step]
    (folder / "rows.json").write_text(json.dumps(dealt), encoding="utf-8")


def recipe_batch_size() -> int:
    """Rows of the recipe's micro-batch."""
    train = load_recipe(RECIPES / "smollm2_half.yaml").train
    assert train is not None
    return int(train.args["per_device_train_batch_size"])


def recipe_rows(prompts: Sequence[str], chat: ChatTokenizer) -> list[dict[str, list[int]]]:
    """Token ids of prompts and answers, with the end token; answer lengths cycle through the range."""
    shortest, longest = ANSWER_TOKENS
    words = cycle(chain.from_iterable(chat.encode(prompt).ids for prompt in prompts))
    end = [chat.eos_id] if chat.eos_id is not None else []
    lengths = (shortest + (37 * i) % (longest - shortest + 1) for i in range(len(prompts)))
    return [
        {"prompt": prompt_ids(prompt, chat), "answer": [*islice(words, length - 1), *end]}
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


# ---- the worker ----------------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(settings: Mapping[str, Any]) -> Row:
    """One variant, in this process."""
    folder, batch_size = Path(settings["folder"]), int(settings["batch_size"])
    rows: list[dict[str, list[int]]] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    student = _load(folder / "student", torch.float32)
    teacher = _load(folder / "teacher", getattr(torch, settings["dtype"]))
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        shared: dict[str, Any] = {
            "output_dir": out,
            "per_device_train_batch_size": batch_size,
            "max_steps": len(rows) // batch_size,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "constant",
            "bf16": settings["dtype"] == "bfloat16",
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": settings["device"] == "cpu",
            "dataloader_pin_memory": False,
        }
        trainer = TRAINERS[settings["by"]](student, teacher, rows, shared, folder, clock)
        peak = PeakMemory(torch.device(settings["device"]))
        peak.start()
        trainer.train()
        peak_bytes = peak.bytes()
    state = 3 * sum(p.numel() * p.element_size() for p in student.parameters())
    timed = rows[batch_size:]
    return {
        "seconds": [clock.ends[-1] - clock.ends[0]],
        "peak_bytes": peak_bytes,
        "peak_beyond_state_bytes": None if peak_bytes is None else peak_bytes - state,
        "state_bytes": state,
        "steps": len(clock.ends) - 1,
        "tokens": sum(len(row["prompt"]) + len(row["answer"]) for row in timed),
        "targets": sum(len(row["answer"]) for row in timed),
        "first_loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
    }


def _load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    for parameter in model.parameters():
        # Copied out of the memory-mapped file, so that the weights are counted before training, not during it.
        parameter.data = parameter.data.clone()
    assert isinstance(model, PreTrainedModel)
    return model


def ours(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: Any, shared: dict[str, Any], folder: Path, clock: Clock
) -> Any:
    return DistillTrainer(
        model=student,
        teacher=teacher,
        args=TrainingArguments(**shared),
        objectives=[ForwardKL()],
        train_dataset=[_labelled(row) for row in rows],
        processing_class=AutoTokenizer.from_pretrained(folder / "teacher"),
        callbacks=[clock],
    )


def gkd(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: Any, shared: dict[str, Any], folder: Path, clock: Clock
) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")

    def collate(batch: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        labelled = [_labelled(row) for row in batch]
        ids, mask = _padded([row["input_ids"] for row in labelled], tokenizer.pad_token_id)
        labels, _ = _padded([row["labels"] for row in labelled], IGNORE)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**shared, lmbda=0.0, beta=0.0, temperature=1.0, gradient_checkpointing=False),
        data_collator=collate,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )


def distillation(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: Any, shared: dict[str, Any], folder: Path, clock: Clock
) -> Any:
    from datasets import Dataset
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    class OnGivenText(DistillationTrainer):
        """Its loss and its step, on given answers."""

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            pad = tokenizer.pad_token_id
            prompts, prompt_mask = _padded([row["prompt"] for row in inputs], pad, left=True)
            answers, answer_mask = _padded([row["answer"] for row in inputs], pad)
            return {
                "prompt_ids": prompts,
                "prompt_mask": prompt_mask,
                "completion_ids": answers,
                "completion_mask": answer_mask,
                "num_items_in_batch": answer_mask.sum().float(),
            }

    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher", padding_side="left")
    # Its own sampler replaces the one named by the argument.
    settings = {key: value for key, value in shared.items() if key != "train_sampling_strategy"}
    return OnGivenText(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            **settings, beta=0.0, temperature=1.0, shuffle_dataset=False, gradient_checkpointing=False
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )


TRAINERS = {"ours": ours, "gkd": gkd, "distillation": distillation}


def _labelled(row: Mapping[str, list[int]]) -> dict[str, list[int]]:
    labels = [IGNORE] * len(row["prompt"]) + row["answer"]
    return {"input_ids": row["prompt"] + row["answer"], "labels": labels}


def _padded(rows: Sequence[list[int]], value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    filled, mask = torch.full((len(rows), width), value), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(len(row))
        filled[i, where], mask[i, where] = torch.tensor(row), 1
    return filled, mask


# ---- the result -----------------------------------------------------------------------------------------------------


def finished(rows: Sequence[Row]) -> list[Row]:
    """Rows with their rates, without the folder of this run.

    Raises:
        RuntimeError: a variant did not compute the same loss.
    """
    for row in rows:
        expected = next(r["first_loss"] for r in rows if r["by"] == "ours" and r["dtype"] == row["dtype"])
        if abs(row["first_loss"] / expected - 1) > UNEQUAL:
            raise RuntimeError(f"{row['variant']} computes something else: {row['first_loss']} against {expected}")
    return [
        {key: value for key, value in row.items() if key != "folder"}
        | {"tokens_per_second": round(row["tokens"] / row["seconds"], 1)}
        for row in rows
    ]


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """Speed and memory relative to each peer: in every dtype, and in the peer's fastest dtype."""
    found: dict[str, float | None] = {}
    speeds = {row["variant"]: row["tokens_per_second"] for row in rows}
    for peer in PEERS:
        dtypes = [dtype for dtype in DTYPES if f"{peer} {dtype}" in speeds]
        for dtype in dtypes:
            pair = (f"ours {dtype}", f"{peer} {dtype}")
            found[f"speed over {peer}, {dtype}"] = ratio(rows, *pair, key="tokens_per_second")
            found[f"peak beyond state over {peer}, {dtype}"] = ratio(rows, *pair, key="peak_beyond_state_bytes")
        if dtypes:
            best = max(dtypes, key=lambda dtype: speeds[f"{peer} {dtype}"])
            found[f"speed over {peer}, its best dtype"] = found[f"speed over {peer}, {best}"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(MODULE, __doc__, workers=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after one to warm up")
    parser.add_argument("--batch-size", type=int, default=recipe_batch_size(), help="the recipe's, unless it is given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))), flush=True)
        return
    names = ["ours", *(PEERS if has_peer("trl", "comparing training steps") else ())]
    about = machine(torch.device(options.device))
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.steps + 1, options.batch_size)
        shared = {"folder": folder, "batch_size": options.batch_size, "device": options.device}
        variants = [
            Variant(f"{name} {dtype}", {**shared, "by": name, "dtype": dtype})
            for dtype in options.dtypes
            for name in names
        ]
        rows = finished(run_interleaved(MODULE, variants, options.rounds))
    ratios = ratios_of(rows)
    print_result("train_step", about, rows, ratios, only_json=options.json, claims=claims_of(AIMS, ratios))


if __name__ == "__main__":
    main()
