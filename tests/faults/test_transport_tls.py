"""TLS: who is trusted, what is said when one isn't, and the same faults under encryption."""

from __future__ import annotations

import asyncio
import ctypes
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchllm.errors import ConfigError, Disconnected, TimedOut
from batchllm.transport import Bounds, Transport, expect_dials_given_up
from batchllm.transport.dialer import Origin
from tests.faults.fault_server import FaultServer, Peer, keep_answering

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def post(run: Run, server: FaultServer, body: bytes = b"{}", timeout: float = 10, url: str = "") -> Any:
    async def main() -> Any:
        transport = Transport(Bounds(limit=2))
        try:
            return await transport.endpoint(url or server.url, {}).post(body, timeout=timeout)
        finally:
            assert all(pool.free == 2 for pool in transport._pools.values())
            await transport.aclose()

    return run(main)


def test_a_certificate_named_in_the_environment_is_trusted_and_connections_reused(
    run: Run, server_tls: ssl.SSLContext
) -> None:
    with FaultServer(tls=server_tls) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            for _ in range(5):
                assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
            assert server.connections == 1
            await transport.aclose()

        run(main)


def test_the_server_hears_the_name_that_is_asked_for(run: Run, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    with FaultServer(tls=context) as server:
        post(run, server, url=server.url.replace("127.0.0.1", "localhost"))
        assert b"HTTP/1.1" in server.requests[0]
    assert names == ["localhost"]


def test_a_certificate_that_nobody_vouches_for_is_refused(
    run: Run, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with FaultServer(tls=server_tls) as server:
        says = r"the certificate of 127\.0\.0\.1:\d+ is not trusted: self.signed certificate"
        with pytest.raises(Disconnected, match=says) as caught:
            post(run, server)
        assert not caught.value.ambiguous
        assert server.requests == []


def test_a_certificate_for_another_host_is_refused(run: Run, server_tls: ssl.SSLContext) -> None:
    with (
        FaultServer(tls=server_tls) as server,
        pytest.raises(Disconnected, match=r"is not trusted: .*mismatch"),
    ):
        post(run, server, url=server.url.replace("127.0.0.1", "127.1"))


def test_a_server_without_tls_is_said_to_be_one(run: Run) -> None:
    with FaultServer(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        with pytest.raises(Disconnected, match="no tls with") as caught:
            post(run, server, url=server.url.replace("http:", "https:"))
        assert not caught.value.ambiguous


def test_a_handshake_that_hangs_is_no_connection_in_time(run: Run) -> None:
    with FaultServer(Peer.hold) as server:
        with pytest.raises(TimedOut, match=r"no connection to .* within 0.2 s") as caught:
            post(run, server, timeout=0.2, url=server.url.replace("http:", "https:"))
        assert not caught.value.ambiguous


def test_no_more_than_fifty_handshakes_are_under_way(run: Run) -> None:
    with FaultServer(Peer.hold) as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=70))
            endpoint = transport.endpoint(server.url.replace("http:", "https:"), {})
            async with anyio.create_task_group() as group:
                for _ in range(70):
                    group.start_soon(lambda: endpoint.post(b"{}", timeout=10))
                while server.connections < 50:
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            assert server.connections == 50
            assert transport.pool(Origin(True, "127.0.0.1", server.port)).free == 70
            await transport.aclose()

        run(main)


def test_a_large_body_goes_and_comes_whole(run: Run, server_tls: ssl.SSLContext) -> None:
    body = bytes(range(256)) * 2**14

    def echo(peer: Peer) -> None:
        got = peer.request().partition(b"\r\n\r\n")[2]
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(got) + got)

    with FaultServer(echo, server_tls) as server:
        assert post(run, server, body).content == body


def test_an_answer_cut_short_is_a_failure(run: Run, server_tls: ssl.SSLContext) -> None:
    def script(peer: Peer) -> None:
        peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell")

    with FaultServer(script, server_tls) as server:
        with pytest.raises(Disconnected, match="in the middle of the answer") as caught:
            post(run, server)
        assert caught.value.ambiguous


def test_a_body_that_ends_with_the_connection_is_whole(run: Run, server_tls: ssl.SSLContext) -> None:
    with FaultServer(lambda peer: peer.answer(b"HTTP/1.1 200 OK\r\n\r\nhello"), server_tls) as server:
        assert post(run, server).content == b"hello"


def test_a_server_that_stops_reading_times_out_as_sending(run: Run, server_tls: ssl.SSLContext) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.hold()

    with FaultServer(script, server_tls) as server, pytest.raises(TimedOut, match="sending to"):
        post(run, server, bytes(16 * 2**20), timeout=1)


def test_an_early_refusal_is_the_answer(run: Run, server_tls: ssl.SSLContext) -> None:
    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong")
            peer.hold()
        keep_answering(peer)

    with FaultServer(script, server_tls) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            assert (await endpoint.post(bytes(32 * 2**20), timeout=10)).status == 413
            assert (await endpoint.post(b"{}", timeout=10)).status == 200
            await transport.aclose()

        run(main)


