"""Jinja2 templates and conditions over a record's fields, compiled once; what they may do, what is said then.

Owns the sandbox and the words for what is missing. It reads no files and builds no messages: `chat` renders
templates into them, the pipeline asks conditions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from batchllm.errors import BadInput, ConfigError
from batchllm.prompt.fields import listed, unguarded

RESERVED = frozenset({"record", "answers"})
"""Names that a template sees beside the fields: the whole object, and the earlier stages' values."""
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_NO_TEXT = frozenset({"batch", "map", "reject", "rejectattr", "select", "selectattr", "slice", "unique"})
"""Filters whose outcome is a Python generator, whose text says nothing of what is in it."""
_MAX_LINE = 120


class _Answers(dict[str, Any]):
    """The earlier stages' values by stage, told apart from the objects of a record."""


class _Undefined(StrictUndefined):
    """Says which field is missing, and what is there instead."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if self._undefined_obj is missing:
            return f"the record has no field {self._undefined_name!r}"
        if isinstance(self._undefined_obj, _Answers):
            names = listed(self._undefined_obj)
            return f"no earlier stage {self._undefined_name!r} has answered, those that have: {names}"
        if isinstance(self._undefined_obj, dict):
            names = listed(self._undefined_obj)
            return f"the object has no {self._undefined_name!r}, it has: {names}"
        return f"a value of type {type(self._undefined_obj).__name__} has no {self._undefined_name!r}"


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which `order.items` is the field `items` of an object, not a method of dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def environment_of() -> Environment:
    """The sandbox that templates are compiled in."""
    environment = Environment(undefined=_Undefined, autoescape=False, keep_trailing_newline=False)
    # Jinja's own tojson escapes for HTML and sorts the keys.
    environment.filters["tojson"] = _to_json
    del environment.globals["lipsum"]
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    if isinstance(value, Undefined):
        str(value)  # raises, naming the field
    return _ENCODER.encode(value) if indent is None else json.dumps(value, ensure_ascii=False, indent=indent)


class Template:
    """One compiled template: `fields` it needs, `answers` of stages that it names, and its text for a record.

    `answers` has the line of each. `name` is what messages call it. Raises ConfigError for what doesn't
    compile or never renders.
    """

    __slots__ = ("_compiled", "_globals", "_plain", "_root", "answers", "fields", "name", "source")
    _kind = "template"
    _syntax = "templates are Jinja2: {{ field }}, {% if field is defined %}…{% endif %}"
    _optional = "write {{ name | default('') }} for a field that may be absent"

    def __init__(self, environment: Environment, source: str, name: str) -> None:
        self.source = source
        self.name = name
        try:
            tree = self._parsed(environment)
            self._compiled = environment.from_string(self._parsed(environment))
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
        self.fields = frozenset(unguarded(tree) & free) - RESERVED
        self.answers = dict(_answers_in(tree))
        self._root = self._compiled.root_render_func
        self._plain = _plain_layout(tree, environment)

    def render(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> str:
        """The text for one record, or BadInput.

        With `answers`, the earlier stages' values, that name means them; without, a field of that name.
        """
        if self._plain is not None:
            layout, fields = self._plain
            try:
                return layout % tuple([data[name] for name in fields])
            except KeyError:
                pass  # the way below says what is missing, and where
        try:
            names = {**self._globals, "record": data, **data}
            if answers is not None:
                names["answers"] = _Answers(answers)
            return "".join(self._root(self._compiled.new_context(names, shared=True)))
        except Exception as error:
            raise self._failed(error, data) from error

    def check_answers(self, known: Sequence[str]) -> None:
        """Raise ConfigError where it names an answer of a stage that is not among those `known` before it."""
        for name, line in self.answers.items():
            if name not in known:
                there = f"those before it are: {', '.join(known)}" if known else "no stage is before it"
                raise self._rejected(f"it names answers.{name}, and {there}", line)

    def _parsed(self, environment: Environment) -> nodes.Template:
        return environment.parse(self.source)

    def _failed(self, error: Exception, data: dict[str, Any]) -> BadInput:
        place = self._place(self._line_of(error))
        if isinstance(error, UndefinedError):
            return BadInput(
                f"{error.message} ({place}); the record has: {listed(data)}",
                cause="missing_field",
                hint=self._optional,
            )
        text = str(error) or type(error).__name__
        return BadInput(f"the {self._kind} failed: {text} ({place})", cause="template_error")

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
            f"the {self._kind} has an error: {message} ({self._place(line)})", hint=self._syntax
        )

    def _reject_what_never_renders(self, environment: Environment, tree: nodes.Template) -> None:
        """Raise ConfigError for what Jinja would only find out at the first record, or at some."""
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            known = environment.filters if isinstance(node, nodes.Filter) else environment.tests
            if node.name not in known:
                raise self._rejected(f"there is no {type(node).__name__.lower()} {node.name!r}", node.lineno)
        for other in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise self._rejected("a template can't load another one", other.lineno)
        for output in tree.find_all(nodes.Output):
            for shown in output.nodes:
                if isinstance(shown, nodes.Filter) and shown.name in _NO_TEXT:
                    raise self._rejected(f"{shown.name} gives no text: add | list or | join", shown.lineno)


class _Yes(Template):
    """A template of one condition, whose text is empty where it doesn't hold."""

    __slots__ = ()
    _kind = "condition"
    _syntax = "a condition is an expression without braces, such as: answers.check.label == 'urgent'"
    _optional = "write: name is defined and name == … for what may be absent"

    def _parsed(self, environment: Environment) -> nodes.Template:
        parser = Parser(environment, self.source, state="variable")
        test = parser.parse_expression()
        if not parser.stream.eos:
            parser.fail("there is more behind the expression", parser.stream.current.lineno)
        yes = nodes.Output([nodes.TemplateData("yes")], lineno=1)
        tree = nodes.Template([nodes.If(test, [yes], [], [], lineno=1)], lineno=1)
        tree.set_environment(environment)
        return tree


class Condition:
    """An expression over a record's fields, `record` and `answers`, as strict as a template.

    `fields` are those without which it can't be judged. Raises ConfigError for one that doesn't compile.
    """

    def __init__(self, source: str, name: str) -> None:
        self._template = _Yes(environment_of(), source, name)
        self.fields = self._template.fields

    @property
    def templates(self) -> Sequence[Template]:
        """The one that it is compiled as."""
        return (self._template,)

    def holds(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> bool:
        """Whether it is true of this record; BadInput where a field or an answer that it names is missing."""
        return self._template.render(data, answers) != ""


def _answers_in(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """The names that a template reads as `answers.name` or `answers["name"]`, and their lines."""
    for got in tree.find_all(nodes.Getattr):
        if isinstance(got.node, nodes.Name) and got.node.name == "answers":
            yield got.attr, got.lineno
    for item in tree.find_all(nodes.Getitem):
        named = item.arg.value if isinstance(item.arg, nodes.Const) else None
        if isinstance(item.node, nodes.Name) and item.node.name == "answers" and isinstance(named, str):
            yield named, item.lineno


def _plain_layout(tree: nodes.Template, environment: Environment) -> tuple[str, list[str]] | None:
    """A %-layout and the names that fill it, for a template of nothing but text and `{{ name }}`."""
    layout: list[str] = []
    names: list[str] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                layout.append(node.data.replace("%", "%%"))
            elif isinstance(node, nodes.Name) and node.name not in {*RESERVED, "self", *environment.globals}:
                layout.append("%s")
                names.append(node.name)
            else:
                return None
    return "".join(layout), names
