"""A run from files to files: names, shapes of lines, several inputs, and the formats that it takes."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from tests.running import ECHO, environment, names, rows, run, started, tickets, together, write
from tests.serving import simulated

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
RESULT = [
    *("id", "seq", "output", "model", "usage", "cost_usd", "attempts", "latency_s", "finish_reason"),
    *("finished_at", "request_id"),
]
LETTER = ["id", "seq", "record", "error", "attempts", "raw", "usage", "cost_usd", "at"]
ODD = (
    b'{"id": "odd",  "text":"one" , "n": 123456789012345678901234567890, "text": "two",'
    b' "f": 1.10e5, "u": "\\u00e9", "output": 1}'
)


def test_answers_land_beside_the_input_in_its_order_and_stdout_stays_empty(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", tickets(300))

    ran = run(tmp_path, "in/a.jsonl", "-m", "fake/echo?latency_ms=5&jitter=1", "--concurrency", "20")

    assert (ran.code, ran.stdout) == (0, b"")
    assert names(tmp_path / "in") == {"a.jsonl", "a.out.jsonl", "a.out.jsonl.run"}
    found = ran.rows("in/a.out.jsonl")
    assert [(row["seq"], row["id"], row["output"]) for row in found] == [
        (n, ticket["id"], f"echo: {ticket['text']}") for n, ticket in enumerate(tickets(300))
    ]
    assert list(found[0]) == RESULT
    assert list(found[0]["usage"]) == ["input_tokens", "output_tokens", "cached_tokens"]
    assert (found[0]["attempts"], found[0]["finish_reason"]) == (1, "stop")
    assert STAMP.fullmatch(found[0]["finished_at"])


def test_a_failure_makes_a_dead_letter_with_the_time_of_every_attempt(tmp_path: Path) -> None:
    write(tmp_path / "replies.jsonl", [
        {"match": "ok", "text": "fine"},
        {"match": "bad", "error": {"status": 400, "message": "no such thing", "code": "odd_request"}},
        {"match": "slow", "error": "timeout"},
        {"match": "torn", "error": "bad_reply"},
        {"match": "cut", "text": "half an", "finish": "length"},
        {"match": "mute", "text": "  "},
        {"match": "blocked", "text": "", "finish": "content_filter"},
    ])  # fmt: skip
    words = ["ok", "bad", "slow", "torn", "cut", "mute", "blocked"]
    write(tmp_path / "a.records.jsonl", [{"id": word, "text": word} for word in words])

    ran = run(
        tmp_path, "a.records.jsonl", "-m", "fake/script?file=replies.jsonl&by=match",
        "--max-retries", "1", "--backoff", "0", "--merge-failed",
    )  # fmt: skip

    assert ran.code == 1
    assert {"a.records.out.jsonl", "a.records.dead.jsonl"} <= names(tmp_path)
    letters = {letter["id"]: letter for letter in ran.rows("a.records.dead.jsonl")}
    told = {id: (letter["error"]["kind"], letter["error"]["cause"]) for id, letter in letters.items()}
    assert told == {
        "bad": ("refused", "odd_request"),
        "slow": ("exhausted", "timeout"),
        "torn": ("exhausted", "html"),
        "cut": ("invalid", "truncated"),
        "mute": ("invalid", "empty"),
        "blocked": ("refused", "content_filter"),
    }
    assert [len(letters[id]["attempts"]) for id in ("bad", "slow", "torn", "cut")] == [1, 2, 2, 1]
    for letter in letters.values():
        assert list(letter) == LETTER
        error = letter["error"]
        more = ["violations"] if error["kind"] == "invalid" else []
        assert list(error) == ["kind", "cause", "message", "status", "retryable", "stage", *more]
        assert letter["record"] == {"id": letter["id"], "text": letter["id"]}
        assert STAMP.fullmatch(letter["at"])
        for attempt in letter["attempts"]:
            assert STAMP.fullmatch(attempt["at"])
            assert list(attempt) == ["at", "seconds", "status", "error", "usage", "request_id"]
    assert letters["cut"]["raw"] == "half an"
    assert letters["bad"]["error"]["status"] == 400
    assert [(row["id"], row.get("error_kind")) for row in ran.rows("a.records.out.jsonl")] == [
        (word, told[word][0] if word in told else None) for word in words
    ]
    for kind in ("refused", "exhausted", "invalid"):
        assert kind in ran.stderr, "the final table counts by kind"


def test_merged_lines_keep_every_byte_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ODD + b"\r\n" + b'{"text":"plain"}\n')
    write(tmp_path / "b.jsonl", [{"text": '{"category": "bug", "id": 7}', "id": "x"}, {"text": "no"}])
    schema = {"type": "object", "required": ["category"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))

    plain, structured = together(
        lambda: run(tmp_path, "a.jsonl", *ECHO, "--emit", "merged"),
        lambda: run(
            tmp_path, "b.jsonl", *ECHO, "--emit", "merged", "--merge-failed",
            "--schema", "schema.json", "--repair", "0",
        ),
    )  # fmt: skip

    first, second = (tmp_path / "a.out.jsonl").read_bytes().splitlines()
    assert plain.code == 0
    assert first == ODD[:-1] + b',"output_output":"echo: two"}'
    assert second == b'{"text":"plain","output":"echo: plain"}'
    assert structured.code == 1
    good, failed = structured.rows("b.out.jsonl")
    assert (good["category"], good["id"], good["output_id"]) == ("bug", "x", 7)
    assert (failed["text"], failed["error_kind"]) == ("no", "invalid")


def test_kept_fields_and_odd_ids_pass_through_as_they_stand(tmp_path: Path) -> None:
    lines = [
        b'{"id": 12345678901234567890123, "text": "a", "model": "theirs", "tags": [1,  2], "price": 1.50}',
        b'{"id": {"k": [1]}, "text": "b", "tags": null}',
        b'{"id": null, "text": "c"}',
        b'{"id": "", "text": "d"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    ran = run(tmp_path, "a.jsonl", *ECHO, "--keep", "tags,model", "--keep", "price")

    assert ran.code == 0
    found = (tmp_path / "a.out.jsonl").read_bytes().splitlines()
    assert found[0].startswith(b'{"id":12345678901234567890123,"seq":0,')
    assert found[0].endswith(b',"input_model":"theirs","tags":[1,  2],"price":1.50}')
    assert [json.loads(line)["id"] for line in found[1:]] == [{"k": [1]}, "line-3", ""]
    assert [json.loads(line).get("tags", "none") for line in found] == [[1, 2], None, "none", "none"]


def test_several_inputs_are_one_run_packed_ones_and_stdin_among_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    packed = "".join(json.dumps(ticket) + "\n" for ticket in [*tickets(3, 3), {"text": "nameless"}])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    piped = json.dumps({"text": "piped"}).encode() + b"\n[1]\n"

    many, one = together(
        lambda: run(tmp_path, "a.jsonl", "b.jsonl.gz", "-", *ECHO, "-o", "all.jsonl", stdin=piped),
        lambda: run(tmp_path, "b.jsonl.gz", *ECHO),
    )

    ids = [*(ticket["id"] for ticket in tickets(6)), "b.jsonl.gz:line-4", "stdin:line-1"]
    assert [row["id"] for row in many.rows("all.jsonl")] == ids
    (letter,) = many.rows("all.dead.jsonl")
    assert (letter["id"], letter["seq"], letter["raw_line"]) == ("stdin:line-2", 8, "[1]")
    assert many.code == 1
    assert one.code == 0
    assert [row["id"] for row in one.rows("b.out.jsonl")][-1] == "line-4"


def test_dead_letters_run_again_as_the_records_inside_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"id": 5, "no": 1.10}\nbroken\n')
    first = run(tmp_path, "a.jsonl", *ECHO)
    assert first.code == 1

    again = run(tmp_path, "a.dead.jsonl", *ECHO, "-p", "no is {{ no }}", "--emit", "merged")

    assert again.code == 1
    assert names(tmp_path) >= {"a.dead.out.jsonl", "a.dead.dead.jsonl"}
    merged = (tmp_path / "a.dead.out.jsonl").read_bytes()
    assert merged == b'{"id": 5, "no": 1.10,"output":"echo: no is 1.1"}\n'
    (letter,) = again.rows("a.dead.dead.jsonl")
    assert (letter["id"], letter["raw_line"], letter["error"]["kind"]) == ("line-3", "broken", "bad_input")


def test_an_openai_batch_file_is_sent_as_it_stands_and_answered_in_kind(tmp_path: Path) -> None:
    def line(id: str, url: str, text: str, **more: object) -> dict[str, object]:
        body = {"model": "theirs", "messages": [{"role": "user", "content": text}], **more}
        return {"custom_id": id, "method": "POST", "url": url, "body": body}

    lines = [line("a", "/v1/chat/completions", "one"), line("b", "/v1/embeddings", "two")]
    write(tmp_path / "batch.jsonl", [*lines, line("c", "/v1/chat/completions", "three", max_tokens=1)])

    with simulated() as server:
        ran = run(
            tmp_path, "batch.jsonl", "-m", "openai/any", "--base-url", server.url,
            "--emit", "openai-batch", "--merge-failed", "--repair", "0",
        )  # fmt: skip

    assert ran.code == 1
    answer, *failed = ran.rows("batch.out.jsonl")
    assert list(answer) == ["id", "custom_id", "response", "error"]
    assert [(row["custom_id"], row["response"], row["error"]["code"]) for row in failed] == [
        ("b", None, "bad_input"), ("c", None, "invalid"),
    ]  # fmt: skip
    assert (answer["custom_id"], answer["error"], answer["response"]["status_code"]) == ("a", None, 200)
    assert answer["response"]["body"]["model"] == "theirs"
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == "echo: one"
    letters = {letter["id"]: letter["error"] for letter in ran.rows("batch.dead.jsonl")}
    assert (letters["b"]["kind"], letters["c"]["kind"]) == ("bad_input", "invalid")


def test_answers_satisfy_the_schema_and_one_repair_shows_the_model_its_answer(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["mood"], "properties": {"mood": {"enum": ["good", "bad"]}}}
    (tmp_path / "mood.schema.json").write_text(json.dumps(schema))
    write(tmp_path / "replies.jsonl", [
        {"match": "bare", "text": '{"mood": "good"}'},
        {"match": "fenced", "text": 'Sure!\n```json\n{"mood": "bad"}\n```\nBye.'},
        {"match": "mends", "text": '{"mood": "odd"}'},
        {"match": "mends", "text": '{"mood": "good"}'},
        {"match": "stays", "text": '{"mood": "awful"}'},
    ])  # fmt: skip
    write(tmp_path / "a.jsonl", [{"id": w, "text": w} for w in ("bare", "fenced", "mends", "stays")])

    ran = run(
        tmp_path, "a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match", "--schema", "mood.schema.json"
    )

    assert ran.code == 1
    found = ran.rows("a.out.jsonl")
    assert [row["output"] for row in found] == [{"mood": "good"}, {"mood": "bad"}, {"mood": "good"}]
    assert [row["attempts"] for row in found] == [1, 1, 2]
    (letter,) = ran.rows("a.dead.jsonl")
    assert (letter["error"]["kind"], letter["error"]["cause"]) == ("invalid", "schema")
    assert "mood" in letter["error"]["message"]
    assert letter["raw"] == '{"mood": "awful"}'
    assert len(letter["attempts"]) == 2


def test_twelve_in_a_hundred_faults_lose_nothing_double_nothing_and_join_nothing_wrong(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.jsonl", tickets(600))

    with simulated("--error-rate", "0.12", "--retry-after", "0.05", "--seed", "3") as server:
        ran = run(
            tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", server.url, "-c", "50",
            "--timeout", "2", "--backoff", "0.02",
        )  # fmt: skip
        faults = server.stats()["faults"]

    assert set(faults) == {"429", "500", "502", "503", "drop", "truncate", "html", "hang", "empty"}
    letters = ran.rows("a.dead.jsonl") if (tmp_path / "a.dead.jsonl").exists() else []
    found = ran.rows("a.out.jsonl")
    assert len(letters) < 6
    assert ran.code == (1 if letters else 0)
    assert sorted(row["seq"] for row in [*found, *letters]) == list(range(600))
    for row in found:
        assert (row["id"], row["output"]) == (f"t-{row['seq']:05}", f"echo: ticket {row['seq']:05} ok")


def test_cron_needs_no_terminal_no_environment_and_no_working_folder(tmp_path: Path) -> None:
    write(tmp_path / "job" / "tickets.jsonl", tickets(5))
    (tmp_path / "job" / "batchllm.toml").write_text('model = "fake/echo"\nprompt = "@ask.txt"\n')
    (tmp_path / "job" / "ask.txt").write_text("Grüße: {{ text }}")
    python_path = environment(tmp_path)["PYTHONPATH"]
    bare = ("/usr/bin/env", "-i", f"PYTHONPATH={python_path}", "/usr/bin/setsid", "-w")

    ran = run(tmp_path, "../job/tickets.jsonl", "-j", tmp_path / "job" / "batchllm.toml",
              before=("/bin/sh", "-c", 'mkdir -p cron && cd cron && exec "$@"', "sh", *bare))  # fmt: skip

    assert ran.code == 0, ran.stderr
    assert ran.rows("job/tickets.out.jsonl")[0]["output"] == "echo: Grüße: ticket 00000 ok"
    assert names(tmp_path / "cron") == set()
    assert "\x1b" not in ran.stderr


def test_progress_comes_as_log_lines_as_json_lines_or_as_events_alone(tmp_path: Path) -> None:
    for name in ("log", "json", "events"):
        write(tmp_path / f"{name}.jsonl", [*tickets(20), {"id": "bad"}])

    log, lines, events = together(
        lambda: run(tmp_path, "log.jsonl", *ECHO, "--progress", "log"),
        lambda: run(tmp_path, "json.jsonl", *ECHO, "--progress", "json"),
        lambda: run(tmp_path, "events.jsonl", *ECHO, "-q", "-vv"),
    )

    assert [(ran.code, ran.stdout) for ran in (log, lines, events)] == [(1, b"")] * 3
    last = next(line for line in log.stderr.splitlines() if "21/21" in line)
    assert re.match(r"\d\d:\d\d:\d\d 21/21 100% ok 20 failed 1 ", last)
    assert "\x1b" not in log.stderr
    figures = [json.loads(line) for line in lines.stderr.splitlines()]
    keys = {"operation", "processed", "total", "progress_pct", "succeeded", "failed", "success_rate"}
    assert {*keys, "rate", "eta_s"} <= set(figures[0])
    assert (figures[-1]["operation"], figures[-1]["processed"], figures[-1]["failed"]) == ("summary", 21, 1)
    assert figures[-1]["failures"][0]["kind"] == "bad_input"
    told = [json.loads(line) for line in events.stderr.splitlines()]
    kinds = [event["event"] for event in told]
    assert kinds.count("attempt") == 20
    assert kinds.count("settled") == 21
    assert (kinds[0], kinds[-1]) == ("run_started", "run_stopped")
    assert all(STAMP.fullmatch(event["at"]) for event in told)


def test_a_run_that_is_asked_shows_its_progress_while_it_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(3))
    slow = ("-m", "fake/echo?latency_ms=100000", "--progress", "json", "--progress-interval", "0.01")

    with started(tmp_path, "a.jsonl", *slow) as process:
        assert process.stderr is not None
        while not (line := json.loads(process.stderr.readline()))["in_flight"]:
            pass

    assert (line["processed"], line["total"], line["progress_pct"]) == (0, 3, 0)
    assert rows(tmp_path / "a.jsonl") == tickets(3)


def test_the_slow_client_says_that_it_is_slow_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    with simulated() as server:
        ran = run(tmp_path, "a.jsonl", "-m", "openai/x", "--base-url", server.url, "--http", "stock")
    assert ran.code == 0
    assert [line for line in ran.stderr.splitlines() if line.startswith("note:")] == [
        "note: as asked: requests go through httpx's own client, which is slow"
    ]
