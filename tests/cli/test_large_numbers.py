"""Integers beyond 64 bits are told apart: as ids, in parameters and schemas, and in labels."""

from __future__ import annotations

import json
from pathlib import Path

from tests.running import run, write

LARGE = 123456789012345678901234567890


def test_a_job_with_large_numbers_and_half_a_surrogate_pair_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    schema = {"description": "half \ud800 pair", "type": "string", "maxLength": LARGE}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    args = ("a.jsonl", "-m", "fake/script?file=r.jsonl", "--schema", "schema.json")
    write(tmp_path / "r.jsonl", [{"text": '"fine"'}])

    first = run(tmp_path, *args, "--param", f"seed={LARGE}")
    again = run(tmp_path, *args, "--param", f"seed={LARGE}")
    other = run(tmp_path, *args, "--param", f"seed={LARGE + 1}")

    assert [first.code, again.code, other.code] == [0, 0, 2]
    assert [row["output"] for row in again.rows("a.out.jsonl")] == ["fine"]
    assert f"{LARGE}" in other.stderr
    assert f"{LARGE + 1}" in other.stderr


def test_large_ids_are_no_two_the_same_when_a_run_resumes_by_them(tmp_path: Path) -> None:
    ids = [LARGE, LARGE + 1, {"of": [LARGE]}, {"of": [LARGE + 1]}]
    records = [{"id": id, "text": f"ticket {n} ok"} for n, id in enumerate(ids)]
    write(tmp_path / "a.jsonl", records[:3])
    args = ("a.jsonl", "-m", "fake/echo", "--resume-by", "id")
    run(tmp_path, *args)
    write(tmp_path / "a.jsonl", records[::-1])

    ran = run(tmp_path, *args)

    assert ran.code == 0
    rows = {json.dumps(row["id"]): row["output"] for row in ran.rows("a.out.jsonl")}
    assert rows == {json.dumps(one["id"]): f"echo: {one['text']}" for one in records}
    report = run(tmp_path, "a.out.jsonl", "--json", verb="report")
    assert json.loads(report.stdout)["calls"] == 4
