"""A ledger on real files for tests: opened as the program opens it, fed by hand."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import orjson

from batchllm.ledger import Journal, Ledger, RunFolder, State, restore
from batchllm.lines import Shape, failed_line_of
from batchllm.model import Note, Outcome, Position
from batchllm.sinks import JsonlFile
from batchllm.stop import Stop


class Files:
    """An output in a folder, its dead letters and its run folder."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "out.jsonl"
        self.dead = folder / "dead.jsonl"
        self.run = folder / "out.jsonl.run"

    def open(self, shape: Shape = Shape()) -> tuple[Journal, State]:  # noqa: B008 - frozen
        """Take the lock and recover."""
        folder = RunFolder(str(self.output))
        folder.acquire()
        sinks = {
            "output": JsonlFile(str(self.output), lazy=True),
            "dead": JsonlFile(str(self.dead), lazy=True),
            "notes": JsonlFile(str(self.run / "notes"), lazy=True),
        }
        journal = Journal(folder, JsonlFile(str(folder.index), lazy=True), dict(sinks))
        try:
            repair = (lambda letter: failed_line_of(letter, shape)) if shape.merge_failed else None
            return journal, journal.open(repair)
        except Exception:
            journal.close()
            raise

    def session(
        self,
        groups: list[list[Outcome | Note]],
        *,
        complete: bool = False,
        ordered: bool = False,
        finish: bool = True,
        shape: Shape = Shape(),  # noqa: B008 - frozen
        durability: str = "none",
        reason: signal.Signals | None = None,
    ) -> Stop:
        """One run of the ledger over these groups, stopped for `reason` at their end; returns its Stop."""
        journal, state = self.open(shape)
        stop = Stop()
        ledger = Ledger(
            journal.sinks["output"],
            journal.sinks["dead"],
            shape,
            restore(state),
            state.settled,
            stop,
            journal=journal,
            durability=durability,
            position=lambda seq: Position(seq=seq),
        )

        async def main() -> None:
            send, receive = anyio.create_memory_object_stream[list[Outcome | Note]](100)
            async with send:
                for group in groups:
                    await send.send(group)
            await ledger.drain(receive)
            if reason is not None:
                stop.set(reason)
            if finish:
                await ledger.finish(complete=complete, ordered=ordered, unfinished_line=None)

        anyio.run(main)
        journal.close()
        return stop

    def state(self, shape: Shape = Shape()) -> State:  # noqa: B008 - frozen
        """What a restart would know."""
        journal, state = self.open(shape)
        journal.close()
        return state

    def power_loss(self) -> None:
        """Let it be that the machine was started after the run was last written."""
        (self.run / "session").write_bytes(b'{"version":1,"boot":"another"}')

    def content(self) -> dict[str, bytes]:
        """Every file by its path, the lock aside."""
        paths = [path for path in self.output.parent.rglob("*") if path.is_file() and path.name != "lock"]
        return {str(path): path.read_bytes() for path in paths}

    def seqs(self) -> list[int]:
        """The seq of every line, output first, each checked to be whole."""
        found = []
        for path in (self.output, self.dead):
            if path.exists():
                lines = path.read_bytes().split(b"\n")
                assert lines.pop() == b""
                found += [orjson.loads(line)["seq"] for line in lines]
        return found
