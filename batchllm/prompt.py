"""Prompts: Jinja2 templates over a record's fields, compiled once and rendered into chat messages.

Owns what a template may do and what is said when a field is missing. It never reads a file and never sees
a provider; `wire` compiles a prompt, `pipeline` renders it, and the first records are checked against
`Prompt.fields` before anything is called.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from batchllm.errors import BadInput, ConfigError

DEFAULT_PROMPT = "{{ text }}"
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_MAX_NAMES = 20
_MAX_LINE = 120


class Prompt:
    """A user template and, where given, a system template.

    A template sees the record's fields by name, and the whole object as `record` (a field of that name
    wins). `prompt_name` and `system_name` are what messages call the templates: the option or the file.
    `fields` are the top-level fields without which no record can be rendered: those that are only used
    behind `default` or `is defined` are not among them. Raises ConfigError for a template that doesn't
    compile.
    """

    def __init__(
        self,
        prompt: str,
        system: str | None = None,
        *,
        prompt_name: str = "--prompt",
        system_name: str = "--system",
    ) -> None:
        environment = _environment()
        self._system = None if system is None else _Template(environment, system, system_name)
        self._user = _Template(environment, prompt, prompt_name)
        self.fields: frozenset[str] = self._user.fields | (self._system.fields if self._system else set())

    def messages(self, data: dict[str, Any]) -> list[dict[str, str]]:
        """The chat messages for one record; a system message that comes out blank is left away.

        Raises BadInput with cause `missing_field`, `template_error` or `empty_prompt`.
        """
        user = self._user.render(data)
        if not user or user.isspace():
            raise BadInput(f"the prompt is empty for this record ({self._user.name})", cause="empty_prompt")
        message = {"role": "user", "content": user}
        if self._system is None:
            return [message]
        system = self._system.render(data)
        if not system or system.isspace():
            return [message]
        return [{"role": "system", "content": system}, message]


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
    missing: Sequence[str], records: Sequence[dict[str, Any]], *, default_prompt: bool = False
) -> ConfigError:
    """What to tell the user about the fields that none of these records has.

    `default_prompt` says that the user gave no prompt; the answer then holds one that fits the records.
    """
    available = _fields_of(records)
    if default_prompt:
        return ConfigError(
            f"no prompt was given, and the records have no field {_quoted(missing)}; "
            f"they have: {_names(available)}",
            hint=f"give one, for example: -p {shlex.quote(_ready_prompt(records))}",
        )
    close = [match for name in missing for match in difflib.get_close_matches(name, available, n=1)]
    return ConfigError(
        f"the prompt uses {_quoted(missing)}, which none of the {len(records)} records read so far has",
        hint=(f"did you mean {_quoted(close)}? " if close else "")
        + f"the records have: {_names(available)}; a field that may be absent: {{{{ name | default('') }}}}",
    )


class _Undefined(StrictUndefined):
    """Says which field is missing, and what is there instead."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if self._undefined_obj is missing:
            return f"the record has no field {self._undefined_name!r}"
        if isinstance(self._undefined_obj, dict):
            names = _names(self._undefined_obj)
            return f"the object has no {self._undefined_name!r}, it has: {names}"
        return f"a value of type {type(self._undefined_obj).__name__} has no {self._undefined_name!r}"


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which `order.items` is the field `items` of an object, not a method of dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _environment() -> _Environment:
    environment = _Environment(undefined=_Undefined, autoescape=False, keep_trailing_newline=False)
    # Jinja's own tojson escapes for HTML and sorts the keys.
    environment.filters["tojson"] = _to_json
    del environment.globals["lipsum"]
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    if isinstance(value, Undefined):
        str(value)  # raises, naming the field
    return _ENCODER.encode(value) if indent is None else json.dumps(value, ensure_ascii=False, indent=indent)


