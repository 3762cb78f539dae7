"""Export of a low-rank adapter, opened by peft on its base model and compared with the student there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from potstill.artifacts import Work, read_json
from potstill.console import Console
from potstill.decoding.generator import write
from potstill.errors import ModelError
from potstill.export import comparison
from potstill.export.base import Student, check_possible, write_card
from potstill.export.huggingface import copy_companions
from potstill.models.folder import check_folder
from potstill.recipe.export import AdapterExport
from potstill.registry import implements

TOLERANCE = 1e-4
"""Largest mean KL(student ‖ adapter on its base) in fp32, nats per token: merging rounds."""
_FILES = ("adapter_config.json", "adapter_model.safetensors")


@implements(AdapterExport)
class Adapter:
    """Exporter of kind `adapter`."""

    def __init__(self, settings: AdapterExport) -> None:
        self.settings = settings

    def export(self, student: Student, work: Work, console: Console) -> None:
        """Write the adapter, which names its base, with the student's tokenizer, and the card.

        Raises:
            ModelError: the student has no adapter, or the adapter on its base is not the student.
        """
        check_folder(student.model)
        check_possible(self.settings, student.task)
        if student.adapter is None or student.base is None:
            raise ModelError("the student has no adapter", where=str(student.model), fix="use kind: huggingface")
        base, name = student.base
        for file in _FILES:
            shutil.copyfile(student.adapter / file, work.path / file)
        _name_base(work.path, name)
        copy_companions(student, work.path)
        # peft takes the folder for a whole model where it has a configuration of one.
        (work.path / "config.json").unlink(missing_ok=True)
        wanted = self.settings.tolerance
        compared = comparison.compare(
            student.model,
            {_FILES[1]: _opened(base, work.path, student.trust_remote_code)},
            {_FILES[1]: wanted if wanted is not None else TOLERANCE},
            count=self.settings.check_prompts,
            most_new=self.settings.check_tokens,
            console=console,
            trust_remote_code=student.trust_remote_code,
        )
        comparison.refuse_far(compared, work.path)
        work.facts["check"] = comparison.as_facts(compared)
        sizes = {_FILES[1]: (work.path / _FILES[1]).stat().st_size}
        work.count("bytes of weights", sizes[_FILES[1]])
        section = comparison.check_section(compared, sizes=sizes, asked=self.settings.check_prompts)
        write_card(student, work.path, f"{section}\nThe adapter is for `{name}`.\n", card=self.settings.model_card)


def _name_base(folder: Path, name: str) -> None:
    """Write the base's name for others into the adapter's configuration, in place of a path of this machine."""
    file = folder / _FILES[0]
    config = read_json(file) | {"base_model_name_or_path": name}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _Peft:
    """An adapter on its base, open in peft, in fp32 on the processor."""

    def __init__(self, base: Path, adapter: Path, trust_remote_code: bool) -> None:
        from peft import PeftModel

        model = comparison.open_student(base, trust_remote_code=trust_remote_code)
        self._model: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
        self.title = f"peft {metadata.version('peft')}"

    def tokenize(self, text: str) -> None:
        """It reads ids."""
        return

    def logits(self, ids: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Logits after each token."""
        with torch.no_grad():
            found: np.ndarray = self._model(input_ids=torch.tensor([list(ids)])).logits[0].float().numpy()
        return found

    def write(self, ids: Sequence[int], most_new: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy text."""
        [answer] = write(
            self._model, [ids], comparison.GREEDY, samples=[0], most_new=most_new, stop_ids=stop_ids, pad_id=0, seed=0
        )
        return answer


@contextmanager
def _opened(base: Path, adapter: Path, trust_remote_code: bool) -> Iterator[comparison.Engine]:
    yield _Peft(base, adapter, trust_remote_code)
