"""The lower door against a server that misbehaves in every way we know of."""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from batchllm.errors import CallError, ConfigError, Disconnected, TimedOut
from batchllm.transport import Answer, Bounds, Transport
from tests.faults.fault_server import OK, FaultServer, Peer

Run = Callable[..., Any]


def post(run: Run, script: Callable[[Peer], None], body: bytes = b"{}", timeout: float = 10) -> Answer:
    """One POST to a server with this script; then the transport must be clean."""
    errors: list[str] = []
    with FaultServer(script) as server:

        async def main() -> Answer:
            transport = Transport(Bounds(limit=3, body=2**20))
            try:
                endpoint = transport.endpoint(server.url, {"authorization": "Bearer sk-secret"})
                return await endpoint.post(body, timeout=timeout)
            except CallError as error:
                errors.append(error.message)
                raise
            finally:
                assert all(pool.free == 3 for pool in transport._pools.values())
                await transport.aclose()

        try:
            answer: Answer = run(main)
            return answer
        finally:
            for message in errors:
                assert f"127.0.0.1:{server.port}" in message
                assert "secret" not in message


def sends(*pieces: bytes) -> Callable[[Peer], None]:
    """The script that reads one request, sends these pieces and closes."""

    def script(peer: Peer) -> None:
        peer.request()
        for piece in pieces:
            peer.send(piece)

    return script


WHOLE = {
    "length-delimited": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x=1\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n",
    "close-delimited": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "http/1.0, close-delimited": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    "after 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "after 102 and 103": b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "an offer to upgrade": b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"
    b"Content-Length: 5\r\n\r\nhello",
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello"),
    "deflate": b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n" + zlib.compress(b"hello"),
    "bare deflate": b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n"
    + zlib.compress(b"hello", wbits=-15),
    "twice gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\n"
    + gzip.compress(gzip.compress(b"hello")),
}


@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE.keys())
def test_every_way_of_framing_a_body_is_read_whole(run: Run, answer: bytes) -> None:
    got = post(run, sends(answer))
    assert (got.status, got.content) == (200, b"hello")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_end_with_their_headers(run: Run, status: int) -> None:
    def script(peer: Peer) -> None:
        peer.answer(b"HTTP/1.1 %d X\r\nx-a: 1\r\n\r\n" % status)
        peer.hold()

    assert post(run, script).status == status


def test_header_names_are_lower_case_and_values_joined(run: Run) -> None:
    got = post(
        run, sends(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 0\r\nx-a:  2 \r\nX-B: caf\xe9\r\n\r\n")
    )
    assert got.headers == {"x-a": "1, 2", "content-length": "0", "x-b": "café"}


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \t "])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_blanks_around_a_header_s_value_are_no_part_of_it(run: Run, blank: bytes, place: int) -> None:
    lines = [b"x-a: 1", b"content-length: 0", b"x-b:  a b"]
    lines[place] += blank

    got = post(run, sends(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"))

    assert got.headers == {"x-a": "1", "content-length": "0", "x-b": "a b"}


def test_headers_without_values_keep_their_names(run: Run) -> None:
    got = post(run, sends(b"HTTP/1.1 200 OK\r\nx-a:\r\ncontent-length: 0\r\nx-b: \r\n\r\n"))

    assert got.headers == {"x-a": "", "content-length": "0", "x-b": ""}
    assert got.content == b""


CUT = {
    "closes before answering": (b"", "closed the connection before answering"),
    "cut in the status line": (b"HTTP/1.1 2", "in the middle of the headers"),
    "cut in the headers": (b"HTTP/1.1 200 OK\r\nContent-Le", "in the middle of the headers"),
    "cut in the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell", "in the middle of the answer"),
    "no byte of the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "in the middle of the answer"),
    "cut in a chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        "in the middle of the answer",
    ),
    "cut between chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n",
        "in the middle of the answer",
    ),
    "cut before the last line": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n",
        "in the middle of the answer",
    ),
    "cut after 100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\n", "in the middle of the headers"),
    "not http": (b"SSH-2.0-OpenSSH_9.2\r\n", "not http"),
    "a bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhe", "not http"),
    "a bad length": (b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello", "not http"),
    "switching protocols": (b"HTTP/1.1 101 X\r\nUpgrade: a\r\nConnection: Upgrade\r\n\r\n\x00", "not http"),
    "no gzip": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nhello", "no gzip"),
    "half a gzip": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello")[:-9],
        "cut short",
    ),
    "a gzip bomb": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(2**21)),
        "too large",
    ),
}


@pytest.mark.parametrize(("answer", "says"), CUT.values(), ids=CUT.keys())
def test_less_or_other_than_a_whole_answer_is_never_an_answer(run: Run, answer: bytes, says: str) -> None:
    with pytest.raises(Disconnected, match=says) as caught:
        post(run, sends(answer))
    assert caught.value.ambiguous
    assert not caught.value.stale


