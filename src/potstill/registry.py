"""Registry of pluggable kinds: name → settings class → implementation.

Settings classes (pydantic, no torch) live in `recipe/` and register themselves under their room and `kind`.
The library that implements a kind binds its class to the settings class with `@implements`. A plug-in has both in one
place, and is found in one of three ways: its module is imported already (the decorator is enough); the recipe names the
file, `kind: path/to/file.py:Name`; or an installed package declares it as an entry point,

    [project.entry-points."potstill.objectives"]
    my_kind = "my_package:MyKind"        # the settings class, or what implements it

Entry points are looked up only for a kind that is not registered yet.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from potstill.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T", bound=type)

_settings: dict[str, dict[str, type]] = {}
_implementations: dict[type, type] = {}
_makers: dict[type, Callable[[Any, Any], Any]] = {}
"""By settings class: builds the object from (implementation, settings), where `build` returns no instance of it."""
_module_of_file: dict[Path, str] = {}
_forgotten: set[str] = set()
"""Modules of plug-in files that have been edited since: run again if the file returns to that content."""
plugin_digests: dict[str, str] = {}
"""SHA-256 of every plug-in loaded, by its file (or the folder of its package): part of the key of the stages of the
recipes that use it."""


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
            fix="rename one of them",
        )
    known[kind] = cls


def settings_class(room: str, kind: str, base: Path | None = None) -> type:
    """The settings class of a kind, of a plug-in `path.py:Name` (relative to `base`), or of an entry point.

    Raises:
        RecipeError: unknown kind (the nearest is named), a plug-in that cannot be loaded or is of another room, or two
            of one name.
    """
    if ".py:" in kind:
        return _load_file(room, kind, base or Path())
    known = _settings.get(room, {})
    return known[kind] if kind in known else _load_entry_point(room, kind)


def kinds_of(room: str) -> dict[str, type]:
    """The settings class of every kind of a room that is registered."""
    return dict(_settings.get(room, {}))


def implements(settings: type, make: Callable[[Any, Any], Any] | None = None) -> Callable[[T], T]:
    """Class decorator: bind an implementation to its settings class. `build` calls `cls(settings)`, or
    `make(cls, settings)`.

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
        if make is not None:
            _makers[settings] = make
        return cls

    return bind


def build(settings: Any) -> Any:
    """The implementation of a settings object. If need be, loads the settings' room (`potstill.<room>`), and then the
    module of the room that is named as the kind: a kind in a file of its own stands in no list, and its dependencies
    are loaded when it is used.

    Raises:
        RecipeError: nothing implements it.
    """
    cls = type(settings)
    if cls not in _implementations:
        room = importlib.import_module(f"potstill.{cls.room}")
        # `KINDS` of a room: kinds that share a module which is not loaded with the room.
        module = f"{room.__name__}.{getattr(room, 'KINDS', {}).get(settings.kind, settings.kind)}"
        if cls not in _implementations and importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    if cls not in _implementations:
        raise RecipeError(
            f"nothing implements kind {settings.kind!r} of {cls.room}",
            fix=f"bind a class with @implements({cls.__name__})",
        )
    implementation = _implementations[cls]
    return _makers[cls](implementation, settings) if cls in _makers else implementation(settings)


def digests_of(classes: Iterable[type]) -> list[str]:
    """Sorted digests of the plug-ins that define these settings classes. Built-in kinds have none: the stages'
    contracts cover them."""
    modules = {c.__module__ for cls in classes for c in (cls, _implementations.get(cls, cls))}
    modules_of_plugins = [sys.modules[name] for name in modules if name.partition(".")[0] != __package__]
    return sorted({_digest_of_module(module) for module in modules_of_plugins if getattr(module, "__file__", None)})


# ---- plug-ins ------------------------------------------------------------------------------------------------


