"""What a request to the rehearsal server asks for, read from its body.

Pure: bytes in, an `Ask` or a `Rejected` out, with the complaints that a strict endpoint has about
parameters. It judges the request alone, never keys, limits or faults.
"""

from __future__ import annotations

from typing import Any

import orjson

from batchllm.faults import refused_feature
from batchllm.fields import frozen
from batchllm.simulate.problems import Problem, Rejected, bad_request

_UNKNOWN_MODEL = "no-such-model"
_NAMES = {str: "a string", bool: "a boolean", float: "a decimal number", list: "an array", dict: "an object"}


@frozen
class Ask:
    """One chat completion to make up.

    `text` is the last user message; `schema` what the answer has to satisfy, or None for plain text;
    `prompt_tokens` is estimated at four bytes a token; `max_tokens` is the most to answer, or None. `talk` is
    all that was said before, where anything was; `tool` names the one to answer with.
    """

    model: str
    text: str
    schema: dict[str, Any] | bool | None
    prompt_tokens: int
    max_tokens: int | None
    talk: str = ""
    tool: str | None = None

    @property
    def needs(self) -> dict[str, int]:
        """What limits count for it, by dimension; the output as the most it may answer, else an estimate."""
        output = self.max_tokens or tokens(self.text) + 2
        return {
            "requests": 1,
            "tokens": self.prompt_tokens + output,
            "input-tokens": self.prompt_tokens,
            "output-tokens": output,
        }


def tokens(text: str) -> int:
    """An estimate at four characters a token, at least 1."""
    return max(1, (len(text) + 3) // 4)


def read(body: bytes, refuse: tuple[str, ...] = ()) -> Ask:
    """The Ask in a chat completion's body; or Rejected: a 404 for the model `no-such-model`, else a 400.

    `refuse` names features that this server lacks.
    """
    data, model = _opened(body)
    if refuse and (refused := refused_feature(data, refuse)):
        raise bad_request(*refused)
    _check_temperature(data.get("temperature"))
    text, size, talk = _messages(data.get("messages"))
    tool, parameters = _tool(data.get("tools"), data.get("tool_choice"))
    return Ask(
        model=model,
        text=text,
        schema=parameters if tool else _schema(data.get("response_format")),
        prompt_tokens=max(1, (size + 3) // 4),
        max_tokens=_limit(data, "max_completion_tokens") or _limit(data, "max_tokens"),
        talk=talk,
        tool=tool,
    )


def read_message(body: bytes) -> Ask:
    """The Ask in a body for Anthropic's /v1/messages, where `max_tokens` is required; raises Rejected."""
    data, model = _opened(body)
    _check_temperature(data.get("temperature"))
    most = _limit(data, "max_tokens")
    if most is None:
        raise bad_request("max_tokens: field required", "max_tokens", "missing_required_parameter")
    text, size, _ = _messages(data.get("messages"))
    size += _size(_text(data.get("system"), "system"))
    return Ask(model=model, text=text, schema=None, prompt_tokens=max(1, (size + 3) // 4), max_tokens=most)


def _opened(body: bytes) -> tuple[dict[str, Any], str]:
    """What both endpoints want: a JSON object with a model, and no stream."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise bad_request("The body is no valid JSON.") from None
    if not isinstance(data, dict):
        raise bad_request("The body is no JSON object.")
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("You must provide a model parameter.", "model", "missing_required_parameter")
    if model == _UNKNOWN_MODEL:
        message = f"The model '{model}' does not exist."
        raise Rejected(Problem(404, message, "invalid_request_error", "model_not_found"))
    if data.get("stream"):
        raise bad_request("This server doesn't stream.", "stream", "unsupported_value")
    return data, model


def _limit(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        kind = _NAMES.get(type(value), "null")
        message = f"Invalid type for '{name}': expected an integer, but got {kind} instead."
        raise bad_request(message, name, "invalid_type")
    if value < 1:
        raise bad_request(
            f"Invalid '{name}': {value} is below the minimum of 1.", name, "integer_below_min_value"
        )
    return value


def _check_temperature(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = _NAMES.get(type(value), "null")
        message = f"Invalid type for 'temperature': expected a number, but got {kind} instead."
        raise bad_request(message, "temperature", "invalid_type")
    if not 0 <= value <= 2:
        message = f"Invalid 'temperature': {value} is not between 0 and 2."
        raise bad_request(message, "temperature", "decimal_out_of_range")


def _messages(messages: Any) -> tuple[str, int, str]:
    """The last user message's text, the bytes of all messages, and what was said before an answer to it."""
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with a message in it.", "messages", "invalid_type")
    last = talk = ""
    size = 0
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(
                "Each message must be an object with a role.", f"messages[{number}]", "invalid_type"
            )
        text = _text(message.get("content"), f"messages[{number}].content")
        size += _size(text)
        if message["role"] == "assistant":
            talk += f"{last}\n{text}\n"
        if message["role"] == "user":
            last = text
    return last, size, talk


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _text(content: Any, where: str) -> str:
    """A message's content: a string, nothing, or parts of which those with text count."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    message = "The content must be a string or an array of objects."
    raise bad_request(message, where, "invalid_type")


def _tool(tools: Any, choice: Any) -> tuple[str | None, Any]:
    """The name and the parameters of the tool that has to be used; None where none has to."""
    wanted = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(wanted, dict):
        return None, None
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("name") == wanted.get("name"):
            return str(function["name"]), function.get("parameters", {})
    raise bad_request("tool_choice names none of the tools.", "tool_choice", "invalid_value")


def _schema(wanted: Any) -> dict[str, Any] | bool | None:
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object", "properties": {"echo": {"type": "string"}}}
    if kind != "json_schema":
        raise bad_request(
            f"Invalid value for 'response_format': {kind!r}.", "response_format", "invalid_value"
        )
    holder = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict | bool):
        message = "'response_format' has no JSON Schema in json_schema.schema."
        raise bad_request(message, "response_format", "missing_required_parameter")
    return schema
