"""The jobs of the sweep, and what is true of their files once they have ended, killed however often.

A job is an input, commands that come before the one under test, and that one. `check` compares the files with
the input: each record once, each line whole, in input order, the index in step, nothing left behind.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchllm.ledger.index import DEAD, FAILED, OUTPUT, SINK_OF, SIZE, agrees, unpack

FAULTS = "fake/echo?faults=500:0.2,drop:0.1&latency_ms=1&jitter=0.9"
SOUND = "fake/echo?latency_ms=1&jitter=0.9"
THREE = ("a.jsonl", "b.jsonl.gz", "c.jsonl")
_VARIANTS = ("--variant", "a={{ text }}", "--variant", "b={{ text }}")
COMMON = ("--max-retries", "0", "-c", "8", "-q")

Lines = list[tuple[Any, str | None]]


@dataclass(frozen=True)
class Job:
    """`write(folder)` makes the inputs and gives what they hold: id and text, None for a line that is bad.

    `before` are commands that run to their end first, `change` is done between them and `args`. With
    `passes` some lines are asked for again on purpose, so a line once written may be replaced.
    """

    name: str
    write: Callable[[Path], Lines]
    args: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    change: Callable[[Path], Lines | None] | None = None
    passes: bool = False
    merge_failed: bool = False
    moved: bool = False
    variants: tuple[str | None, ...] = (None,)
    staged: bool = False


def records(start: int, count: int) -> Lines:
    """Ids and texts, no two alike, some of them long."""
    return [(n, f"text {n} é" + "x" * (300 if n % 7 == 3 else n % 40)) for n in range(start, start + count)]


def jsonl(lines: Lines) -> bytes:
    """The records as JSONL, with blank lines among them; a bad one is no JSON."""
    rows = []
    for number, (id, text) in enumerate(lines):
        row = json.dumps({"id": id, "text": text}, ensure_ascii=False)
        rows.append(row if text is not None else "no json")
        if number % 11 == 5:
            rows.append("")
    return "".join(row + "\n" for row in rows).encode()


def one(folder: Path) -> Lines:
    """One plain file."""
    lines = records(0, 60)
    (folder / "in.jsonl").write_bytes(jsonl(lines))
    return lines


def several(folder: Path) -> Lines:
    """Three files, one of them packed, with bad lines."""
    parts = [records(0, 20), records(20, 25), records(45, 15)]
    parts[0][4] = ("a.jsonl:line-5", None)
    parts[2][0] = ("c.jsonl:line-1", None)
    (folder / "a.jsonl").write_bytes(jsonl(parts[0]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(parts[1])))
    (folder / "c.jsonl").write_bytes(jsonl(parts[2]))
    return [line for part in parts for line in part]


def _edited(folder: Path) -> Lines:
    """The one file with some records changed, one gone and some new."""
    lines = [(id, f"now {text}" if id % 9 == 4 else text) for id, text in records(0, 60) if id != 30]
    lines += records(60, 5)
    (folder / "in.jsonl").write_bytes(jsonl(lines))
    return lines


def _overwritten(folder: Path) -> Lines:
    lines = records(1000, 40)
    (folder / "in.jsonl").write_bytes(jsonl(lines))
    return lines


def _without_run_folder(folder: Path) -> Lines:
    """Only the output and the dead letters are left of a run; the input has grown in front."""
    for path in (folder / "out.jsonl.run").iterdir():
        path.unlink()
    (folder / "out.jsonl.run").rmdir()
    lines = records(90, 6) + records(0, 60)
    (folder / "in.jsonl").write_bytes(jsonl(lines))
    return lines


def _staged(folder: Path) -> Lines:
    """The one file, and a job of two stages, of which the first is not for everyone."""
    (folder / "job.toml").write_text(
        '[[stage]]\nname = "first"\nprompt = "1 {{ text }}"\nwhen = "id % 5 != 1"\n'
        '[[stage]]\nname = "second"\nprompt = "{{ text }}"\n'
    )
    return one(folder)


def _run(*args: str) -> tuple[str, ...]:
    return ("run", *args, *COMMON, "-o", "out.jsonl")


JOBS = {
    job.name: job
    for job in (
        Job("plain", one, _run("in.jsonl", "-m", FAULTS)),
        Job(
            "merged",
            one,
            _run("in.jsonl", "-m", FAULTS, "--emit", "merged", "--merge-failed", "--durability", "none"),
            merge_failed=True,
        ),
        Job(
            "several",
            several,
            _run(*THREE, "-m", FAULTS, "--merge-failed", "--durability", "record"),
            merge_failed=True,
        ),
        Job("rounds", one, _run("in.jsonl", "-m", FAULTS, "--rounds", "2"), passes=True),
        Job(
            "rounds-merged",
            several,
            _run(*THREE, "-m", FAULTS, "--rounds", "1", "--merge-failed"),
            passes=True,
            merge_failed=True,
        ),
        Job(
            "retry",
            one,
            ("retry", "out.jsonl", *COMMON),
            before=(_run("in.jsonl", "-m", FAULTS),),
            passes=True,
        ),
        Job(
            "retry-other",
            several,
            ("retry", "out.jsonl", "--only", "exhausted", "-p", "{{ text }}", "-m", SOUND, *COMMON),
            before=(_run(*THREE, "-m", FAULTS, "--merge-failed"),),
            passes=True,
            merge_failed=True,
        ),
        Job(
            "redo",
            one,
            _run("in.jsonl", "-m", FAULTS, "--on-change", "redo"),
            before=(_run("in.jsonl", "-m", FAULTS),),
            change=_edited,
            passes=True,
        ),
        Job(
            "adopt",
            one,
            _run("in.jsonl", "-m", FAULTS, "--resume-by", "id"),
            before=(_run("in.jsonl", "-m", FAULTS),),
            change=_without_run_folder,
            passes=True,
        ),
        Job(
            "adopt-merged",
            one,
            _run("in.jsonl", "-m", FAULTS, "--resume-by", "id", "--merge-failed"),
            before=(_run("in.jsonl", "-m", FAULTS, "--merge-failed"),),
            change=_without_run_folder,
            passes=True,
            merge_failed=True,
        ),
        Job(
            "nightly",
            one,
            _run("in.jsonl", "-m", FAULTS),
            before=(_run("in.jsonl", "-m", FAULTS),),
            change=_overwritten,
            passes=True,
            moved=True,
        ),
        Job("unordered", one, _run("in.jsonl", "-m", FAULTS, "--unordered")),
        Job(
            "variants",
            several,
            _run(*THREE, "-m", FAULTS, *_VARIANTS, "--merge-failed", "--rounds", "1"),
            passes=True,
            merge_failed=True,
            variants=("a", "b"),
        ),
        Job("stages", _staged, _run("in.jsonl", "-m", FAULTS, "-j", "job.toml"), staged=True),
        Job(
            "stages-retry",
            _staged,
            ("retry", "out.jsonl", *COMMON),
            before=(_run("in.jsonl", "-m", FAULTS, "-j", "job.toml"),),
            passes=True,
            staged=True,
        ),
    )
}


def written(folder: Path) -> set[bytes]:
    """The whole lines that are in the output and among the dead letters."""
    found: set[bytes] = set()
    for name in ("out.jsonl", "out.dead.jsonl"):
        if (folder / name).exists():
            found.update(line for line in (folder / name).read_bytes().splitlines(True) if line[-1:] == b"\n")
    return found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, each of which must be whole."""
    content = path.read_bytes() if path.exists() else b""
    assert content == b"" or content.endswith(b"\n"), path
    for line in content.split(b"\n")[:-1]:
        yield json.loads(line)


