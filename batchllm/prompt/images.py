"""Images of a record: fields with addresses or paths, made into content parts of its last user message.

It owns which files may be read, and reads them in threads of its own small number; it fetches no address and
changes no image. `wire` makes one `Images` for a job that names such fields; other jobs never import it.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread

from batchllm.errors import BadInput

LARGEST = 20 << 20
"""Bytes of an image file."""
_THREADS = 4
_ADDRESSES = ("http://", "https://", "data:")


class Images:
    """The images in `fields` of a record; relative paths start at `root`, and none may lead out of it."""

    def __init__(self, fields: Sequence[str], root: str) -> None:
        self.fields = tuple(fields)
        self._root = root
        self._limiter = CapacityLimiter(_THREADS)

    async def attach(self, messages: list[dict[str, Any]], data: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages with the record's images at the end of the last one by a user.

        Raises BadInput with cause `image` for one that can't be sent.
        """
        named = [(field, each) for field in self.fields for each in _named(data, field)]
        if not named:
            return messages
        urls = [each if _is_address(each) else await self._read(field, each) for field, each in named]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        for place in reversed(range(len(messages))):
            message = messages[place]
            if message["role"] == "user":
                content = message["content"]
                texts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                return [
                    *messages[:place],
                    {**message, "content": [*texts, *parts]},
                    *messages[place + 1 :],
                ]
        raise BadInput("there is no user message to put the image into", cause="image")

    async def _read(self, field: str, path: str) -> str:
        """A file as a data URL."""
        return await to_thread.run_sync(
            data_url, path, self._root, field, abandon_on_cancel=True, limiter=self._limiter
        )


def data_url(path: str, root: str, field: str) -> str:
    """An image file below the folder `root` as a data URL; BadInput names it and the record's field."""
    content = _content(path, root, field)
    kind = kind_of(content)
    if kind is None:
        raise _bad(path, field, "is no PNG, JPEG, GIF or WebP image")
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def kind_of(content: bytes) -> str | None:
    """The MIME type that an image's first bytes tell, None for what is none that models take."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    return None


def _content(path: str, root: str, field: str) -> bytes:
    if "://" in path:
        raise _bad(path, field, "is neither an http, https or data URL nor a path")
    if "\0" in path:
        raise _bad(path, field, "is no path")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{field} names an image with half a character in its name", cause="image") from None
    folder = os.path.realpath(root)
    real = os.path.realpath(Path(folder) / path)
    if not Path(real).is_relative_to(folder):
        where = "the working folder" if root == "." else root
        raise _bad(path, field, f"leads out of {where}; --image-root names another folder")
    try:
        size, content = _read(real)
    except OSError as error:
        why = (error.strerror or "unknown error").lower()
        raise _bad(path, field, f"can't be read: {why}") from None
    if content is None:
        raise _bad(path, field, "is no file")
    if size > LARGEST:
        raise _bad(path, field, f"has {size:,} bytes, more than 20 MiB")
    return content


def _read(real: str) -> tuple[int, bytes | None]:
    """A file's size in bytes and, unless it is too large, its content; None for what is no regular file."""
    # A named pipe would block for ever; a link that was put there since isn't followed.
    file = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            return 0, None
        with os.fdopen(file, "rb", closefd=False) as stream:
            content = stream.read(LARGEST + 1) if facts.st_size <= LARGEST else b""
        return max(facts.st_size, len(content)), content
    finally:
        os.close(file)


def _named(data: dict[str, Any], field: str) -> list[str]:
    """The addresses and paths in a field; null, an empty text and an empty list are none."""
    value = data.get(field)
    if value is None or value == "":
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in values):
        raise BadInput(
            f"{field} holds no image: expected an address, a path, or a list of them", cause="image"
        )
    return values


def _is_address(text: str) -> bool:
    return text[:8].lower().startswith(_ADDRESSES)


def _bad(path: str, field: str, what: str) -> BadInput:
    shown = path if len(path) <= 200 else path[:200] + "…"
    return BadInput(f"the image {shown} (in {field}) {what}", cause="image")
