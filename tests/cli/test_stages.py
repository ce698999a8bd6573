"""Stages: what each sees, who is left out, what a failure names, and that nothing answered is asked again."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from tests.running import refusal, run, started, wait_for_settled
from tests.serving import simulated

STEPS = """
import json, os
from pathlib import Path

def check(record):
    if not record["text"].strip():
        raise ValueError("no text")
    return {"words": len(record["text"].split())}

def load(record, answers, key):
    with open("loaded.jsonl", "a") as file:
        file.write(json.dumps({"id": record["id"], "key": key, "draft": answers.get("draft")}) + "\\n")
    return key
"""
JOB = """
model = "fake/echo"
[[stage]]
name = "check"
run = "python/steps.py:check"
[[stage]]
name = "draft"
prompt = "draft of {{ answers.check.words }} words: {{ text }}"
when = "answers.check.words > 1"
[[stage]]
name = "load"
run = "steps.py:load"
"""


def _job(folder: Path, texts: list[str], job: str = JOB) -> None:
    rows = [{"id": n, "text": text} for n, text in enumerate(texts)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "steps.py").write_text(STEPS)
    (folder / "job.toml").write_text(job)


def test_a_later_stage_sees_the_record_and_the_earlier_answers(tmp_path: Path) -> None:
    _job(tmp_path, ["two words", "one", "now three words"])

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml")

    assert ran.code == 0, ran.stderr
    rows = ran.rows("in.out.jsonl")
    assert rows[0]["stages"]["draft"] == "echo: draft of 2 words: two words"
    assert rows[0]["output"] == rows[0]["stages"]["load"]
    assert "draft" not in rows[1]["stages"]
    assert rows[1]["skipped"] == ["draft"]
    loaded = {row["id"]: row for row in ran.rows("loaded.jsonl")}
    assert loaded[2]["draft"] == rows[2]["stages"]["draft"]
    assert len({row["key"] for row in loaded.values()}) == 3
    assert "draft: 2 in, 2 ok, 1 skipped" in ran.stderr


def test_a_failure_names_its_stage_and_retry_goes_on_there(tmp_path: Path) -> None:
    _job(tmp_path, ["two words", " ", "three words here"])
    with simulated() as server:
        args = ("-m", "openai/x", "--base-url", server.url)
        ran = run(tmp_path, "in.jsonl", "-j", "job.toml", *args)
        assert ran.code == 1
        (letter,) = ran.rows("in.dead.jsonl")
        assert (letter["error"]["stage"], letter["error"]["cause"]) == ("check", "ValueError")
        assert letter["stages"] == {}
        (tmp_path / "steps.py").write_text(STEPS.replace("answers.get", "not_there.get"))
        assert server.stats()["requests"] == 2

        (tmp_path / "more.jsonl").write_text(json.dumps({"id": 9, "text": "and these too"}) + "\n")
        ran = run(tmp_path, "more.jsonl", "-j", "job.toml", *args)
        (letter,) = ran.rows("more.dead.jsonl")
        assert letter["error"]["stage"] == "load"
        assert list(letter["stages"]) == ["check", "draft"]
        assert server.stats()["requests"] == 3
        (tmp_path / "steps.py").write_text(STEPS)

        ran = run(tmp_path, "more.out.jsonl", verb="retry")

        assert ran.code == 0, ran.stderr
        assert server.stats()["requests"] == 3, "the draft was answered: it is not asked again"
    (row,) = ran.rows("more.out.jsonl")
    assert list(row["stages"]) == ["check", "draft", "load"]


def test_a_killed_run_asks_no_stage_again_but_what_was_in_flight(tmp_path: Path) -> None:
    count, window = 120, 4
    job = """
[[stage]]
name = "one"
prompt = "one {{ text }}"
[[stage]]
name = "two"
prompt = "two {{ answers.one | length }} {{ text }}"
[[stage]]
name = "load"
run = "steps.py:load"
"""
    _job(tmp_path, [f"text {n}" for n in range(count)], job)
    with simulated("--latency-ms", "20") as server:
        args = ("in.jsonl", "-j", "job.toml", "-m", "openai/x", "--base-url", server.url, "-c", str(window))
        for settled in (20, 30):
            with started(tmp_path, *args, "-vv") as process:
                wait_for_settled(process, settled)
                process.kill()
                process.communicate()

        ran = run(tmp_path, *args)

        assert ran.code == 0, ran.stderr
        asked = server.stats()["requests"]
    rows = ran.rows("in.out.jsonl")
    assert [row["seq"] for row in rows] == list(range(count))
    assert all(list(row["stages"]) == ["one", "two", "load"] for row in rows)
    # What was answered shortly before a kill may not be on the disk yet: that is asked again.
    assert 2 * count <= asked <= 2 * count + 2 * 4 * window
    assert all(row["usage"]["output_tokens"] for row in rows)
    keys = Counter(row["key"] for row in ran.rows("loaded.jsonl"))
    assert len(keys) == count, "a step's key is the same however often it is called"


def test_stages_have_models_and_windows_of_their_own(tmp_path: Path) -> None:
    with simulated("--latency-ms", "30") as first, simulated("--latency-ms", "30") as second:
        job = f"""
