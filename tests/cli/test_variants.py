"""Each record under each variant: both are answered, named, kept apart, and gone on with after a stop."""

from __future__ import annotations

import json
from pathlib import Path

from tests.running import ECHO, refusal, run, started, wait_for_settled

JOB = """
model = "fake/echo"
[[variant]]
name = "short"
prompt = "S {{ text }}"
[[variant]]
name = "long"
prompt = "L {{ text }}"
system = "at length"
"""


def _records(folder: Path, count: int, name: str = "in.jsonl") -> None:
    rows = [{"id": f"r{n}", "text": f"text {n}"} for n in range(count)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_record_has_a_line_under_every_variant_side_by_side(tmp_path: Path) -> None:
    _records(tmp_path, 30)
    (tmp_path / "job.toml").write_text(JOB)

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml")

    assert ran.code == 0
    expected = [(n, name) for n in range(30) for name in ("short", "long")]
    rows = ran.rows("in.out.jsonl")
    assert [(row["seq"], row["variant"]) for row in rows] == expected
    assert [row["output"] for row in rows[:2]] == ["echo: S text 0", "echo: L text 0"]
    again = run(tmp_path, "in.jsonl", "-j", "job.toml")
    assert again.code == 0
    assert "nothing was left to do" in again.stderr


def test_a_prompt_on_the_command_line_is_a_variant(tmp_path: Path) -> None:
    _records(tmp_path, 2)
    (tmp_path / "b.txt").write_text("B {{ text }}")

    ran = run(tmp_path, "in.jsonl", *ECHO, "--variant", "a=A {{ text }}", "--variant", "b=@b.txt", "-o", "-")

    found = {(row["seq"], row["variant"]): row["output"] for row in map(json.loads, ran.stdout.splitlines())}
    assert found == {
        (0, "a"): "echo: A text 0",
        (0, "b"): "echo: B text 0",
        (1, "a"): "echo: A text 1",
        (1, "b"): "echo: B text 1",
    }


def test_a_stopped_run_goes_on_with_the_variants_that_are_left(tmp_path: Path) -> None:
    _records(tmp_path, 40)
    (tmp_path / "job.toml").write_text(JOB)
    args = ("in.jsonl", "-j", "job.toml", "-m", "fake/echo?latency_ms=5", "-c", "3")
    with started(tmp_path, *args, "-vv") as process:
        wait_for_settled(process, 15)
        process.kill()
        process.communicate()

    ran = run(tmp_path, *args)

    assert ran.code == 0
    rows = ran.rows("in.out.jsonl")
    assert [(row["seq"], row["variant"]) for row in rows] == [
        (n, name) for n in range(40) for name in ("short", "long")
    ]


def test_a_bad_line_is_a_dead_letter_under_each_variant_and_retry_asks_each_again(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "x"}\nno json\n{"id": 3, "text": "z"}\n')
    (tmp_path / "job.toml").write_text(
        JOB.replace('system = "at length"', 'model = "fake/echo?faults=500:1"')
    )

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml", "--max-retries", "0")
    assert ran.code == 1
    letters = ran.rows("in.dead.jsonl")
    assert [(row["seq"], row["variant"], row["error"]["kind"]) for row in letters] == [
        (0, "long", "exhausted"),
        (1, "short", "bad_input"),
        (1, "long", "bad_input"),
        (2, "long", "exhausted"),
    ]

    again = run(tmp_path, "in.out.jsonl", "--only", "exhausted", "--max-retries", "0", verb="retry")
    assert again.code == 1
    assert [(row["seq"], row["variant"]) for row in again.rows("in.dead.jsonl")] == [
        (row["seq"], row["variant"]) for row in letters
    ]


def test_a_variant_that_always_fails_alike_stops_the_run_whatever_the_others_answer(tmp_path: Path) -> None:
    _records(tmp_path, 200)
    (tmp_path / "job.toml").write_text(
        JOB.replace('system = "at length"', 'model = "fake/echo?faults=400:1"')
    )

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml", "-c", "4")

    assert ran.code == 3
    assert "failed alike under variant long" in ran.stderr
    assert len(ran.rows("in.dead.jsonl")) == 20


def test_variants_that_cant_be_are_refused_before_any_call(tmp_path: Path) -> None:
    _records(tmp_path, 1)
    bad = {
        '[[variant]]\nprompt = "x"': "every [[variant]] to have a name",
        '[[variant]]\nname = "a"\n[[variant]]\nname = "a"': "'a' is there twice",
        '[[variant]]\nname = "a"\npromt = "x"': "did you mean prompt",
        '[[variant]]\nname = "a b"': "letters, digits",
        '[[variant]]\nname = "a"\nprompt = "{{ nope }}"': "'nope'",
        '[[variant]]\nname = "a"\nmodel = "nobody/x"': "no provider 'nobody'",
        'emit = "openai-batch"\n[[variant]]\nname = "a"': "can't go with the OpenAI batch format",
    }
    for text, message in bad.items():
        (tmp_path / "job.toml").write_text(f'model = "fake/echo"\n{text}\n')
        refused = refusal(tmp_path, "in.jsonl", "-j", "job.toml")
        assert message in refused.error, text
        assert not (tmp_path / "in.out.jsonl").exists()
