"""One connection fed by hand: an answer is the same however it is split, and deadlines by a clock of ours."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.transport.exchange import Bounds, Failed, Phases, RawAnswer, Terms
from batchllm.transport.outgoing import BURST, LONGEST, Outgoing
from batchllm.transport.protocol import PIECE, Connection
from batchllm.transport.sweeper import Sweeper


class Wire(asyncio.Transport):
    """Takes what is written, and ends the connection when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.aborted = False
        self.closing = self.broken = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self.broken:
            raise MemoryError("no room")
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.aborted or self.closing

    def abort(self) -> None:
        self.aborted = True


@dataclass
class Home:
    """The owner of a connection; remembers what it was told."""

    peer: str = "host:1"
    bounds: Bounds = field(default_factory=Bounds)
    sweeper: Sweeper = field(default_factory=Sweeper)
    outgoing: Outgoing = field(default_factory=Outgoing)
    kept: list[Connection] = field(default_factory=list)
    trusting: bool = True

    def keep(self, connection: Connection) -> None:
        self.kept.append(connection)

    def lost(self, connection: Connection) -> None: ...

    def distrust(self) -> None:
        self.trusting = False


def connected(home: Home | None = None) -> tuple[Home, Wire, Connection]:
    home, wire = home or Home(), Wire()
    connection = Connection(home)
    connection.connection_made(wire)
    return home, wire, connection


def settle(pieces: list[bytes], *, closed: bool = False, bodiless: bool = False) -> tuple[Any, bool]:
    """What one exchange brings when the answer comes in these pieces; and whether the connection is kept."""

    async def main() -> tuple[Any, bool]:
        home, wire, connection = connected()
        future = connection.send(b"POST", 0, Terms(60, bodiless=bodiless), monotonic(), False)
        await asyncio.sleep(0)
        for piece in pieces:
            if not wire.aborted and not home.kept:
                connection.data_received(piece)
        if closed:
            connection.eof_received()
        home.sweeper.stop()
        return (future.result() if future.done() else None), bool(home.kept)

    return asyncio.run(main())


HEAD = b"HTTP/1.1 200 OK\r\nX-Request-Id: abc\r\nX-Long: " + b"y" * 300 + b"\r\n"
ANSWERS = [
    HEAD + b"Content-Length: 11\r\n\r\nhello world",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    HEAD + b"\r\nhello world",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 P\r\nX-A: 1\r\n\r\n"
    + HEAD
    + b"Content-Length: 11\r\n\r\nhello world",
    HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello world", mtime=0),
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 11\r\n\r\nhello world",
    b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
]