def endless(start: bytes, more: bytes) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.answer(start)
        while True:
            peer.send(more)

    return script


HUGE = {
    "one header": (endless(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 999), "more than 64 KiB of headers"),
    "many headers": (endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 99), "more than 64 KiB of headers"),
    "headers that end": (
        sends(b"HTTP/1.1 200 OK\r\n" + b"x: yyyy\r\n" * 9000 + b"\r\n"),
        "more than 64 KiB of headers",
    ),
    "interim answers": (endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 9), "more than 64 KiB of headers"),
    "trailers": (
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 99),
        "more than 64 KiB of headers",
    ),
    "a body by length": (
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b"y" * 9999),
        "more than 1 MiB of answer",
    ),
    "a body by chunks": (
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nyyyy\r\n" * 999),
        "more than 1 MiB of answer",
    ),
    "a body by closing": (endless(b"HTTP/1.1 200 OK\r\n\r\n", b"y" * 9999), "more than 1 MiB of answer"),
}


@pytest.mark.parametrize(("script", "says"), HUGE.values(), ids=HUGE.keys())
def test_what_has_no_end_is_cut_off_at_its_cap(run: Run, script: Callable[[Peer], None], says: str) -> None:
    with pytest.raises(Disconnected, match=says):
        post(run, script)


def test_headers_just_below_the_cap_pass(run: Run) -> None:
    lines = b"".join(b"x-%05d: %b\r\n" % (n, b"y" * 88) for n in range(640))
    got = post(run, sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + lines + b"\r\n{}"))
    assert len(got.headers) == 641


def test_a_long_body_in_tiny_chunks_is_no_flood_of_headers(run: Run) -> None:
    count = 30_000
    chunks = b"1;extension=x\r\ny\r\n" * count
    got = post(run, sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunks, b"0\r\n\r\n"))
    assert got.content == b"y" * count


