"""The samples that show a kind of job each, run as their first lines say, on their rehearsal's answers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.running import Ran, run, started, wait_for_settled
from tests.serving import simulated

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def sample(folder: Path, name: str, records: str, env: dict[str, str] | None = None) -> Ran:
    home = SAMPLES / name
    rehearsal = f"fake/script?file={home / 'rehearsal.jsonl'}&by=match"
    return run(
        folder, str(home / records), "-j", str(home / "job.toml"), "-m", rehearsal, "-o", "out.jsonl", env=env
    )


def schema_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SAMPLES / name / "schema.json").read_text())
    return found


def test_moderation_judges_every_post_and_leaves_the_undecided_to_a_person(tmp_path: Path) -> None:
    ran = sample(tmp_path, "moderation", "posts.jsonl")

    assert ran.code == 0, ran.stderr
    rows = {row["id"]: row for row in ran.rows("out.jsonl")}
    assert len(rows) == 8
    assert all(Draft202012Validator(schema_of("moderation")).is_valid(row["output"]) for row in rows.values())
    assert (rows["P-3"]["attempts"], rows["P-3"]["output"]["reasons"]) == (2, ["insult"])
    assert rows["P-8"]["fallback"] is True
    assert rows["P-8"]["output"]["verdict"] == "review"
    assert "answers that stood in: 1" in ran.stderr
    assert rows["P-1"]["author"] == "fern"


def test_products_get_categories_and_unique_tags_and_keep_every_field_as_it_was(tmp_path: Path) -> None:
    ran = sample(tmp_path, "products", "products.jsonl")

    assert ran.code == 0, ran.stderr
    before = (SAMPLES / "products" / "products.jsonl").read_bytes().splitlines()
    after = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert new.startswith(old[:-1])
        tags = json.loads(new)["tags"]
        assert len(set(tags)) == len(tags) >= 2


def test_extract_takes_fields_out_of_mails_or_says_null(tmp_path: Path) -> None:
    ran = sample(tmp_path, "extract", "mails.jsonl")

    assert ran.code == 0, ran.stderr
    rows = [row["output"] for row in ran.rows("out.jsonl")]
    assert rows[1] == {"order": "A-50177", "amount": 89.0, "date": "2026-09-14", "email": "tom@example.net"}
    assert set(rows[2].values()) == {None}


def test_compare_tells_the_accuracy_of_both_prompts(tmp_path: Path) -> None:
    ran = sample(tmp_path, "compare", "questions.jsonl")

    assert ran.code == 0, ran.stderr
    told = run(tmp_path, "out.jsonl", "--json", verb="report")
    variants = {each["name"]: each["accuracy"] for each in json.loads(told.stdout)["variants"]}
    assert {name: (found["correct"], found["n"]) for name, found in variants.items()} == {
        "terse": (6, 10),
        "examples": (9, 10),
    }
    assert "90.00%" in ran.stderr


def test_etl_loads_each_row_once_and_says_what_it_came_to(tmp_path: Path) -> None:
    env = {"INVOICES_DB": str(tmp_path / "invoices.db")}

    ran = sample(tmp_path, "etl", "invoices.jsonl", env)

    assert ran.code == 0, ran.stderr
    assert "3 invoices, 1356.70 EUR" in ran.stderr
    with closing(sqlite3.connect(env["INVOICES_DB"])) as database:
        found = database.execute("select id, total from invoices order by id").fetchall()
    assert found == [("r-1", 1240.5), ("r-2", 99.0), ("r-4", 17.2)]
    (letter,) = ran.rows("out.dead.jsonl")
    assert letter["error"]["stage"] == "extract"


@contextlib.contextmanager
def service(file: Path, port: int = 0) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The ticket service of the sample; its port and its process."""
    command = [sys.executable, str(SAMPLES / "tickets" / "service.py"), str(file), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


def posted(file: Path) -> list[tuple[str, str]]:
    """The tickets that the service holds: the record's id and the draft."""
    with closing(sqlite3.connect(file)) as database:
        bodies = [json.loads(body) for (body,) in database.execute("select body from tickets")]
    return [(body["ticket"], body["reply"]) for body in bodies]


def test_tickets_are_checked_drafted_and_posted(tmp_path: Path) -> None:
    file = tmp_path / "tickets.db"
    with service(file) as (port, _):
        ran = sample(tmp_path, "tickets", "tickets.jsonl", {"TICKETS_URL": f"http://127.0.0.1:{port}"})

    assert ran.code == 0, ran.stderr
    (letter,) = ran.rows("out.dead.jsonl")
    assert (letter["id"], letter["error"]["stage"]) == ("T-4", "check")
    assert sorted(id for id, _ in posted(file)) == ["T-1", "T-2", "T-3", "T-5"]
    assert ran.rows("out.jsonl")[-1]["skipped"] == ["draft", "post"]


def test_the_ticket_service_keeps_no_part_of_a_request(tmp_path: Path) -> None:
    """Who asks may be killed between the head and the body."""
    file = tmp_path / "tickets.db"
    body = json.dumps({"ticket": "T-1", "reply": "fine"}).encode()
    head = b"POST /tickets HTTP/1.1\r\nidempotency-key: k\r\ncontent-length: %d\r\n\r\n" % len(body)
    with service(file) as (port, _):
        for sent in (head, head + body[:9], head + body):
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(sent)
                peer.shutdown(socket.SHUT_WR)
                answer = peer.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200")

    assert posted(file) == [("T-1", "fine")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as Unix does")
def test_no_ticket_is_there_twice_and_no_draft_is_asked_for_twice_whoever_is_killed(tmp_path: Path) -> None:
    count, window, file = 150, 5, tmp_path / "tickets.db"
    rows = [{"id": f"T-{n}", "language": "en", "text": f"ticket number {n}"} for n in range(count)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = str(SAMPLES / "tickets" / "job.toml")
    with simulated("--latency-ms", "20") as server, service(file) as (port, first):
        env = {"TICKETS_URL": f"http://127.0.0.1:{port}", "OPENAI_API_KEY": "sk-none-needed"}
        args = ("in.jsonl", "-j", job, "-m", "openai/x", "--base-url", server.url, "-c", str(window))
        args += ("-o", "out.jsonl", "--backoff", "0.02")
        with started(tmp_path, *args, "-vv", env=env) as process:
            wait_for_settled(process, 40)
            process.kill()
            process.communicate()
        asked_before = server.stats()["requests"]
        with started(tmp_path, *args, "-vv", env=env) as process:
            wait_for_settled(process, 20)
            first.kill()
            first.wait()
            with service(file, port):  # on the same port, with what it had
                assert process.communicate(timeout=60)[1] is not None
                ran = run(tmp_path, *args, env=env)
        asked = server.stats()

    assert ran.code == 0, ran.stderr
    assert [row["seq"] for row in ran.rows("out.jsonl")] == list(range(count))
    tickets = Counter(id for id, _ in posted(file))
    assert tickets == Counter(row["id"] for row in rows)
    assert asked_before < count, "it was killed in the middle of the second stage"
    # In flight at the kill, or answered in the last moments before it and not yet on the disk.
    assert count <= asked["requests"] <= count + 4 * window
    held = dict(posted(file))
    assert all(row["stages"]["draft"]["reply"] == held[row["id"]] for row in ran.rows("out.jsonl"))
