"""What is asked again after a run: dead letters by `retry` and `--rounds`, changes by content or by id."""

from __future__ import annotations

import json
from pathlib import Path

from tests.running import ECHO, Ran, refusal, rows, run, started, write

FAULTY = ("-m", "fake/echo?faults=500:0.4&seed=2", "--max-retries", "0", "--progress", "none")


def _texts(count: int) -> list[dict[str, str]]:
    return [{"id": f"r{i}", "text": f"text {i}"} for i in range(count)]


def _calls(ran: Ran) -> int:
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("calls")]
    return int(line.split()[1].replace(",", ""))


def _check_whole(folder: Path, records: list[dict[str, str]]) -> list[str]:
    """Every record once, joined to its own text, each file in input order; the ids that failed."""
    texts = {record["id"]: record["text"] for record in records}
    places = {record["id"]: place for place, record in enumerate(records)}
    done = rows(folder / "a.out.jsonl")
    assert all(row["output"] == f"echo: {texts[row['id']]}" for row in done)
    letters = folder / "a.dead.jsonl"
    dead = rows(letters) if letters.exists() else []
    assert sorted(row["id"] for row in done + dead) == sorted(texts)
    for found in (done, dead):
        assert [places[row["id"]] for row in found] == sorted(places[row["id"]] for row in found)
    return [row["id"] for row in dead]


def test_retry_asks_for_the_dead_letters_alone_and_joins_what_succeeds(tmp_path: Path) -> None:
    records = _texts(60)
    write(tmp_path / "a.jsonl", records)
    first = run(tmp_path, "a.jsonl", *FAULTY)
    failed = _check_whole(tmp_path, records)
    assert first.code == 1
    assert len(failed) > 10

    second = run(tmp_path, "a.out.jsonl", "--progress", "none", verb="retry")
    again = _check_whole(tmp_path, records)
    assert second.code == 1
    assert 0 < len(again) < len(failed)
    assert _calls(second) == 60 + len(failed)

    none = run(tmp_path, "a.out.jsonl", "--only", "refused", "--progress", "none", verb="retry")
    assert (_check_whole(tmp_path, records), none.code) == (again, 1)

    last = run(tmp_path, "a.out.jsonl", *ECHO, "--progress", "none", verb="retry")
    assert (_check_whole(tmp_path, records), last.code) == ([], 0)
    assert not (tmp_path / "a.dead.jsonl").exists()
    assert _calls(run(tmp_path, "a.jsonl", *FAULTY)) == _calls(last)


def test_retry_works_with_failed_lines_among_the_output(tmp_path: Path) -> None:
    records = _texts(30)
    write(tmp_path / "a.jsonl", records)
    run(tmp_path, "a.jsonl", *FAULTY, "--merge-failed")
    assert len(rows(tmp_path / "a.out.jsonl")) == 30
    assert run(tmp_path, "a.out.jsonl", *ECHO, verb="retry").code == 0
    assert [row["seq"] for row in rows(tmp_path / "a.out.jsonl")] == list(range(30))
    assert _check_whole(tmp_path, records) == []


def test_retry_of_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(5))
    nothing = run(tmp_path, "a.out.jsonl", verb="retry")
    assert nothing.code == 2
    assert "no run folder" in nothing.error
    run(tmp_path, "a.jsonl", *ECHO, "--limit", "2")
    unfinished = run(tmp_path, "a.out.jsonl", verb="retry")
    assert unfinished.code == 2
    assert "not finished" in unfinished.error


