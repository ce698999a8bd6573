"""How far a run is and what it had written, as its run folder tells without taking its lock; the cli asks."""

from __future__ import annotations

import os
from contextlib import suppress

from batchllm.errors import ConfigError
from batchllm.ledger import RunFolder


def standing(output: str) -> str | None:
    """`running`, `finished` or `unfinished`; None where the output has no run folder that says so."""
    folder = RunFolder(output)
    if not folder.exists():
        return None
    if _is_held(folder):
        return "running"
    with suppress(ConfigError):
        snapshot = folder.read("snapshot")
        return "finished" if snapshot is not None and snapshot.get("finished") else "unfinished"
    return None


def had_written(output: str, sink: str) -> bool:
    """Whether the run folder knows of lines of a sink, `output` or `dead`, so that its file must be there."""
    with suppress(ConfigError):
        lengths = (RunFolder(output).read("snapshot") or {}).get("sinks")
        return isinstance(lengths, dict) and bool(lengths.get(sink))
    return False


def _is_held(folder: RunFolder) -> bool:
    """Whether the process that the lock names is there."""
    try:
        os.kill(int((folder.path / "lock").read_text()), 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True
