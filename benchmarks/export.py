"""Exports of a trained student, in the engines that they are for: distance from the student, size, tokens per second.

    python -m benchmarks.export --student runs/demo/train/model --json

The student writes 64 tokens greedily after each of 50 prompts, in fp32. Each file is opened by its engine and compared
(`potstill.export.comparison`). Rates are of one sequence, 32 tokens behind 64, in turn, medians of rounds, with as many
threads for every engine as OMP_NUM_THREADS says, else as there are cores; `times_transformers` is a rate over that of
`transformers` in float32.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import machine
from potstill.console import Console
from potstill.decoding.generator import write
from potstill.export import comparison, gguf, llama_cpp, onnx, onnx_file, openvino
from potstill.export.end_tokens import end_tokens
from potstill.export.gguf_file import write_gguf
from potstill.export.graph import size_of
from potstill.recipe.export import K_QUANTS, GgufType
from potstill.tasks import SPECS

KINDS: tuple[GgufType, ...] = ("f16", "q8_0", "q6_k", "q4_k_m", "q4_0")
GRAPHS = ("float32", "int8")
IN_OPENVINO = ("float16", "float32")
BEHIND, NEW = 64, 32

AIMS = [
    Aim("gguf f16: greedy texts equal", "share", least=0.95),
    Aim("gguf f16: KL to the student", "nats per token", most=1e-3),
]


def run(
    student: Path,
    kinds: Sequence[GgufType],
    graphs: Sequence[str],
    in_openvino: Sequence[str],
    prompts: int,
    tokens: int,
    rounds: int,
    folder: Path,
) -> dict[str, Any]:
    """Write, compare and time every file."""
    files = {f"gguf {kind}": _gguf(student, kind, folder) for kind in kinds}
    files |= {f"onnx {kind}": _onnx(student, kind, folder) for kind in graphs}
    files |= {f"openvino {kind}": _openvino(student, kind, folder) for kind in in_openvino}
    tolerances = {f"gguf {kind}": gguf.TOLERANCE[kind] for kind in kinds}
    tolerances |= {f"onnx {kind}": onnx.TOLERANCE[kind] for kind in graphs}
    tolerances |= {f"openvino {kind}": openvino.TOLERANCE[kind] for kind in in_openvino}
    compared = comparison.compare(
        student,
        {name: _opened(file) for name, file in files.items()},
        tolerances,
        count=prompts,
        most_new=tokens,
        console=Console("quiet"),
    )
    with ExitStack() as stack:
        writers: dict[str, Callable[[list[int]], object]] = {}
        for precision in (torch.float32, torch.bfloat16):
            model = comparison.open_student(student, dtype=precision)
            writers[f"transformers {str(precision).removeprefix('torch.')}"] = _writer(model)
        for name, file in files.items():
            engine = stack.enter_context(_opened(file))
            writers[name] = lambda ids, engine=engine: engine.write(ids, NEW, ())  # type: ignore[misc]
        rates = _rates(writers, rounds)
    sizes = {name: size_of(file) for name, file in files.items()}
    sizes["transformers float32"] = sum(f.stat().st_size for f in student.glob("*.safetensors"))
    rows = [
        {
            "file": name,
            "bytes": sizes.get(name),
            "tokens_per_second": round(rate, 1),
            "times_transformers": round(rate / rates["transformers float32"], 2),
            **_figures(compared.get(name)),
        }
        for name, rate in rates.items()
    ]
    half = compared.get("gguf f16")
    values = {
        "gguf f16: greedy texts equal": half.same_texts / half.prompts if half is not None else None,
        "gguf f16: KL to the student": half.kl if half is not None else None,
    }
    return {"rows": rows, "values": values, "claims": claims_of(AIMS, values)}


def _gguf(student: Path, kind: GgufType, folder: Path) -> Path:
    file, ends = folder / f"model-{kind}.gguf", end_tokens(student)
    if kind not in K_QUANTS:
        write_gguf(student, file, kind, end_tokens=ends, name="student")
        return file
    if not (whole := folder / "whole.gguf").exists():
        write_gguf(student, whole, "f32", end_tokens=ends, name="student")
    llama_cpp.quantise(whole, file, kind)
    return file


def _openvino(student: Path, kind: str, folder: Path) -> Path:
    openvino.convert(_onnx(student, "float32", folder), file := folder / f"model_{kind}.xml", half=kind == "float16")
    return file


def _onnx(student: Path, kind: str, folder: Path) -> Path:
    if not (whole := folder / "model.onnx").exists():
        onnx_file.write_onnx(comparison.open_student(student), SPECS["causal_lm"], whole)
    if kind == "float32":
        return whole
    onnx_file.quantise(whole, file := folder / f"model_{kind}.onnx")
    return file


def _opened(file: Path) -> AbstractContextManager[comparison.Engine]:
    engines: dict[str, Callable[[Path], AbstractContextManager[comparison.Engine]]] = {
        ".gguf": llama_cpp.opened,
        ".onnx": onnx.opened,
        ".xml": openvino.opened,
    }
    return engines[file.suffix](file)


def _writer(model: Any) -> Callable[[list[int]], object]:
    return lambda ids: write(model, [ids], comparison.GREEDY, samples=[0], most_new=NEW, stop_ids=(), pad_id=0, seed=0)


def _rates(writers: dict[str, Callable[[list[int]], object]], rounds: int) -> dict[str, float]:
    """Tokens written per second, prompt included in the time; the first round warms up."""
    ids = list(range(100, 100 + BEHIND))
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(rounds + 1):
        for name, wrote in writers.items():
            begun = time.perf_counter()
            wrote(ids)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return {name: NEW / statistics.median(taken) for name, taken in seconds.items()}


def _figures(found: comparison.Comparison | None) -> dict[str, Any]:
    return {} if found is None else asdict(found)


def main() -> None:
    parser = command_line("benchmarks.export", __doc__)
    parser.add_argument("--student", type=Path, default=Path("runs/demo/train/model"))
    parser.add_argument("--types", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--graphs", nargs="*", choices=GRAPHS, default=GRAPHS, help="types of ONNX graphs")
    parser.add_argument("--openvino", nargs="*", choices=IN_OPENVINO, default=IN_OPENVINO, help="of OpenVINO's graphs")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    there = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            asked.student,
            asked.types,
            asked.graphs,
            asked.openvino,
            asked.prompts,
            asked.tokens,
            asked.rounds,
            Path(folder),
        )
    for row in result["rows"]:
        print(" · ".join(f"{key} {value}" for key, value in row.items()))
    if asked.json:
        print(json.dumps({"benchmark": "export", "machine": there, **result}))


if __name__ == "__main__":
    main()
