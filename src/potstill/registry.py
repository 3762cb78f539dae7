"""Names → classes for everything pluggable.

Settings classes (pydantic, no torch) live in `recipe/` and register themselves under their room and `kind`.
The library that implements a kind binds its class to the settings class with `@implements`. A plug-in file has
both in one place and is named in the recipe as `kind: path/to/file.py:Name`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from potstill.errors import RecipeError, did_you_mean

T = TypeVar("T", bound=type)

_settings: dict[str, dict[str, type]] = {}
_implementations: dict[type, type] = {}
plugin_digests: dict[str, str] = {}
"""SHA-256 of every plug-in file loaded, by path: part of the key of the stages that use them."""


def register_settings(room: str, kind: str, cls: type) -> None:
    """Make `kind` known in `room`.

    Raises:
        RecipeError: another class already has that name.
    """
    known = _settings.setdefault(room, {})
    other = known.get(kind)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise RecipeError(
            f"kind {kind!r} is registered twice in {room}: {other.__module__}.{other.__qualname__} "
            f"and {cls.__module__}.{cls.__qualname__}",
            mend="rename one of them",
        )
    known[kind] = cls


def settings_class(room: str, kind: str, base: Path | None = None) -> type:
    """The settings class of a kind, or of a plug-in `path.py:Name` (relative to `base`).

    Raises:
        RecipeError: unknown kind (the nearest is named), or a plug-in file that cannot be loaded.
    """
    if ".py:" in kind:
        return _load_plugin(kind, base or Path())
    known = _settings.get(room, {})
    if kind not in known:
        raise RecipeError(f"unknown kind {kind!r}{did_you_mean(kind, known)}")
    return known[kind]


def implements(settings: type) -> Callable[[T], T]:
    """Class decorator: the decorated class does what `settings` describes; it is built as `cls(settings)`.

    Raises:
        RecipeError: the settings class already has an implementation.
    """

    def bind(cls: T) -> T:
        other = _implementations.get(settings)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RecipeError(
                f"{settings.__name__} is implemented twice: by {other.__qualname__} and {cls.__qualname__}"
            )
        _implementations[settings] = cls
        return cls

    return bind


def build(settings: Any) -> Any:
    """The implementation of a settings object. Loads the settings' room (`potstill.<room>`) if need be.

    Raises:
        RecipeError: nothing implements it.
    """
    cls = type(settings)
    if cls not in _implementations:
        importlib.import_module(f"potstill.{cls.room}")
    if cls not in _implementations:
        raise RecipeError(
            f"nothing implements kind {settings.kind!r} of {cls.room}",
            mend=f"bind a class with @implements({cls.__name__})",
        )
    return _implementations[cls](settings)


def _load_plugin(reference: str, base: Path) -> type:
    filename, _, name = reference.rpartition(":")
    path = (base / filename).resolve()
    if not path.is_file():
        raise RecipeError(f"no plug-in file {filename!r}", where=str(path), mend="paths are relative to the recipe")
    source_digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module_name = f"potstill_plugin_{source_digest[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise RecipeError(f"the plug-in cannot be loaded: {error}", where=str(path)) from error
    plugin_digests[str(path)] = source_digest
    named = getattr(module, name, None)
    if not isinstance(named, type):
        classes = [k for k, v in vars(module).items() if isinstance(v, type)]
        raise RecipeError(f"no class {name!r} in the plug-in{did_you_mean(name, classes)}", where=str(path))
    # Either class of the pair may be named: the implementation leads to its settings.
    for settings, implementation in _implementations.items():
        if implementation is named:
            return settings
    return named