def test_a_reused_connection_that_dies_before_a_byte_is_stale(run: Run, server_tls: ssl.SSLContext) -> None:
    def script(peer: Peer) -> None:
        peer.answer()
        peer.request()

    with FaultServer(script, server_tls) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            await endpoint.post(b"{}", timeout=10)
            with pytest.raises(Disconnected, match="before answering") as caught:
                await endpoint.post(b"{}", timeout=10)
            assert caught.value.stale
            await transport.aclose()

        run(main)


@pytest.mark.parametrize("turns", range(0, 40, 4))
def test_cancelled_at_any_turn_of_the_loop_the_pool_is_clean(
    run: Run, server_tls: ssl.SSLContext, turns: int
) -> None:
    with FaultServer(tls=server_tls) as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=2))
            endpoint = transport.endpoint(server.url, {})
            pool = transport.pool(Origin(True, "127.0.0.1", server.port))
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(lambda: endpoint.post(b"{}", timeout=10))
                for _ in range(turns):
                    await anyio.sleep(0)
                group.cancel_scope.cancel()
            assert pool.free == 2
            assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
            await transport.aclose()
            assert not pool._open

        run(main)


def test_trusted_certificates_that_cannot_be_read_are_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match="can't read the trusted certificates"):
        Transport().endpoint("https://api.test/v1", {})


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("ending", [b"", b"connection: close\r\n"])
def test_a_later_connection_resumes_the_session_of_an_earlier_one(
    run: Run, certificate: Path, version: ssl.TLSVersion, ending: bytes
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.maximum_version = version
    reused: list[bool | None] = []

    def script(peer: Peer) -> None:
        assert isinstance(peer.sock, ssl.SSLSocket)
        reused.append(peer.sock.session_reused)
        peer.answer(b"HTTP/1.1 200 OK\r\n" + ending + b"content-length: 2\r\n\r\n{}")

    with FaultServer(script, context) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            pool = transport.pool(Origin(True, "127.0.0.1", server.port))
            for _ in range(3):
                assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
                while pool._open:  # the server closes after each answer
                    await anyio.sleep(0.001)
            await transport.aclose()

        run(main)
    assert reused == [False, True, True]


def test_a_session_that_the_server_does_not_know_costs_a_whole_handshake_and_no_request(
    run: Run, certificate: Path
) -> None:
    """Servers forget: each connection comes to another context here, with ticket keys of its own."""
    contexts = []
    for _ in range(3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        contexts.append(context)
    spare = iter(contexts[1:])

    def another(sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        sock.context = next(spare, contexts[0])

    with FaultServer(lambda peer: peer.answer(), contexts[0]) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        contexts[0].sni_callback = another

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(url, {})
            pool = transport.pool(Origin(True, "localhost", server.port))
            for _ in range(3):
                assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
                while pool._open:
                    await anyio.sleep(0.001)
            await transport.aclose()

        run(main)
        assert server.connections == 3


_BUFFERS = """
import ctypes, sys, anyio
from batchllm.transport import Bounds, Transport

class Facts(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd rest".split()]
    _fields_ += [(f"more{n}", ctypes.c_size_t) for n in range(4)]

facts = ctypes.CDLL(None).mallinfo2
facts.restype = Facts

async def main():
    transport = Transport(Bounds(limit=20))
    endpoint = transport.endpoint(sys.argv[1], {})
    pool = next(iter(transport._pools.values()))

    async def ask():
        await endpoint.post(b"{}", timeout=10)

    await ask()
    next(iter(pool._idle)).abort()  # its buffer is given back
    while pool._open:
        await anyio.sleep(0)
    before = facts().hblks
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)
    print(len(pool._open), facts().hblks - before)
    await transport.aclose()

anyio.run(main, backend_options={"use_uvloop": True})
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_read_buffers_of_later_connections_stay_out_of_the_heap(server_tls: ssl.SSLContext) -> None:
    met = threading.Barrier(20)

    def script(peer: Peer) -> None:
        if first.is_set():
            met.wait(10)  # so that each of the twenty has a connection of its own
        first.set()
        keep_answering(peer)

    first = threading.Event()
    with FaultServer(script, server_tls) as server:
        command = [sys.executable, "-c", _BUFFERS, server.url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["20", "20"]


def test_all_origins_of_a_transport_share_one_context() -> None:
    transport = Transport()
    for host in ("one.test", "two.test"):
        transport.endpoint(f"https://{host}/v1", {})
    assert transport._context() is transport._context()
    assert transport._context().sslobject_class is not Transport()._context().sslobject_class


def test_what_uvloop_says_of_a_handshake_that_was_given_up_is_not_passed_on(run: Run) -> None:
    class SSLProtocol(asyncio.Protocol):
        """Uvloop's has this name."""

    async def main() -> None:
        expect_dials_given_up()
        error = RuntimeError("unable to perform operation on <TCPTransport closed=True reading=False 0x55>")
        context = {"message": "Fatal error on SSL protocol", "exception": error, "protocol": SSLProtocol()}
        asyncio.get_running_loop().call_exception_handler(context)

    run(main)  # which fails where anything was logged


def test_what_else_a_loop_complains_of_is_passed_on(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        expect_dials_given_up()
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await anyio.sleep(0)

    run(main)
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
