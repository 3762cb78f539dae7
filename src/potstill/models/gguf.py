"""GGUF files, dequantised once into a plain `transformers` folder.

Reading GGUF takes `transformers` some 15 s for 135M parameters, and the model it gives says that it is quantised and
cannot be saved, unless it is dequantised on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from potstill.console import Console
from potstill.errors import ModelError
from potstill.models.quiet import quiet_loading


def dequantise(file: Path, folder: Path, console: Console) -> tuple[str, tuple[str, ...]]:
    """Write a GGUF file's model to a folder: safetensors in fp32 (which holds every quantised value exactly),
    configuration, tokenizer and chat template.

    Returns:
        The licence that the file states (or an empty string), and what a report must say of the weights.

    Raises:
        ModelError: it is no GGUF file, is damaged, or holds a model that cannot be converted.
    """
    with console.task(f"converting {file.name}, once", total=4, unit="steps") as task:
        licence, notes = read_header(file)
        task.advance(note="header read")
        # Seconds of imports, needed the first time only.
        from transformers import AutoTokenizer, GgufConfig
        from transformers.models.auto.modeling_auto import AutoModelForCausalLM

        try:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            task.advance(note="tokenizer read")
            with quiet_loading(), _hidden_bar():
                model = AutoModelForCausalLM.from_pretrained(
                    file.parent,
                    gguf_file=file.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype="float32",
                    local_files_only=True,
                )
            task.advance(note="weights read")
        except OSError as error:
            if error.errno is not None:  # of the system, such as a full disk; transformers' own have no number
                raise
            raise _unreadable(file, error) from error
        except Exception as error:
            raise _unreadable(file, error) from error
        with quiet_loading():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        task.advance(note="saved")
    return licence, notes


@contextmanager
def _hidden_bar() -> Iterator[None]:
    """The bar of the conversion is not one that `transformers` lets one turn off; tqdm writes to `sys.stderr`."""
    with redirect_stderr(StringIO()):
        yield


def read_header(file: Path) -> tuple[str, tuple[str, ...]]:
    """The licence that a GGUF file states, and a note on how its weights were stored, if it was in few bits.

    Raises:
        ModelError: it is no GGUF file, or is damaged.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        stated = reader.get_field("general.license")
        stored = Counter[str]()
        for tensor in reader.tensors:
            stored[tensor.tensor_type.name] += int(tensor.n_elements)
    except Exception as error:
        raise _unreadable(file, error) from error
    licence = str(stated.contents()) if stated is not None else ""
    kind = stored.most_common(1)[0][0] if stored else ""
    bits = "".join(c for c in kind.partition("_")[0] if c.isdigit())
    if kind.startswith(("F", "BF")) or not bits:
        return licence, ()
    return licence, (f"weights were stored in {bits} bits ({kind})",)


def _unreadable(file: Path, error: Exception) -> ModelError:
    said = str(error).strip() if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
    return ModelError(
        f"this GGUF file cannot be read: {said}",
        where=str(file),
        fix="fetch it again; it must hold a whole causal language model, in one file, "
        "of an architecture that transformers converts",
    )