def check(job: Job, folder: Path, lines: Lines) -> None:
    """Every record is there once and as it should be, and nothing else is."""
    each = len(job.variants)
    place = {
        (json.dumps(id), name): number * each + i
        for number, (id, _) in enumerate(lines)
        for i, name in enumerate(job.variants)
    }
    assert len(place) == len(lines) * each

    def unit(row: dict[str, Any]) -> int:
        return place[json.dumps(row["id"]), row.get("variant")]

    output, failed = [], []
    for row in rows(folder / "out.jsonl"):
        number = unit(row)
        assert row.get("seq", number // each) == number // each, row
        (failed if "error_kind" in row else output).append(number)
        if "error_kind" not in row:
            assert row["output"] == f"echo: {lines[number // each][1]}", row
            assert not job.staged or row["stages"] == _answers(*lines[number // each]), row
    dead = []
    for row in rows(folder / "out.dead.jsonl"):
        number = unit(row)
        text = lines[number // each][1]
        assert row["seq"] == number // each, row
        assert row["error"]["kind"] == ("bad_input" if text is None else "exhausted"), row
        assert row["record"]["text"] == text if "record" in row else text is None, row
        dead.append(number)
    assert sorted(output + dead) == list(range(len(place))), (sorted(output), sorted(dead))
    if job.merge_failed:
        assert sorted(failed) == sorted(dead), (failed, dead)
    if "--unordered" not in job.args:
        merged = [unit(row) for row in rows(folder / "out.jsonl")]
        assert merged == sorted(merged), merged
        assert dead == sorted(dead), dead
    check_run_folder(folder, len(output), len(dead))
    check_leavings(job, folder)


def _answers(id: int, text: str | None) -> dict[str, str]:
    """What the stages of `_staged` answer for a record."""
    first = {"first": f"echo: 1 {text}"} if id % 5 != 1 else {}
    return first | {"second": f"echo: {text}"}


def check_run_folder(folder: Path, succeeded: int, failed: int) -> None:
    """Index and sinks are in step to their last byte, and the snapshot says what they hold."""
    run = folder / "out.jsonl.run"
    snapshot = json.loads((run / "snapshot").read_bytes())
    index = (run / "index").read_bytes()
    files = {"output": folder / "out.jsonl", "dead": folder / "out.dead.jsonl", "notes": run / "notes"}
    content = {name: path.read_bytes() if path.exists() else b"" for name, path in files.items()}
    at = dict.fromkeys(content, 0)
    kinds = {OUTPUT: 0, DEAD: 0, FAILED: 0}
    for number, entry in enumerate(unpack(index)):
        name = SINK_OF[entry.kind]
        line = content[name][at[name] : at[name] + entry.length]
        packed = index[number * SIZE : (number + 1) * SIZE]
        assert any(agrees(packed, line, g) for g in range(snapshot["generation"] + 1)), (entry, line)
        at[name] += entry.length
        kinds[entry.kind] = kinds.get(entry.kind, 0) + 1
    assert len(index) % SIZE == 0
    assert at == {name: len(data) for name, data in content.items()}
    assert snapshot["index_length"] == len(index)
    assert snapshot["sinks"] == at
    assert snapshot["finished"]
    assert [kinds[OUTPUT], kinds[DEAD]] == [succeeded, failed]
    assert [snapshot["summary"]["succeeded"], snapshot["summary"]["failed"]] == [succeeded, failed], snapshot


def check_leavings(job: Job, folder: Path) -> None:
    """No temporary file is left, and nothing that the job did not make."""
    known = {"job.json", "snapshot", "index", "notes", "lock", "session"}
    run = {path.name for path in (folder / "out.jsonl.run").iterdir()}
    assert {name for name in run - known if not name.startswith("cut-")} == set(), run
    mine = {path.name for path in folder.iterdir()} - {"out.jsonl", "out.dead.jsonl", "out.jsonl.run"}
    inputs = {name for name in mine if name in ("in.jsonl", "job.toml", *THREE)}
    old = {name for name in mine if name.rpartition(".")[2].startswith("old")}
    assert mine - inputs == (old if job.moved else set()), mine
