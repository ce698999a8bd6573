"""The samples that README and `make demo` run: forty tickets, and two jobs over them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batchllm.job import load
from batchllm.job.settings import Job
from batchllm.prompt import Prompt
from batchllm.providers import local
from batchllm.schema import Schema
from tests.running import run

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def tickets() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / "tickets.jsonl").read_text(encoding="utf-8").splitlines()]


def job(name: str) -> Job:
    return load({"job": str(SAMPLES / name)}, {}, SAMPLES).job


def categories(triage: Job) -> list[str]:
    assert triage.schema is not None
    found: list[str] = triage.schema["properties"]["category"]["enum"]
    return found


def test_there_are_forty_tickets_with_ids_of_their_own() -> None:
    records = tickets()
    assert len(records) == 40
    assert len({record["id"] for record in records}) == 40
    assert len({record["text"] for record in records}) == 40
    assert all(list(record) == ["id", "text", "expected"] for record in records)


def test_every_category_is_expected_of_several_tickets_and_none_of_most() -> None:
    counts = Counter(record["expected"] for record in tickets())
    assert sorted(counts) == sorted(categories(job("triage.toml")))
    assert all(5 <= count <= 10 for count in counts.values())


def test_the_triage_schema_holds_one_field_and_accepts_each_category() -> None:
    triage = job("triage.toml")
    assert triage.schema is not None
    schema = Schema.load(triage.schema, "triage.schema.json")
    for category in categories(triage):
        assert schema.accepts({"category": category})
    assert not schema.accepts({"category": "something else"})
    assert not schema.accepts({"category": "delivery", "why": "a parcel"})


@pytest.mark.parametrize("name", ["triage.toml", "reply.toml"])
def test_a_job_asks_the_local_model_about_the_ticket_s_text_and_nothing_else(name: str) -> None:
    loaded = job(name)
    assert loaded.model == "local/smollm2"
    assert loaded.prompt is not None
    record = tickets()[0]
    messages = Prompt(loaded.prompt, system=loaded.system).messages({"text": record["text"]})
    assert [message["role"] for message in messages] == ["system", "user"]
    assert record["text"] in messages[-1]["content"]


def test_no_ticket_is_an_example_in_its_own_prompt() -> None:
    told = (SAMPLES / "triage.toml").read_text(encoding="utf-8")
    assert not [record["id"] for record in tickets() if record["text"] in told]


def test_the_local_model_answers_in_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    if local.default_model() is None:
        pytest.skip("the model is not installed")

    ran = run(
        tmp_path,
        str(SAMPLES / "tickets.jsonl"),
        "-j",
        str(SAMPLES / "triage.toml"),
        "--limit",
        "3",
        "-o",
        "out.jsonl",
    )

    assert ran.code == 0, ran.stderr
    allowed = categories(job("triage.toml"))
    assert [row["id"] for row in ran.rows("out.jsonl")] == ["T-1001", "T-1002", "T-1003"]
    assert all(row["output"]["category"] in allowed for row in ran.rows("out.jsonl"))
