"""The child process of a step with `process = true`: calls one function, record after record.

A program, run by its path. It reads frames from stdin (8 bytes of length, then JSON) and answers each with
one on what was its stdout; what the function prints goes to stderr. It ends with its parent, however that
ends, or when stdin closes.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Import what the first frame names, then call it for each that follows."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    frames, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    begin = _read(frames)
    if begin is None:
        return
    sys.path[:] = begin["path"]
    from batchllm.errors import ConfigError
    from batchllm.job.importing import found
    from batchllm.providers.raised import as_json, meaning, packed

    try:
        function = found(begin["function"], Path(begin["folder"]) if begin["folder"] else None)
    except ConfigError as error:
        _write(answers, {"refused": error.message})
        return
    _write(answers, {})
    while (frame := _read(frames)) is not None:
        answer: dict[str, Any]
        try:
            answer = {"json": as_json(function(*frame["places"], **frame["names"]))}
        except (Exception, SystemExit) as error:
            answer = {"error": packed(meaning(error))}
        _write(answers, answer)


def _read(frames: IO[bytes]) -> Any:
    """The next frame, None at the end of all."""
    head = frames.read(8)
    return json.loads(frames.read(int.from_bytes(head, "big"))) if len(head) == 8 else None


def _write(answers: IO[bytes], answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    answers.write(len(data).to_bytes(8, "big") + data)
    answers.flush()


if __name__ == "__main__":
    main()