def test_rounds_try_transient_failures_again_after_the_full_pass(tmp_path: Path) -> None:
    records = [*_texts(40), {"id": "bad", "words": "no text"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    ran = run(tmp_path, "a.jsonl", *FAULTY, "--rounds", "10")
    assert ran.code == 1
    assert [row["error"]["kind"] for row in rows(tmp_path / "a.dead.jsonl")] == ["bad_input"]
    assert [row["seq"] for row in rows(tmp_path / "a.out.jsonl")] == list(range(40))


def test_redo_asks_only_for_the_records_that_changed(tmp_path: Path) -> None:
    records = _texts(200)
    write(tmp_path / "a.jsonl", records)
    run(tmp_path, "a.jsonl", *ECHO, "--progress", "none")
    for place in (3, 77, 140):
        records[place] = {"id": f"r{place}", "text": f"new {place}"}
    records.insert(10, {"id": "inserted", "text": "between"})
    del records[100]
    write(tmp_path / "a.jsonl", records)
    ran = run(tmp_path, "a.jsonl", *ECHO, "--on-change", "redo", "--progress", "none")
    assert (ran.code, _calls(ran)) == (0, 204)
    assert _check_whole(tmp_path, records) == []
    dropped = b"".join(path.read_bytes() for path in (tmp_path / "a.out.jsonl.run").glob("cut-*"))
    assert dropped.count(b"\n") == 4


def test_redo_asks_for_everything_where_the_prompt_changed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(20))
    run(tmp_path, "a.jsonl", *ECHO, "-p", "{{ text }}")
    ran = run(tmp_path, "a.jsonl", *ECHO, "-p", "new {{ text }}", "--on-change", "redo", "--progress", "none")
    assert (ran.code, _calls(ran)) == (0, 40)
    assert {row["output"] for row in rows(tmp_path / "a.out.jsonl")} == {
        f"echo: new text {i}" for i in range(20)
    }
    assert run(tmp_path, "a.jsonl", *ECHO, "-p", "new {{ text }}").code == 0


def test_by_id_goes_on_with_a_reordered_input_and_an_output_without_its_folder(tmp_path: Path) -> None:
    records = _texts(50)
    write(tmp_path / "a.jsonl", records[:20])
    run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id")
    records.reverse()
    write(tmp_path / "a.jsonl", records)
    ran = run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id", "--progress", "none")
    assert (ran.code, _calls(ran)) == (0, 50)
    assert _check_whole(tmp_path, records) == []

    for path in (tmp_path / "a.out.jsonl.run").iterdir():
        path.unlink()
    (tmp_path / "a.out.jsonl.run").rmdir()
    records.append({"id": "more", "text": "late"})
    write(tmp_path / "a.jsonl", records)
    assert run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id").code == 0
    assert _check_whole(tmp_path, records) == []

    write(tmp_path / "a.jsonl", [*records, {"text": "no id"}])
    refused = run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id")
    assert refused.code == 2
    assert "has no 'id'" in refused.error


def test_another_input_after_a_finished_run_is_refused_where_asked(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(5))
    run(tmp_path, "a.jsonl", *ECHO)
    write(tmp_path / "a.jsonl", [{"id": "z", "text": "another"}])
    refused = run(tmp_path, "a.jsonl", *ECHO, "--if-input-changed", "refuse")
    assert refused.code == 2
    assert "input was changed" in refused.error
    assert run(tmp_path, "a.jsonl", *ECHO).code == 0
    assert len(rows(tmp_path / "a.out.jsonl.old1")) == 5


def test_a_dead_letter_file_that_is_none_is_not_adopted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(3))
    strange = [b'{"id":"r0"}\n', b'{"id":"r0","error":"gone"}\n', b'{"id":"r0","error":{"kind":1}}\n']
    for line in strange:
        (tmp_path / "a.dead.jsonl").write_bytes(line)
        refused = run(tmp_path, "a.jsonl", *ECHO, "--resume-by", "id")
        assert refused.code == 2
        assert "is no dead letter" in refused.error
        assert (tmp_path / "a.dead.jsonl").read_bytes() == line
        assert not (tmp_path / "a.out.jsonl").exists()


def test_a_later_pass_that_cannot_be_leaves_everything_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(30))
    run(tmp_path, "a.jsonl", *FAULTY)
    files = [tmp_path / "a.out.jsonl", tmp_path / "a.dead.jsonl"]
    before = [path.read_bytes() for path in files]
    redo = ("a.jsonl", "--on-change", "redo")
    for refused in (
        lambda: refusal(tmp_path, *redo, *FAULTY, "-p", "x {{ txet }}"),
        lambda: refusal(tmp_path, *redo, "-m", "python/nomod:f"),
        lambda: refusal(tmp_path, *redo, *FAULTY, "-p", "x {{ text }}", "--limit", "3"),
        lambda: refusal(tmp_path, "a.out.jsonl", "-p", "{{ nofield }}", verb="retry"),
        lambda: refusal(tmp_path, "a.out.jsonl", "-m", "python/nomod:f", verb="retry"),
        lambda: refusal(tmp_path, "a.out.jsonl", "--only", "nosuch", verb="retry"),
    ):
        assert refused().hint
        assert [path.read_bytes() for path in files] == before
    assert run(tmp_path, "a.out.jsonl", *ECHO, verb="retry").code == 0


def test_one_file_has_one_run_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(4))
    (tmp_path / "real.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    slow = ("a.jsonl", "-m", "fake/echo?latency_ms=60000")
    with started(tmp_path, *slow, "-o", "link.jsonl", "-vv") as first:
        assert first.stderr is not None
        assert b"run_started" in first.stderr.readline()
        second = run(tmp_path, *slow, "-o", "real.jsonl")
        assert (second.code, "another run writes to" in second.error) == (4, True)
        first.kill()
        first.wait()


def test_an_older_file_of_letters_is_moved_aside_before_the_first_run(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(3))
    (tmp_path / "a.dead.jsonl").write_text('{"x":1}\n')
    assert run(tmp_path, "a.jsonl", *ECHO, "-o", "a.out.jsonl").code == 0
    assert (tmp_path / "a.dead.jsonl.old1").read_text() == '{"x":1}\n'


def test_rounds_need_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", _texts(3))
    refused = run(tmp_path, "a.jsonl", *ECHO, "-o", "-", "--rounds", "2")
    assert (refused.code, refused.stdout) == (2, b"")
