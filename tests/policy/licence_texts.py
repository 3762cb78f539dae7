"""The licence texts that the table was read from, out of the wheel of scancode-toolkit-mini, which is not installed.

`python tests/policy/licence_texts.py` writes `src/potstill/policy/texts.json`: digests and hashes of word sequences,
not the texts. Texts that the wheel lacks (those with an address) are read from files that `--text` names.
The wheel is 126 MB, and installed it needs some forty more packages, for a data file of each licence: so it is only
downloaded (`--no-deps`), and read as the archive that it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "potstill" / "policy" / "sources.toml"
TEXTS = SOURCES.with_name("texts.json")
_ENDS = ("END OF TERMS AND CONDITIONS", "Meta Llama 3 Acceptable Use Policy")
"""What follows these lines is usually left out: an appendix on how to apply a licence, a use policy."""


def wheel() -> Path | None:
    """The wheel in the virtual environment's folder, if it was downloaded."""
    return next(Path(sys.prefix).glob("scancode_toolkit_mini-32.5.0-*.whl"), None)


@cache
def all_texts() -> Mapping[str, str]:
    """Every text of the package by its name, without the package's own header."""
    file = wheel()
    if file is None:
        raise FileNotFoundError("pip download --no-deps --dest .venv scancode-toolkit-mini==32.5.0")
    with zipfile.ZipFile(file) as opened:
        names = [name for name in opened.namelist() if Path(name).match("licensedcode/data/licenses/*.LICENSE")]
        return {Path(name).stem: _without_header(opened.read(name).decode()) for name in names}


def _without_header(text: str) -> str:
    return text.split("---", 2)[2] if text.startswith("---") else text


def read_by_source() -> dict[str, str]:
    """The name of the text that each source of the table was read from."""
    document = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    return {entry["id"]: entry["text"] for entry in document["source"] if entry.get("text")}


def _body_of(text: str) -> str:
    """The text without what is usually left out."""
    return text[: next((text.index(end) for end in _ENDS if len(text) / 3 < text.find(end)), len(text))]


def main() -> None:
    from potstill.policy.fingerprints import hashes_of, packed, restrictive_in, words_of

    parser = argparse.ArgumentParser()
    parser.add_argument("--text", action="append", default=[], metavar="SOURCE=FILE", help="a text with an address")
    named = dict(given.split("=", 1) for given in parser.parse_args().text)
    document = json.loads(TEXTS.read_text(encoding="utf-8"))
    for source, name in sorted(read_by_source().items()):
        if "://" in name and source not in named:
            continue  # as it was
        text = Path(named[source]).read_text(encoding="utf-8") if source in named else all_texts()[name]
        body, whole = words_of(_body_of(text)), words_of(text)
        in_body = frozenset(hashes_of(body))
        document[source] = {
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "restrictive_body": restrictive_in(body),
            "restrictive": restrictive_in(whole),
            "body": packed(in_body),
            "rest": packed(frozenset(hashes_of(whole)) - in_body),
        }
    lines = ",\n".join(f"{json.dumps(source)}: {json.dumps(document[source])}" for source in sorted(document))
    TEXTS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