[[stage]]
name = "one"
model = "openai/a"
base_url = "{first.url}"
concurrency = 2
prompt = "one {{{{ text }}}}"
[[stage]]
name = "two"
model = "openai/b"
base_url = "{second.url}"
prompt = "two {{{{ text }}}}"
"""
        _job(tmp_path, [f"text {n}" for n in range(30)], job)

        ran = run(tmp_path, "in.jsonl", "-j", "job.toml", "-c", "5")

        assert ran.code == 0, ran.stderr
        one, two = first.stats(), second.stats()
    assert one["requests"] == two["requests"] == 30
    assert one["highest_in_flight"] <= 2
    assert two["highest_in_flight"] <= 5


def test_an_account_that_is_refused_is_named_where_several_are_asked(tmp_path: Path) -> None:
    job = """
[[stage]]
name = "first"
model = "fake/echo"
prompt = "{{ text }}"
[[stage]]
name = "second"
model = "openai/large"
prompt = "{{ text }}"
"""
    _job(tmp_path, ["x", "y"], job)
    with simulated("--api-key-env", "RIGHT", env={"RIGHT": "sk-right"}) as server:
        args = ("in.jsonl", "-j", "job.toml", "--base-url", server.url)
        ran = run(tmp_path, *args, env={"OPENAI_API_KEY": "sk-wrong"})

    assert ran.code == 3
    assert "stopped: openai/large: the provider answered 401" in ran.stderr


def test_stages_that_cant_be_are_refused_before_any_call(tmp_path: Path) -> None:
    bad = {
        'name = "a"\nrun = "steps.py:check"\nprompt = "x"': "run is a function, which takes no prompt",
        'name = "a"\nopen = "steps.py:check"': "open goes with run",
        'name = "a"\nrun = "steps.py:nothing"': "no function 'nothing'",
        'name = "a"\nrun = "nowhere.py:f"': "nowhere.py",
        'name = "a"\nwhen = "text ="\nprompt = "{{ text }}"': "when of stage a",
        'name = "a"\nwhen = "nope > 1"\nprompt = "{{ text }}"': "'nope'",
        'name = "a"\nwhn = "1"': "did you mean when",
        'name = "a"\nprompt = "{{ answers.b }}"\n[[stage]]\nname = "a"': "'a' is there twice",
        'name = "a"\nprompt = "{{ answers.b }}"\n[[stage]]\nname = "b"\nprompt = "x"': "no stage is before",
        'name = "a"\nprompt = "x"\n[[stage]]\nname = "b"\nwhen = "answers.aa"\nprompt = "x"': "it are: a",
    }
    for text, message in bad.items():
        _job(tmp_path, ["x"], f'model = "fake/echo"\n[[stage]]\n{text}\n')
        refused = refusal(tmp_path, "in.jsonl", "-j", "job.toml")
        assert message in refused.error, text
        assert not (tmp_path / "in.out.jsonl").exists()


def test_a_limit_of_the_run_is_the_models_and_a_stage_may_have_its_own(tmp_path: Path) -> None:
    job = """
model = "fake/echo"
rpm = 60000
[[stage]]
name = "check"
run = "steps.py:check"
[[stage]]
name = "slow"
prompt = "{{ text }}"
rpm = 600
[[stage]]
name = "quick"
prompt = "{{ text }}"
model = "fake/echo?seed=2"
"""
    _job(tmp_path, [f"text {n}" for n in range(15)], job)

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml", "--burst", "0.1", "--progress", "json")

    assert ran.code == 0, ran.stderr
    times = sorted(row["finished_at"] for row in ran.rows("in.out.jsonl"))
    first, last = (datetime.fromisoformat(at.replace("Z", "+00:00")) for at in (times[0], times[-1]))
    assert (last - first).total_seconds() > 1.2, "10 a second, in the one stage that is held to them"


def test_a_prompt_of_a_stage_is_called_so_in_messages(tmp_path: Path) -> None:
    _job(tmp_path, ["x"], 'model = "fake/echo"\n[[stage]]\nname = "one"\nprompt = "{{ nope("\n')

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml")

    assert ran.code == 2
    assert "stage one: prompt line 1" in ran.error


def test_a_job_file_that_is_merely_found_reads_no_file_above_its_folder_for_a_stage(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "x"}\n')
    for table in ("stage", "variant"):
        for key in ('image_root = "/"', 'prompt = "@/etc/hostname"', 'system = "@../secret.txt"'):
            (tmp_path / "batchllm.toml").write_text(
                f'model = "fake/echo"\n[[{table}]]\nname = "a"\nimage = ["img"]\n{key}\n'
            )
            assert "may not lead out of its folder" in refusal(tmp_path, "in.jsonl").error


@pytest.mark.parametrize("again", [("--resume-by", "id"), ("--on-change", "redo")])
def test_answered_stages_are_found_again_by_id_and_by_content(tmp_path: Path, again: tuple[str, ...]) -> None:
    job = """
