"""The names and types of the arguments that a class or function takes, as its source declares them. Nothing is
imported or run.

`transformers` declares its training arguments and the configurations of its models; importing it would load torch (5
s), and checking a recipe must not take that long. A user's file declares the module that a recipe builds.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import did_you_mean

_NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_CONTAINERS = {
    "list": (list, tuple),
    "tuple": (list, tuple),
    "dict": (dict,),
    "Sequence": (list, tuple),
    "set": (list,),
}
MOST = 2**31 - 1
"""The largest accepted whole number: counts and sizes fit 32 bits."""


@dataclass(frozen=True)
class Declared:
    """The fields of a class, as its source declares them.

    Attributes:
        name: the class's name.
        types: the annotation of every field, by name.
        aliases: further names of fields (`attribute_map`: `hidden_size` is GPT-2's `n_embd`).
        others: names that are set without a declaration; they take any value.
        required: names that must be given.
    """

    name: str
    types: Mapping[str, ast.expr] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Every accepted name."""
        return frozenset(self.types) | frozenset(self.aliases) | self.others

    def why_not(self, name: str, value: Any) -> str | None:
        """Why a field cannot have a value: "should be a number, not 'abc'"; None if its type accepts it."""
        annotation = self.types.get(self.aliases.get(name, name))
        if isinstance(value, float) and not math.isfinite(value):
            return f"should be a finite number, not {value}"
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST:
            return f"should be at most {MOST:,}"
        if annotation is None or _fits(value, annotation):
            return None
        return f"should be {' or '.join(dict.fromkeys(_in_words(annotation)))}, not {_shown(value)}"


@functools.cache
def training_arguments() -> Declared:
    """`transformers.TrainingArguments`; without fields if `transformers` is not installed."""
    tree = _tree("training_args.py")
    return _declared(tree, "TrainingArguments") if tree is not None else Declared("TrainingArguments")


@functools.cache
def configuration(family: str) -> Declared | None:
    """The configuration of a `model_type`; None if `transformers` has none, or its source is not found."""
    name = configuration_names().get(family)
    file = _file_of(family, name) if name is not None else None
    if name is None or file is None:
        return None
    own = _with_bases(file, name)
    base = _tree("configuration_utils.py")
    common = _declared(base, "PreTrainedConfig") if base is not None else Declared("")
    return Declared(
        name,
        {**common.types, **own.types},
        {**common.aliases, **own.aliases},
        common.others | own.others | _COMMON,
    )


@functools.cache
def configuration_names() -> Mapping[str, str]:
    """The configuration class of every `model_type` in `transformers`."""
    tree = _tree("models/auto/auto_mappings.py")
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "CONFIG_MAPPING_NAMES" and node.value is not None:
                pairs = [n for n in ast.walk(node.value) if isinstance(n, ast.Tuple) and len(n.elts) == 2]
                return {str(family): str(name) for family, name in map(_constants, pairs)}
    return {}


@functools.cache
def names_of_any_configuration() -> frozenset[str]:
    """Every name that some configuration declares: what an unknown teacher's configuration may accept."""
    root = _root()
    names: set[str] = set(_COMMON)
    for file in (root / "models").glob("*/configuration_*.py") if root is not None else ():
        text = file.read_text(encoding="utf-8")
        names.update(re.findall(r"^    ([a-z]\w*) *:", text, flags=re.M))
        names.update(key for keys in re.findall(r"attribute_map\b[^{]*\{([^}]*)\}", text) for key in _keys_in(keys))
    base = _tree("configuration_utils.py")
    return frozenset(names) | (_declared(base, "PreTrainedConfig").names if base is not None else frozenset())


def callable_in(file: Path, name: str) -> Declared | None:
    """The arguments of a class or function in a Python file; None if the source does not tell (it comes from another
    file, or takes `**kwargs`).

    Raises:
        ValueError: the file is not Python, or has no such name (the error suggests the nearest).
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not Python: {error}") from None
    made = {n.name: n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    if name not in made:
        bound = {_name_of(n) for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        aliases = [alias for n in ast.walk(tree) if isinstance(n, (ast.ImportFrom, ast.Import)) for alias in n.names]
        if name in bound | {alias.asname or alias.name for alias in aliases} or any(a.name == "*" for a in aliases):
            return None
        raise ValueError(f"{file.name} has no class or function {name!r}{did_you_mean(name, made)}")
    return _arguments_of(made[name], made)


def _arguments_of(node: ast.ClassDef | ast.FunctionDef, made: Mapping[str, Any]) -> Declared | None:
    if isinstance(node, ast.ClassDef):
        constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if constructor is None:
            base = made.get(_name_of(node.bases[0])) if len(node.bases) == 1 else None
            if base is not None and not node.decorator_list:
                return _arguments_of(base, made)
            plain = [_name_of(b) for b in node.bases] in (["Module"], []) and not node.decorator_list
            return Declared(node.name) if plain else None
        arguments, given = constructor.args, constructor.args.args[1:]
    else:
        arguments, given = node.args, node.args.args
    if arguments.kwarg is not None or arguments.posonlyargs[1:]:
        return None
    optional = {a.arg for a in given[len(given) - len(arguments.defaults) :]} if arguments.defaults else set()
    optional |= {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None}
    everything = [*given, *arguments.kwonlyargs]
    types = {a.arg: a.annotation for a in everything if a.annotation is not None}
    names = frozenset(a.arg for a in everything)
    return Declared(node.name, types, {}, names - frozenset(types), names - frozenset(optional))


_COMMON = frozenset({"num_labels", "torch_dtype", "attn_implementation", "rope_theta", "rope_scaling", "head_dim"})
"""Names that every configuration accepts without declaring them."""


# ---- types ---------------------------------------------------------------------------------------------------


def _fits(value: Any, annotation: ast.expr) -> bool:
    """Whether a plain value (of YAML) has an annotated type. Unknown types accept anything."""
    options = list(_options(annotation))
    enums = [enum for option in options if (enum := _values_of_enum(option)) is not None]
    if enums and isinstance(value, str):
        return any(value in values for values in enums)
    return any(_fits_one(value, option) for option in options)


def _fits_one(value: Any, option: ast.expr) -> bool:
    if isinstance(option, ast.Constant):
        return value is None if option.value is None else True
    if isinstance(option, ast.Subscript):
        if _name_of(option.value) == "Literal":
            return any(value == choice and type(value) is type(choice) for choice in _constants(option.slice))
        return _fits_one(value, option.value)
    name = _name_of(option)
    if name in _CONTAINERS:
        return isinstance(value, _CONTAINERS[name])
    if name == "bool":
        return isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "str":
        return isinstance(value, str)
    return _values_of_enum(option) is None


def _options(annotation: ast.expr) -> Iterator[ast.expr]:
    """The alternatives of a union."""
    if isinstance(annotation, ast.BinOp):
        yield from _options(annotation.left)
        yield from _options(annotation.right)
    elif isinstance(annotation, ast.Subscript) and _name_of(annotation.value) in ("Optional", "Union"):
        yield from (annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice])
        if _name_of(annotation.value) == "Optional":
            yield ast.Constant(None)
    else:
        yield annotation


def _in_words(annotation: ast.expr) -> Iterator[str]:
    for option in _options(annotation):
        name = _name_of(option.value if isinstance(option, ast.Subscript) else option)
        if (values := _values_of_enum(option)) is not None:
            yield "one of " + ", ".join(values)
        elif isinstance(option, ast.Subscript) and name == "Literal":
            yield "one of " + ", ".join(map(str, _constants(option.slice)))
        elif name in ("list", "tuple", "Sequence", "set"):
            yield "a list"
        elif name == "dict":
            yield "a mapping"
        elif name in _NUMBERS and not (name == "str" and any(_values_of_enum(o) for o in _options(annotation))):
            yield _NUMBERS[name]
        elif isinstance(option, ast.Constant) and option.value is None:
            yield "null"


def _values_of_enum(option: ast.expr) -> tuple[str, ...] | None:
    return _enums().get(_name_of(option))


@functools.cache
def _enums() -> Mapping[str, tuple[str, ...]]:
    """The values of the enumerations that training arguments use."""
    found = {}
    for tree in (_tree("trainer_utils.py"), _tree("training_args.py")):
        for node in tree.body if tree is not None else ():
            if isinstance(node, ast.ClassDef) and "ExplicitEnum" in map(_name_of, node.bases):
                values = [n.value for n in node.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
                found[node.name] = tuple(str(value.value) for value in values)
    return found


def _name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _constants(node: ast.AST) -> list[Any]:
    elements = node.elts if isinstance(node, ast.Tuple) else [node]
    return [element.value if isinstance(element, ast.Constant) else element for element in elements]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


# ---- source --------------------------------------------------------------------------------------------------


@functools.cache
def _root() -> Path | None:
    """The folder of the installed `transformers`, without importing it."""
    spec = importlib.util.find_spec("transformers")
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


@functools.cache
def _tree(file: str) -> ast.Module | None:
    root = _root()
    path = root / file if root is not None else None
    return ast.parse(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _file_of(family: str, name: str) -> str | None:
    """The file of a configuration class, relative to the package."""
    root = _root()
    if root is None:
        return None
    likely = family.replace("-", "_")
    files = [root / "models" / likely / f"configuration_{likely}.py"]
    wanted = re.compile(rf"^class {re.escape(name)}\b", flags=re.M)
    for file in (*files, *sorted((root / "models").glob("*/configuration_*.py"))):
        if file.is_file() and wanted.search(file.read_text(encoding="utf-8")):
            return str(file.relative_to(root))
    return None


def _with_bases(file: str, name: str) -> Declared:
    """A class with the fields that it inherits from classes of the same file, or of another family's."""
    tree = _tree(file)
    if tree is None:
        return Declared(name)
    own = _declared(tree, name)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    for base in map(_name_of, node.bases) if node is not None else ():
        if any(isinstance(n, ast.ClassDef) and n.name == base for n in tree.body):
            inherited = _with_bases(file, base)
        elif (elsewhere := _imported_from(tree, base, file)) is not None:
            inherited = _with_bases(elsewhere, base)
        else:
            continue
        own = Declared(
            name,
            {**inherited.types, **own.types},
            {**inherited.aliases, **own.aliases},
            inherited.others | own.others,
        )
    return own


def _imported_from(tree: ast.Module, name: str, file: str) -> str | None:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and name in (alias.name for alias in node.names):
            folder = Path(file).parents[node.level - 1] if node.level else Path()
            found = folder / (node.module.replace(".", "/") + ".py")
            return str(found) if "configuration" in found.name and "utils" not in found.name else None
    return None


def _declared(tree: ast.Module, name: str) -> Declared:
    """The fields of one class in a file, those of its constructor, and the attributes it sets on itself."""
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    types: dict[str, ast.expr] = {}
    aliases: dict[str, str] = {}
    others: set[str] = set()
    for part in node.body if node is not None else ():
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            if part.target.id == "attribute_map":
                aliases |= _literal(part.value)
            elif "ClassVar" not in ast.unparse(part.annotation) and not part.target.id.startswith("_"):
                types[part.target.id] = part.annotation
        elif isinstance(part, ast.Assign) and "attribute_map" in map(_name_of, part.targets):
            aliases |= _literal(part.value)
        elif isinstance(part, ast.FunctionDef):
            if part.name == "__init__":
                others |= {argument.arg for argument in (*part.args.args[1:], *part.args.kwonlyargs)}
            others |= set(_set_on_self(part))
    return Declared(name, types, aliases, frozenset(others) - frozenset(types))


def _set_on_self(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _name_of(node.value) == "self":
            if not node.attr.startswith("_"):
                yield node.attr
        elif isinstance(node, ast.Call) and _name_of(node.func) in ("pop", "get") and node.args:
            first = node.args[0]  # kwargs.pop("name", default)
            yield from [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []


def _literal(node: ast.expr | None) -> dict[str, str]:
    try:
        found = ast.literal_eval(node) if node is not None else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _keys_in(text: str) -> list[str]:
    return re.findall(r"[\"'](\w+)[\"']\s*:", text)
