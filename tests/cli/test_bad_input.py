"""Bad input over real runs: every case ends as the contract says, with a message, a hint and no traceback."""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.running import ECHO, Ran, names, run, tickets, together, write

LONG = b'{"id": "long", "text": "' + b"x" * (20 << 20) + b'"}'
DROP_OVERRIDE = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, out of the bounding set (24)
    ctypes.CDLL(None).prctl(24, capability)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Root reads everything, so there the run starts without the capabilities that let it."""


def test_each_bad_line_is_a_dead_letter_with_its_place_and_the_run_goes_on(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"id": "bom", "text": "first"}',
        b'{"id": "open", ',
        b'"just a string"',
        b"",
        b"   \t ",
        LONG,
        b'{"id": "latin", "text": "caf\xe9"}',
        b'{"id": "nul", "text": "\0"}',
        b"\0\0\0\0",
        b'{"id": "crlf", "text": "windows"}\r',
        b'{"id": "twin", "text": "one"}',
        b'{"id": "twin", "text": "two"}',
        b'{"id": "lacks", "body": "no text here"}',
        b"[1, 2]",
        b"17",
        b"null",
        b"[" * 100_000,
        b'{"id": "nan", "text": NaN}',
        b'{"id": "half", "text": "\\ud800"}',
        b'{"id": "two", "text": "a"} {"id": "on one line"}',
        b'{"id": "escaped", "text": "nul \\u0000 and \\u2028"}',
        b'{"id": "cut", "te',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))

    ran = run(tmp_path, "a.jsonl", *ECHO)

    assert ran.code == 1
    assert [row["id"] for row in ran.rows("a.out.jsonl")] == ["bom", "crlf", "twin", "twin", "escaped"]
    assert [row["output"] for row in ran.rows("a.out.jsonl")][1:4] == [
        "echo: windows", "echo: one", "echo: two",
    ]  # fmt: skip
    letters = {letter["id"]: letter for letter in ran.rows("a.dead.jsonl")}
    assert {id: letter["error"]["cause"] for id, letter in letters.items()} == {
        "line-2": "not_json",
        "line-3": "not_an_object",
        "line-6": "line_too_long",
        "line-7": "not_utf8",
        "line-8": "not_json",
        "line-9": "not_json",
        "lacks": "missing_field",
        "line-14": "not_an_object",
        "line-15": "not_an_object",
        "line-16": "not_an_object",
        "line-17": "not_json",
        "line-18": "not_json",
        "line-19": "not_json",
        "line-20": "not_json",
    }
    for id, letter in letters.items():
        assert letter["error"]["kind"] == "bad_input"
        assert letter["attempts"] == []
        if id != "lacks":
            number = int(id.removeprefix("line-"))
            assert f"line {number} of a.jsonl" in letter["error"]["message"]
            assert ("record" in letter) is False
            raw = letter.get("raw_line", "").encode() or base64.b64decode(letter["raw_line_base64"])
            assert raw == (LONG[: 64 << 10] if number == 6 else lines[number - 1])
    assert letters["lacks"]["record"] == {"id": "lacks", "body": "no text here"}
    assert "text" in letters["lacks"]["error"]["message"]
    assert sorted([row["seq"] for row in ran.rows("a.out.jsonl")] + [x["seq"] for x in letters.values()]) == (
        list(range(19))
    ), "blank lines have no place"
    assert "a.jsonl (line 22) is not whole" in ran.stderr
    assert "cut" not in json.dumps(ran.rows("a.dead.jsonl")), "the last line is read again once it is whole"


def test_a_record_nested_without_end_costs_no_other_record(tmp_path: Path) -> None:
    lines = [
        b'{"id": ' + b"[" * deep + b"]" * deep + b', "text": "deep"}' for deep in (300, 900, 1000, 1020, 5000)
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"id": "flat", "text": "x"}']))

    ran = run(tmp_path, "a.jsonl", *ECHO, "--keep", "id")

    assert ran.code == 1
    settled = [
        *(tmp_path / "a.out.jsonl").read_bytes().splitlines(),
        *(tmp_path / "a.dead.jsonl").read_bytes().splitlines(),
    ]
    assert len(settled) == 6
    assert b'{"id":"flat","seq":5,' in settled[-2]


def test_a_last_line_without_its_end_counts_when_it_is_whole_and_waits_when_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "whole.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b"}')
    (tmp_path / "cut.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b')

    whole, cut = together(
        lambda: run(tmp_path, "whole.jsonl", *ECHO), lambda: run(tmp_path, "cut.jsonl", *ECHO)
    )
    assert (whole.code, len(whole.rows("whole.out.jsonl"))) == (0, 2)
    assert (cut.code, len(cut.rows("cut.out.jsonl"))) == (1, 1)
    assert not (tmp_path / "cut.dead.jsonl").exists()

    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(b'"}\n')
    later = run(tmp_path, "cut.jsonl", *ECHO)

    assert (later.code, [row["output"] for row in later.rows("cut.out.jsonl")]) == (0, ["echo: a", "echo: b"])


def test_nothing_in_is_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_bytes(b"\xef\xbb\xbf\n\r\n  \n")

    both, piped = together(
        lambda: run(tmp_path, "empty.jsonl", "blank.jsonl", *ECHO), lambda: run(tmp_path, *ECHO, stdin=b"")
    )

    assert [both.code, piped.code] == [0, 0]
    assert [both.rows("empty.out.jsonl"), piped.stdout] == [[], b""]
    assert not [name for name in names(tmp_path) if "dead" in name]


def test_a_gzip_file_that_ends_too_early_is_an_error_and_what_came_before_is_kept(tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": os.urandom(64).hex()}) + "\n" for _ in range(2000)).encode()
    packed = gzip.compress(content)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-3000])

    ran = run(tmp_path, "a.jsonl.gz", *ECHO)

    assert ran.code == 3
    settled = len(ran.rows("a.out.jsonl"))
    assert 0 < settled < 2000
    assert "a.jsonl.gz ends in the middle of its gzip data" in ran.stderr
    assert "run the same command again" in ran.hint
    assert not (tmp_path / "a.dead.jsonl").exists()

    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    whole = run(tmp_path, "a.jsonl.gz", *ECHO)

    assert whole.code == 0
    assert [row["seq"] for row in whole.rows("a.out.jsonl")] == list(range(2000))


Make = Callable[[Path], object]


def _write(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


GOOD = _write("a.jsonl", b'{"text": "a"}\n')
REFUSED: dict[str, tuple[Make, tuple[str, ...], str, str]] = {
    "a missing file": (lambda folder: None, ("no.jsonl",), "no.jsonl does not exist", "check the path"),
    "a directory": (lambda folder: (folder / "d").mkdir(), ("d",), "d is a directory", "d/*.jsonl"),
    "a JSON array": (
        _write("x.json", b'[\n  {"text": "a"}\n]\n'), ("x.json",), "is a JSON array", "jq -c '.[]' x.json",
    ),
    "CSV": (_write("x.csv", b"id,text\n1,hello\n"), ("x.csv",), "looks like CSV", "x.csv > x.csv.jsonl"),
    "an output folder that isn't there": (
        GOOD, ("a.jsonl", "-o", "no/such/o.jsonl"), "does not exist: no/such", "mkdir -p no/such",
    ),
    "the input as output": (GOOD, ("a.jsonl", "-o", "./a.jsonl"), "both input and output", "-o FILE"),
    "no input": (lambda folder: None, (), "no input", "batchllm run tickets.jsonl"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Every case run once, several at a time: they have nothing to do with each other."""

    def ran(case: str) -> Ran:
        make, args, _, _ = REFUSED[case]
        folder = tmp_path_factory.mktemp("refused")
        make(folder)
        return run(folder, *args, *ECHO)

    ends = together(*(partial(ran, case) for case in REFUSED))
    return dict(zip(REFUSED, ends, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_no_run_is_refused_with_exit_2_and_leaves_nothing(
    case: str, refused: dict[str, Ran], tmp_path: Path
) -> None:
    make, _, message, hint = REFUSED[case]
    make(tmp_path)
    ran = refused[case]

    assert (ran.code, ran.stdout) == (2, b"")
    assert message in ran.error
    assert hint in ran.hint
    assert names(ran.folder) == names(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="drops Linux capabilities where it runs as root")
def test_files_that_may_not_be_read_or_written_are_refused(tmp_path: Path) -> None:
    before: tuple[str, ...] = () if os.geteuid() else (sys.executable, "-c", DROP_OVERRIDE)
    secret = write(tmp_path / "secret.jsonl", tickets(1))
    secret.chmod(0)
    write(tmp_path / "a.jsonl", tickets(1))
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    held = write(tmp_path / "held.jsonl", [])
    held.chmod(0o400)

    def ran(*args: str) -> Ran:
        return run(tmp_path, *args, *ECHO, before=before)

    try:
        unreadable, folder, output = together(
            lambda: ran("secret.jsonl"),
            lambda: ran("a.jsonl", "-o", "locked/o.jsonl"),
            lambda: ran("a.jsonl", "-o", "held.jsonl"),
        )
    finally:
        locked.chmod(0o700)

    assert [unreadable.code, folder.code, output.code] == [2, 2, 2]
    assert unreadable.error == "secret.jsonl may not be read: permission denied"
    assert "ls -l secret.jsonl" in unreadable.hint
    assert folder.error == "can't write the output locked/o.jsonl: permission denied"
    assert output.error == "can't write the output held.jsonl: permission denied"
    assert names(tmp_path) == {"secret.jsonl", "a.jsonl", "locked", "held.jsonl"}


def test_a_pipe_that_holds_no_jsonl_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    array, table = together(
        lambda: run(tmp_path, *ECHO, stdin=b'[{"text": "a"}]\n'),
        lambda: run(tmp_path, "-", *ECHO, "-o", "o.jsonl", stdin=b"id,text\n1,hello\n"),
    )

    assert [array.code, table.code] == [2, 2]
    assert [array.stdout, table.stdout] == [b"", b""]
    assert "stdin is a JSON array" in array.error
    assert "jq -c '.[]'" in array.hint
    assert "stdin looks like CSV" in table.error
    assert names(tmp_path) == set()
