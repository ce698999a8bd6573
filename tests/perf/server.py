"""The load endpoint: one fixed chat completion to every POST, from a process of its own.

asyncio protocols, httptools and uvloop, a prepared answer of bytes: about 15 µs of its own core a request,
so it is never what a run waits for. `python -m tests.perf.server [--latency-ms 100] [--tls CERT KEY]`
prints its address; GET /count tells how many POSTs it has answered. It ends with its stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys

import httptools
import uvloop

ANSWER = {"category": 7, "urgent": False, "reason": "the card was lost abroad"}
"""What the completion's content is, as JSON."""


def completion() -> bytes:
    """The whole HTTP answer."""
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1767225600,
            "model": "bench",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": json.dumps(ANSWER)},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 80, "completion_tokens": 20, "total_tokens": 100},
        }
    ).encode()
    return _answer(body)


def _answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Served(asyncio.Protocol):
    """One connection; answers come in order, each `latency` seconds after its request was whole."""

    count = 0

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if self._url == b"/count":
            self._write(_answer(str(Served.count).encode()))
            return
        Served.count += 1
        if self._latency:
            self._loop.call_later(self._latency, self._write, COMPLETION)
        else:
            self._write(COMPLETION)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)  # type: ignore[attr-defined]


COMPLETION = completion()


async def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description="one fixed chat completion to every POST")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    given = parser.parse_args()
    context = None
    if given.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*given.tls)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Served(given.latency_ms / 1000), "127.0.0.1", 0, ssl=context, backlog=4096
    )
    port = server.sockets[0].getsockname()[1]
    print(f"{'https' if context else 'http'}://127.0.0.1:{port}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
