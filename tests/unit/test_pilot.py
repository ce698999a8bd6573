"""What a pilot decides, says, and lets through before it has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from batchllm.errors import PilotFailed
from batchllm.ledger import Ledger, Settled
from batchllm.lines import Shape
from batchllm.model import DIMENSIONS, Attempt, Dead, Failure, Note, Outcome, Record, Trail, Usage
from batchllm.pilot import Pilot, Rest, hint, report, time_for, verdict
from batchllm.sinks import JsonlFile
from batchllm.sources import JsonlSource
from batchllm.stop import Stop
from batchllm.summary import Summary
from tests.outcomes import AT, dead, done, record

NO_LIMITS: dict[str, float | None] = dict.fromkeys(DIMENSIONS)


def came_to(settled: int, failed: int) -> Summary:
    summary = Summary()
    for seq in range(settled):
        summary.add(dead(seq) if seq < failed else done(seq))
    return summary


@pytest.mark.parametrize(
    ("failed", "most", "goes_on"),
    [
        (0, None, True),
        (1, None, True),
        (2, None, False),
        (20, None, False),
        (5, 0.3, True),
        (6, 0.3, False),
        (0, 0.0, True),
        (1, 0.0, False),
        (20, 1.0, False),
        (6, 7, True),
        (7, 7, False),
        (0, 0, True),
        (1, 0, False),
    ],
)
def test_a_pilot_of_20_goes_on_under_max_failures_or_a_tenth(
    failed: int, most: int | float | None, goes_on: bool
) -> None:
    assert (verdict(came_to(20, failed), most) is None) is goes_on


def test_a_failed_pilot_says_how_many_failed_and_were_allowed() -> None:
    start = "the pilot failed: 6 of 20 records failed (30%), allowed are under "
    assert verdict(came_to(20, 6), None) == start + "10%"
    assert verdict(came_to(20, 6), 0.125) == start + "12.5%"
    assert verdict(came_to(20, 6), 3) == start + "3"


def test_the_hint_names_the_letters_and_ways_on() -> None:
    kept = hint("a.dead.jsonl", kept=True, redo=True)
    assert "a.dead.jsonl" in kept
    assert all(way in kept for way in ("--fresh", "--on-change redo", "--max-failures"))
    assert "redo" not in hint("a.dead.jsonl", kept=True, redo=False)
    assert "--fresh" not in hint("a.dead.jsonl", kept=False, redo=True)


def test_the_report_tells_the_pilot_its_failures_and_the_rest() -> None:
    summary = came_to(19, 0)
    failure = Failure("invalid", "schema", 'no "label" in it')
    trail = Trail(attempts=[Attempt(AT, 0.1, Usage(1_177, 418))])
    summary.add(Dead(record(19), failure, trail, AT))
    assert report(summary, Rest(12_980, True, 10, NO_LIMITS)) == [
        "pilot: 20 records, 95% ok, 1,234 tokens in, 456 out, p50 100 ms",
        'pilot: 1 failed as invalid, such as: no "label" in it',
        "pilot: the other 12,980 would take about 2 min and 1,100,000 tokens",
    ]


def test_the_rest_of_a_pipe_is_unknown_and_of_a_large_file_an_estimate() -> None:
    summary = came_to(3, 0)
    assert report(summary, Rest(None, False, 10, NO_LIMITS))[1:] == [
        "pilot: how much more comes is not known"
    ]
    assert report(summary, Rest(123_456, False, 10, NO_LIMITS))[1:] == [
        "pilot: the others, about 123,000, would take about 21 min and 617,000 tokens"
    ]


def test_one_record_without_tokens_or_an_answer_is_told_in_full() -> None:
    summary = Summary()
    summary.add(Dead(record(0), Failure("bad_input", "not_json", "is no JSON"), Trail(), AT))
    assert report(summary, Rest(1, True, 1, NO_LIMITS)) == [
        "pilot: 1 record, 0% ok",
        "pilot: 1 failed as bad_input, such as: is no JSON",
        "pilot: the other 1 would take about 1 s",
    ]


@pytest.mark.parametrize(
    ("window", "limits", "seconds"),
    [
        (1, {}, 100),  # 1,000 calls of 0.1 s
        (10, {}, 10),
        (10, {"requests": 600}, 100),
        (10, {"requests": 60_000}, 10),
        (10, {"tokens": 500}, 600),  # 3 in and 2 out each
        (10, {"input-tokens": 500, "output-tokens": 100}, 1200),
    ],
)
def test_the_time_for_the_rest_is_that_of_the_window_or_of_the_slowest_limit(
    window: int, limits: dict[str, float | None], seconds: float
) -> None:
    rest = Rest(1_000, True, window, NO_LIMITS | limits)
    assert time_for(came_to(20, 0), rest) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (1, "1 s"),
        (890, "89 s"),
        (1_000, "2 min"),
        (50_000, "83 min"),
        (78_000, "2 h 10 min"),
        (2**21, "2 d 10 h"),
    ],
)
def test_times_are_said_in_words(records: int, said: str) -> None:
    text = report(came_to(5, 0), Rest(records, True, 1, NO_LIMITS))[-1]
    assert f"would take about {said} and" in text


class Reading:
    """A pilot over a file, whose ledger has no run folder; `got` are the numbers that it let through."""

    def __init__(
        self, folder: Path, lines: int, pilot: int, *, before: int = 0, limit: int | None = None
    ) -> None:
        path = folder / "a.jsonl"
        path.write_text("".join(f'{{"id":{n}}}\n' for n in range(lines)))
        settled = Settled(before)
        self.source = JsonlSource([str(path)], settled=settled.__contains__, limit=limit)
        summary = came_to(before, 0)
        self.ledger = Ledger(
            JsonlFile(str(folder / "out.jsonl")),
            JsonlFile(str(folder / "dead.jsonl")),
            Shape(),
            summary,
            settled,
            Stop(),
            journal=None,
            durability="none",
            position=self.source.position,
        )
        self.pilot = Pilot(self.source, self.ledger, pilot, None, "mend it")
        self.asked: list[tuple[int, list[int]]] = []
        self.answer = True
        self.pilot.confirm = self._confirm
        self.got: list[int] = []

    async def _confirm(self, summary: Summary) -> bool:
        self.asked.append((summary.settled, list(self.got)))
        return self.answer

    async def read(self, settle: Callable[[int], Outcome] = done) -> None:
        """Let everything through, each record settled as it comes."""
        async with self._draining() as outbox:
            async for chunk in self.pilot.chunks():
                numbers = [item.record.seq if isinstance(item, Dead) else item.seq for item in chunk]
                self.got += numbers
                await outbox.send([settle(number) for number in numbers])

    @asynccontextmanager
    async def _draining(self) -> AsyncIterator[MemoryObjectSendStream[list[Outcome | Note]]]:
        send, receive = anyio.create_memory_object_stream[list[Outcome | Note]](10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.ledger.drain, receive)
            try:
                async with send:
                    yield send
            finally:
                self.source.close()


def test_what_is_read_beyond_the_pilot_is_held_back_and_not_lost(tmp_path: Path) -> None:
    reading = Reading(tmp_path, 3_000, 5)
    anyio.run(reading.read)
    assert reading.asked == [(5, [0, 1, 2, 3, 4])]
    assert reading.got == list(range(3_000))


@pytest.mark.parametrize("pilot", [1024, 1500, 2048])
def test_a_pilot_may_be_longer_than_a_chunk(pilot: int, tmp_path: Path) -> None:
    reading = Reading(tmp_path, 3_000, pilot)
    anyio.run(reading.read)
    assert reading.asked == [(pilot, list(range(pilot)))]
    assert reading.got == list(range(3_000))


@pytest.mark.parametrize(("lines", "limit"), [(4, None), (5, None), (1024, None), (100, 4), (100, 5)])
def test_where_nothing_comes_after_the_pilot_there_is_no_decision(
    lines: int, limit: int | None, tmp_path: Path
) -> None:
    reading = Reading(tmp_path, lines, 5 if lines < 1000 else lines, limit=limit)
    anyio.run(reading.read, dead)
    assert reading.asked == []
    assert reading.got == list(range(limit or lines))


def test_too_many_failures_end_the_source_before_the_rest(tmp_path: Path) -> None:
    reading = Reading(tmp_path, 100, 5)

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as raised:
            await reading.read(dead)
        (failed,) = raised.value.exceptions
        assert isinstance(failed, PilotFailed)
        assert (failed.message.split(",")[0], failed.hint) == (
            "the pilot failed: 5 of 5 records failed (100%)",
            "mend it",
        )

    anyio.run(main)
    assert (reading.got, reading.asked) == ([0, 1, 2, 3, 4], [])


def test_a_no_ends_the_source_before_the_rest(tmp_path: Path) -> None:
    reading = Reading(tmp_path, 100, 5)
    reading.answer = False

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as raised:
            await reading.read()
        (failed,) = raised.value.exceptions
        assert isinstance(failed, PilotFailed)
        assert failed.message == "at the pilot, as answered"

    anyio.run(main)
    assert reading.got == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("before", [3, 5])
def test_what_earlier_sessions_settled_counts(before: int, tmp_path: Path) -> None:
    reading = Reading(tmp_path, 100, 5, before=before)
    anyio.run(reading.read)
    assert reading.asked == [(5, list(range(before, 5)))]
    assert reading.got == list(range(before, 100))


def test_a_line_that_is_no_record_counts_among_the_first(tmp_path: Path) -> None:
    reading = Reading(tmp_path, 0, 3)
    (tmp_path / "a.jsonl").write_text('{"id":0}\nno json\n{"id":2}\n{"id":3}\n')
    reading.source = JsonlSource([str(tmp_path / "a.jsonl")])
    reading.pilot = Pilot(reading.source, reading.ledger, 3, 1.0, "mend it")
    reading.pilot.confirm = reading._confirm
    anyio.run(reading.read)
    assert reading.asked == [(3, [0, 1, 2])]
    assert reading.got == [0, 1, 2, 3]


def test_records_are_those_of_the_source(tmp_path: Path) -> None:
    """Nothing is made anew: the engine gets what the source read."""
    reading = Reading(tmp_path, 10, 5)
    seen: list[Record | Dead] = []

    async def main() -> None:
        async with reading._draining() as outbox:
            async for chunk in reading.pilot.chunks():
                seen.extend(chunk)
                await outbox.send([done(item.seq) for item in chunk if isinstance(item, Record)])

    anyio.run(main)
    assert [item.line for item in seen if isinstance(item, Record)] == [b'{"id":%d}' % n for n in range(10)]
    assert reading.pilot.position(0).seq == 0