class _Template:
    """One compiled template: `fields` it needs, and its text for a record."""

    __slots__ = ("_compiled", "_globals", "_plain", "_root", "fields", "name", "source")

    def __init__(self, environment: _Environment, source: str, name: str) -> None:
        self.source = source
        self.name = name
        try:
            tree = environment.parse(source)
            self._compiled = environment.from_string(source)
        except TemplateSyntaxError as error:
            message = error.message or "syntax error"
            raise self._rejected(message[0].lower() + message[1:], error.lineno) from error
        except (SyntaxError, ValueError, OverflowError, RecursionError) as error:
            raise self._rejected(f"can't be compiled ({error})", 1) from error
        self._reject_what_never_renders(environment, tree)
        # A global that isn't called, as in {{ range }}, means a field of that name.
        called = [call.node for call in tree.find_all(nodes.Call)]
        used = [name for name in tree.find_all(nodes.Name) if not any(name is node for node in called)]
        fields = environment.globals.keys() & {name.name for name in used}
        # Jinja's own way, a copy of its ChainMap of globals, would cost more than all the rest.
        self._globals = {k: v for k, v in environment.globals.items() if k not in fields}
        free = meta.find_undeclared_variables(tree) | fields
        self.fields = frozenset(_unguarded(tree) & free) - {"record"}
        self._root = self._compiled.root_render_func
        self._plain = _plain_layout(tree, environment)

    def render(self, data: dict[str, Any]) -> str:
        """The text for one record, or BadInput."""
        if self._plain is not None:
            layout, fields = self._plain
            try:
                return layout % tuple([data[name] for name in fields])
            except KeyError:
                pass  # the way below says what is missing, and where
        try:
            names = {**self._globals, "record": data, **data}
            return "".join(self._root(self._compiled.new_context(names, shared=True)))
        except Exception as error:
            raise self._failed(error, data) from error

    def _failed(self, error: Exception, data: dict[str, Any]) -> BadInput:
        place = self._place(self._line_of(error))
        if isinstance(error, UndefinedError):
            return BadInput(
                f"{error.message} ({place}); the record has: {_names(data)}",
                cause="missing_field",
                hint="write {{ name | default('') }} for a field that may be absent",
            )
        text = str(error) or type(error).__name__
        return BadInput(f"the template failed: {text} ({place})", cause="template_error")

    def _line_of(self, error: Exception) -> int:
        """The line of the template in which the error came up."""
        line = 1
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals is self._root.__globals__:
                line = self._compiled.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line

    def _place(self, line: int) -> str:
        lines = self.source.splitlines()
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        return f"{self.name} line {line}: {text[:_MAX_LINE]}"

    def _rejected(self, message: str, line: int) -> ConfigError:
        return ConfigError(
            f"the template has an error: {message} ({self._place(line)})",
            hint="templates are Jinja2: {{ field }}, {% if field is defined %}…{% endif %}",
        )

    def _reject_what_never_renders(self, environment: _Environment, tree: nodes.Template) -> None:
        """Raise ConfigError for what Jinja would only find out at the first record, or at some."""
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            known = environment.filters if isinstance(node, nodes.Filter) else environment.tests
            if node.name not in known:
                raise self._rejected(f"there is no {type(node).__name__.lower()} {node.name!r}", node.lineno)
        for other in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise self._rejected("a template can't load another one", other.lineno)


def _plain_layout(tree: nodes.Template, environment: _Environment) -> tuple[str, list[str]] | None:
    """A %-layout and the names that fill it, for a template of nothing but text and `{{ name }}`."""
    layout: list[str] = []
    names: list[str] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                layout.append(node.data.replace("%", "%%"))
            elif isinstance(node, nodes.Name) and node.name not in {"record", "self", *environment.globals}:
                layout.append("%s")
                names.append(node.name)
            else:
                return None
    return "".join(layout), names


def _unguarded(tree: nodes.Template) -> set[str]:
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


def _names(names: Iterable[str]) -> str:
    known = list(names)
    shown = ", ".join(known[:_MAX_NAMES]) or "nothing"
    return shown if len(known) <= _MAX_NAMES else f"{shown} and {len(known) - _MAX_NAMES} more"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
