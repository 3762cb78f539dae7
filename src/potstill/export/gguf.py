"""Export to GGUF files, opened in llama.cpp and compared with the student there."""

from __future__ import annotations

from potstill.artifacts import Work
from potstill.console import Console
from potstill.export import serving
from potstill.export.base import Student, check_possible, write_card
from potstill.export.end_tokens import end_tokens
from potstill.models.folder import check_folder
from potstill.recipe.export import K_QUANTS, GgufExport
from potstill.registry import implements

TOLERANCE = {"f32": 1e-3, "f16": 1e-3, "q8_0": 0.05, "q6_k": 0.1, "q5_k_m": 0.3, "q4_k_m": 1.0, "q4_0": 1.0}
"""Largest mean KL(student ‖ file), nats per token. A wrong file is several nats away, so that these tell rounding from
error; what rounding costs stands on the card."""


@implements(GgufExport)
class Gguf:
    """Exporter of kind `gguf`."""

    def __init__(self, settings: GgufExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write a file `model-<type>.gguf` per type, configurations of servers for the first, and the card.

        Raises:
            ModelError: the student cannot be written as GGUF, or a file is not the student in llama.cpp.
            MissingExtra: llama.cpp is not installed.
        """
        from potstill.export import comparison
        from potstill.export.gguf_file import write_gguf
        from potstill.export.llama_cpp import opened, quantise

        check_folder(student.model)
        check_possible(self.settings, student.task)
        kinds = self.settings.types
        files = {kind: work.path / f"model-{kind.upper()}.gguf" for kind in kinds}
        ends = end_tokens(student.model)
        with console.task("export to gguf", total=len(files), unit="files") as task:
            for kind, file in files.items():
                if kind in K_QUANTS:
                    whole = work.path / "whole.gguf"
                    write_gguf(student.model, whole, "f32", end_tokens=ends, name="student")
                    quantise(whole, file, kind)
                    whole.unlink()
                else:
                    write_gguf(student.model, file, kind, end_tokens=ends, name="student")
                task.advance(1)
        wanted = self.settings.tolerance
        compared = comparison.compare(
            student.model,
            {file.name: opened(file) for file in files.values()},
            {file.name: wanted if wanted is not None else TOLERANCE[kind] for kind, file in files.items()},
            count=self.settings.check_prompts,
            most_new=self.settings.check_tokens,
            console=console,
            trust_remote_code=student.trust_remote_code,
        )
        comparison.refuse_far(compared, work.path)
        work.facts["check"] = comparison.as_facts(compared)
        sizes = {file.name: file.stat().st_size for file in files.values()}
        work.count("bytes of weights", sum(sizes.values()))
        first = next(iter(files.values()))
        if "ollama" in self.settings.serving:
            serving.write_modelfile(first, student.model, ends, work)
        if "llama.cpp" in self.settings.serving:
            serving.write_llama_server(first, student.model, student.name)
        section = comparison.check_section(compared, sizes=sizes, asked=self.settings.check_prompts)
        write_card(student, work.path, section, card=self.settings.model_card)
