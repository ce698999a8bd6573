"""Contract suites for whoever writes a provider, a sink or a source; derive, fill in, run with pytest.

    class TestMine(ProviderContract):
        def provider(self): return my_provider_that_answers()

Each test's name says the promise that the rest of batchllm relies on. Fakes for tests are public too:
`Answers` is a Provider that gives what it was given.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from batchllm.errors import BatchError
from batchllm.model import Dead, Record, Reply, Request, Trail, Usage
from batchllm.ports import Provider, Sink, Source


class Answers:
    """A Provider that gives one thing after another: a text, a Reply, or an error to raise.

    The last one is given again and again. `requests` holds what was asked.
    """

    def __init__(self, *given: str | Reply | BatchError) -> None:
        self._given = list(given)
        self.requests: list[Request] = []

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """The next of what was given."""
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        given = self._given.pop(0) if len(self._given) > 1 else self._given[0]
        if isinstance(given, BatchError):
            raise given
        if isinstance(given, Reply):
            return given
        return Reply(text=given, value=given, usage=Usage(1, 1), finish="stop", model=request.model)


def request(text: str = "hello", **body: Any) -> Request:
    """A plain request with one user message."""
    return Request(model="m", body={"messages": [{"role": "user", "content": text}], **body}, key="key-0")


class ProviderContract:
    """What a Provider must hold. `provider` gives one that can answer `request()`."""

    def provider(self) -> AbstractAsyncContextManager[Provider]:
        raise NotImplementedError

    def test_an_answer_is_text_with_usage_and_a_finish_reason(self) -> None:
        reply = anyio.run(self._ask, request())
        assert isinstance(reply.text, str)
        assert reply.value == reply.text
        assert reply.usage.input_tokens >= 0
        assert reply.finish is None or isinstance(reply.finish, str)
        assert reply.model

    def test_it_answers_many_at_once(self) -> None:
        async def main() -> list[Reply]:
            replies: list[Reply] = []
            async with self.provider() as provider, anyio.create_task_group() as tasks:

                async def ask(number: int) -> None:
                    replies.append(await provider.complete(request(f"number {number}"), Trail()))

                for number in range(20):
                    tasks.start_soon(ask, number)
            return replies

        assert len(anyio.run(main)) == 20

    def test_it_can_be_asked_again_after_a_cancelled_call(self) -> None:
        async def main() -> Reply:
            async with self.provider() as provider:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await provider.complete(request(), Trail())
                return await provider.complete(request(), Trail())

        assert anyio.run(main).text

    async def _ask(self, asked: Request) -> Reply:
        async with self.provider() as provider:
            return await provider.complete(asked, Trail())


class SinkContract:
    """What a Sink that is a file must hold. `sink` opens one on `path`."""

    def sink(self, path: Path) -> Sink:
        raise NotImplementedError

    def test_lines_stand_in_the_order_in_which_they_came(self, tmp_path: Path) -> None:
        sink = self.sink(tmp_path / "lines")
        assert sink.append([b"one\n", b"two\n"]) == 8
        assert sink.append([b"three\n"]) == 14
        sink.sync()
        assert (tmp_path / "lines").read_bytes() == b"one\ntwo\nthree\n"

    def test_it_goes_on_behind_what_was_cut(self, tmp_path: Path) -> None:
        sink = self.sink(tmp_path / "lines")
        sink.append([b"one\n", b"two\n"])
        sink.truncate(4)
        assert sink.append([b"three\n"]) == 10
        assert (tmp_path / "lines").read_bytes() == b"one\nthree\n"

    def test_nothing_is_written_for_no_lines(self, tmp_path: Path) -> None:
        sink = self.sink(tmp_path / "lines")
        assert sink.append([]) == 0


class SourceContract:
    """What a Source must hold. `source` gives one over some records, at least three."""

    def source(self) -> Source:
        raise NotImplementedError

    def test_records_come_numbered_in_order_and_in_bounded_chunks(self) -> None:
        chunks = self._chunks()
        assert all(0 < len(chunk) <= 1024 for chunk in chunks)
        seqs = [_seq(item) for chunk in chunks for item in chunk]
        assert len(seqs) >= 3
        assert seqs == sorted(set(seqs))

    def test_a_record_holds_its_object_and_the_bytes_it_came_in(self) -> None:
        for chunk in self._chunks():
            for item in chunk:
                if isinstance(item, Record):
                    assert isinstance(item.data, dict)
                    assert item.line
                    assert b"\n" not in item.line

    def test_a_position_is_at_or_before_the_record_asked_for(self) -> None:
        source = self.source()
        seqs = [_seq(item) for chunk in anyio.run(_drain, source) for item in chunk]
        for seq in seqs:
            assert source.position(seq).seq <= seq

    def _chunks(self) -> list[list[Record | Dead]]:
        return anyio.run(_drain, self.source())


async def _drain(source: Source) -> list[list[Record | Dead]]:
    return [chunk async for chunk in source.chunks()]


def _seq(item: Record | Dead) -> int:
    return item.record.seq if isinstance(item, Dead) else item.seq
