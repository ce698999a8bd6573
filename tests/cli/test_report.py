"""`--expect` on real runs, and `batchllm report` on what they left."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.running import (
    ECHO,
    Ran,
    command,
    ended,
    environment,
    refusal,
    run,
    started,
    tickets,
    wait_for_settled,
    write,
)

CHOICE = {
    "type": "object",
    "properties": {"category": {"enum": ["card", "refund", "transfer"]}},
    "required": ["category"],
}
MODEL = ("-m", "fake/script?file=replies.jsonl&by=match")
WAITS = """
import time
from pathlib import Path

def answer(messages):
    end = time.monotonic() + 60
    while "00001" in messages[-1]["content"] and not Path("go").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return "fine"
"""


def report(folder: Path, *args: str) -> Ran:
    return run(folder, *args, verb="report")


def figures(folder: Path, *args: str) -> dict[str, Any]:
    ran = report(folder, *args, "--json")
    assert (ran.code, ran.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def labelled(folder: Path, count: int = 40) -> None:
    """Records with a label, and answers of which every fourth is `card` and the sixth none at all."""
    labels = ["card", "refund", "transfer", "refund"]
    records, replies = [], []
    for n in range(count):
        label = labels[n % 4]
        records.append({"id": n, "text": f"<{n:03}> {label}", "label": label})
        said = json.dumps({"category": "card" if n % 4 == 3 else label})
        replies.append({"match": f"<{n:03}>", "text": "no idea" if n == 5 else said})
    write(folder / "a.jsonl", records)
    write(folder / "replies.jsonl", replies)
    (folder / "schema.json").write_text(json.dumps(CHOICE))


def test_a_run_with_expected_answers_tells_its_accuracy(tmp_path: Path) -> None:
    labelled(tmp_path)
    asked = ("a.jsonl", *MODEL, "--schema", "schema.json", "--expect", "label=output.category")

    ran = run(tmp_path, *asked)

    assert ran.code == 1
    rows = ran.rows("a.out.jsonl")
    assert all(row["correct"] is (row["output"]["category"] == row["expected"]) for row in rows)
    assert [row["expected"] for row in rows[:5]] == ["card", "refund", "transfer", "refund", "card"]
    # 10 of 39 are wrong; Wilson's interval by hand
    assert "accuracy       74.36% of 39 answers: 29 are right" in ran.stderr
    assert "95% interval 58.92% to 85.43% (Wilson), without failed records" in ran.stderr
    again = run(tmp_path, *asked)
    assert "accuracy       74.36% of 39 answers: 29 are right" in again.stderr

    found = figures(tmp_path, "a.out.jsonl")
    assert (found["state"], found["records"], found["ok"], found["failed"]) == ("finished", 40, 39, 1)
    assert found["failures"] == [
        {"kind": "invalid", "cause": "no_json", "count": 1, "examples": ["there is no JSON in the answer"]}
    ]
    assert found["accuracy"]["accuracy"] == 29 / 39
    assert found["accuracy"]["confusion"] == {
        "labels": ["refund", "card", "transfer"],
        "other": False,
        "counts": [[9, 10, 0], [0, 10, 0], [0, 0, 10]],
    }
    shown = report(tmp_path, "a.out.jsonl")
    assert (shown.code, shown.stderr) == (0, "")
    text = shown.stdout.decode()
    assert "state          finished" in text
    assert "failed         1\n  invalid      1  no_json: there is no JSON in the answer" in text
    assert "expected, answered  refund  card  transfer\nrefund                   9    10         0" in text
    assert max(map(len, text.splitlines())) <= 80 + len(str(tmp_path))


def test_text_answers_are_judged_whole_and_machines_get_the_accuracy_too(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl", [{"text": "x", "label": " echo: x"}, {"text": "y", "label": "y"}, {"text": "z"}]
    )

    ran = run(tmp_path, "a.jsonl", *ECHO, "--expect", "label=output", "--progress", "json")

    assert ran.code == 0
    last = json.loads(ran.stderr.splitlines()[-1])
    assert (last["accuracy"]["n"], last["accuracy"]["correct"]) == (2, 1)
    assert [row.get("correct") for row in ran.rows("a.out.jsonl")] == [True, False, None]


def test_retried_records_join_the_accuracy(tmp_path: Path) -> None:
    labelled(tmp_path)
    run(tmp_path, "a.jsonl", *MODEL, "--schema", "schema.json", "--expect", "label=output.category")
    said = json.dumps({"category": "refund"})
    write(tmp_path / "better.jsonl", [{"match": "<005>", "text": said}])

    ran = run(tmp_path, "a.out.jsonl", "-m", "fake/script?file=better.jsonl&by=match", verb="retry")

    assert ran.code == 0
    assert "75.00% of 40 answers: 30 are right" in ran.stderr


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (("--expect", "label"), "such as label=output.category, not label", "label=output.category"),
        (("--expect", "label=category"), "expected FIELD=output or FIELD=output.path", "label=output"),
        (("--expect", "label=output.category"), "without a schema the answer is a text", "label=output"),
        (("--expect", "label=output", "--emit", "merged"), "lines of --emit result", "leave out --emit"),
    ],
)
def test_an_expectation_that_can_t_be_met_is_refused_before_any_call(
    tmp_path: Path, args: tuple[str, ...], message: str, hint: str
) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    refused = refusal(tmp_path, "a.jsonl", *ECHO, *args)
    assert message in refused.error
    assert hint in refused.hint
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl"}


def test_a_field_that_no_record_has_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    ran = run(tmp_path, "a.jsonl", *ECHO, "--expect", "lable=output")
    assert ran.code == 0
    assert "warning: none of the 2 records read so far has the field 'lable' of --expect" in ran.stderr
    assert "accuracy" not in ran.stderr


def test_a_run_that_goes_on_is_reported_as_far_as_it_has_come(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    (tmp_path / "waits.py").write_text(WAITS)
    with started(tmp_path, "a.jsonl", "-m", "python/./waits.py:answer", "-vv") as process:
        wait_for_settled(process, 2)
        found = figures(tmp_path, "a.out.jsonl")
        assert (found["state"], found["records"]) == ("running", 2)
        assert b"still going on" in report(tmp_path, "a.out.jsonl").stdout
        process.terminate()
        (tmp_path / "go").touch()
        ended(tmp_path, process)
    write(tmp_path / "b.jsonl", tickets(3))
    run(tmp_path, "b.jsonl", *ECHO, "--limit", "1")
    assert figures(tmp_path, "b.out.jsonl")["state"] == "unfinished"
    assert b"run its own command again" in report(tmp_path, "b.out.jsonl").stdout


def test_files_without_a_run_folder_are_reported_too(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    ran = run(tmp_path, "a.jsonl", *ECHO, "-o", "-", "-q")
    (tmp_path / "saved.jsonl").write_bytes(ran.stdout)
    found = figures(tmp_path, "saved.jsonl")
    assert (found["state"], found["records"], found["dead_letter"]) == (None, 3, None)


def test_an_output_that_is_gone_is_missing_not_empty(tmp_path: Path) -> None:
    labelled(tmp_path)
    run(tmp_path, "a.jsonl", *MODEL, "--schema", "schema.json")
    letters = (tmp_path / "a.dead.jsonl").read_bytes()
    (tmp_path / "a.dead.jsonl").unlink()
    ran = report(tmp_path, "a.out.jsonl")
    assert (ran.code, ran.stdout) == (2, b"")
    assert "a.dead.jsonl is missing" in ran.error
    assert "-d FILE" in ran.hint
    (tmp_path / "kept.jsonl").write_bytes(letters)
    assert figures(tmp_path, "a.out.jsonl", "-d", "kept.jsonl")["failed"] == 1
    (tmp_path / "a.out.jsonl").unlink()
    for args in (("--json",), ("-d", "kept.jsonl")):
        ran = report(tmp_path, "a.out.jsonl", *args)
        assert (ran.code, ran.stdout) == (2, b"")
        assert "a.out.jsonl is missing, though its run folder a.out.jsonl.run is there" in ran.error
        assert "--fresh" in ran.hint


def test_an_unfinished_run_s_output_that_is_gone_is_missing_too(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    run(tmp_path, "a.jsonl", *ECHO, "--limit", "1")
    (tmp_path / "a.out.jsonl").unlink()
    ran = report(tmp_path, "a.out.jsonl")
    assert ran.code == 2
    assert "a.out.jsonl is missing" in ran.error


def test_a_run_of_dead_letters_alone_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    write(tmp_path / "replies.jsonl", [{"match": "nothing of the kind", "text": "x"}])
    assert run(tmp_path, "a.jsonl", *MODEL).code == 1
    found = figures(tmp_path, "a.out.jsonl")
    assert (found["records"], found["failed"]) == (2, 2)


def test_machines_get_both_paths_from_the_root_people_as_seen_from_here(tmp_path: Path) -> None:
    labelled(tmp_path)
    run(tmp_path, "a.jsonl", *MODEL, "--schema", "schema.json")
    (tmp_path / "below").mkdir()
    output, letters = tmp_path / "a.out.jsonl", tmp_path / "a.dead.jsonl"
    for folder, args in [
        (tmp_path, ("a.out.jsonl",)),
        (tmp_path / "below", ("../a.out.jsonl",)),
        (tmp_path, ("a.out.jsonl", "-d", "./a.dead.jsonl")),
    ]:
        found = figures(folder, *args)
        assert (found["output"], found["dead_letter"]) == (str(output), str(letters))
    shown = report(tmp_path, str(output)).stdout.decode()
    assert "output         a.out.jsonl\ndead letters   a.dead.jsonl\n" in shown
    shown = report(tmp_path / "below", "../a.out.jsonl").stdout.decode()
    assert f"output         {output}\ndead letters   {letters}\n" in shown


def test_a_reader_that_goes_ends_the_report_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    run(tmp_path, "a.jsonl", *ECHO)
    read, written = os.pipe()
    os.close(read)
    process = subprocess.run(
        command("a.out.jsonl", verb="report"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=written,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(written)
    assert (process.returncode, process.stderr) == (141, b"")


def test_what_is_no_output_of_a_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    run(tmp_path, "a.jsonl", *ECHO, "--emit", "merged")
    (tmp_path / "other.jsonl").write_bytes(b"garbage")
    (tmp_path / "odd.jsonl").write_bytes(
        run(tmp_path, "a.jsonl", *ECHO, "-o", "-", "-q").stdout + b'{"id":3,"seq":2,"attempts":1000000000}\n'
    )
    for args, message in [
        (("other.jsonl",), "line 1 of other.jsonl is no line of a run"),
        (("odd.jsonl",), "line 3 of odd.jsonl is no line of a run"),
        (("none.jsonl",), "none.jsonl does not exist"),
        (("-",), "a report is made from files"),
        ((".",), ". is a directory"),
        (("a.out.jsonl",), "a.out.jsonl was written with --emit merged"),
        (("a.jsonl",), "line 1 of a.jsonl is no line of a run with --emit result: it has no 'attempts'"),
        (("a.jsonl", "-d", "gone.jsonl"), "gone.jsonl does not exist"),
    ]:
        refused = refusal(tmp_path, *args, verb="report")
        assert message in refused.error
        assert refused.hint
