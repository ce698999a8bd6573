"""The content of zstd data, a piece at a time, with a truncated end told from a whole one.

Needs the package zstandard (extra `zstd`). Reads only what it is given; `blocks` opens files with it.
"""

from __future__ import annotations

from typing import Protocol

from batchllm.errors import ConfigError

_READ = 2**16
_STEP = 2**10
"""Bytes unpacked at a time: zstd may make 32,000 times as many of them."""


class Stored(Protocol):
    """The packed bytes, in order."""

    def read(self, size: int) -> bytes: ...


class ZstdContent:
    """What `stored` holds, frame after frame. Raises ConfigError where zstandard is not installed."""

    def __init__(self, stored: Stored) -> None:
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                "an input is zstd data, and the package zstandard is not installed",
                "pip install 'batchllm-cli[zstd]', or unpack it: zstd -d FILE",
            ) from None
        self._zstandard = zstandard
        self._stored = stored
        self._packed = b""
        self._at = 0
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def read1(self, size: int) -> bytes:
        """Some of the content, whatever its `size`; none at the end.

        Raises EOFError where the data ends in the middle, ValueError where it is damaged.
        """
        while True:
            if self._at >= len(self._packed):
                self._packed, self._at = self._stored.read(_READ), 0
            piece = self._packed[self._at : self._at + _STEP]
            if not piece:
                if self._frame is not None:
                    raise EOFError
                return b""
            if self._frame is None:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                content = self._frame.decompress(piece)
            except self._zstandard.ZstdError as error:
                raise ValueError(str(error)) from error
            self._at += len(piece)
            if self._frame.eof:
                self._at -= len(self._frame.unused_data)
                self._frame = None
            if content:
                return content

    def close(self) -> None:
        """Forget what was read."""
        self._packed, self._frame = b"", None
