"""What is sent for a record: chat messages, made from a prompt or a chat of templates, or the record's own.

Each kind is a class with the same methods, `Messages`; few-shot examples go around any of them. They read no
files and see no provider; `wire` chooses and makes one for each stage, whose requests it renders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from batchllm.errors import BadInput, ConfigError
from batchllm.prompt.fields import explain_missing, missing_fields
from batchllm.prompt.given import checked
from batchllm.prompt.templates import Template, environment_of

DEFAULT_PROMPT = "{{ text }}"
_SYSTEM = frozenset({"system", "developer"})
"""Roles that speak before the conversation."""

Message = dict[str, Any]


class Messages(Protocol):
    """Makes a record's messages; `fields` are those without which no record can be rendered."""

    fields: frozenset[str]

    @property
    def templates(self) -> Sequence[Template]:
        """Those that a record's messages are made of."""
        ...

    def messages(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> list[Message]:
        """The chat messages of one record, whose earlier stages gave `answers`; or BadInput."""
        ...

    def turns(self, data: dict[str, Any]) -> list[Message]:
        """The same without what speaks before the conversation, for a record of an example."""
        ...

    def missing(self, records: Sequence[dict[str, Any]]) -> list[str]:
        """The needed fields that none of these records has; none are where there are no records."""
        ...

    def explain(self, missing: Sequence[str], records: Sequence[dict[str, Any]]) -> ConfigError:
        """What to tell the user about them."""
        ...


class _Checked:
    """How templates tell what records lack."""

    fields: frozenset[str]

    def missing(self, records: Sequence[dict[str, Any]]) -> list[str]:
        return missing_fields(self.fields, records)

    def explain(self, missing: Sequence[str], records: Sequence[dict[str, Any]]) -> ConfigError:
        return explain_missing(missing, records)


class Prompt(_Checked):
    """A user template and, where given, a system template.

    A template sees the record's fields by name, the whole object as `record` (a field of that name wins), and
    in a later stage the earlier ones' values as `answers`. `prompt_name` and `system_name` are what messages
    call the templates: the option or the file. `fields` are the top-level fields without which no record can
    be rendered: those that are only used behind `default` or `is defined` are not among them. Raises
    ConfigError for a template that doesn't compile.
    """

    def __init__(
        self,
        prompt: str,
        system: str | None = None,
        *,
        prompt_name: str = "--prompt",
        system_name: str = "--system",
    ) -> None:
        environment = environment_of()
        self._system = None if system is None else Template(environment, system, system_name)
        self._user = Template(environment, prompt, prompt_name)
        self.system_fields: frozenset[str] = self._system.fields if self._system else frozenset()
        self.user_fields = self._user.fields
        self.fields = self.user_fields | self.system_fields

    @property
    def templates(self) -> Sequence[Template]:
        """The user's, and the system's where there is one."""
        return (self._user,) if self._system is None else (self._user, self._system)

    def messages(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> list[Message]:
        """The chat messages for one record; a system message that comes out blank is left away.

        Raises BadInput with cause `missing_field`, `template_error` or `empty_prompt`.
        """
        user = self._user.render(data, answers)
        if not user or user.isspace():
            raise BadInput(f"the prompt is empty for this record ({self._user.name})", cause="empty_prompt")
        message = {"role": "user", "content": user}
        if self._system is None:
            return [message]
        system = self._system.render(data, answers)
        if not system or system.isspace():
            return [message]
        return [{"role": "system", "content": system}, message]

    def system(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> list[Message]:
        """The system message for one record, if there is one."""
        text = "" if self._system is None else self._system.render(data, answers)
        return [{"role": "system", "content": text}] if text and not text.isspace() else []

    def turns(self, data: dict[str, Any]) -> list[Message]:
        """The user's message alone."""
        return [{"role": "user", "content": self._user.render(data)}]


class ChatPrompt(_Checked):
    """A template for each message of a chat, with its `role` and `content`.

    A message that comes out blank is left away, but for the last one: without it nothing is asked. `name` is
    what messages call the templates.
    """

    def __init__(self, chat: Iterable[Mapping[str, str]], *, name: str = "[[message]]") -> None:
        environment = environment_of()
        self._templates = [
            (each["role"], Template(environment, each["content"], f"{name}: message {number}"))
            for number, each in enumerate(chat, 1)
        ]
        self.fields = frozenset[str]().union(*(template.fields for _, template in self._templates))

    @property
    def templates(self) -> Sequence[Template]:
        """Those of all messages."""
        return [template for _, template in self._templates]

    def messages(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> list[Message]:
        """The chat messages for one record; raises BadInput as a Prompt does."""
        return self._rendered(self._templates, data, answers)

    def turns(self, data: dict[str, Any]) -> list[Message]:
        """Those that are not the system's."""
        return self._rendered([each for each in self._templates if each[0] not in _SYSTEM], data, None)

    def _rendered(
        self, templates: Sequence[tuple[str, Template]], data: dict[str, Any], answers: dict[str, Any] | None
    ) -> list[Message]:
        texts = [(role, template.render(data, answers)) for role, template in templates]
        if texts and not texts[-1][1].strip():
            name = templates[-1][1].name
            raise BadInput(f"the last message is empty for this record ({name})", cause="empty_prompt")
        return [{"role": role, "content": text} for role, text in texts if text.strip()]


class GivenMessages(_Checked):
    """Messages that the records hold themselves in `field`; those that hold none go through `prompt`.

    The messages are sent as they stand, behind the prompt's system message where they have none of their own.
    """

    def __init__(self, prompt: Prompt, field: str) -> None:
        self._prompt = prompt
        self._field = field
        self.fields = prompt.fields

    @property
    def templates(self) -> Sequence[Template]:
        """Those of the prompt."""
        return self._prompt.templates

    def messages(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> list[Message]:
        """The record's own messages, or the prompt's; BadInput, cause `messages`, for what can't be sent."""
        if self._field not in data or not self._has(data):
            return self._prompted(data, answers)
        messages = checked(data[self._field], self._field)
        if any(message["role"] in _SYSTEM for message in messages):
            return messages
        return [*self._prompt.system(data, answers), *messages]

    def turns(self, data: dict[str, Any]) -> list[Message]:
        """The record's own messages but for the system's, or the prompt's."""
        if not self._has(data):
            return self._prompt.turns(data)
        return [each for each in checked(data[self._field], self._field) if each["role"] not in _SYSTEM]

    def missing(self, records: Sequence[dict[str, Any]]) -> list[str]:
        """The prompt's fields count only where none of the records has messages."""
        some = any(self._has(record) for record in records)
        return missing_fields(self._prompt.system_fields if some else self.fields, records)

    def explain(self, missing: Sequence[str], records: Sequence[dict[str, Any]]) -> ConfigError:
        """Says that neither text nor messages are there, with a prompt that fits the records."""
        unasked = [name for name in missing if name in self._prompt.user_fields]
        if not unasked:
            return explain_missing(missing, records)
        return explain_missing(unasked, records, default_prompt=True, messages_field=self._field)

    def _has(self, data: dict[str, Any]) -> bool:
        """Whether the record has messages, or, with no text either, something else in their place."""
        value = data.get(self._field)
        if value is None:
            return False
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return True
        return not data.keys() >= self._prompt.user_fields

    def _prompted(self, data: dict[str, Any], answers: dict[str, Any] | None) -> list[Message]:
        try:
            return self._prompt.messages(data, answers)
        except BadInput as error:
            if error.cause != "missing_field":
                raise
            told = f"{error.message}; it has no messages in {self._field!r} either"
            raise BadInput(told, cause="missing_field", hint=error.hint) from error


class Examples(_Checked):
    """Few-shot examples in front of the conversation of `inner`, behind what the system says.

    Each has a `record`, over which the templates are rendered, or the `user`'s text, and the `answer`'s text.
    Raises ConfigError for an example whose record can't be rendered, or that asks nothing; `name` is what
    messages call the table.
    """

    def __init__(
        self, inner: Messages, examples: Iterable[Mapping[str, Any]], *, name: str = "[[example]]"
    ) -> None:
        self._inner = inner
        self._shown: list[Message] = []
        self.fields = inner.fields
        for number, example in enumerate(examples, 1):
            try:
                asked = (
                    inner.turns(example["record"])
                    if "record" in example
                    else [{"role": "user", "content": example["user"]}]
                )
            except BadInput as error:
                raise ConfigError(f"{name}: example {number}: {error.message}", error.hint) from error
            if not asked or any(_is_blank(each) for each in asked):
                raise ConfigError(
                    f"{name}: example {number} asks nothing: its message is empty",
                    "give its record what the prompt needs, or leave the example out",
                )
            self._shown += [*asked, {"role": "assistant", "content": example["answer"]}]

    @property
    def templates(self) -> Sequence[Template]:
        """Those inside."""
        return self._inner.templates

    def messages(self, data: dict[str, Any], answers: dict[str, Any] | None = None) -> list[Message]:
        """The messages of `inner` with the examples among them."""
        own = self._inner.messages(data, answers)
        start = next((place for place, each in enumerate(own) if each["role"] not in _SYSTEM), len(own))
        return [*own[:start], *self._shown, *own[start:]]

    def turns(self, data: dict[str, Any]) -> list[Message]:
        """Those of `inner`."""
        return self._inner.turns(data)

    def missing(self, records: Sequence[dict[str, Any]]) -> list[str]:
        """What `inner` misses."""
        return self._inner.missing(records)

    def explain(self, missing: Sequence[str], records: Sequence[dict[str, Any]]) -> ConfigError:
        """What `inner` says of it."""
        return self._inner.explain(missing, records)


def _is_blank(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, str) and not content.strip()
