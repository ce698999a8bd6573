"""What may be taken for an answer: what is cut, withheld or broken is told apart, and no key stays in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import orjson
import pytest

from batchllm.errors import BadReply, BatchError, Refused
from batchllm.layers.structured import Structured
from batchllm.limits import BELIEVED, Pauses
from batchllm.model import Reply, Trail
from batchllm.ports import ProviderSpec
from batchllm.providers.chat import finish_of, read_answer
from batchllm.providers.openai import OpenAI
from batchllm.stop import Stop
from batchllm.testing import Answers, request
from batchllm.transport import Answer

KEY = "kEyS3cret-zz_9"


def _body(finish: Any = "stop", **message: Any) -> bytes:
    choice = {"message": {"content": "half an answer"} | message, "finish_reason": finish}
    return orjson.dumps({"choices": [choice], "model": "m"})


def _read(content: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    return read_answer(200, headers or {}, content, model="m", now=0.0)


@pytest.mark.parametrize("finish", ["length", "LENGTH", "MAX_TOKENS", "model_length", "max-output-tokens"])
def test_a_cut_answer_is_asked_again_however_its_end_is_spelt(finish: str) -> None:
    provider = Answers(_read(_body(finish)), "whole")

    async def main() -> Reply:
        layer = Structured(provider, schema=None, repair=1, stop=Stop())
        return await layer.complete(request(max_tokens=100), Trail())

    assert anyio.run(main).text == "whole"
    assert len(provider.requests) == 2


@pytest.mark.parametrize(
    "finish", ["SAFETY", "content_filter: SAFETY", "content-filter", "recitation", "refusal"]
)
def test_a_withheld_answer_is_refused_however_it_is_spelt(finish: str) -> None:
    async def main() -> None:
        layer = Structured(Answers(_read(_body(finish))), schema=None, repair=1, stop=Stop())
        await layer.complete(request(), Trail())

    with pytest.raises(Refused):
        anyio.run(main)


@pytest.mark.parametrize("finish", ["error", "abort", "cancelled", "tool_calls", ["length"], 7])
def test_an_answer_that_broke_off_is_a_bad_reply(finish: Any) -> None:
    with pytest.raises(BadReply):
        _read(_body(finish))


def test_a_tool_call_beside_text_and_a_refusal_in_parts_are_no_answers() -> None:
    with pytest.raises(BadReply, match="tool call"):
        _read(_body(tool_calls=[{"id": "t"}]))
    assert _read(_body(content=[{"type": "refusal", "refusal": "no"}])).finish == "refusal"
    beside = _read(_body(content='{"label": "a"}', refusal="I can't help."))
    assert (beside.finish, beside.text) == ("refusal", "I can't help.")
    parts = [{"type": "reasoning", "text": "SECRET"}, {"type": "text", "text": "said"}]
    assert _read(_body(content=parts)).text == "said"


@pytest.mark.parametrize("body", [b'{"error":' + b"[" * 900 + b"]" * 900 + b"}", b"[" * 900 + b"]" * 900])
def test_json_nested_beyond_reason_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReply):
        _read(body)


def test_characters_that_show_nothing_are_an_empty_answer() -> None:
    provider = Answers("\u200b \ufeff\u2060", "seen")

    async def main() -> Reply:
        return await Structured(provider, schema=None, repair=1, stop=Stop()).complete(request(), Trail())

    assert anyio.run(main).text == "seen"


def test_finish_reasons_have_one_spelling() -> None:
    assert [finish_of(reason) for reason in (None, "stop", "Content-Filter: X", 3)] == [
        None,
        "stop",
        "content_filter",
        "error",
    ]


class _Echo:
    """An endpoint that answers with what it was made of."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self._answer = Answer.of(status, headers, content)

    async def post(self, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float) -> Answer:
        return self._answer


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, _body(content=f"your key is {KEY}")),
        (200, orjson.dumps({"auth": "p" * 100 + KEY})),
        (400, orjson.dumps({"error": {"message": "bad", "code": KEY}})),
        (500, KEY.encode()),
    ],
)
def test_a_key_that_the_server_echoes_is_masked_wherever_it_stands(status: int, content: bytes) -> None:
    async def main() -> Reply | BatchError:
        provider = OpenAI(_Echo(status, {"x-request-id": KEY}, content), ProviderSpec("m", key=KEY))
        try:
            return await provider.complete(request(), Trail())
        except BatchError as error:
            return error

    came = anyio.run(main)
    told = repr(came) + repr(vars(came) if isinstance(came, BatchError) else "")
    assert KEY not in told
    assert KEY[:10] not in told


def test_named_waits_that_prove_too_short_grow() -> None:
    pauses, now = Pauses(), 0.0
    waits = []
    for _ in range(12):
        waits.append(pauses.add(now, 0.001, 1.0))
        now = pauses.until
    assert waits[:BELIEVED] == pytest.approx([0.001] * BELIEVED)
    assert waits[-1] > 10
    pauses.succeeded()
    assert pauses.add(now, 0.001, 1.0) == pytest.approx(0.001)
