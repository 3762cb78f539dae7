"""The table of licences and terms (`sources.toml`): what each says of a route to a student, for a purpose.

A *source* is a licence of models or data, or a provider's terms. `decide` looks up one source; it answers `warn` for
whatever the table does not know, and never `allow`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from potstill.recipe.policy import Purpose

Route = Literal["outputs", "logits", "weights", "data"]
"""How a student came by a source: text that a model wrote; its distributions or hidden states; its weights as a start;
or data."""

Answer = Literal["allow", "duties", "warn", "block"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
"""The answers, from the best to the worst."""

Do = Literal[
    "copy_licence",
    "notice",
    "attribution",
    "changed",
    "display",
    "name_prefix",
    "restrictions",
    "share_alike",
    "noncommercial",
    "use_policy",
    "condition",
]
"""What a duty asks: a copy of the licence; a text in a notice file; names and addresses of what was used; a statement
that files were changed; a text in the documentation; the beginning of the model's name; use restrictions passed on;
the same licence; no commercial use; a use policy to follow; a condition that the user must meet."""


@dataclass(frozen=True)
class Duty:
    """One duty of a clause. `text` is what must be written or followed, empty where `do` says it all."""

    do: Do
    text: str = ""
    source: str = ""
    clause: str = ""


@dataclass(frozen=True)
class Rule:
    """One statement of a text. `of` limits it to students whose own weights are of the same source, or of another."""

    routes: tuple[Route, ...]
    purposes: tuple[Purpose, ...]
    answer: Answer
    clause: str
    of: Literal["any", "same", "other"] = "any"
    duties: tuple[Duty, ...] = ()


@dataclass(frozen=True)
class Source:
    """A licence, or a provider's terms.

    Attributes:
        kinds: what it is for: `model`, `data`, `provider`.
        text: the text that was read, and `sha256` its digest; empty if it was not read.
        read_on: the date on which it was read.
        aliases: other names of it, lower case.
        models: patterns of model names whose licence it is.
        hosts: addresses of a provider.
    """

    id: str
    name: str
    kinds: tuple[str, ...]
    address: str
    text: str = ""
    sha256: str = ""
    read_on: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def was_read(self) -> bool:
        """Whether its rules come from a text (or, for `own`, from the recipe)."""
        return bool(self.rules)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes that it can have an answer for."""
        if self.kinds == ("provider",):
            return ("outputs", "logits")
        return tuple(r for r in get_args(Route) if ("data" if r == "data" else "model") in self.kinds)


@dataclass(frozen=True)
class Table:
    """All sources, by id, and names of models by licence."""

    sources: Mapping[str, Source]
    named: tuple[tuple[str, tuple[str, ...]], ...] = ()
    by_alias: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What one source says of one route for one purpose, with all duties that go with it."""

    answer: Answer
    clause: str
    duties: tuple[Duty, ...] = ()
    why: str = ""


def decide(source_id: str | None, route: Route, purpose: Purpose, student_of: str | None = None) -> Decision:
    """The answer of a source.

    Args:
        source_id: an id of the table; anything else, or None, is unknown.
        route: how the student comes by it.
        purpose: what the student is for.
        student_of: the source of the weights that the student starts from; None if they are random or unknown.

    Returns:
        The worst answer of all rules that match, with its clause, and the duties of all of them. Without a rule that
        matches it is `warn`.
    """
    source = table().sources.get(source_id or "")
    if source is None:
        return Decision("warn", "", why="its licence is not known")
    same = student_of == source_id or route == "weights"
    matching = [
        rule
        for rule in source.rules
        if route in rule.routes and purpose in rule.purposes and rule.of in ("any", "same" if same else "other")
    ]
    if not matching:
        return Decision("warn", "", why="its text was not read" if not source.was_read else "its text does not say")
    worst = max(matching, key=lambda rule: ANSWERS.index(rule.answer))
    duties = dict.fromkeys(duty for rule in matching for duty in rule.duties)
    return Decision(worst.answer, worst.clause, tuple(duties))


def worst_of(answers: Iterator[Answer] | list[Answer]) -> Answer:
    """The worst of some answers; `allow` if there are none."""
    return max(answers, key=ANSWERS.index, default="allow")


@cache
def table() -> Table:
    """The table, read once."""
    document = tomllib.loads((files("potstill.policy") / "sources.toml").read_text(encoding="utf-8"))
    digests = _digests()
    entries = {entry["id"]: entry for entry in document["source"]}
    sources = {id_: _source(entry, entries, digests, document["read_on"]) for id_, entry in entries.items()}
    aliases = {alias: id_ for id_, source in sources.items() for alias in (id_, *source.aliases)}
    named = tuple((entry["licence"], tuple(entry["models"])) for entry in document["named"])
    return Table(sources, named, aliases)


def _digests() -> Mapping[str, str]:
    from potstill.policy.fingerprints import known_texts

    return {name: text.sha256 for name, text in known_texts().items()}


def _source(
    entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]], digests: Mapping[str, str], read_on: str
) -> Source:
    model = entries[entry["like"]] if "like" in entry else entry
    values = entry.get("values", {})
    text = entry.get("text", "")
    return Source(
        id=entry["id"],
        name=entry["name"],
        kinds=tuple(entry["kinds"]),
        address=entry["address"],
        text=text,
        sha256=digests[entry["id"]] if text else "",
        read_on=entry.get("read_on", read_on) if text else "",
        note=entry.get("note", model.get("note", "")),
        aliases=tuple(entry.get("aliases", ())),
        models=tuple(entry.get("models", ())),
        hosts=tuple(entry.get("hosts", ())),
        rules=tuple(_rule(rule, entry["id"], values) for rule in model.get("rule", ())),
    )


def _rule(rule: Mapping[str, Any], source: str, values: Mapping[str, str]) -> Rule:
    duties = tuple(
        Duty(duty["do"], _filled(duty.get("text", ""), values), source, rule["clause"])
        for duty in rule.get("duties", ())
    )
    return Rule(
        tuple(rule["routes"]), tuple(rule["purposes"]), rule["answer"], rule["clause"], rule.get("of", "any"), duties
    )


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text
