"""A server that speaks HTTP/2 only is told as such by our transport, and served by httpx's client."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchllm.errors import RouteGone
from batchllm.transport import open_endpoint
from tests.faults.fault_server import FaultServer, Peer

Run = Callable[..., Any]
SETTINGS = bytes.fromhex("000000 04 00 00000000")
GOAWAY = bytes.fromhex("000008 07 00 00000000 00000000 00000001")
NO_SUCH_PROTOCOL = bytes.fromhex("15 0303 0002 02 78")  # the alert no_application_protocol


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def post(run: Run, url: str, http: str = "own") -> Any:
    async def main() -> Any:
        async with open_endpoint(url, {}, limit=2, http=http) as endpoint:
            return await endpoint.post(b"{}", timeout=10)

    return run(main)


def at_once(peer: Peer) -> None:
    peer.send(SETTINGS)
    peer.until_gone()


def when_asked(peer: Peer) -> None:
    peer.answer(SETTINGS + GOAWAY)
    peer.until_gone()


def with_goaway(peer: Peer) -> None:
    peer.answer(GOAWAY)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("script", [at_once, when_asked, with_goaway])
def test_frames_for_an_answer_are_said_to_be_http2_with_what_to_do(
    run: Run, server_tls: ssl.SSLContext, script: Callable[[Peer], None], encrypted: bool
) -> None:
    with FaultServer(script, server_tls if encrypted else None) as server:
        with pytest.raises(RouteGone, match=r"127\.0\.0\.1:\d+ speaks http/2 only") as caught:
            post(run, server.url)
        assert "--http stock" in (caught.value.hint or "")


def alerting(peer: Peer) -> None:
    peer.sock.recv(4096)
    peer.send(NO_SUCH_PROTOCOL)
    peer.until_gone()


@pytest.mark.parametrize(("http", "hint"), [("own", "--http stock"), ("stock", "httpx[http2]")])
def test_a_server_that_agrees_to_http2_alone_is_said_to_be_one(run: Run, http: str, hint: str) -> None:
    with FaultServer(alerting) as server:
        with pytest.raises(RouteGone, match=r"127\.0\.0\.1:\d+ speaks http/2 only") as caught:
            post(run, server.url.replace("http:", "https:"), http)
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("first", [b"\0", b"\0" * 9, b"\0\0\0\x04\0\0\0\0\x01", b"\x01\0\0\x04\0\0\0\0\0"])
def test_other_bytes_are_not_taken_for_http2(run: Run, first: bytes) -> None:
    with FaultServer(lambda peer: peer.answer(first)) as server, pytest.raises(Exception, match="not http/1"):
        post(run, server.url)


def test_the_stock_client_speaks_http2_to_a_server_that_speaks_nothing_else(
    run: Run, certificate: Path
) -> None:
    config: Any = pytest.importorskip("h2.config")
    connection: Any = pytest.importorskip("h2.connection")
    events: Any = pytest.importorskip("h2.events")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.set_alpn_protocols(["h2"])
    asked: list[bytes] = []

    def script(peer: Peer) -> None:
        state = connection.H2Connection(config.H2Configuration(client_side=False))
        state.initiate_connection()
        peer.send(state.data_to_send())
        while True:
            for event in state.receive_data(peer.read()):
                if isinstance(event, events.DataReceived):
                    asked.append(event.data)
                if isinstance(event, events.StreamEnded):
                    state.send_headers(event.stream_id, [(":status", "200"), ("content-length", "2")])
                    state.send_data(event.stream_id, b"{}", end_stream=True)
            peer.send(state.data_to_send())

    with FaultServer(script, context) as server:
        answer = post(run, server.url, "stock")
    assert (answer.status, answer.content, b"".join(asked)) == (200, b"{}", b"{}")
