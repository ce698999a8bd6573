"""What a record says of its own request: whole messages, parameters, the model; checked, never changed.

Pure. A value that can't be sent is BadInput that names its place; `chat` asks it for messages, `wire` for the
rest.
"""

from __future__ import annotations

from typing import Any

from batchllm.errors import BadInput
from batchllm.prompt.fields import listed

_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def checked(value: Any, field: str) -> list[dict[str, Any]]:
    """The chat messages in a record's field; BadInput with cause `messages` for what no server takes."""
    if not isinstance(value, list):
        raise _no_messages(f"{field} is {_kind(value)}, not a list of messages")
    if not value:
        raise _no_messages(f"{field} has no message in it")
    for number, message in enumerate(value):
        place = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise _no_messages(f"{place} is {_kind(message)}, not a message with role and content")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise _no_messages(f"{place}.role is {_kind(role)}, not the name of a role")
        _check_content(message, f"{place}.content")
    return value


def params_in(data: dict[str, Any], field: str) -> dict[str, Any]:
    """The request parameters of a record, none where it has none; BadInput with cause `params`."""
    value = data.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInput(f"{field} is {_kind(value)}, not an object of request parameters", cause="params")
    taken = sorted(value.keys() & {"messages", "model"})
    if taken:
        raise BadInput(
            f"{field} holds {listed(taken)}, which --messages-field and --model-field name fields for",
            cause="params",
        )
    return value


def model_in(data: dict[str, Any], field: str) -> str | None:
    """The model that a record names, None where it names none; BadInput with cause `model`."""
    value = data.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        shown = "empty" if value == "" else _kind(value)
        raise BadInput(f"{field} is {shown}, not the name of a model", cause="model")
    return value


def _check_content(message: dict[str, Any], place: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None and (message.get("tool_calls") or message.get("function_call")):
        return
    if not isinstance(content, list):
        raise _no_messages(f"{place} is {_kind(content)}, not text or a list of parts")
    for number, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _no_messages(f"{place}[{number}] is no part: an object with a type, such as text")


def _no_messages(message: str) -> BadInput:
    return BadInput(message, cause="messages", hint='a message is {"role": "user", "content": "…"}')


def _kind(value: Any) -> str:
    return "missing" if value is None else _KINDS.get(type(value), type(value).__name__)