def _load_file(room: str, reference: str, base: Path) -> type:
    filename, _, name = reference.rpartition(":")
    try:
        path = (base / filename).resolve()
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        path, there = base / filename, False
    if not there:
        raise RecipeError(f"no plug-in file {filename!r}", where=str(path), fix="paths are relative to the recipe")
    source = path.read_bytes()
    source_digest = hashlib.sha256(source).hexdigest()
    module_name = f"potstill_plugin_{source_digest[:16]}"
    module = sys.modules.get(module_name)
    if module is None or module_name in _forgotten:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise RecipeError("the plug-in is no Python file", where=str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with _undone_on_failure():
                _forget(_module_of_file.get(path))
                # Not by the loader: its compiled file may be of another text of the same second and size.
                exec(compile(source, path, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            why = f"{type(error).__name__}: {error}"
            raise RecipeError(f"the plug-in cannot be loaded: {why}", where=str(path)) from error
    _module_of_file[path] = module_name
    _forgotten.discard(module_name)
    plugin_digests[str(path)] = source_digest
    named = getattr(module, name, None)
    if not isinstance(named, type):
        classes = [k for k, v in vars(module).items() if isinstance(v, type)]
        raise RecipeError(f"no class {name!r} in the plug-in{did_you_mean(name, classes)}", where=str(path))
    return _settings_of(named, room, where=str(path))


def _forget(module: str | None) -> None:
    """Forget what a plug-in file registered before it was edited, so that a notebook can load it again."""
    for known in _settings.values():
        for kind in [kind for kind, cls in known.items() if cls.__module__ == module]:
            del known[kind]
    for settings in [s for s, cls in _implementations.items() if module in (s.__module__, cls.__module__)]:
        del _implementations[settings]
        _makers.pop(settings, None)
    if module is not None:
        _forgotten.add(module)


def _load_entry_point(room: str, kind: str) -> type:
    points = _entry_points(room)
    if kind not in points:
        raise RecipeError(f"unknown kind {kind!r}{did_you_mean(kind, {*_settings.get(room, {}), *points})}")
    point = points[kind]
    where = f"{_distribution(point)}, entry point {point.group}: {point.name} = {point.value}"
    try:
        with _undone_on_failure():
            named = point.load()
    except Exception as error:
        why = f"the plug-in cannot be loaded: {type(error).__name__}: {error}"
        raise RecipeError(why, where=where, fix="fix the package, or uninstall it") from error
    if not isinstance(named, type):
        raise RecipeError(f"names {named!r}, which is not a class", where=where, fix="name a class")
    settings = _settings_of(named, room, where=where)
    if _settings.get(room, {}).get(kind) is not settings:
        called = getattr(settings, "model_fields", {})["kind"].default
        raise RecipeError(
            f"is called {kind!r}, and its settings {called!r}", where=where, fix="give both the same name"
        )
    _digest_of_module(sys.modules[settings.__module__])
    return settings


def _entry_points(room: str) -> dict[str, EntryPoint]:
    """Entry points that installed packages declare for a room, by kind. Imports none of them.

    Raises:
        RecipeError: two of them, or one of them and potstill itself, have the same name.
    """
    # Imported late: scanning installed packages takes some 50 ms, and few recipes need it.
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"{__package__}.{room}"):
        registered = _settings.get(room, {}).get(point.name)
        other = found.get(point.name)
        owner = _distribution(other) if other is not None else __package__
        built_in = registered is not None and registered.__module__.partition(".")[0] == __package__
        if built_in or (other is not None and other.value != point.value):
            raise RecipeError(
                f"kind {point.name!r} of {room} is defined twice: by {owner} and by {_distribution(point)}",
                where=f"{point.group}: {point.name} = {point.value}",
                fix="rename one of them, or uninstall one of the packages",
            )
        found[point.name] = point
    return found


@contextmanager
def _undone_on_failure() -> Iterator[None]:
    """Undo the registrations of a module that fails while it loads."""
    settings, implementations = {room: dict(known) for room, known in _settings.items()}, dict(_implementations)
    makers = dict(_makers)
    try:
        yield
    except BaseException:
        for kept, before in ((_settings, settings), (_implementations, implementations), (_makers, makers)):
            kept.clear()
            kept.update(before)  # type: ignore[arg-type]
        raise


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unnamed package"


def _settings_of(named: type, room: str, *, where: str) -> type:
    """The settings class that `named` is, or that it implements."""
    settings = next((s for s, implementation in _implementations.items() if implementation is named), named)
    if getattr(settings, "room", None) != room or not hasattr(settings, "model_fields"):
        raise RecipeError(
            f"{named.__name__} is neither the settings of a kind of {room} nor what implements one",
            where=where,
            fix="name the class whose base is that of the room's settings (ObjectiveSettings, say)",
        )
    return settings


def _digest_of_module(module: Any) -> str:
    """The digest of a module's file; of a package, that of all its Python files, since they may import one another."""
    for path, known in plugin_digests.items():
        if module.__file__ == path or Path(path) in Path(module.__file__).parents:
            return known
    top = sys.modules.get(module.__name__.partition(".")[0])
    start = getattr(top, "__file__", None) if getattr(top, "__path__", None) else None
    folder = Path(start).parent if start is not None else None
    of = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")) if folder is not None else [Path(module.__file__)]:
        of.update(str(file.relative_to(folder) if folder is not None else file.name).encode() + b"\0")
        of.update(hashlib.sha256(file.read_bytes()).digest())
    plugin_digests[str(folder or module.__file__)] = of.hexdigest()
    return of.hexdigest()
