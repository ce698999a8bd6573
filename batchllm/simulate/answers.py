"""What the rehearsal server answers: the echo of the question, or an instance of the schema asked for.

Pure: the same Ask gets the same answer, so a test can join answers to questions and a seed repeats a run.
The faults that show in a well-formed completion (empty, cut, wrapped, wrong) are made here too.
"""

from __future__ import annotations

from random import Random
from typing import Any

import orjson

from batchllm.faults import TALK
from batchllm.fields import frozen
from batchllm.simulate.asks import Ask, tokens
from batchllm.simulate.instances import Unanswerable, instance
from batchllm.simulate.problems import bad_request

NO_COMPLETION = b'{"object":"notice","notice":"this is JSON, and no chat completion"}'
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}


@frozen
class Answer:
    """The text of a completion with its finish reason and its length in tokens."""

    text: str
    finish: str
    completion_tokens: int


def answer(ask: Ask, fault: str | None, digest: bytes) -> Answer:
    """The answer to an Ask whose text has this digest, or the faulty one that `fault` names.

    Raises Rejected with a 400 for a schema that nothing could be made up for.
    """
    if fault == "empty":
        return Answer("", "stop", 0)
    if fault == "filter":
        return Answer("", "content_filter", 0)
    text = TALK if fault == "talk" else _right_text(ask, digest, wrong=fault == "enum")
    if fault == "length":
        text = text[: len(text) // 2]
        return Answer(text, "length", tokens(text))
    if fault == "prose":
        text = f"Here is the answer you wanted:\n\n{text}\n\nTell me if it should be different."
    elif fault == "fenced":
        text = f"```json\n{text}\n```"
    count = tokens(text)
    if ask.max_tokens is not None and count > ask.max_tokens:
        return Answer(text[: 4 * ask.max_tokens], "length", ask.max_tokens)
    return Answer(text, "stop", count)


def completion(ask: Ask, given: Answer, request_id: str, created: int) -> bytes:
    """The body of a chat completion; `created` in Unix seconds."""
    said: dict[str, Any] = {"role": "assistant", "content": given.text}
    finish = given.finish
    if ask.tool is not None and given.text and finish != "content_filter":
        function = {"name": ask.tool, "arguments": given.text}
        call = {"id": f"call_{request_id}", "type": "function", "function": function}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        finish = "tool_calls" if finish == "stop" else finish
    return orjson.dumps(
        {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "created": created,
            "model": ask.model,
            "choices": [
                {
                    "index": 0,
                    "message": said,
                    "logprobs": None,
                    "finish_reason": finish,
                }
            ],
            "usage": {
                "prompt_tokens": ask.prompt_tokens,
                "completion_tokens": given.completion_tokens,
                "total_tokens": ask.prompt_tokens + given.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }
    )


def message(ask: Ask, given: Answer, request_id: str) -> bytes:
    """The body of an answer from Anthropic's /v1/messages."""
    return orjson.dumps(
        {
            "id": f"msg_{request_id}",
            "type": "message",
            "role": "assistant",
            "model": ask.model,
            "content": [{"type": "text", "text": given.text}],
            "stop_reason": _STOP_REASONS[given.finish],
            "stop_sequence": None,
            "usage": {
                "input_tokens": ask.prompt_tokens,
                "output_tokens": given.completion_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        }
    )


def _right_text(ask: Ask, digest: bytes, *, wrong: bool) -> str:
    echo = f"echo: {ask.text}"
    if ask.schema is None:
        return echo
    try:
        value = instance(ask.schema, echo, Random(digest), wrong=wrong)
    except (Unanswerable, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise bad_request(f"Invalid schema: {error}.", "response_format", "invalid_json_schema") from None
    return orjson.dumps(value).decode()
