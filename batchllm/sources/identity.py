"""Whether an input is still the one that was begun: hashes of its beginning and of the bytes before a place.

Reads at most 128 KiB of a file, so what changes in between goes unseen; the run folder keeps the facts and
compares them on resume.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from batchllm.errors import ConfigError
from batchllm.model import Position
from batchllm.sources.blocks import MAGIC_BYTES, STDIN, Pipe, packing_of, stored_bytes

SAMPLE_BYTES = 2**16


def fingerprint(path: str, upto: int) -> dict[str, Any]:
    """Facts about the file by which `differs` knows it again; plain data for the snapshot.

    `upto` is the offset in bytes of the place to resume at, or -1 for the file's end. `size` is in bytes as
    stored; `head` and `tail` are `{"start", "bytes", "blake2b"}` of the first 64 KiB and of the up to
    64 KiB before `upto`, the latter for plain files only. Pipes and stdin have none. Raises OSError.
    """
    size = None if path == STDIN else stored_bytes(path)
    if size is None:
        return {"path": path, "size": None, "head": None, "tail": None}
    with Path(path).open("rb") as file:
        packed = packing_of(file.read(MAGIC_BYTES)) is not None
        upto = size if upto < 0 else min(upto, size)
        start = max(0, upto - SAMPLE_BYTES)
        return {
            "path": path,
            "size": size,
            "head": _sample(file, 0, min(SAMPLE_BYTES, size)),
            "tail": None if packed else _sample(file, start, upto - start),
        }


def pipe_print(path: str, head: bytes) -> dict[str, Any]:
    """The same for a pipe, of which only its first 64 KiB identify it."""
    return {"path": path, "size": None, "head": sample(head) if head else None, "tail": None}


def prints(
    paths: Sequence[str],
    heads: Mapping[int, bytes],
    known: Sequence[dict[str, Any]],
    position: Position,
) -> list[dict[str, Any]]:
    """The same for each input, when the run stands at `position`.

    `heads` are the beginnings of the pipes that were read, by number; of others `known` tells.
    """
    found = []
    for number, path in enumerate(paths):
        if number in heads:
            found.append(pipe_print(path, heads[number]))
        elif stored_bytes(path) is None and number < len(known):
            found.append(known[number])
        else:
            found.append(fingerprint(path, position.offset if number == position.file else -1))
    return found


def differs(path: str, old: dict[str, Any]) -> str | None:
    """One line that says how the file at `path` is another than it was, or None; it may have grown."""
    if old["size"] is None:
        return None  # a pipe is compared when it is read
    try:
        size = stored_bytes(path)
        if size is None:
            return f"{path} is no file any more" if os.path.lexists(path) else f"{path} is gone"
        if size < old["size"]:
            return f"{path} is shorter than it was: {size:,} bytes instead of {old['size']:,}"
        with Path(path).open("rb") as file:
            for sample in (old["head"], old["tail"]):
                if sample and _sample(file, sample["start"], sample["bytes"]) != sample:
                    end = sample["start"] + sample["bytes"]
                    return f"{path} has changed between byte {sample['start']:,} and byte {end:,}"
    except OSError as error:
        return f"{path} can't be read: {(error.strerror or str(error)).lower()}"
    return None


def sample(data: bytes, start: int = 0) -> dict[str, Any]:
    """What identifies these bytes, which stand at `start`."""
    return {"start": start, "bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}


def _sample(file: BinaryIO, start: int, size: int) -> dict[str, Any]:
    file.seek(start)
    return sample(file.read(size), start)


async def same_beginning(pipe: Pipe, known: Mapping[str, Any] | None, name: str) -> bytes:
    """Read as much of a pipe as is `known` of it; what was read. Raises ConfigError for another stream.

    `name` is what messages call the pipe.
    """
    ahead = b""
    while known is not None and len(pipe.head) < known["bytes"] and (block := await pipe.read()):
        ahead += block
    if known is not None and sample(pipe.head[: known["bytes"]]) != known:
        raise ConfigError(
            f"{name} begins otherwise than it did when this run began",
            "pipe in the same records to go on, give another -o FILE, or start over with --fresh",
        )
    return ahead
