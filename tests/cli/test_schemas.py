"""Schemas as people give them, over sockets: how they are sent, refused, repaired, checked, stood in for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.repairs import prove
from tests.running import Ran, refusal, run, tickets, write
from tests.serving import Simulated, simulated

LABEL: dict[str, Any] = {
    "type": "object",
    "properties": {"label": {"enum": ["bug", "praise"]}, "note": {"type": "string", "minLength": 2}},
    "required": ["label"],
}
GOOD = '{"label": "bug"}'


def asked(folder: Path, server: Simulated, *more: str, records: int = 8) -> Ran:
    """A run of a few records with the schema through a rehearsal server."""
    write(folder / "in.jsonl", tickets(records))
    (folder / "schema.json").write_text(json.dumps(LABEL))
    options = ("-m", "openai/any", "--base-url", server.url, "--schema", "schema.json")
    return run(folder, "in.jsonl", *options, *more)


def scripted(folder: Path, name: str, *texts: str) -> str:
    """A fake model that answers any ticket with these texts in turn."""
    lines = [{"match": "ticket", "text": text} for text in texts]
    write(folder / f"{name}.jsonl", lines)
    return f"fake/script?file={name}.jsonl&by=match"


def test_dead_share_and_calls_are_what_independent_answers_make_them(tmp_path: Path) -> None:
    found = prove(tmp_path, 800, seed=2)
    assert found.done + len(found.letters) == found.records
    assert 0 < found.share <= 1.25 * found.expected
    assert found.fenced > 0
    assert found.calls == found.records + found.bad - len(found.letters)  # a fenced answer costs no call
    for letter in found.letters:
        assert letter["error"]["kind"] == "invalid"
        assert letter["error"]["violations"]
        assert letter["raw"]
        assert len(letter["attempts"]) == 3
        assert letter["usage"]["output_tokens"] == sum(
            each["usage"]["output_tokens"] for each in letter["attempts"]
        )


@pytest.mark.parametrize("mode", ["native", "tool"])
def test_an_optional_property_may_be_null_for_the_server_and_is_left_out_here(
    tmp_path: Path, mode: str
) -> None:
    with simulated() as server:
        ran = asked(tmp_path, server, "--schema-mode", mode, records=30)
        assert server.stats()["requests"] == 30
    assert ran.code == 0, ran.stderr
    outputs = [row["output"] for row in ran.rows("in.out.jsonl")]
    assert {"note" in output for output in outputs} == {True, False}
    assert all(output.get("note", "") is not None for output in outputs)


@pytest.mark.parametrize(
    ("mode", "refused", "ways"),
    [
        ("native", ["strict"], ["a response_format without strict"]),
        ("tool", ["strict"], ["a tool without strict"]),
        ("native", ["schema"], ["words in the prompt"]),
        ("tool", ["tools"], ["words in the prompt"]),
    ],
)
def test_a_refused_schema_goes_down_to_a_looser_way_once_and_fails_no_record(
    tmp_path: Path, mode: str, refused: list[str], ways: list[str]
) -> None:
    flags = [flag for name in refused for flag in ("--refuse", name)]
    prompt = ways[-1] == "words in the prompt"
    text = ("-p", "echo " + GOOD) if prompt else ()  # the server echoes where it is told nothing
    with simulated(*flags) as server:
        ran = asked(tmp_path, server, "--schema-mode", mode, "--max-retries", "0", "-c", "4", *text)
        stats = server.stats()
    assert ran.code == 0, ran.stderr
    assert [line.split("sent as ")[1].split(", and")[0] for line in notes(ran)] == ways
    assert stats["statuses"]["200"] == 8
    assert 1 <= stats["statuses"]["400"] <= 8 * (2 if prompt else 1)


def notes(ran: Ran) -> list[str]:
    return [line for line in ran.stderr.splitlines() if "refuses the schema" in line]


def test_a_refusal_of_something_else_is_a_dead_letter_as_ever(tmp_path: Path) -> None:
    with simulated() as server:
        ran = asked(tmp_path, server, "--param", "temperature=9", records=25)
        stats = server.stats()
    assert ran.code == 3
    assert notes(ran) == []
    assert stats["asked_again"] == 0
    assert stats["requests"] >= 20
    assert all("temperature" in row["error"]["message"] for row in ran.rows("in.dead.jsonl"))


def test_the_schema_of_a_pydantic_model_is_the_schema(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(
        "from pydantic import BaseModel, Field\n"
        "class Part(BaseModel):\n    size: int = Field(ge=1, le=3)\n"
        "class Ticket(BaseModel):\n    label: str\n    parts: list[Part]\n    note: str | None = None\n"
    )
    write(tmp_path / "in.jsonl", tickets(3))
    with simulated() as server:
        options = ("in.jsonl", "-m", "openai/any", "--base-url", server.url)
        ran = run(tmp_path, *options, "--schema", "./shapes.py:Ticket")
        assert ran.code == 0, ran.stderr
        assert {*ran.rows("in.out.jsonl")[0]["output"]} == {"label", "parts", "note"}
        assert server.stats()["requests"] == 3
        again = run(tmp_path, *options, "--schema", "shapes:Ticket")
        assert again.code == 0  # the schema's content is what is meant
        assert server.stats()["requests"] == 3
        (tmp_path / "shapes.py").write_text(
            "from pydantic import BaseModel\nclass Ticket(BaseModel):\n    x: int\n"
        )
        changed = run(tmp_path, *options, "--schema", "./shapes.py:Ticket")
    assert changed.code == 2
    assert "schema was" in changed.error


@pytest.mark.parametrize(
    ("schema", "content", "error"),
    [
        ("./gone.py:Model", None, "there is no file gone.py"),
        ("no_such_module:Model", None, "there is no module no_such_module"),
        ("./m.py:Model", "x = 1", "m.py has no 'Model'"),
        ("./m.py:x", "x = 1", "no pydantic model"),
        ("./m.py:x", "import no_pydantic_here", "no module no_pydantic_here"),
        ("./m.py:x", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_model_that_is_none_is_refused_before_any_call(
    tmp_path: Path, schema: str, content: str | None, error: str
) -> None:
    if content is not None:
        (tmp_path / "m.py").write_text(content)
    write(tmp_path / "in.jsonl", tickets(1))
    refused = refusal(tmp_path, "in.jsonl", "-m", "fake/echo", "--schema", schema)
    assert error in refused.error
    assert "module:function" not in refused.stderr


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "schema.json is empty"),
        ("\ufeff \n", "schema.json is empty"),
        ("{", "is no JSON that can be read"),
        ('{"minimum": NaN}', "holds what JSON lacks"),
        ('{"maximum": 1e999}', "holds what JSON lacks"),
        ('{"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}}', "never ends"),
    ],
)
def test_a_schema_file_that_is_none_is_refused_before_any_call(
    tmp_path: Path, content: str, error: str
) -> None:
    (tmp_path / "schema.json").write_text(content, encoding="utf-8")
    write(tmp_path / "in.jsonl", tickets(1))
    assert error in refusal(tmp_path, "in.jsonl", "-m", "fake/echo", "--schema", "schema.json").error


def test_a_schema_file_may_begin_with_a_byte_order_mark_and_a_format_nobody_knows_is_said(
    tmp_path: Path,
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "string", "format": "isbn"}', encoding="utf-8-sig")
    write(tmp_path / "in.jsonl", tickets(1))
    ran = run(
        tmp_path, "in.jsonl", "-m", "fake/echo", "-p", '"x"', "--schema", "schema.json", "--repair", "0"
    )
    assert ran.code == 1  # "echo: x" is no JSON
    assert ran.stderr.count("nobody checks the format 'isbn'") == 1


@pytest.mark.parametrize(
    "line",
    ['schema = "m:Model"', 'check = "m:check"', 'fallback = ["python/m:answer"]', 'fallback = "python/m:f"'],
)
def test_a_job_file_that_is_found_may_not_name_code(tmp_path: Path, line: str) -> None:
    (tmp_path / "batchllm.toml").write_text(f'model = "fake/echo"\n{line}\n')
    write(tmp_path / "in.jsonl", tickets(1))
    assert "may not name code to run" in refusal(tmp_path, "in.jsonl").error


def test_a_check_sees_value_and_record_and_its_complaint_goes_into_the_repair(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rules.py").write_text(
        "async def check(value, record):\n"
        "    if record['id'] == 't-00001': raise KeyError('boom')\n"
        "    assert value['label'] != 'praise', f\"{record['id']} is no praise\"\n"
    )
    (tmp_path / "schema.json").write_text(json.dumps(LABEL))
    praise = '{"label": "praise"}'
    write(
        tmp_path / "answers.jsonl",
        [
            {"match": "t-00002 is no praise", "text": GOOD},
            {"match": "ticket", "text": praise},
        ],
    )
    (tmp_path / "mine" / "job.toml").write_text(
        'model = "fake/script?file=answers.jsonl&by=match"\n'
        'schema = "../schema.json"\ncheck = "./rules.py:check"\n'
    )
    write(tmp_path / "in.jsonl", tickets(3))
    ran = run(tmp_path, "in.jsonl", "-j", "mine/job.toml")
    assert ran.code == 1
    assert [(row["id"], row["output"], row["attempts"]) for row in ran.rows("in.out.jsonl")] == [
        ("t-00002", {"label": "bug"}, 2)
    ]
    letters = {row["id"]: row for row in ran.rows("in.dead.jsonl")}
    assert letters["t-00000"]["error"]["cause"] == "check"
    assert letters["t-00000"]["error"]["violations"] == ["t-00000 is no praise"]
    assert letters["t-00000"]["raw"] == praise
    assert letters["t-00001"]["error"]["kind"] == "internal"
    assert "violations" not in letters["t-00001"]["error"]


def test_a_cut_answer_gets_room_up_to_the_ceiling_and_no_repair_beyond(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"id": 1, "text": "x" * 200}])
    with simulated() as server:
        options = ("in.jsonl", "-m", "openai/any", "--base-url", server.url, "--repair", "5")
        ran = run(tmp_path, *options, "--param", "max_tokens=10", "--max-tokens-ceiling", "35")
        assert server.stats()["requests"] == 3  # 10, 20, 35
        wide = run(tmp_path, *options, "--param", "max_tokens=10", "--max-tokens-ceiling", "70", "--fresh")
    assert ran.code == 1
    (letter,) = ran.rows("in.dead.jsonl") if (tmp_path / "in.dead.jsonl").exists() else [None]
    assert wide.code == 0, wide.stderr
    assert wide.rows("in.out.jsonl")[0]["attempts"] == 4
    assert letter is None  # moved aside by --fresh


def test_another_model_and_at_last_a_constant_stand_in(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(LABEL))
    write(tmp_path / "in.jsonl", tickets(2))
    first = scripted(tmp_path, "first", "prose")
    write(
        tmp_path / "second.jsonl",
        [{"match": "ticket 00000", "text": GOOD}, {"match": "ticket", "text": "more prose"}],
    )
    second = "fake/script?file=second.jsonl&by=match"
    constant = ("--fallback-answer", '{"label": "praise"}')
    options = ("in.jsonl", "-m", first, "--schema", "schema.json", "--fallback", second)
    ran = run(tmp_path, *options, *constant)
    assert ran.code == 0, ran.stderr
    one, two = ran.rows("in.out.jsonl")
    assert (one["output"], one["fallback"], one["attempts"]) == ({"label": "bug"}, True, 3)
    assert one["model"].startswith("script")
    assert (two["output"], two["fallback"], two["attempts"]) == ({"label": "praise"}, True, 4)
    assert two["model"] == "fallback_answer"
    assert two["usage"]["output_tokens"] > 0
    assert ran.stderr.count("stands in") == 1
    assert run(tmp_path, *options, *constant).code == 0  # nothing is another meaning
    without = run(tmp_path, *options, "--fresh")
    assert without.code == 1
    assert "fallback" in without.rows("in.out.jsonl")[0]
    assert without.rows("in.dead.jsonl")[0]["raw"] == "prose"


def test_a_record_with_an_answer_of_its_own_says_nothing_of_fallbacks(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", tickets(1))
    ran = run(tmp_path, "in.jsonl", "-m", "fake/echo", "--fallback-answer", "unknown")
    assert "fallback" not in ran.rows("in.out.jsonl")[0]
    quiet = run(
        tmp_path, "in.jsonl", "-m", "fake/echo?faults=empty:1", "--fallback-answer", "x", "-q", "--fresh"
    )
    assert (quiet.code, quiet.stderr) == (0, "")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("faults=401:1", "401"),
        ("faults=402:1", "402"),
        ("faults=429:1&retry_after_ms=3600000", "asks to wait 3600 s"),
    ],
)
def test_a_fallback_that_is_out_is_named_once_and_the_run_goes_on(
    tmp_path: Path, fault: str, why: str
) -> None:
    write(tmp_path / "in.jsonl", tickets(12))
    write(
        tmp_path / "first.jsonl",
        [{"match": f"ticket 0000{n}", "text": ""} for n in range(3)] + [{"match": "ticket", "text": "fine"}],
    )
    options = ("in.jsonl", "-m", "fake/script?file=first.jsonl&by=match", "--repair", "0", "-c", "1")
    broken = ("--fallback", f"fake/echo?{fault}", "--max-stall", "60")
    alone = run(tmp_path, *options, *broken)
    assert (alone.code, len(alone.rows("in.out.jsonl"))) == (1, 9)
    assert [row["error"]["cause"] for row in alone.rows("in.dead.jsonl")] == ["empty"] * 3
    assert [len(row["attempts"]) for row in alone.rows("in.dead.jsonl")] == [2, 1, 1]
    assert alone.stderr.count("is not asked any more in this run") == 1
    assert why in next(line for line in alone.stderr.splitlines() if "not asked any more" in line)
    another = run(tmp_path, *options, *broken, "--fallback", "fake/echo", "--fresh")
    assert another.code == 0, another.stderr
    assert sum("fallback" in row for row in another.rows("in.out.jsonl")) == 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--fallback-answer", '{"label": "no"}', "--schema", "schema.json"), "breaks the schema"),
        (("--fallback-answer", "x", "--emit", "openai-batch"), "no provider's answer"),
        (("--fallback", "nobody/x"), "no provider 'nobody'"),
        (("--fallback", "x"), "expected PROVIDER/NAME"),
        (("--fallback", "openai/x"), "no key for openai/x"),
        (("--check", "./gone.py:f"), "there is no file gone.py"),
        (("--schema-mode", "loose"), "expected one of native, tool, prompt"),
    ],
)
def test_what_could_never_stand_in_is_refused_before_any_call(
    tmp_path: Path, options: tuple[str, ...], error: str
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(LABEL))
    write(tmp_path / "in.jsonl", tickets(1))
    assert error in refusal(tmp_path, "in.jsonl", "-m", "fake/echo", *options).error


def test_constants_do_not_fill_a_file_while_the_model_can_not_be_reached(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", tickets(60))
    nobody = ("-m", "openai/any", "--base-url", "http://127.0.0.1:9/v1", "--max-retries", "0")
    ran = run(tmp_path, "in.jsonl", *nobody, "--fallback-answer", "unknown", "-c", "1")
    assert ran.code == 3
    assert len(ran.rows("in.out.jsonl")) == 19
    assert "could not be asked 20 times" in ran.stderr


def test_a_model_that_can_not_be_reached_is_stood_in_for_by_another(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", tickets(40))
    nobody = ("-m", "openai/any", "--base-url", "http://127.0.0.1:9/v1", "--max-retries", "0")
    ran = run(tmp_path, "in.jsonl", *nobody, "--fallback", "fake/echo")
    assert ran.code == 0, ran.stderr
    rows = ran.rows("in.out.jsonl")
    assert [row["output"] for row in rows] == [f"echo: ticket {n:05} ok" for n in range(40)]
    assert all(row["fallback"] and row["model"] == "echo" for row in rows)
