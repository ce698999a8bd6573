"""Which fields a template needs, and what to say where records lack them.

Pure: it reads Jinja's syntax trees and records, and renders nothing. `templates` asks what a template can't
do without, `wire` what the first records have of it.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import nodes

from batchllm.errors import ConfigError

_MAX_NAMES = 20


def missing_fields(fields: frozenset[str], records: Iterable[dict[str, Any]]) -> list[str]:
    """The fields that none of the records has, sorted; none are missing where there are no records."""
    left = set(fields)
    seen = False
    for record in records:
        seen = True
        left.difference_update(record)
        if not left:
            break
    return sorted(left) if seen else []


def explain_missing(
    missing: Sequence[str],
    records: Sequence[dict[str, Any]],
    *,
    default_prompt: bool = False,
    messages_field: str | None = None,
) -> ConfigError:
    """What to tell the user about the fields that none of these records has.

    `default_prompt` says that the user gave no prompt; the answer then holds one that fits the records.
    `messages_field` is the field that could have held messages in place of it.
    """
    available = _fields_of(records)
    if default_prompt:
        lacking = _quoted(missing) + (f" and no messages in {messages_field!r}" if messages_field else "")
        return ConfigError(
            f"no prompt was given, and the records have no field {lacking}; they have: {listed(available)}",
            hint=f"give one, for example: -p {shlex.quote(_ready_prompt(records))}",
        )
    return _nowhere(
        "the prompt uses", missing, records, "a field that may be absent: {{ name | default('') }}"
    )


def explain_no_images(missing: Sequence[str], records: Sequence[dict[str, Any]]) -> ConfigError:
    """What to tell the user about --image fields that none of these records has."""
    return _nowhere("--image names", missing, records, "a record without an image may leave the field out")


def _nowhere(
    said: str, missing: Sequence[str], records: Sequence[dict[str, Any]], advice: str
) -> ConfigError:
    available = _fields_of(records)
    close = [match for name in missing for match in difflib.get_close_matches(name, available, n=1)]
    return ConfigError(
        f"{said} {_quoted(missing)}, which none of the {len(records)} records read so far has",
        hint=(f"did you mean {_quoted(close)}? " if close else "")
        + f"the records have: {listed(available)}; {advice}",
    )


def unguarded(tree: nodes.Template) -> set[str]:
    """The names that the template reads where nothing has made sure that they are there."""
    needed: set[str] = set()
    _read_all(tree.body, frozenset(), needed)
    return needed


def _read_all(statements: Iterable[nodes.Node], known: frozenset[str], needed: set[str]) -> frozenset[str]:
    for statement in statements:
        known = _read(statement, known, needed)
    return known


def _read(node: nodes.Node, known: frozenset[str], needed: set[str]) -> frozenset[str]:
    """Add what `node` reads and `known` doesn't hold to `needed`; return the names known after it."""
    match node:
        case nodes.Name(name=name, ctx="load"):
            if name not in known:
                needed.add(name)
        case nodes.Filter(name="default" | "d", node=nodes.Name() as guarded):
            _read_all((child for child in node.iter_child_nodes() if child is not guarded), known, needed)
        case nodes.Test(name="defined" | "undefined", node=nodes.Name()):
            pass
        case nodes.And() | nodes.Or():
            _read(node.left, known, needed)
            _read(node.right, known | _known_when(node.left, isinstance(node, nodes.And)), needed)
        case nodes.CondExpr():
            _read(node.test, known, needed)
            _read(node.expr1, known | _known_when(node.test, True), needed)
            if node.expr2 is not None:
                _read(node.expr2, known | _known_when(node.test, False), needed)
        case nodes.If():
            return _read_branches(node, known, needed)
        case _:
            bound = _bound_by(node)
            _read_all(node.iter_child_nodes(), known | bound, needed)
            if isinstance(node, nodes.Assign | nodes.AssignBlock):
                return known | bound
    return known


def _read_branches(node: nodes.If, known: frozenset[str], needed: set[str]) -> frozenset[str]:
    """An if with its elifs and else; known after it is what every branch leaves known."""
    after = []
    for branch in [node, *node.elif_]:
        _read(branch.test, known, needed)
        after.append(_read_all(branch.body, known | _known_when(branch.test, True), needed))
        known |= _known_when(branch.test, False)
    after.append(_read_all(node.else_, known, needed))
    return frozenset.intersection(*after)


def _known_when(test: nodes.Node, outcome: bool) -> frozenset[str]:
    """The names that must be there when `test` comes out as `outcome`."""
    match test:
        case nodes.Test(name="defined", node=nodes.Name(name=name)) if outcome:
            return frozenset({name})
        case nodes.Test(name="undefined", node=nodes.Name(name=name)) if not outcome:
            return frozenset({name})
        case nodes.Not():
            return _known_when(test.node, not outcome)
        case nodes.And() | nodes.Or():
            left, right = _known_when(test.left, outcome), _known_when(test.right, outcome)
            return left | right if isinstance(test, nodes.And) is outcome else left & right
    return frozenset()


def _bound_by(node: nodes.Node) -> frozenset[str]:
    """The names that a statement itself gives a value: targets of set, for and with, a macro's arguments."""
    targets: list[nodes.Node] = []
    for attribute in ("target", "targets", "args"):
        found = getattr(node, attribute, [])
        targets += found if isinstance(found, list) else [found]
    names = {name for target in targets for name in [target, *target.find_all(nodes.Name)]}
    return frozenset(name.name for name in names if isinstance(name, nodes.Name) and name.ctx != "load")


def _fields_of(records: Iterable[dict[str, Any]]) -> list[str]:
    """Every field of these records, in the order in which they first appear."""
    return list(dict.fromkeys(name for record in records for name in record))


def _ready_prompt(records: Sequence[dict[str, Any]]) -> str:
    """A prompt of the two longest texts among the fields, in the records' order; else the whole record."""
    lengths: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, str) and name != "id":
                lengths[name] = lengths.get(name, 0) + len(value)
    longest = sorted(lengths, key=lambda name: -lengths[name])[:2]
    texts = [name for name in lengths if name in longest]
    if not texts:
        return "{{ record | tojson }}"
    return " ".join(
        f"{{{{ {name} }}}}" if name.isidentifier() else f"{{{{ record[{json.dumps(name)}] }}}}"
        for name in texts
    )


def listed(names: Iterable[str]) -> str:
    """The names as a message shows them, the first twenty."""
    known = list(names)
    shown = ", ".join(known[:_MAX_NAMES]) or "nothing"
    return shown if len(known) <= _MAX_NAMES else f"{shown} and {len(known) - _MAX_NAMES} more"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
