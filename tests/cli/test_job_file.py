"""Where settings come from: options, environment and job files, and what is refused before any call."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.running import ECHO, Ran, names, run, tickets, together, write
from tests.serving import Simulated, simulated

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated() as running:
        yield running


def test_an_option_wins_over_the_environment_and_that_over_the_job_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(1))
    job = 'model = "fake/echo"\nprompt = "file {{ text }}"\nconcurrency = 3\nkeep = ["text"]\n'
    (tmp_path / "batchllm.toml").write_text(job + "[param]\ntemperature = 0.5\nseed = 1\n")
    environment = {"BATCHLLM_PROMPT": "environment {{ text }}", "BATCHLLM_RPM": "6000", "BATCHLLM_TPM": ""}
    option = ("-p", "option {{ text }}", "--param", "seed=2")

    by_file, by_environment, by_option = together(
        lambda: run(tmp_path, "a.jsonl", "-o", "file.jsonl"),
        lambda: run(tmp_path, "a.jsonl", "-o", "environment.jsonl", env=environment),
        lambda: run(tmp_path, "a.jsonl", "-o", "option.jsonl", *option, env=environment),
    )

    assert [by_file.code, by_environment.code, by_option.code] == [0, 0, 0]
    for name in ("file", "environment", "option"):
        (row,) = by_file.rows(f"{name}.jsonl")
        assert row["output"] == f"echo: {name} ticket 00000 ok"
        assert row["text"] == "ticket 00000 ok"
    header = json.loads((tmp_path / "option.jsonl.run" / "job.json").read_bytes())
    assert header["operation"]["concurrency"] == 3
    assert header["operation"]["rpm"] == 6000
    assert header["operation"]["tpm"] is None
    assert header["meaning"]["param"] == {"temperature": 0.5, "seed": 2}


def test_the_paths_in_a_job_file_start_at_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "jobs" / "nightly"
    write(home / "data" / "a.jsonl", [{"n": 4}])
    (home / "ask.txt").write_text('{"n": {{ n }}}')
    (home / "be.txt").write_text("Answer JSON.")
    (home / "answer.json").write_text(json.dumps(SCHEMA))
    job = ['model = "fake/echo"', 'prompt = "@ask.txt"', 'system = "@be.txt"', 'schema = "answer.json"']
    files = ['input = "data/a.jsonl"', 'output = "data/o.jsonl"', 'dead-letter = "data/d.jsonl"']
    (home / "job.toml").write_text("\n".join([*job, *files]))
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "b.jsonl", [{"n": 5}, {"n": "x"}])

    own = run(elsewhere, "-j", "../jobs/nightly/job.toml")
    other = run(elsewhere, "b.jsonl", "-o", "o.jsonl", env={"BATCHLLM_JOB": str(home / "job.toml")})

    assert own.code == 0, own.stderr
    assert [row["output"] for row in own.rows("../jobs/nightly/data/o.jsonl")] == [{"n": 4}]
    assert other.code == 1
    assert [row["output"] for row in other.rows("o.jsonl")] == [{"n": 5}]
    assert names(home / "data") == {"a.jsonl", "o.jsonl", "o.jsonl.run", "d.jsonl"}
    assert names(elsewhere) == {"b.jsonl", "o.jsonl", "o.jsonl.run"}


def test_a_job_file_found_by_itself_may_not_send_a_key_to_an_address_of_its_choice(
    tmp_path: Path, server: Simulated
) -> None:
    write(tmp_path / "a.jsonl", tickets(1))
    address = f'model = "openai/any"\nbase_url = "{server.url}"\napi_key_env = "MINE"\n'
    (tmp_path / "batchllm.toml").write_text(address)
    server.reset()

    found, named = together(
        lambda: run(tmp_path, "a.jsonl", env={"MINE": "sk-mine"}),
        lambda: run(tmp_path, "a.jsonl", "-j", "batchllm.toml", "-o", "o.jsonl", env={"MINE": "sk-mine"}),
    )

    assert (found.code, named.code) == (2, 0)
    assert "batchllm.toml line 2" in found.error
    assert found.hint == "name it, if you trust it: -j batchllm.toml"
    assert server.stats()["requests"] == 1


WRONG: dict[str, tuple[tuple[str, ...], str, list[str], str]] = {
    "an unknown key": ((), 'prompt = "x"\n\ntemprature = 0\n', ["job.toml line 3", "'temprature'"], ""),
    "a bad value in the file": ((), '# mine\nconcurrency = "many"\n', ["line 2", "concurrency", "many"], ""),
    "no schema at all": ((), '[schema]\ntype = "objekt"\n', ["job.toml line 1", "objekt"], "schema"),
    "a template that doesn't parse": (("-p", "{{ text"), "", ["template", "line 1"], "Jinja2"),
    "a field that no record has": (("-p", "{{ txet }}"), "", ["txet"], "text"),
    "no key": (("-m", "openai/gpt-4o-mini"), "", ["OPENAI_API_KEY"], "export OPENAI_"),
    "an unknown option": (("--concurency", "5"), "", ["--concurency"], ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, server: Simulated) -> dict[str, Ran]:
    """Every case run once, several at a time: they have nothing to do with each other."""
    server.reset()

    def ran(case: str) -> Ran:
        args, job, _, _ = WRONG[case]
        folder = tmp_path_factory.mktemp("wrong")
        write(folder / "a.jsonl", tickets(30))
        (folder / "job.toml").write_text(job)
        model = () if "-m" in args else ("-m", "openai/any", "--base-url", server.url)
        return run(folder, "a.jsonl", "-j", "job.toml", *model, *args)

    ends = together(*(partial(ran, case) for case in WRONG))
    return dict(zip(WRONG, ends, strict=True))


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_exit_2_and_leaves_nothing(case: str, refused: dict[str, Ran]) -> None:
    ran, (_, _, told, hint) = refused[case], WRONG[case]

    assert (ran.code, ran.stdout) == (2, b""), ran.stderr
    for words in told:
        assert words in ran.stderr
    assert hint in ran.hint
    assert names(ran.folder) == {"a.jsonl", "job.toml"}


def test_what_is_wrong_is_found_before_any_call(refused: dict[str, Ran], server: Simulated) -> None:
    assert len(refused) == len(WRONG)
    assert server.stats()["requests"] == 0


def test_without_a_model_the_ways_to_name_one_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(1))
    write(tmp_path / "b.jsonl", [{"subject": "late", "body": "where is it"}])

    unnamed, no_text = together(
        lambda: run(tmp_path, "a.jsonl"),
        lambda: run(tmp_path, "b.jsonl", *ECHO),
    )

    assert (unnamed.code, no_text.code) == (2, 2)
    assert unnamed.error == "no model was named"
    for way in ("-m openai/gpt-4o-mini", "BATCHLLM_MODEL", "batchllm.toml"):
        assert way in unnamed.hint
    assert "text" in no_text.error
    assert "subject, body" in no_text.error + no_text.hint, "it lists the fields that there are"
    assert "-p '{{ subject }} {{ body }}'" in no_text.hint
    assert names(tmp_path) == {"a.jsonl", "b.jsonl"}


def test_a_variable_with_a_typing_error_is_told_once_at_the_start(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    typo = {"BATCHLLM_CONCURENCY": "3", "BATCHLLM_BENCH_DATA": "d", "BATCHLLM_JOB": ""}

    ran, quiet = together(
        lambda: run(tmp_path, "a.jsonl", *ECHO, env=typo),
        lambda: run(tmp_path, "a.jsonl", *ECHO, "-o", "q.jsonl", "-q", env=typo),
    )

    assert (ran.code, quiet.code, quiet.stderr) == (0, 0, "")
    assert [line for line in ran.stderr.splitlines() if line.startswith("warning:")] == [
        "warning: BATCHLLM_CONCURENCY names no setting: did you mean BATCHLLM_CONCURRENCY?"
    ]


def test_more_calls_than_this_system_has_files_for_are_refused_before_anything_is_called(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.jsonl", tickets(2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        ran = run(
            tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", address, "-c", "1000",
            before=("sh", "-c", 'ulimit -n 256; exec "$@"', "sh"),
        )  # fmt: skip
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert ran.code == 2
    assert ran.error == "--concurrency 1000 needs 1064 open files, this system allows 256"
    assert ran.hint == "ulimit -n 1064, or -c 192"
    assert names(tmp_path) == {"a.jsonl"}