def split(data: bytes, cuts: set[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(answer=st.sampled_from(ANSWERS), cuts=st.sets(st.integers(1, 500), max_size=20))
@settings(max_examples=150, deadline=None)
def test_an_answer_is_the_same_wherever_its_bytes_are_split(answer: bytes, cuts: set[int]) -> None:
    whole = settle([answer], closed=True)
    assert isinstance(whole[0], RawAnswer)
    assert settle(split(answer, cuts), closed=True) == whole


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_is_the_same_byte_by_byte(answer: bytes) -> None:
    assert settle(split(answer, set(range(len(answer)))), closed=True) == settle([answer], closed=True)


@given(
    answer=st.sampled_from([one for one in ANSWERS if b"Length" in one or b"chunked" in one]), data=st.data()
)
@settings(max_examples=100, deadline=None)
def test_an_answer_cut_anywhere_is_a_failure(answer: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(answer) - 1))
    outcome, kept = settle([answer[:end]], closed=True)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "protocol"
    assert not kept


@given(junk=st.binary(min_size=1, max_size=400), cuts=st.sets(st.integers(1, 400), max_size=5))
@settings(max_examples=150, deadline=None)
def test_whatever_bytes_come_there_is_an_answer_or_a_failure(junk: bytes, cuts: set[int]) -> None:
    outcome, _ = settle(split(junk, cuts), closed=True)
    assert isinstance(outcome, RawAnswer | Failed)


@given(where=st.integers(0, 60), junk=st.binary(min_size=1, max_size=9))
@settings(max_examples=150, deadline=None)
def test_a_damaged_answer_is_an_answer_or_a_failure(where: int, junk: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello"
    outcome, _ = settle([answer[:where] + junk + answer[where + len(junk) :]], closed=True)
    assert isinstance(outcome, RawAnswer | Failed)


def test_an_answer_to_head_has_no_body_whatever_its_length_says() -> None:
    outcome, kept = settle([HEAD + b"Content-Length: 11\r\n\r\n"], bodiless=True)
    assert outcome.content == b""
    assert not kept


def test_only_a_connection_that_is_as_good_as_new_is_kept() -> None:
    kept = [settle([answer])[1] for answer in ANSWERS]
    assert kept == [True, True, False, True, False, True, False, True]


def test_the_read_timeout_of_httpx_starts_anew_with_every_byte() -> None:
    async def main() -> None:
        home, _, connection = connected()
        phases = Phases(write=5, read=10)
        future = connection.send(b"POST", 0, Terms(phases=phases), monotonic(), False)
        start = monotonic()
        assert connection.deadline <= start + 5
        connection.expire(start + 6)  # sent long ago: the write timeout has nothing to say
        assert not future.done()
        assert connection.deadline > start + 9
        connection.data_received(HEAD)
        assert connection.deadline > start + 9.9
        connection.expire(connection.deadline + 0.1)
        failed = future.result()
        assert isinstance(failed, Failed)
        assert failed.kind == "read_timeout"
        home.sweeper.stop()

    asyncio.run(main())


def test_the_write_timeout_of_httpx_counts_while_bytes_wait_to_go() -> None:
    async def main() -> None:
        home, wire, connection = connected()
        future = connection.send(b"POST" * 9, 30, Terms(phases=Phases(write=20, read=10)), monotonic(), False)
        wire.unsent = 36
        connection.expire(monotonic() + 11)
        assert not future.done()
        connection.expire(monotonic() + 21)
        failed = future.result()
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.ambiguous) == ("write_timeout", False)
        home.sweeper.stop()

    asyncio.run(main())


def test_the_requests_of_one_turn_are_written_together_and_never_more_than_a_burst_of_them_held() -> None:
    async def main() -> None:
        home = Home()
        wires = []
        for number in range(BURST + 2):
            _, wire, connection = connected(home)
            wires.append(wire)
            connection.send(b"POST %d" % number, 0, Terms(), 100.0, False)
            held = [wire for wire in wires if not wire.written]
            assert len(held) == (number + 1) % BURST
        await asyncio.sleep(0)
        assert [wire.written for wire in wires] == [b"POST %d" % number for number in range(BURST + 2)]
        home.sweeper.stop()

    asyncio.run(main())


def test_a_turn_in_which_each_request_takes_long_sends_them_off_in_its_midst() -> None:
    async def main() -> None:
        home = Home()
        first, second, third = [connected(home) for _ in range(3)]
        for (_, _, connection), late in ((first, 0.0), (second, LONGEST / 2), (third, 1.5 * LONGEST)):
            connection.send(b"POST", 0, Terms(), 100.0 + late, False)
            assert not first[1].written or late > LONGEST
        assert first[1].written == second[1].written == third[1].written == b"POST"
        home.sweeper.stop()

    asyncio.run(main())


def before_it_leaves(what: Callable[[Connection], None], *, reused: bool) -> tuple[Home, Wire, Any]:
    """What comes of a request to which this happens before the turn in which it is written."""

    async def main() -> tuple[Home, Wire, Any]:
        home, wire, connection = connected()
        future = connection.send(b"POST {}", 2, Terms(60), monotonic(), reused)
        what(connection)
        await asyncio.sleep(0)
        home.sweeper.stop()
        assert not home.sweeper.watched
        return home, wire, future.result() if future.done() else None

    return asyncio.run(main())


SETTINGS = bytes(3) + b"\x04" + bytes(5)
GRANTED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("data", "trusting"),
    [(BUSY, False), (b"HTTP/1.1 408 Request Timeout\r\n\r\n", True), (SETTINGS, True)],
    ids=["an answer", "the server is tired", "http/2"],
)
def test_what_comes_on_a_reused_connection_before_the_request_left_is_no_answer(
    data: bytes, trusting: bool
) -> None:
    home, wire, failed = before_it_leaves(lambda connection: connection.data_received(data), reused=True)
    assert isinstance(failed, Failed)
    assert (failed.stale, failed.ambiguous, failed.http2) == (True, False, False)
    assert (wire.written, wire.aborted, home.kept, home.trusting) == (b"", True, [], trusting)