def test_a_reset_is_said_to_be_one(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.reset()

    with pytest.raises(Disconnected, match="connection reset by peer") as caught:
        post(run, script)
    assert caught.value.ambiguous
    assert not caught.value.stale


def test_a_refused_connection_is_never_ambiguous(run: Run) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        async def main() -> None:
            transport = Transport()
            with pytest.raises(Disconnected) as caught:
                await transport.endpoint(f"http://127.0.0.1:{port}/v1", {}).post(b"{}", timeout=10)
            assert caught.value.message == f"connection refused by 127.0.0.1:{port}"
            assert not caught.value.ambiguous
            await transport.aclose()

        run(main)


def test_a_name_without_an_address_is_said_to_be_one(run: Run) -> None:
    async def main() -> None:
        transport = Transport()
        with pytest.raises(Disconnected, match=r"cannot resolve nosuch\.invalid: ") as caught:
            await transport.endpoint("http://nosuch.invalid/v1", {}).post(b"{}", timeout=10)
        assert not caught.value.ambiguous
        await transport.aclose()

    run(main)


def test_no_answer_in_time_is_ambiguous(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.hold()

    with pytest.raises(TimedOut, match=r"no answer from .* within 0.3 s") as caught:
        post(run, script, timeout=0.3)
    assert caught.value.ambiguous


def test_the_time_runs_to_the_last_byte_however_steadily_bytes_come(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
        gone = threading.Event()
        while not gone.wait(0.01):
            peer.send(b" ")

    with pytest.raises(TimedOut, match=r"answer from .* not whole after 0.5 s") as caught:
        post(run, script, timeout=0.5)
    assert caught.value.ambiguous


def test_a_server_that_stops_reading_times_out_as_sending(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.hold()

    with pytest.raises(TimedOut, match=r"sending to .* not done after 0.5 s") as caught:
        post(run, script, body=bytes(32 * 2**20), timeout=0.5)
    assert caught.value.ambiguous


def test_no_connection_in_time_is_not_ambiguous(run: Run) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        for filler in (first, second):  # nobody accepts: the queue is full and further calls go unanswered
            filler.setblocking(False)
            filler.connect_ex(address)

        async def main() -> None:
            transport = Transport()
            with pytest.raises(TimedOut, match=r"no connection to .* within 0.2 s") as caught:
                await transport.endpoint(f"http://127.0.0.1:{address[1]}/", {}).post(b"{}", timeout=0.2)
            assert not caught.value.ambiguous
            await transport.aclose()

        run(main)


def test_an_early_refusal_is_the_answer_though_the_body_is_still_being_sent(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong")
        peer.until_gone()

    got = post(run, script, body=bytes(32 * 2**20))
    assert (got.status, got.content) == (413, b"long")


def test_an_early_refusal_leaves_no_connection_with_half_a_request_on_it(run: Run) -> None:
    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong")
            peer.hold()
        peer.answer()

    with FaultServer(script) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            assert (await endpoint.post(bytes(32 * 2**20), timeout=10)).status == 413
            assert (await endpoint.post(b"{}", timeout=10)).status == 200
            await transport.aclose()

        run(main)


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_reused_connection_that_dies_before_a_byte_is_stale_and_nothing_is_sent_twice(
    run: Run, how: str
) -> None:
    def script(peer: Peer) -> None:
        peer.answer()
        if peer.number == 0:
            peer.request()
            if how == "resets":
                peer.reset()
            return
        peer.hold()

    with FaultServer(script) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            await endpoint.post(b"1", timeout=10)
            with pytest.raises(Disconnected) as caught:
                await endpoint.post(b"2", timeout=10)
            assert caught.value.stale
            assert caught.value.ambiguous
            assert [request[-1:] for request in server.requests] == [b"1", b"2"]
            assert (await endpoint.post(b"3", timeout=10)).status == 200
            await transport.aclose()

        run(main)


def test_a_reused_connection_that_dies_after_a_byte_is_not_stale(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.answer()
        peer.answer(b"H")

    with FaultServer(script) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            await endpoint.post(b"1", timeout=10)
            with pytest.raises(Disconnected, match="in the middle of the headers") as caught:
                await endpoint.post(b"2", timeout=10)
            assert not caught.value.stale
            await transport.aclose()

        run(main)


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX", b"HTTP", b"junk"])
def test_a_second_answer_to_one_request_is_never_taken_for_the_next_ones(run: Run, extra: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.answer(OK + extra if peer.number == 0 else OK)
        peer.hold()

    with FaultServer(script) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            for _ in range(2):
                assert (await endpoint.post(b"1", timeout=10)).content == b"{}"
            assert server.connections == 2
            await transport.aclose()

        run(main)


def test_late_bytes_on_an_idle_connection_end_it(run: Run) -> None:
    said = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer()
        if peer.number == 0:
            said.wait()
            peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            peer.until_gone()
            said.clear()
        peer.hold()

    with FaultServer(script) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            await endpoint.post(b"1", timeout=10)
            said.set()
            while said.is_set():
                await anyio.sleep(0.001)
            assert (await endpoint.post(b"2", timeout=10)).status == 200
            assert server.connections == 2
            await transport.aclose()

        run(main)


BAD_HEADERS = {
    "a line break": {"authorization": "Bearer sk-secret\n"},
    "a return": {"x": "a\rb"},
    "a nul": {"x": "a\0b"},
    "beyond ascii": {"x": "“sk-secret”"},
    "a colon in the name": {"x: y": "z"},
    "a line break in the name": {"x\r\ny": "z"},
    "a length": {"Content-Length": "3"},
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_header_that_could_smuggle_something_is_refused_without_showing_it(
    run: Run, headers: dict[str, str]
) -> None:
    async def main() -> None:
        transport = Transport()
        with pytest.raises(ConfigError) as caught:
            transport.endpoint("http://127.0.0.1:1/", headers)
        assert "secret" not in caught.value.message
        with pytest.raises(ConfigError):
            await transport.endpoint("http://127.0.0.1:1/", {}).post(b"{}", headers=headers, timeout=1)
        await transport.aclose()

    run(main)


@pytest.mark.parametrize(
    "url", ["", "api.example.com/v1", "ftp://x/y", "http://", "http://x:99999/", "file:///x"]
)
def test_a_url_that_cannot_be_posted_to_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Transport().endpoint(url, {})


def test_the_request_on_the_wire_is_what_was_asked(run: Run) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport()
            url = server.url.replace("127", "me:p%40ss@127", 1) + "?a=b c"
            endpoint = transport.endpoint(url, {"X-A": "1", "Accept": "*/*"})
            await endpoint.post(b'{"a": 1}', headers={"idempotency-key": "k1"}, timeout=10)
            await endpoint.post(b"", headers={"X-a": "2"}, timeout=10)
            await transport.aclose()

        run(main)
        first, second = (request.decode() for request in server.requests)
        assert first.startswith(f"POST /v1/x?a=b%20c HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n")
        assert "\r\nauthorization: Basic bWU6cEBzcw==\r\n" in first
        assert "\r\naccept: */*\r\n" in first
        assert first.count("accept:") == 1
        assert "\r\ncontent-type: application/json\r\n" in first
        assert first.endswith('\r\nidempotency-key: k1\r\ncontent-length: 8\r\n\r\n{"a": 1}')
        assert "\r\nx-a: 1\r\n" in first
        assert "x-a: 1" not in second
        assert "\r\nx-a: 2\r\n" in second
        assert "idempotency" not in second
