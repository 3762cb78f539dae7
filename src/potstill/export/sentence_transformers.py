"""Export for sentence-transformers: the encoder, its pooling and length 1, opened there and compared with the student.

The files are written in the layout of version 2, which every version since opens.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.artifacts import Work, read_json
from potstill.console import Console
from potstill.data.encoder import EncoderTokenizer
from potstill.errors import ModelError
from potstill.export import comparison
from potstill.export.base import Student, check_possible, write_card
from potstill.export.huggingface import copy_weights
from potstill.models.folder import check_folder, is_module
from potstill.models.quiet import quiet_loading
from potstill.objectives.pooling import pool
from potstill.recipe import Pooling
from potstill.recipe.export import SentenceTransformersExport
from potstill.registry import implements

_MODES: dict[Pooling, str] = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken", "max": "max_tokens"}


@implements(SentenceTransformersExport)
class SentenceTransformers:
    """Exporter of kind `sentence_transformers`."""

    def __init__(self, settings: SentenceTransformersExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write the folder, open it in sentence-transformers, compare embeddings, and write the card.

        Raises:
            ModelError: the student is a module of the user's own, or its embeddings differ there.
            MissingExtra: sentence-transformers is not installed, and the embeddings are to be compared.
        """
        check_folder(student.model)
        check_possible(self.settings, student.task)
        if is_module(student.model):
            raise ModelError("a module of your own is no model of transformers", where=str(student.model))
        copy_weights(student, work.path)
        _write_modules(student, work.path)
        texts = comparison.prompts(self.settings.check_prompts)
        engine, farthest = "", None
        if texts:
            engine = f"sentence-transformers {metadata.version('sentence-transformers')}"
            theirs = _opened(work.path, texts, student.trust_remote_code)
            farthest = float((1 - torch.cosine_similarity(theirs, _embeddings(student, texts))).max())
            if not farthest <= self.settings.tolerance:
                raise ModelError(
                    f"an embedding in {engine} is 1 − cos = {farthest:.2g} away from the student's, more than the "
                    f"{self.settings.tolerance:.2g} that are allowed",
                    where=str(work.path),
                    fix="set `tolerance` of this export, or use kind: huggingface",
                )
        work.facts["check"] = {"engine": engine, "texts": len(texts), "farthest": farthest}
        work.count("bytes of weights", sum(f.stat().st_size for f in work.path.glob("*.safetensors")))
        write_card(student, work.path, self._section(engine, farthest), card=self.settings.model_card)

    def _section(self, engine: str, farthest: float | None) -> str:
        usage = (
            "\n## In sentence-transformers\n\n`SentenceTransformer(folder).encode(texts)` gives vectors of length 1.\n"
        )
        if farthest is None:
            return f"{usage}\nNot opened and not compared (`check_prompts: 0`).\n"
        return (
            f"{usage}\nOpened in {engine}, and embeddings of {self.settings.check_prompts} texts compared with the "
            f"student's: 1 − cos is at most {farthest:.2g} (tolerance {self.settings.tolerance:.2g}).\n"
        )


def _write_modules(student: Student, folder: Path) -> None:
    """Write the modules behind the encoder: pooling over a text's tokens, and division by the vector's length."""
    config = read_json(folder / "config.json")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    pooling = {f"pooling_mode_{mode}": how == student.pooling for how, mode in _MODES.items()}
    longest = EncoderTokenizer.from_folder(student.model).longest
    for path, content in {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "similarity_fn_name": "cosine",
            "prompts": {},
            "default_prompt_name": None,
        },
        "1_Pooling/config.json": {"word_embedding_dimension": config["hidden_size"], **pooling},
    }.items():
        file = folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "2_Normalize").mkdir(exist_ok=True)


def _opened(folder: Path, texts: list[str], trust_remote_code: bool) -> Float[Tensor, "N H"]:
    from sentence_transformers import SentenceTransformer

    with quiet_loading():
        opened: Any = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=trust_remote_code
        )
    return torch.from_numpy(opened.float().encode(texts, show_progress_bar=False)).double()


def _embeddings(student: Student, texts: list[str]) -> Float[Tensor, "N H"]:
    """The student's embeddings, as it was trained: states in fp32, pooled over a text's tokens."""
    model = comparison.open_student(student.model, student.task, trust_remote_code=student.trust_remote_code)
    tokenizer = EncoderTokenizer.from_folder(student.model)
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer.pieces(text, tokenizer.longest or 512)[0].input_ids])
        with torch.no_grad():
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        rows.append(pool(states, torch.zeros_like(ids), student.pooling)[0].double())
    return torch.stack(rows)