def test_a_server_may_refuse_a_new_connection_before_the_request_left_but_not_grant_anything() -> None:
    home, wire, failed = before_it_leaves(lambda connection: connection.data_received(GRANTED), reused=False)
    assert isinstance(failed, Failed)
    assert (failed.ambiguous, wire.written, wire.aborted, home.kept) == (False, b"", True, [])
    home, wire, answer = before_it_leaves(lambda connection: connection.data_received(BUSY), reused=False)
    assert answer.status == 503
    assert (wire.written, wire.aborted, home.kept) == (b"", True, [])


@pytest.mark.parametrize("reused", [False, True])
def test_a_connection_that_ends_before_the_request_left_has_not_sent_it(reused: bool) -> None:
    _, wire, failed = before_it_leaves(lambda connection: connection.eof_received(), reused=reused)
    assert isinstance(failed, Failed)
    assert (failed.stale, failed.ambiguous) == (reused, False)
    assert wire.written == b""


def test_a_request_that_is_given_up_before_it_left_is_never_written() -> None:
    _, wire, outcome = before_it_leaves(lambda connection: connection.abandon(), reused=True)
    assert (outcome, wire.written, wire.aborted) == (None, b"", True)


def test_a_connection_that_the_loop_is_closing_takes_no_request_and_says_that_none_was_sent() -> None:
    async def main() -> None:
        _, wire, connection = connected()
        future = connection.send(b"POST {}", 2, Terms(), monotonic(), True)
        wire.closing = True  # the socket was reset; `connection_lost` is yet to come
        await asyncio.sleep(0)
        connection.connection_lost(ConnectionResetError(104, "reset"))
        failed = future.result()
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.stale, failed.ambiguous, wire.written) == ("read", True, False, b"")

    asyncio.run(main())


def test_a_write_that_fails_is_the_failure_of_its_own_request_alone() -> None:
    async def main() -> None:
        home = Home()
        all_of_them = [connected(home) for _ in range(BURST)]
        all_of_them[1][1].broken = True
        futures = [
            connection.send(b"POST", 0, Terms(), monotonic(), True) for _, _, connection in all_of_them
        ]
        failed = futures[1].result()
        assert isinstance(failed, Failed)
        assert "no room" in failed.message
        assert [wire.written for _, wire, _ in all_of_them] == [b"POST", b"", *[b"POST"] * (BURST - 2)]
        assert not any(future.done() for future in futures[2:])

    asyncio.run(main())


def test_a_long_request_is_not_written_on_to_a_connection_that_is_gone() -> None:
    class Gone(Wire):
        def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
            super().write(data)
            self.closing = True

    async def main() -> None:
        home, wire = Home(), Gone()
        connection = Connection(home)
        connection.connection_made(wire)
        connection.send(b"x" * (3 * PIECE), 3 * PIECE, Terms(), monotonic(), False)
        assert len(wire.written) == PIECE

    asyncio.run(main())


def test_a_request_with_httpx_s_phases_is_written_at_once() -> None:
    async def main() -> None:
        _, wire, connection = connected()
        connection.send(b"POST", 0, Terms(phases=Phases(read=10)), monotonic(), True)
        assert wire.written == b"POST"

    asyncio.run(main())


def test_the_read_timeout_of_httpx_begins_when_everything_was_sent_without_a_write_timeout_too() -> None:
    async def main() -> None:
        home, wire, connection = connected()
        future = connection.send(b"POST" * 9, 30, Terms(phases=Phases(read=10)), monotonic(), False)
        start = monotonic()
        wire.unsent = 36
        connection.expire(start + 11)
        assert not future.done()
        wire.unsent = 0
        assert start + 20 < connection.deadline < start + 22
        connection.expire(start + 22)
        failed = future.result()
        assert isinstance(failed, Failed)
        assert failed.kind == "read_timeout"
        home.sweeper.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("second", "trusting"),
    [(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", True), (GRANTED, False), (b"!", False)],
    ids=["the server is tired", "an answer", "junk"],
)
def test_what_stands_behind_an_answer_ends_the_connection_and_the_trust_unless_the_server_says_goodbye(
    second: bytes, trusting: bool
) -> None:
    async def main() -> None:
        home, wire, connection = connected()
        future = connection.send(b"POST", 0, Terms(), monotonic(), False)
        await asyncio.sleep(0)
        connection.data_received(GRANTED + second)
        answer = future.result()
        assert isinstance(answer, RawAnswer)
        assert (answer.status, answer.content) == (200, b"{}")
        assert (wire.aborted, home.kept, home.trusting) == (True, [], trusting)

    asyncio.run(main())
