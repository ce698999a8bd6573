"""Small outcomes for tests of what comes behind the engine."""

from __future__ import annotations

from batchllm.model import Attempt, Dead, Done, Failure, Outcome, Record, Reply, Trail, Usage

AT = 1_700_000_000.0


def record(seq: int, text: str = "text") -> Record:
    """Record `seq` with an id of its own."""
    line = f'{{"id":"r{seq}","text":"{text}"}}'.encode()
    return Record(seq, f"r{seq}", {"id": f"r{seq}", "text": text}, line)


def done(seq: int, text: str = "fine") -> Done:
    """A success after one call."""
    trail = Trail(attempts=[Attempt(AT, 0.1, Usage(3, 2), 200, f"q{seq}")])
    return Done(record(seq), Reply(text, text, Usage(3, 2), "stop", "m", f"q{seq}", {}), trail, AT + seq)


def dead(seq: int, kind: str = "refused", message: str = "no") -> Dead:
    """A failure after one call."""
    trail = Trail(attempts=[Attempt(AT, 0.1, None, 400, None, message)])
    return Dead(record(seq), Failure(kind, "cause", message, 400), trail, AT + seq)


def outcome(seq: int, fails: bool = False) -> Outcome:
    """One or the other."""
    return dead(seq) if fails else done(seq)
