"""Connections are reused newest first, bounded, expired, and clean after a cancellation at any point."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from batchllm.errors import Disconnected
from batchllm.transport import Bounds, Transport
from batchllm.transport.dialer import Dialer, Origin
from batchllm.transport.exchange import Failed, Terms
from batchllm.transport.outgoing import Outgoing
from batchllm.transport.pool import Pool
from batchllm.transport.sweeper import Sweeper
from tests.faults.fault_server import OK, FaultServer, Peer

Run = Callable[..., Any]


def pool_of(transport: Transport, server: FaultServer) -> Pool:
    return transport.pool(Origin(server.url.startswith("https"), "127.0.0.1", server.port))


async def arrived(server: FaultServer) -> None:
    await anyio.to_thread.run_sync(server.arrived.acquire, abandon_on_cancel=True)


def test_one_connection_carries_one_request_after_another(run: Run) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            for _ in range(20):
                assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
            assert (server.connections, pool_of(transport, server).idle) == (1, 1)
            await transport.aclose()

        run(main)


def test_the_newest_idle_connection_goes_first_and_old_ones_expire_by_themselves(run: Run) -> None:
    both = threading.Barrier(2)

    def script(peer: Peer) -> None:
        peer.request()
        both.wait()
        peer.send(OK)
        while True:
            peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % peer.number)

    with FaultServer(script) as server:

        async def main() -> None:
            transport = Transport(Bounds(idle=0.5))
            endpoint = transport.endpoint(server.url, {})
            pool = pool_of(transport, server)
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(lambda: endpoint.post(b"{}", timeout=10))
            assert pool.idle == 2
            used = set()
            while pool.idle == 2:
                used.add((await endpoint.post(b"{}", timeout=10)).content)
            assert len(used) == 1
            while pool.idle:
                await anyio.sleep(0.01)
            await transport.aclose()

        run(main)


def test_no_more_than_limit_are_under_way_and_the_rest_go_in_order(run: Run) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=1))
            endpoint = transport.endpoint(server.url, {})
            done = []

            async def one(number: int) -> None:
                await endpoint.post(b"%02d" % number, timeout=10)
                done.append(number)

            async with anyio.create_task_group() as group:
                for number in range(30):
                    group.start_soon(one, number)
            assert done == sorted(done)
            assert [int(request[-2:]) for request in server.requests] == done
            assert server.connections == 1
            await transport.aclose()

        run(main)


def test_many_at_once_open_no_more_connections_than_the_limit(run: Run) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=5))
            endpoint = transport.endpoint(server.url, {})
            async with anyio.create_task_group() as group:
                for _ in range(100):
                    group.start_soon(lambda: endpoint.post(b"{}", timeout=10))
            pool = pool_of(transport, server)
            assert len(server.requests) == 100
            assert server.connections <= 5
            assert (pool.free, pool.idle) == (5, server.connections)
            await transport.aclose()

        run(main)


def hold_back_headers(peer: Peer) -> None:
    peer.request()
    peer.hold()


def hold_back_half(peer: Peer) -> None:
    peer.answer(OK[:-1])
    peer.hold()


@pytest.mark.parametrize("script", [hold_back_headers, hold_back_half], ids=["no answer", "half an answer"])
@pytest.mark.parametrize("waiting", [0, 3])
def test_cancelled_while_waiting_for_the_answer_the_pool_is_clean(
    run: Run, script: Callable[[Peer], None], waiting: int
) -> None:
    with FaultServer(lambda peer: script(peer) if peer.number == 0 else peer.answer()) as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=1))
            endpoint = transport.endpoint(server.url, {})
            pool = pool_of(transport, server)
            async with anyio.create_task_group() as group:
                for _ in range(1 + waiting):
                    group.start_soon(lambda: endpoint.post(b"{}", timeout=10))
                await arrived(server)
                group.cancel_scope.cancel()
            assert (pool.free, pool.idle) == (1, 0)
            assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
            assert server.connections == 2
            await transport.aclose()

        run(main)


def test_cancelled_while_dialing_the_pool_is_clean(run: Run) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        port = deaf.getsockname()[1]

        async def main() -> None:
            transport = Transport(Bounds(limit=2))
            endpoint = transport.endpoint(f"http://127.0.0.1:{port}/", {})
            with anyio.move_on_after(0.05):
                await endpoint.post(b"{}", timeout=10)
            pool = transport.pool(Origin(False, "127.0.0.1", port))
            assert (pool.free, pool.idle, len(pool._open)) == (2, 0, 0)
            await transport.aclose()

        run(main)


@pytest.mark.parametrize("turns", range(12))
def test_cancelled_at_any_turn_of_the_loop_no_place_and_no_connection_is_lost(run: Run, turns: int) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport(Bounds(limit=2))
            endpoint = transport.endpoint(server.url, {})
            pool = pool_of(transport, server)
            for _ in range(3):  # over fresh connections, then reused ones
                async with anyio.create_task_group() as group:
                    for _ in range(5):
                        group.start_soon(lambda: endpoint.post(b"{}", timeout=10))
                    for _ in range(turns):
                        await anyio.sleep(0)
                    group.cancel_scope.cancel()
                assert pool.free == 2
                assert (await endpoint.post(b"{}", timeout=10)).content == b"{}"
            while len(pool._open) > pool.idle:
                await anyio.sleep(0)
            assert not transport._sweeper.watched
            await transport.aclose()
            assert not pool._open

        run(main)


def test_closing_ends_what_is_under_way_and_refuses_what_comes_after(run: Run) -> None:
    with FaultServer(hold_back_headers) as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            messages = []

            async def one() -> None:
                with pytest.raises(Disconnected) as caught:
                    await endpoint.post(b"{}", timeout=10)
                messages.append(caught.value.message)

            async with anyio.create_task_group() as group:
                group.start_soon(one)
                await arrived(server)
                await transport.aclose()
                await one()
            peer = f"127.0.0.1:{server.port}"
            assert sorted(messages) == [
                f"no connection to {peer}: the transport is closed",
                f"the connection to {peer} was closed on this side",
            ]

        run(main)


def test_no_task_is_made_for_a_request_on_an_open_connection(run: Run) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport()
            endpoint = transport.endpoint(server.url, {})
            await endpoint.post(b"{}", timeout=10)
            made: list[object] = []
            loop = asyncio.get_running_loop()

            def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
                made.append(coro)
                return asyncio.Task(coro, loop=loop, **options)

            loop.set_task_factory(factory)
            for _ in range(3):
                await endpoint.post(b"{}", timeout=10)
            loop.set_task_factory(None)
            assert not made
            await transport.aclose()

        run(main)


def test_names_are_resolved_once_every_address_tried_and_asked_again_after_none_worked(run: Run) -> None:
    with FaultServer() as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        asked: list[tuple[str, int]] = []
        answers = [["127.0.0.3"], ["127.0.0.2", "127.0.0.1"]]

        async def resolve(host: str, port: int) -> list[str]:
            asked.append((host, port))
            return answers[len(asked) - 1]

        async def main() -> None:
            def no_tls() -> Any:
                raise AssertionError

            sweeper = Sweeper()
            origin = Origin(False, "api.test", server.port)
            pool = Pool(Dialer(origin, asyncio.Semaphore(5), no_tls, resolve), sweeper, Outgoing(), Bounds())
            ask = (b"POST / HTTP/1.1\r\nhost: x\r\n\r\n", 0, Terms(10))
            with pytest.raises(Failed, match=r"connection refused by api\.test"):
                await pool.exchange(*ask)
            assert len(asked) == 1
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(pool.exchange, *ask)
            assert asked == [("api.test", server.port)] * 2
            pool.close()
            sweeper.stop()
            await pool.closed()

        run(main)


def test_a_sweeper_with_nothing_to_watch_has_no_timer(run: Run) -> None:
    with FaultServer() as server:

        async def main() -> None:
            transport = Transport(Bounds(idle=0.05))
            endpoint = transport.endpoint(server.url, {})
            await endpoint.post(b"{}", timeout=0.2)
            while transport._sweeper._timer is not None:
                await anyio.sleep(0.01)
            assert pool_of(transport, server).idle == 0
            await transport.aclose()

        run(main)
