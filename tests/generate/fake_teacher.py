"""A plug-in teacher whose answers depend on everything that a wrong resume would change, and that counts its calls.

Each answer is made from the whole batch (all its requests, in their order) and its seed, as the answers of a model in
bfloat16 are: whoever plans batches by what is left to do gets other rows. No torch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from potstill.recipe import TeacherSettings
from potstill.registry import implements
from potstill.types import Answer, Capability, Request, digest

CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


class FakeTeacherSettings(TeacherSettings):
    """`calls` is a file that gets one line a batch: how many requests. `seconds` is how long a batch takes.
    `empty_every`: every so many-th answer is empty."""

    kind: Literal["fake"] = "fake"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"generate"})
    calls: Path | None = None
    seconds: float = 0.0
    name: str = "fake"
    dtype: str = "bfloat16"
    template: str | None = CHATML
    empty_every: int = 0


@implements(FakeTeacherSettings)
class FakeTeacher:
    def __init__(self, settings: FakeTeacherSettings) -> None:
        self.settings = settings
        self.capabilities = settings.capabilities

    @property
    def identity(self) -> Mapping[str, Any]:
        of = self.settings
        return {"kind": "fake", "model": of.name, "digest": "d", "dtype": of.dtype, "template": digest(of.template)}

    @property
    def tokenizer(self) -> Any:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return SimpleNamespace(
            backend_tokenizer=backend,
            chat_template=self.settings.template,
            special_tokens_map={"eos_token": "<|im_end|>"},
        )

    def generate(self, requests: Sequence[Request], *, seed: int, wrote: Any = None) -> list[Answer]:
        if self.settings.calls is not None:
            with self.settings.calls.open("a") as calls:
                calls.write(f"{len(requests)}\n")
        time.sleep(self.settings.seconds)
        assert len({r.sampling for r in requests}) == 1
        batch = digest([self.identity, seed, [r.key({}) for r in requests]])
        return [self._answer(f"{batch} {index}", r) for index, r in enumerate(requests)]

    def _answer(self, drawn: str, request: Request) -> Answer:
        number = int(hashlib.sha256(drawn.encode()).hexdigest()[:12], 16)
        # One in four would go on for longer than allowed, and is cut.
        wanted = 1 + number % (request.sampling.max_new_tokens * 4 // 3 + 1)
        tokens = min(wanted, request.sampling.max_new_tokens)
        empty = self.settings.empty_every and number % self.settings.empty_every == 0
        text = "" if empty else " ".join(f"w{(number >> i) % 97}" for i in range(tokens))
        return Answer(text, "stop" if wanted == tokens else "length", 5, tokens)
