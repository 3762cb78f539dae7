"""Export to a folder that `from_pretrained` of the task's class opens.

Only the files of a model are copied, by name: no projector, optimiser state, pickle or adapter (adapters are merged).
Where neither precision nor vocabulary changes, the weights are the trained ones, byte for byte. A module of the user's
own is not a model of `transformers`: its weights are exported with its Python file and `module.json`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import ModelError
from potstill.export.base import Student, check_possible, copy_licences, write_card
from potstill.export.end_tokens import write_end_tokens
from potstill.export.serving import write_engine_configs
from potstill.models.folder import MODULE, check_folder, is_module
from potstill.recipe import HuggingFaceExport
from potstill.registry import implements
from potstill.tasks import SPECS

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_REST = (
    "config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json "
    "added_tokens.json preprocessor_config.json vocab.json vocab.txt merges.txt spiece.model chat_template.jinja "
    "additional_chat_templates/*.jinja"
).split()


@implements(HuggingFaceExport)
class HuggingFace:
    """Exporter of kind `huggingface`."""

    def __init__(self, settings: HuggingFaceExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write the folder.

        Raises:
            ModelError: the trained student is not whole, or its weights do not fit into float16.
        """
        check_folder(student.model)
        out = work.path
        if is_module(student.model):
            self._export_module(student, work)
        else:
            self._export_model(student, work, console)
        if self.settings.serving:
            check_possible(self.settings, student.task)
            write_engine_configs(self.settings.serving, out, student.name)
        if self.settings.model_card:
            write_card(student, out, "", card=True)
        else:
            copy_licences(student, out)
        work.count("bytes of weights", sum(f.stat().st_size for f in out.glob("*.safetensors")))
        check_folder(out)

    def _export_module(self, student: Student, work: Work) -> None:
        """Write weights, Python file and `module.json`, which `potstill.models.plain.load_module` opens."""
        if self.settings.dtype != "keep":
            raise ModelError(
                f"a module of your own is exported as it was trained, not in {self.settings.dtype}",
                where="export.dtype",
                fix="set dtype: keep, and convert it in your own program",
            )
        source = json.loads((student.model / MODULE).read_text(encoding="utf-8")).get("source")
        _copy(student.model, work.path, (*_WEIGHTS, MODULE, *([str(source)] if source else [])))
        work.warn("a module of your own: transformers does not open it; load_module of potstill does, running its file")

    def _export_model(self, student: Student, work: Work, console: Console) -> None:
        out = work.path
        copy_companions(student, out)
        # Only models with an output layer over the vocabulary can have padded rows.
        rows = _rows_of(student.model) if SPECS[student.task].has_vocabulary else 0
        tokens = _tokens_of(student.model) if SPECS[student.task].has_vocabulary else 0
        with console.task(f"export to {self.settings.kind}", total=None) as task:
            if self.settings.dtype == "keep" and rows <= tokens:
                _copy(student.model, out, _WEIGHTS)
            else:
                _rewrite(student, out, self.settings.dtype, tokens if rows > tokens else None)
            task.advance()
        if rows > tokens:
            work.count("output rows without a token, trimmed", rows - tokens)
        if SPECS[student.task].writes:
            work.facts["eos_token_id"] = write_end_tokens(out)


def copy_weights(student: Student, out: Path) -> None:
    """Copy a model's weights, byte for byte, and what stands beside them."""
    copy_companions(student, out)
    _copy(student.model, out, _WEIGHTS)


def copy_companions(student: Student, out: Path) -> None:
    """Copy what stands beside the weights of a model: configuration, tokenizer, chat template, and its code if the
    recipe trusts it."""
    if not is_module(student.model):
        code = ("*.py",) if student.trust_remote_code and "auto_map" in _config(student.model) else ()
        _copy(student.model, out, (*_REST, *code))


def _tokens_of(model: Path) -> int:
    """Rows that the tokenizer of a folder needs: its highest id plus one."""
    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return max(vocabulary.values()) + 1


def _rows_of(model: Path) -> int:
    """Rows of the output layer of a folder's model. Those past the tokenizer's are padding: nothing was learned for
    them, and no text corresponds to them, so they are trimmed (rule 5)."""
    config = _config(model)
    return int((config.get("text_config") or config)["vocab_size"])


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for file in (f for pattern in patterns for f in sorted(source.glob(pattern)) if f.is_file()):
        to = target / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)


def _rewrite(student: Student, out: Path, dtype: str, rows: int | None) -> None:
    """Save the weights in another precision, or with only `rows` rows in the vocabulary (None: keep all)."""
    import torch

    from potstill.models.quiet import quiet_loading
    from potstill.models.tasks import opener_of

    with quiet_loading():
        model: Any = opener_of(student.task).from_pretrained(
            student.model, dtype="auto", local_files_only=True, trust_remote_code=student.trust_remote_code
        )
    if rows is not None and model.get_input_embeddings().num_embeddings > rows:
        model.resize_token_embeddings(rows)
    if dtype != "keep":
        model.to(getattr(torch, dtype))
    lost = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    if lost:
        raise ModelError(
            f"{len(lost)} weights are not finite in {model.dtype}: {lost[0]}",
            where="export.dtype",
            fix="use bfloat16, whose range is that of float32"
            if dtype == "float16"
            else "the student's training diverged: lower the learning rate",
        )
    generation = out / "generation_config.json"
    kept = generation.read_bytes() if generation.is_file() else None
    with quiet_loading():
        model.save_pretrained(out)
    if kept is not None:
        # Keep the trained one: `save_pretrained` rewrites it.
        generation.write_bytes(kept)


def _config(model: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return read
