"""The child process of `local`: serves one GGUF model on 127.0.0.1 through xllamacpp until its stdin closes.

A program, run by its path; it imports nothing of batchllm. It reads one JSON line of settings from stdin
(the key comes that way, never by argv), prints its address as one line on stdout once the model is loaded,
and sends whatever else the engine prints to stderr. It ends with its parent, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the parent closes the pipe or is gone."""
    _die_with_parent()
    settings = json.loads(sys.stdin.buffer.readline())
    address_to = os.dup(1)
    os.dup2(2, 1)
    try:
        server = _serve(settings)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    os.write(address_to, server.listening_address.encode() + b"\n")
    os.close(address_to)
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # the engine's own threads are not waited for


def _die_with_parent() -> None:
    """Ask the Linux kernel for a SIGKILL at the parent's death: loading holds the GIL and sees no pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(settings: dict[str, Any]) -> Any:
    """Load the model and return the running server; raises RuntimeError where the engine can't."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["context"] * settings["slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = 0
    params.verbosity = 1  # errors only
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
