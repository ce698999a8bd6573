"""Our transport inside httpx's client does what httpx's own does; and the doors that choose between them."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from batchllm.descriptors import raise_descriptor_limit
from batchllm.errors import ConfigError, Disconnected, TimedOut
from batchllm.transport import (
    Bounds,
    Endpoint,
    StockEndpoint,
    Transport,
    open_endpoint,
)
from batchllm.transport.dialer import Origin
from batchllm.transport.doors import is_proxied
from tests.faults.fault_server import OK, FaultServer, Peer

Run = Callable[..., Any]
PROXIES = [f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def sends(answer: bytes) -> Callable[[Peer], None]:
    return lambda peer: peer.answer(answer)


def hangs(peer: Peer) -> None:
    peer.request()
    peer.hold()


def resets(peer: Peer) -> None:
    peer.request()
    peer.reset()


CASES: dict[str, Callable[[Peer], None]] = {
    "a whole answer": sends(OK),
    "an error": sends(b"HTTP/1.1 500 Oops\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 4\r\n\r\noops"),
    "a redirect": sends(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"),
    "no content": sends(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "chunks and trailers": sends(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    ),
    "until closed": sends(b"HTTP/1.0 200 OK\r\n\r\nhello"),
    "interim first": sends(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    "gzip": sends(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello")),
    "bad gzip": sends(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nhello"),
    "beyond ascii": sends(b"HTTP/1.1 200 OK\r\nX-A: caf\xe9\r\nContent-Length: 0\r\n\r\n"),
    "nothing": sends(b""),
    "cut headers": sends(b"HTTP/1.1 200 OK\r\nCont"),
    "cut body": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"),
    "cut chunk": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"),
    "garbage": sends(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "a bad length": sends(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
    "a reset": resets,
    "a hang": hangs,
}


SENT: dict[str, dict[str, Any]] = {
    "get": {"method": "GET", "params": {"a": "b c"}},
    "head": {"method": "HEAD"},
    "json": {"method": "POST", "json": {"a": 1}, "headers": {"X-A": "1"}},
    "basic auth": {"method": "POST", "content": b"x", "auth": ("me", "pw")},
    "empty": {"method": "DELETE"},
}


async def outcome(
    transport: httpx.AsyncBaseTransport, url: str, sent: dict[str, Any], read: float = 10
) -> Any:
    """Everything that a caller of httpx sees of one exchange."""
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(10, read=read)) as client:
        try:
            answer = await client.request(url=url, **sent)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return type(error)
        return answer.status_code, answer.headers.multi_items(), answer.content, answer.http_version


@pytest.mark.parametrize("script", CASES.values(), ids=CASES.keys())
def test_an_answer_or_exception_is_the_same_as_stock_httpx_has(
    run: Run, script: Callable[[Peer], None]
) -> None:
    with FaultServer(script) as server:

        async def main() -> tuple[Any, Any]:
            sent, read = SENT["json"], 0.3 if script is hangs else 10
            return (
                await outcome(Transport(), server.url, sent, read),
                await outcome(httpx.AsyncHTTPTransport(), server.url, sent, read),
            )

        ours, stock = run(main)
    if not isinstance(stock, type):
        stock = (*stock[:3], "HTTP/1.1")
    assert ours == stock


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT.keys())
def test_a_request_says_the_same_as_stock_httpx_says(run: Run, sent: dict[str, Any]) -> None:
    def script(peer: Peer) -> None:
        peer.send(OK if not peer.request().startswith(b"HEAD") else OK[:-2])

    with FaultServer(script) as server:

        async def main() -> tuple[Any, Any]:
            return (
                await outcome(Transport(), server.url, sent),
                await outcome(httpx.AsyncHTTPTransport(), server.url, sent),
            )

        ours, stock = run(main)
        first, second = server.requests
    assert ours == stock
    assert first == second


def test_a_streamed_body_goes_whole_with_its_length(run: Run) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    with FaultServer() as server:

        async def main() -> None:
            async with httpx.AsyncClient(transport=Transport()) as client:
                assert (await client.put(server.url, content=parts())).status_code == 200

        run(main)
        assert b"chunked" not in server.requests[0]
        assert server.requests[0].endswith(b"content-length: 6\r\n\r\nabcdef")


def test_a_refused_connection_and_one_that_takes_too_long_are_httpx_errors(run: Run) -> None:
    with socket.socket() as bound, socket.socket() as first, socket.socket() as second:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"

        async def main() -> None:
            async with httpx.AsyncClient(transport=Transport(), timeout=0.2) as client:
                with pytest.raises(httpx.ConnectError, match="connection refused") as caught:
                    await client.get(url)
                assert str(caught.value.request.url) == url
                bound.listen(0)
                for filler in (first, second):
                    filler.setblocking(False)
                    filler.connect_ex(bound.getsockname())
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get(url)
                with pytest.raises(httpx.UnsupportedProtocol):
                    await client.get("ftp://x/")

        run(main)


@pytest.mark.parametrize("http", ["own", "stock"])
def test_both_kinds_of_endpoint_answer_and_fail_alike(run: Run, http: str) -> None:
    cases: list[tuple[Callable[[Peer], None], type[Exception] | None, bool]] = [
        (CASES["a whole answer"], None, False),
        (CASES["gzip"], None, False),
        (CASES["nothing"], Disconnected, True),
        (CASES["cut body"], Disconnected, True),
        (CASES["bad gzip"], Disconnected, True),
        (CASES["garbage"], Disconnected, True),
        (CASES["a reset"], Disconnected, True),
        (CASES["a hang"], TimedOut, True),
    ]
    for script, error, ambiguous in cases:
        with FaultServer(script) as server:

            async def main(url: str = server.url, error: Any = error, ambiguous: bool = ambiguous) -> None:
                async with open_endpoint(url, {"x-a": "1"}, limit=2, http=http) as endpoint:
                    assert isinstance(endpoint, Endpoint if http == "own" else StockEndpoint)
                    if error is None:
                        answer = await endpoint.post(b"{}", headers={"x-b": "2"}, timeout=10)
                        assert answer.status == 200
                        assert answer.content in (b"{}", b"hello")
                        return
                    with pytest.raises(error) as caught:
                        await endpoint.post(b"{}", timeout=0.5 if error is TimedOut else 10)
                    assert caught.value.ambiguous is ambiguous
                    assert "127.0.0.1:" in caught.value.message

            run(main)
            sent = server.requests[0].replace(b"\r\n\r\n{}", b"").split(b"\r\n")[1:]
            assert sent[0] == b"host: 127.0.0.1:%d" % server.port if http == "own" else True
            assert b"x-a: 1" in sent


@pytest.mark.parametrize("http", ["own", "stock"])
def test_a_refused_connection_and_a_stale_one_are_told_apart(run: Run, http: str) -> None:
    def script(peer: Peer) -> None:
        peer.answer()
        peer.request()

    with FaultServer(script) as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))

        async def main() -> None:
            async with open_endpoint(server.url, {}, limit=2, http=http) as endpoint:
                await endpoint.post(b"{}", timeout=10)
                with pytest.raises(Disconnected) as caught:
                    await endpoint.post(b"{}", timeout=10)
                assert (caught.value.stale, caught.value.ambiguous) == (True, True)
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
            async with open_endpoint(url, {}, limit=2, http=http) as endpoint:
                with pytest.raises(Disconnected) as caught:
                    await endpoint.post(b"{}", timeout=10)
                assert (caught.value.stale, caught.value.ambiguous) == (False, False)

        run(main)


def test_a_proxy_of_the_environment_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")

        async def main() -> None:
            async with open_endpoint("http://api.test/v1", {"x-a": "1"}, limit=2) as endpoint:
                assert isinstance(endpoint, StockEndpoint)
                assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"

        run(main)
        assert proxy.requests[0].startswith(b"POST http://api.test/v1 HTTP/1.1\r\n")
        assert b"x-a: 1\r\n" in proxy.requests[0]


@pytest.mark.parametrize(
    ("environment", "url", "proxied"),
    [
        ({}, "http://api.test/", False),
        ({"HTTP_PROXY": "http://p:1"}, "http://api.test/", True),
        ({"HTTP_PROXY": "http://p:1"}, "https://api.test/", False),
        ({"https_proxy": "http://p:1"}, "https://api.test/", True),
        ({"ALL_PROXY": "http://p:1"}, "https://api.test/", True),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "other.test, api.test"}, "https://api.test/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": ".test"}, "https://api.test/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "api.test:8000"}, "http://api.test:8000/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://api.test/", False),
        ({"ALL_PROXY": "http://p:1"}, "http://127.0.0.1:8000/", False),
        ({"ALL_PROXY": "http://p:1"}, "http://localhost:8000/", False),
        ({"ALL_PROXY": "http://p:1"}, "http://[::1]:8000/", False),
    ],
)
def test_proxy_variables_mean_what_they_mean_elsewhere(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, proxied: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_proxied(httpx.URL(url)) is proxied


def test_an_unknown_client_and_a_proxy_without_its_package_are_configuration(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="no http client is called curl"):
            async with open_endpoint("http://api.test", {}, limit=1, http="curl"):
                pass
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
        with pytest.raises(ConfigError, match="socks"):
            async with open_endpoint("http://api.test", {}, limit=1):
                pass

    run(main)


def test_the_limit_of_open_files_is_raised_only_as_far_as_needed_and_allowed() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_descriptor_limit(10) == soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        assert raise_descriptor_limit(soft) == (hard if hard != resource.RLIM_INFINITY else soft)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_free_connection_in_time_is_httpx_pool_timeout_and_costs_no_place(run: Run) -> None:
    with FaultServer(hangs) as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=1))
            timeout = httpx.Timeout(10, pool=0.1)
            async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
                async with anyio.create_task_group() as group:
                    group.start_soon(client.post, server.url)
                    await anyio.to_thread.run_sync(server.arrived.acquire)
                    with pytest.raises(httpx.PoolTimeout):
                        await client.post(server.url)
                    group.cancel_scope.cancel()
                assert transport.pool(Origin(False, "127.0.0.1", server.port)).free == 1

        run(main)


def test_the_slow_path_is_noted_with_its_reason(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "batchllm")

    async def opened(**given: Any) -> None:
        async with open_endpoint("http://api.test/", {}, limit=1, **given):
            pass

    async def main() -> None:
        await opened()
        assert not caplog.records
        await opened(http="stock")
        await opened(transport=httpx.AsyncHTTPTransport())
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        await opened()

    run(main)
    reasons = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert reasons == ["as asked", "as asked", "a proxy is set"]
    assert all("which is slow" in record.getMessage() for record in caplog.records)


def test_a_failure_of_a_transport_that_tells_no_steps_counts_as_maybe_executed(run: Run) -> None:
    class Silent(httpx.AsyncBaseTransport):
        def __init__(self, error: type[httpx.TransportError]) -> None:
            self._error = error

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise self._error("broken", request=request)

    async def main() -> None:
        for error, ambiguous in ((httpx.ReadError, True), (httpx.ConnectError, False)):
            async with open_endpoint("http://api.test/", {}, limit=1, transport=Silent(error)) as endpoint:
                with pytest.raises(Disconnected) as caught:
                    await endpoint.post(b"{}", timeout=10)
                assert (caught.value.ambiguous, caught.value.stale) == (ambiguous, False)

    run(main)
