"""GGUF files, dequantised once into a plain `transformers` folder.

`transformers` can open a GGUF file directly, but takes minutes each time, and the resulting model counts as quantised
and cannot be saved unless it is dequantised on loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from potstill.console import Console, Progress
from potstill.errors import ModelError
from potstill.models.gguf_header import GgufHeader, check_convertible, read_header, unreadable
from potstill.models.quiet import quiet_loading
from potstill.quantities import byte_size


def dequantise(file: Path, folder: Path, console: Console) -> GgufHeader:
    """Write a GGUF file's model to a folder: safetensors in fp32 (which holds every quantised value exactly),
    configuration, tokenizer and chat template.

    The written tokenizer is the one in use when the folder is opened, without the entries that only pad the vocabulary
    to the number of embedding rows.

    Returns:
        The file's header.

    Raises:
        ModelError: the file is no GGUF file, is damaged, or holds a model that cannot be converted.
    """
    header = read_header(file)
    check_convertible(header)
    padded = header.padded_tokens()
    console.say(
        f"{file.name} is converted, once: {_numbers(header.parameters)} weights, stored as {header.storage}. "
        f"It takes about {header.conversion_seconds:,.0f} s, and {byte_size(header.conversion_bytes)} of memory"
    )
    total = sum(tensor.bytes for tensor in header.tensors) / 1e6
    with console.task(f"converting {file.name}", total=total, unit="MB") as task:
        # These imports take seconds, and only a first conversion needs them.
        from transformers import AutoTokenizer, GgufConfig
        from transformers.models.auto.modeling_auto import AutoModelForCausalLM

        with quiet_loading(), _one_reader(), _counted(header, task):
            with _explained(file):
                tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            with _explained(file):
                model = AutoModelForCausalLM.from_pretrained(
                    file.parent,
                    gguf_file=file.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype="float32",
                    local_files_only=True,
                )
            model.save_pretrained(folder)
            _save_tokenizer(tokenizer, padded, folder)
    return header


def _save_tokenizer(tokenizer: Any, padded: Sequence[str], folder: Path) -> None:
    """Save a tokenizer as it is used. The class that opens the folder may change it (Qwen2's adds NFC), so the saved
    tokenizer is opened and saved again."""
    from potstill.models.load import load_tokenizer

    tokenizer.save_pretrained(folder)
    if padded:
        _remove_tokens(folder / "tokenizer.json", frozenset(padded))
    load_tokenizer(folder).save_pretrained(folder)


def _remove_tokens(file: Path, tokens: frozenset[str]) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):  # in a list (Unigram), a token's id is its position
        document["model"]["vocab"] = {token: number for token, number in vocabulary.items() if token not in tokens}
        document["added_tokens"] = [added for added in document["added_tokens"] if added["content"] not in tokens]
    file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn errors of `transformers` about a file that it cannot convert into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except OSError as error:
        if error.errno is not None:  # an error of the system, such as a full disk; those of transformers have no errno
            raise
        raise unreadable(file, error) from error
    except Exception as error:
        raise unreadable(file, error) from error


@contextmanager
def _one_reader() -> Iterator[None]:
    """`transformers` reads a file's header three times, each time for most of a minute with a vocabulary of 150,000.
    Share one reader instead."""
    import gguf

    own, made = gguf.GGUFReader, dict[str, Any]()

    def reader(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path) not in made:
            made[str(path)] = own(path, *args, **kwargs)
        return made[str(path)]

    with _replaced(gguf, "GGUFReader", reader):
        yield


@contextmanager
def _counted(header: GgufHeader, task: Progress) -> Iterator[None]:
    """Show the progress of converting weights in place of the bar of `transformers`, which cannot be turned off."""
    from transformers import modeling_gguf_pytorch_utils as conversion

    sizes = {tensor.name: tensor.bytes for tensor in header.tensors}

    def shown(tensors: Any, *_: Any, **__: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            task.advance(sizes.get(str(tensor.name), 0) / 1e6)

    # A later version may have no such bar.
    if hasattr(conversion, "tqdm"):
        with _replaced(conversion, "tqdm", shown), redirect_stderr(StringIO()):
            yield
    else:
        with redirect_stderr(StringIO()):
            yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


def _numbers(amount: int) -> str:
    return f"{amount / 1e6:,.1f}M" if amount >= 100_000 else f"{amount:,}"
