"""Seal a folder: bills of material, `SHA256SUMS`, and a signature over every file. And verify it, on any machine.

`SHA256SUMS` says whether a file has changed by accident: anybody can write a new one. The signature says who sealed it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from potstill.artifacts import write_atomically
from potstill.errors import MissingExtra, RunError, UserError
from potstill.quantities import counted
from potstill.sign.cyclonedx import cyclonedx_of
from potstill.sign.material import Material, digests_of, material_of
from potstill.sign.spdx import spdx_of

SUMS, SIGNATURE = "SHA256SUMS", "model.sig"
BILLS: dict[str, Callable[[Material], str]] = {"bom.cdx.json": cyclonedx_of, "bom.spdx.json": spdx_of}
_PACKAGES = ("cyclonedx", "jsonschema", "spdx_python_model", "model_signing", "OpenSSL")


def seal(folder: Path, key: Path | None) -> list[Path]:
    """Write both bills of material and the sums, and with a key the signature.

    Args:
        folder: an export in a run's folder.
        key: a private elliptic-curve key, PEM, without password.

    Raises:
        RunError: the folder is no export of a run, or holds what cannot be sealed: links, devices, odd names.
        UserError: the key cannot be used.
        MissingExtra: a package is missing.
    """
    need_packages()
    bare = digests_of(folder, frozenset({SUMS, SIGNATURE, *BILLS}))
    for name, digest in bare.items():
        if not digest or (folder / name).is_symlink() or not _can_be_listed(name):
            what = "has a name that no list of sums can hold" if digest else "is no file"
            what = "is a link" if (folder / name).is_symlink() else what
            raise RunError(what, where=str(folder / name), fix="take it out of the export, or rename it")
    (folder / SIGNATURE).unlink(missing_ok=True)  # one of an earlier seal would fit no more
    material = material_of(folder, bare)
    for name, made in BILLS.items():
        write_atomically(folder / name, made(material))
    sums = digests_of(folder, frozenset({SUMS, SIGNATURE}))
    write_atomically(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    written = [folder / name for name in (*BILLS, SUMS)]
    if key is not None:
        from model_signing import signing

        try:
            signing.Config().set_hashing_config(_hashing(folder)).use_elliptic_key_signer(private_key=key).sign(
                folder, folder / SIGNATURE
            )
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"the key cannot be used: {error}",
                where=str(key),
                fix="make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
            ) from error
        written.append(folder / SIGNATURE)
    return written


def verify(folder: Path, key: Path | None) -> list[str]:
    """Compare every file with the sums, and with a public key the signature with every file.

    Returns:
        What was verified, as sentences.

    Raises:
        RunError: a file has changed, is missing or was added; or the signature is not of this key.
    """
    file = folder / SUMS
    if not file.is_file():
        raise RunError("the folder is not sealed", where=str(file), fix=f"potstill sign {folder}")
    try:
        stated = {name: digest for digest, _, name in (line.partition("  ") for line in _lines(file)) if digest}
    except UnicodeDecodeError as error:
        raise _broken(file, "cannot be read") from error
    found = digests_of(folder, frozenset({SUMS, SIGNATURE}))
    for name in sorted({*stated, *found}):
        if name not in found:
            raise _broken(folder / name, "is missing, or its name has changed")
        if name not in stated:
            raise _broken(folder / name, "was added since the folder was sealed")
        if stated[name] != found[name]:
            raise _broken(folder / name, "has changed since the folder was sealed")
    verified = [f"{counted(len(found), 'file is', 'files are')} as {SUMS} says"]
    if key is None:
        missing = "" if (folder / SIGNATURE).is_file() else " (it is not signed)"
        return [*verified, f"who sealed it was not verified{missing}: give their public key with --key"]
    need_packages()
    from model_signing import verifying

    try:
        verifying.Config().set_hashing_config(_hashing(folder)).use_elliptic_key_verifier(public_key=key).verify(
            folder, folder / SIGNATURE
        )
    except Exception as error:  # a torn signature raises whatever its parser does
        raise RunError(
            f"the signature does not fit: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=str(folder / SIGNATURE),
            fix="get the folder again, or the public key of the one who sealed it",
        ) from error
    return [*verified, f"the signature fits {key}"]


def need_packages() -> None:
    """Raises: MissingExtra."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package, "sign", "signing")


def _hashing(folder: Path) -> Any:
    """All files but the signature."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _can_be_listed(name: str) -> bool:
    """Whether a line of `SHA256SUMS` can hold a name: UTF-8 without line breaks."""
    return "\n" not in name and "\r" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n")


def _broken(path: Path, what: str) -> RunError:
    return RunError(what, where=str(path), fix="get the folder again from the one who sealed it")
