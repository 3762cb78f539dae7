"""The header of a GGUF file: its tensors and their storage types. No torch; no weights are read.

The layout follows the GGUF specification, versions 2 and 3: metadata (keys and values), then the table of tensors,
then their data. The reader in the package `gguf` takes seconds and a gigabyte for a vocabulary of 150,000.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from potstill.errors import ModelError

CONVERSION = 2
"""Version of the conversion (`models/gguf.py`). Raise it when its output changes, so that files are converted
again."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_SHOWN_TYPES = 3
_SHORT = 1024
"""Arrays up to this length (one number per layer, say) are always kept."""
_PADDING = re.compile(r"\[PAD(\d+)\]")
_UNUSED = 5
"""llama.cpp's token type for unused entries."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: its name in the file, its shape (first dimension first, as in torch), the name of its storage type
    (`Q4_K`), and its size in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file by key, and its tensors."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family (`qwen2`); empty if not stated."""
        return str(self.metadata.get("general.architecture") or "")

    @property
    def licence(self) -> str:
        """The licence that the file states; empty if none."""
        return str(self.metadata.get("general.license") or "")

    @property
    def has_template(self) -> bool:
        """Whether it contains a chat template."""
        return bool(self.metadata.get("tokenizer.chat_template"))

    @property
    def parameters(self) -> int:
        """Numbers in all tensors. Tied weights are stored once."""
        return sum(tensor.elements for tensor in self.tensors)

    def of_architecture(self, key: str) -> Any:
        """A metadata value of this architecture (`block_count`); None if missing."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @property
    def storage(self) -> str:
        """A description of the storage: the file's own name for it, then the types by share, and the mean size
        (`Q4_K_M: 62 % Q5_0, 28 % Q8_0, 10 % Q6_K; 6.1 bits a weight`)."""
        total = max(1, self.parameters)
        by_kind = Counter[str]()
        for tensor in self.tensors:
            by_kind[tensor.kind] += tensor.elements
        shares = [(kind, count / total) for kind, count in by_kind.most_common() if count / total >= 0.005]
        bits = 8 * sum(tensor.bytes for tensor in self.tensors) / total
        named = _file_type(self.metadata.get("general.file_type"))
        if len(shares) == 1 and named in ("", shares[0][0]):
            return f"{shares[0][0]}, {bits:.1f} bits a weight"
        parts = ", ".join(f"{share:.0%} {kind}".replace("%", " %") for kind, share in shares[:_SHOWN_TYPES])
        parts += ", …" if len(shares) > _SHOWN_TYPES else ""
        return f"{named}: {parts}; {bits:.1f} bits a weight" if named else f"{parts}; {bits:.1f} bits a weight"

    @property
    def conversion_bytes(self) -> int:
        """Estimated peak memory of a conversion: the process, the weights in fp32, the largest tensor once more, and
        the vocabulary in `transformers` (measured: 3.6 GB for 494M weights and 151,936 tokens)."""
        largest = max((tensor.elements for tensor in self.tensors), default=0)
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return 400_000_000 + 4 * (self.parameters + largest) + 5_000 * (tokens if isinstance(tokens, int) else 0)

    @property
    def conversion_seconds(self) -> float:
        """Estimated duration of a conversion (measured on two busy cores: 200 s for 494M weights and 151,936
        tokens)."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return 10 + 1e-3 * (tokens if isinstance(tokens, int) else 0) + 1e-7 * self.parameters

    @property
    def is_quantised(self) -> bool:
        """Whether any weights are stored in quantised blocks."""
        return any(not tensor.kind.startswith(("F", "BF")) for tensor in self.tensors)

    def padded_tokens(self) -> list[str]:
        """Padding entries of the vocabulary: llama.cpp's `[PAD151646]`, which fill it up to the number of embedding
        rows. Other unused tokens (Gemma's `<unused0>`) belong to the tokenizer and stay.

        Raises:
            ModelError: the file is damaged.
        """
        keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
        stated = read_header(self.file, keep=keys).metadata
        tokens, kinds = (stated.get(key) for key in keys)
        if not isinstance(tokens, list) or not isinstance(kinds, list):
            return []
        return [
            token
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind == _UNUSED and (match := _PADDING.fullmatch(token)) and int(match[1]) == number
        ]


