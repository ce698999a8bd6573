"""Settings: how values are read, which layer wins, and that every message names key, file and line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from batchllm.errors import ConfigError
from batchllm.job import Job, load, settings, strays
from batchllm.job import values as read
from tests.running import ROOT


def refused(
    folder: Path, options: dict[str, Any] | None = None, environ: dict[str, str] | None = None
) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(options or {}, environ or {}, folder)
    return caught.value


def job_file(folder: Path, content: str) -> None:
    (folder / "batchllm.toml").write_text(content, encoding="utf-8")


# --- values ---


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(90, 90), ("90", 90), ("1.5", 1.5), ("250ms", 0.25), ("15m", 900), ("1h30m", 5400), ("2d", 172800)],
)
def test_a_duration_is_a_number_of_seconds_or_says_its_units(given: Any, seconds: float) -> None:
    assert read.duration(given) == seconds


@pytest.mark.parametrize(
    "given", ["", "0", 0, -1, "-1s", "1 m", "m", "1y", "nan", True, None, float("inf"), []]
)
def test_what_is_no_duration_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="expected seconds or a duration"):
        read.duration(given)


@pytest.mark.parametrize(
    ("given", "limit"), [(0, 0), (50, 50), ("50", 50), ("5%", 0.05), ("0.5%", 0.005), ("100%", 1.0)]
)
def test_a_limit_is_a_count_or_a_share(given: Any, limit: float) -> None:
    found = read.count_or_share(given)
    assert (found, type(found)) == (limit, type(limit))


@pytest.mark.parametrize("given", ["", "x", "-1", -1, 0.05, "101%", "5 %", "%", True, None])
def test_what_is_neither_count_nor_share_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"a count such as 50 or a share such as 5%"):
        read.count_or_share(given)


@pytest.mark.parametrize("given", [True, "1.0", 1.0, "", "x", 0, 11, None, [5]])
def test_a_whole_number_has_bounds_and_is_nothing_else(given: Any) -> None:
    with pytest.raises(ValueError, match="a whole number of at least 1 and at most 10"):
        read.whole(1, 10)(given)
    assert [read.whole(1, 10)(good) for good in (1, 10, "7")] == [1, 10, 7]


@pytest.mark.parametrize("given", [0, "0", "nan", float("nan"), "inf", -1, True, "x", None])
def test_a_number_is_finite_and_within_its_bound(given: Any) -> None:
    with pytest.raises(ValueError, match="a number above 0"):
        read.number(0, above=True)(given)
    assert [read.number(0)(good) for good in (0, "0.5", 2)] == [0, 0.5, 2]


def test_params_are_json_where_they_can_be_and_text_where_not() -> None:
    assert read.params(["temperature=0", 'stop=["a"]', "user=me=you", "n=", "big=1234567890123456789"]) == {
        "temperature": 0, "stop": ["a"], "user": "me=you", "n": "", "big": 1234567890123456789,
    }  # fmt: skip
    assert read.params('{"a": {"b": 1}}') == {"a": {"b": 1}}
    assert read.params("a=1,b=x") == {"a": 1, "b": "x"}
    assert read.params({"a": [1]}) == {"a": [1]}
    for wrong in (["temperature"], ["=1"], [5], 5):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            read.params(wrong)


def test_flags_words_names_and_paths_take_what_they_should() -> None:
    assert [read.flag(v) for v in (True, "yes", "ON", "1", False, "no", "0", "")] == [True] * 4 + [False] * 4
    assert read.names("a, b") == read.names(["a", "b"]) == ("a", "b")
    assert read.paths("a,b.jsonl") == ("a,b.jsonl",)
    for reader, wrong in [
        (read.flag, 1), (read.flag, "perhaps"), (read.names, ["", "a"]), (read.names, 5), (read.paths, [""]),
        (read.text, 5), (read.word("a", "b"), "c"), (read.word("a"), True),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"^expected "):
            reader(wrong)


# --- the merge ---


def test_each_layer_wins_over_the_one_below_and_params_are_merged(tmp_path: Path) -> None:
    job_file(
        tmp_path, 'model = "fake/file"\nrpm = 1\ntpm = 1\nconcurrency = 1\n[param]\na = 1\nb = 1\nc = 1\n'
    )
    environ = {"BATCHLLM_RPM": "2", "BATCHLLM_TPM": "2", "BATCHLLM_PARAM": "b=2,c=2", "BATCHLLM_BACKOFF": ""}
    loaded = load({"tpm": "3", "param": ["c=3"], "keep": [], "system": None}, environ, tmp_path)

    job = loaded.job
    assert (job.model, job.concurrency, job.rpm, job.tpm) == ("fake/file", 1, 2, 3)
    assert job.param == {"a": 1, "b": 2, "c": 3}
    assert (job.backoff, job.keep, job.system) == (1.0, (), None)
    assert loaded.origin("model") == "batchllm.toml line 1"
    assert loaded.origin("rpm") == "BATCHLLM_RPM"
    assert loaded.origin("tpm") == "--tpm"
    assert loaded.origin("backoff") == "the default"


def test_nothing_said_is_the_contract_s_defaults(tmp_path: Path) -> None:
    job = load({}, {"PATH": "/bin"}, tmp_path).job

    assert job == Job(param={})
    assert (job.concurrency, job.timeout, job.max_retries, job.backoff, job.repair) == (20, 120, 3, 1, 1)
    assert (job.max_stall, job.grace, job.max_line, job.emit) == (900, 4, 16 << 20, "result")
    assert (job.rpm, job.tpm, job.max_failures, job.record_timeout, job.limit) == (None,) * 5
    assert (job.durability, job.progress, job.progress_interval, job.id_field) == ("batch", "auto", 5, "id")


def test_every_setting_has_a_reader_help_and_a_name_in_the_environment() -> None:
    table = settings()
    assert list(table) == [field.name for field in fields(Job)]
    for name, setting in table.items():
        assert setting.help
        assert setting.variable == f"BATCHLLM_{name.upper()}"
        assert setting.kind in ("meaning", "operation", "place")
    meaning = {name for name, setting in table.items() if setting.kind == "meaning"}
    asked = {"input", "model", "prompt", "system", "message", "example", "image", "schema", "param"}
    asked |= {"messages_field", "params_field", "model_field", "variant", "stage"}
    asked |= {"schema_mode", "check", "fallback", "fallback_answer"}
    assert meaning == {*asked, "input_format", "id_field", "emit", "keep", "expect", "merge_failed"}
    assert {name for name, setting in table.items() if setting.once} == {"fresh", "limit", "yes"}


def test_every_option_of_the_table_is_in_the_contract() -> None:
    contract = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    for setting in settings().values():
        flags = [name for flag in setting.flags for name in flag.split("/")]
        assert not flags or any(f"`{flag}" in contract or f" {flag}" in contract for flag in flags), flags


def test_a_job_file_is_read_whole_its_paths_from_its_own_folder(tmp_path: Path) -> None:
    home = tmp_path / "jobs"
    home.mkdir()
    (home / "ask.txt").write_text("Wörtlich: {{ text }}\n", encoding="utf-8")
    (home / "s.json").write_text('{"type": "object"}')
    (home / "job.toml").write_text(
        'input = ["a.jsonl", "-"]\noutput = "/abs/o.jsonl"\ndead-letter = "d.jsonl"\nmax-retries = 7\n'
        'prompt = "@ask.txt"\nschema = "s.json"\nmax_failures = "5%"\nkeep = "a,b"\nordered = false\n'
        'timeout = "2m"\nverbose = 2\nmerge-failed = true\n'
    )
    by_option = load({"job": "jobs/job.toml"}, {}, tmp_path).job
    by_variable = load({}, {"BATCHLLM_JOB": str(home / "job.toml")}, Path("/")).job

    for job in (by_option, by_variable):
        assert job.input == (str(home / "a.jsonl"), "-")
        assert (job.output, job.dead_letter) == ("/abs/o.jsonl", str(home / "d.jsonl"))
        assert job.prompt == "Wörtlich: {{ text }}\n"
        assert job.schema == {"type": "object"}
        assert (job.max_retries, job.max_failures, job.keep, job.ordered) == (7, 0.05, ("a", "b"), False)
        assert (job.timeout, job.verbose, job.merge_failed) == (120, 2, True)


def test_paths_of_options_and_environment_start_at_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello")
    (tmp_path / "s.json").write_text("{}")
    job = load({"prompt": "@p.txt", "output": "o.jsonl"}, {"BATCHLLM_SCHEMA": "s.json"}, tmp_path).job

    assert (job.prompt, job.output, job.schema) == ("hello", "o.jsonl", {})


def test_a_schema_may_stand_in_the_job_file_itself(tmp_path: Path) -> None:
    job_file(tmp_path, '[schema]\ntype = "object"\n[schema.properties.a]\nenum = ["x"]\n')

    assert load({}, {}, tmp_path).job.schema == {"type": "object", "properties": {"a": {"enum": ["x"]}}}


# --- what is wrong, and where ---


@pytest.mark.parametrize(
    ("content", "told", "hint"),
    [
        ('# a\n\nconcurency = 5\n', "line 3: unknown key 'concurency'", "did you mean concurrency?"),
        ('zzz = 1\n', "batchllm.toml line 1: unknown key 'zzz'", "batchllm run --help"),
        ('rpm = 5\n[parma]\na = 1\n', "batchllm.toml line 2: unknown key 'parma'", "param"),
        ('\n"fresh" = true\n', "batchllm.toml line 2: fresh is for the command line only", "--fresh"),
        ('limit = 5\n', "batchllm.toml line 1: limit is for the command line only", "--limit"),
        ('job = "other.toml"\n', "batchllm.toml line 1: unknown key 'job'", ""),
        ('model = "fake/echo"\nrpm = "fast"\n', "line 2: rpm: expected a number of at least 0.001", "rpm"),
        ('concurrency = true\n', "line 1: concurrency: expected a whole number", "Calls in flight"),
        ('ordered = "maybe"\n', "line 1: ordered: expected true or false, not maybe", "ordered:"),
        ('emit = "csv"\n', "line 1: emit: expected one of result, merged, openai-batch, not csv", "emit:"),
        ('timeout = 1979-05-27\n', "line 1: timeout: expected seconds or a duration", "timeout:"),
        ('prompt = 5\n', "line 1: prompt: expected text in quotes, not 5", "prompt:"),
        ('prompt = "@no.txt"\n', "line 1: prompt: can't read no.txt: No such file", "check the path"),
        ('schema = "no.json"\n', "line 1: schema: can't read no.json", "check the path"),
        ('schema = 5\n', "line 1: schema: expected a JSON Schema", "schema:"),
        ('param = ["a"]\n', "line 1: param: expected KEY=VALUE", "param:"),
        ('rpm = 1\nrpm = 2\n', "batchllm.toml is no TOML", "mend"),
        ('rpm = \n', "batchllm.toml is no TOML", "mend"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_job_file_is_told_with_file_line_and_key(
    content: str, told: str, hint: str, tmp_path: Path
) -> None:
    job_file(tmp_path, content)
    error = refused(tmp_path)

    assert told in error.message
    assert hint in (error.hint or "")
    assert "\n" not in error.message


def test_a_key_is_found_on_its_own_line_and_not_in_a_text_or_another_table(tmp_path: Path) -> None:
    job_file(tmp_path, 'prompt = """\nrpm = 5\n"""\n[param]\nrpm = 7\ntpm = 1\n')
    assert load({}, {}, tmp_path).job.rpm is None
    job_file(tmp_path, 'prompt = """\nrpm = 5\n"""\nrpm = "x"\n')

    assert "batchllm.toml line 4: rpm" in refused(tmp_path).message
    job_file(tmp_path, 'keep = [\n  "rpm",\n]\nprompt = "a\u2028b"\nrpm = "x"\n')
    assert "batchllm.toml line 5: rpm" in refused(tmp_path).message


def test_a_job_file_of_another_system_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "batchllm.toml").write_bytes(b'\xef\xbb\xbfmodel = "fake/echo"\r\nrpm = "x"\r\n')

    assert "batchllm.toml line 2: rpm" in refused(tmp_path).message


def test_a_mistake_in_option_or_environment_is_told_by_its_name(tmp_path: Path) -> None:
    option = refused(tmp_path, {"max_failures": "many"})
    variable = refused(tmp_path, {}, {"BATCHLLM_CONCURRENCY": "0"})
    schema = refused(tmp_path, {"schema": "no.json"})
    (tmp_path / "bad.json").write_text("{")
    no_json = refused(tmp_path, {"schema": "bad.json"})

    assert option.message.startswith("--max-failures: expected a count such as 50 or a share such as 5%")
    assert variable.message.startswith("BATCHLLM_CONCURRENCY: expected a whole number of at least 1")
    assert variable.message.endswith("not 0")
    assert schema.message.startswith("--schema: can't read no.json")
    assert no_json.message.startswith("--schema: bad.json is no JSON")


def test_an_empty_prompt_and_text_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, {"prompt": " "}).message.startswith("--prompt: expected a text with something")
    for name, given in (("system", "caf\udce9"), ("keep", ["\udce9"]), ("param", ["user=\udce9"])):
        assert refused(tmp_path, {name: given}).message.startswith(f"--{name}: expected UTF-8 text")


def test_an_address_with_a_password_is_refused_and_never_repeated(tmp_path: Path) -> None:
    for url in ("http://me:sk-secret@host/v1", "http://me:sk-secret@[host", "sk-secret"):
        error = refused(tmp_path, {"base_url": url})
        assert error.message.startswith("--base-url: expected an address")
        assert "sk-secret" not in error.message + (error.hint or "")


def test_a_job_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    error = refused(tmp_path, {"job": "no.toml"})
    (tmp_path / "latin.toml").write_bytes(b'prompt = "caf\xe9"\n')
    (tmp_path / "folder.toml").mkdir()

    assert error.message == "can't read the job file no.toml: No such file or directory"
    assert error.hint == "check the path after -j"
    assert "no UTF-8" in refused(tmp_path, {"job": "latin.toml"}).message
    assert "folder.toml" in refused(tmp_path, {"job": "folder.toml"}).message


def test_a_file_found_by_itself_may_not_name_code(tmp_path: Path) -> None:
    for line, name in (
        ('schema = "shapes:Ticket"', "schema"),
        ('schema = "models/shapes.py:Ticket"', "schema"),
        ('finish.command = ["true"]', "finish"),
        ('model = "python/mine:answer"', "model"),
    ):
        (tmp_path / "batchllm.toml").write_text(line + "\n")
        assert f"may not name code to run ({name})" in refused(tmp_path).message
    (tmp_path / "batchllm.toml").write_text("[schema.properties]\nrun = {}\nopen = {}\n")
    assert load({}, {}, tmp_path).job.schema is not None


def test_a_file_found_by_itself_may_not_name_address_and_key(tmp_path: Path) -> None:
    job_file(tmp_path, 'api_key_env = "AWS_SECRET"\nbase_url = "http://evil.example"\n')

    assert "base_url and api_key_env together" in refused(tmp_path).message
    named = load({"job": "batchllm.toml"}, {}, tmp_path).job
    assert (named.base_url, named.api_key_env) == ("http://evil.example", "AWS_SECRET")


def test_a_variable_for_what_is_of_this_time_only_is_not_heeded(tmp_path: Path) -> None:
    job = load({}, {"BATCHLLM_FRESH": "1", "BATCHLLM_LIMIT": "5"}, tmp_path).job

    assert (job.fresh, job.limit) == (False, None)


def test_a_variable_that_names_nothing_is_told_without_its_value() -> None:
    environ = {
        "BATCHLLM_CONCURENCY": "sk-secret",
        "BATCHLLM_MAX_RETRY": "",
        "BATCHLLM_FRESH": "1",
        "BATCHLLM_COLOUR_OF_BIRDS": "x",
        "BATCHLLM_RPM": "5",
        "BATCHLLM_JOB": "j.toml",
        "BATCHLLM_BENCH_DATA": "d.jsonl",
        "BATCHLLM_MY_KEY": "sk-secret",
        "OTHER": "x",
    }
    assert strays(environ, Job(api_key_env="BATCHLLM_MY_KEY")) == [
        "BATCHLLM_COLOUR_OF_BIRDS names no setting",
        "BATCHLLM_CONCURENCY names no setting: did you mean BATCHLLM_CONCURRENCY?",
        "BATCHLLM_FRESH is not heeded: it is for the command line only, as --fresh",
        "BATCHLLM_MAX_RETRY names no setting: did you mean BATCHLLM_MAX_RETRIES?",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", "1_0"),
        ("concurrency", "１０"),
        ("rpm", "1_000"),
        ("rpm", "６0"),
        ("rpm", "٣"),
        ("timeout", "３０"),
        ("timeout", "1m３s"),
        ("max_failures", "５"),
        ("max_failures", "５%"),
    ],
)
def test_a_number_is_written_in_plain_digits(tmp_path: Path, name: str, value: str) -> None:
    flag = name.replace("_", "-")
    assert refused(tmp_path, {name: value}).message.startswith(f"--{flag}: expected ")


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    job_file(tmp_path, f"rpm = {json.dumps('x' * 500)}\n")

    assert len(refused(tmp_path).message) < 150