[[stage]]
name = "one"
prompt = "one {{ text }}"
[[stage]]
name = "slow"
run = "steps.py:slow"
"""
    _job(tmp_path, [f"text {n}" for n in range(12)], job)
    os.mkfifo(tmp_path / "all_came")
    (tmp_path / "steps.py").write_text(
        "import os, threading\n"
        "came = []\n"
        "def slow(record, key):\n"
        "    with open('keys.txt', 'a') as file: file.write(f\"{record['id']} {key}\\n\")\n"
        "    came.append(key)\n"
        "    if os.environ.get('SLOW') and len(came) == 12: open('all_came', 'w').close()\n"
        "    if os.environ.get('SLOW') and record['id'] > 3: threading.Event().wait()\n"
    )
    with simulated() as server:
        args = ("in.jsonl", "-j", "job.toml", "-m", "openai/x", "--base-url", server.url, *again)
        with started(tmp_path, *args, "-vv", "--grace", "0.1", env={"SLOW": "1"}) as process:
            wait_for_settled(process, 4)
            (tmp_path / "all_came").read_bytes()  # until the last of them opens it, too
            process.terminate()
            process.communicate()
        lines = (tmp_path / "in.jsonl").read_text().splitlines(True)
        (tmp_path / "in.jsonl").write_text("".join(reversed(lines)))

        ran = run(tmp_path, *args)

        assert ran.code == 0, ran.stderr
        assert server.stats()["requests"] == 12
    assert [row["id"] for row in ran.rows("in.out.jsonl")] == list(range(11, -1, -1))
    keys = dict(line.split() for line in (tmp_path / "keys.txt").read_text().splitlines())
    told = set((tmp_path / "keys.txt").read_text().splitlines())
    assert again[1] != "id" or len(told) == len(keys) == 12, "the same key whenever it is asked for"


def test_a_stand_in_of_an_earlier_stage_is_marked_and_counted(tmp_path: Path) -> None:
    job = """
[[stage]]
name = "one"
prompt = "no json for {{ text }}"
schema = { type = "object" }
repair = 0
fallback_answer = '{"c": "b"}'
[[stage]]
name = "two"
prompt = "{{ answers.one.c }}"
"""
    _job(tmp_path, ["x", "y"], f'model = "fake/echo"\n{job}')

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml")

    assert ran.code == 0, ran.stderr
    assert [(row["output"], row["fallback"]) for row in ran.rows("in.out.jsonl")] == [("echo: b", True)] * 2
    assert "answers that stood in: 2" in ran.stderr
    assert '"retried": 0' in run(tmp_path, "in.out.jsonl", "--json", verb="report").stdout.decode().replace(
        '":0', '": 0'
    )


def test_batch_records_are_not_asked_under_variants_or_in_stages(tmp_path: Path) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": []},
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")

    ran = run(tmp_path, "in.jsonl", "-m", "fake/echo", "--variant", "a=A", "--variant", "b=B")

    assert ran.code == 2
    assert "OpenAI batch format" in ran.error


def test_what_functions_print_is_no_data(tmp_path: Path) -> None:
    _job(tmp_path, ["two words"], JOB)
    (tmp_path / "steps.py").write_text(
        'print("IMPORTED")\n'
        + STEPS.replace("    words", '    print("CHECKED")\n    words').replace(
            "    if not record", '    print("CHECKED")\n    if not record'
        )
    )

    ran = run(tmp_path, "in.jsonl", "-j", "job.toml", "-o", "-")

    assert ran.code == 0, ran.stderr
    assert [json.loads(line)["id"] for line in ran.stdout.splitlines()] == [0]
    assert "CHECKED" in ran.stderr


def test_kept_fields_never_pass_as_the_run_s_own(tmp_path: Path) -> None:
    names = ("fallback", "cached", "stages", "error_kind", "seq")
    row = {"id": 1, "text": "x", **dict.fromkeys(names, "mine")}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    keep = [part for name in names for part in ("--keep", name)]
    for model, where in (("fake/echo", "ok.jsonl"), ("fake/echo?faults=400:1", "bad.jsonl")):
        ran = run(tmp_path, "in.jsonl", "-m", model, "--merge-failed", *keep, "-o", where)
        (kept,) = ran.rows(where)
        assert {name: kept[f"input_{name}"] for name in names} == dict.fromkeys(names, "mine")
        assert kept["seq"] == 0
