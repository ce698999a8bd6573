"""The limit: what one core of asyncio can do and nothing else, no retries, no checks, no journal.

`limit.py INPUT OUTPUT URL CONCURRENCY`: bare protocols, httptools' parser, uvloop, bytes made with orjson.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

PROMPT = "Classify this customer question into one of 77 categories.\nQuestion: "


class Asking(asyncio.Protocol):
    """One connection that asks for one record after the other until there is none left."""

    def __init__(
        self, lines: Iterator[bytes], head: bytes, output: BinaryIO, over: asyncio.Future[None]
    ) -> None:
        self._lines, self._head, self._output, self._over = lines, head, output, over
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        line = next(self._lines, None)
        if line is None:
            self._transport.close()
            self._over.set_result(None)
            return
        self._record = orjson.loads(line)
        messages = [{"role": "user", "content": PROMPT + self._record["text"]}]
        body = orjson.dumps({"model": "bench", "messages": messages})
        self._transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            raise SystemExit("the endpoint refused")
        answer = orjson.loads(b"".join(self._body))
        self._body.clear()
        content = answer["choices"][0]["message"]["content"]
        self._output.write(orjson.dumps({"id": self._record["id"], "output": orjson.loads(content)}) + b"\n")
        self._ask()


async def main(given: str, output: str, url: str, concurrency: int) -> None:
    """Ask for every record."""
    loop, place = asyncio.get_running_loop(), urlsplit(url)
    head = (
        f"POST {place.path}/chat/completions HTTP/1.1\r\nhost: {place.netloc}\r\n"
        "authorization: Bearer none\r\ncontent-type: application/json\r\ncontent-length: "
    ).encode()
    with Path(given).open("rb") as lines, Path(output).open("wb") as results:
        over = [loop.create_future() for _ in range(concurrency)]
        for future in over:
            await loop.create_connection(
                lambda future=future: Asking(lines, head, results, future), place.hostname, place.port
            )
        await asyncio.gather(*over)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:4], int(sys.argv[4])))