def read_header(file: Path, keep: tuple[str, ...] = ()) -> GgufHeader:
    """Read the header of a GGUF file.

    Args:
        file: the file.
        keep: arrays (of strings, or long ones of numbers) to keep whole; of others only the length is kept.

    Raises:
        ModelError: the file is no GGUF file, or is damaged (cut short, say).
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, keep).header(file)
    except (ValueError, KeyError, IndexError, struct.error, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise unreadable(file, error) from error


def check_convertible(header: GgufHeader) -> None:
    """Check that a file holds what a conversion needs: all tensors, a tokenizer, and an architecture of a causal
    language model that `transformers` converts.

    Raises:
        ModelError: it does not.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING  # loads no torch

    known = {_letters(name) for name in GGUF_CONFIG_MAPPING} - _NO_CAUSAL_MODELS
    parts = header.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        problem = f"it is one of {parts} parts"
    elif not header.metadata.get("tokenizer.ggml.tokens"):
        problem = "it holds no tokenizer"
    elif _letters(header.architecture) not in known:
        problem = f"the architecture {header.architecture!r} is none that transformers converts"
    else:
        return
    raise unreadable(header.file, ValueError(problem))


_NO_CAUSAL_MODELS = frozenset({"general", "tokenizer", "t5", "umt5"})


def _letters(name: str) -> str:
    """A name of an architecture without its marks: llama.cpp's `qwen2moe` is `qwen2_moe` in `transformers`."""
    return name.lower().replace("-", "").replace("_", "")


def unreadable(file: Path, error: Exception) -> ModelError:
    """The error for a GGUF file that cannot be read or converted."""
    text = str(error).strip() if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
    return ModelError(
        f"this GGUF file cannot be read: {text}",
        where=str(file),
        fix="fetch it again; it must hold a whole causal language model, in one file, "
        "of an architecture that transformers converts",
    )


class _Reader:
    """Reads one header front to back."""

    def __init__(self, content: mmap.mmap, keep: tuple[str, ...]) -> None:
        self._content, self._keep, self._at = content, keep, 0

    def header(self, file: Path) -> GgufHeader:
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, pairs = self._take("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"it is of version {version} (or of the other byte order), and 2 and 3 can be read")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            metadata[key] = self._value(key)
        found, ends = [], [0]
        for _ in range(tensors):
            tensor, offset = self._tensor()
            found.append(tensor)
            ends.append(offset + tensor.bytes)
        alignment = int(metadata.get("general.alignment", _ALIGNMENT))
        expected = -(-self._at // alignment) * alignment + max(ends)
        if len(self._content) < expected:
            raise ValueError(f"it has {len(self._content):,} bytes and should have {expected:,}")
        return GgufHeader(file, metadata, tuple(found))

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        self._check_room(length)
        text = self._content[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _check_room(self, length: int) -> None:
        if length > len(self._content) - self._at:
            raise ValueError("it is cut short within its header")

    def _value(self, key: str) -> Any:
        (kind,) = self._take("<I")
        if kind in _SCALARS:
            return self._take(f"<{_SCALARS[kind]}")[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"{key} is of the unknown type {kind}")
        kind, count = self._take("<IQ")
        if kind in _SCALARS:
            size = count * struct.calcsize(_SCALARS[kind])
            self._check_room(size)
            if key in self._keep or count <= _SHORT:
                return list(self._take(f"<{count}{_SCALARS[kind]}"))
            self._at += size
            return count
        if kind != _STRING:
            raise ValueError(f"{key} is an array of the unknown type {kind}")
        if key in self._keep:
            return [self._string() for _ in range(count)]
        self._skip_strings(count)
        return count

    def _skip_strings(self, count: int) -> None:
        content, at, length_at = self._content, self._at, struct.Struct("<Q").unpack_from
        for _ in range(count):  # hundreds of thousands: no function call for each
            at += 8 + length_at(content, at)[0]
        self._at = at

    def _tensor(self) -> tuple[StoredTensor, int]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        (dimensions,) = self._take("<I")
        sizes = self._take(f"<{dimensions}Q")
        number, offset = self._take("<IQ")
        try:
            kind = GGMLQuantizationType(number)
            per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ValueError(f"{name} is stored in the unknown type {number}") from None
        size = prod(sizes) // per_block * bytes_per_block
        return StoredTensor(name, tuple(reversed(sizes)), kind.name, size), offset


def _file_type(number: Any) -> str:
    """llama.cpp's name of a mixture of types (`Q4_K_M`); empty if unknown or marked as guessed."""
    from gguf.constants import LlamaFileType

    try:
        named = LlamaFileType(number).name
    except ValueError:
        return ""
    return "" if named == "GUESSED" else named.removeprefix("MOSTLY_").removeprefix("ALL_")
