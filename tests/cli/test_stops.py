"""Why a run stops before its end, what it leaves then, and that no secret is in any of it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.running import (
    Ran,
    ended,
    names,
    rows,
    run,
    started,
    tickets,
    together,
    wait_for_settled,
    write,
)
from tests.serving import simulated

SECRET = "sk-secret-0123456789abcdef0123456789abcdef"


def letters(ran: Ran) -> list[dict[str, object]]:
    path = ran.folder / "a.dead.jsonl"
    return ran.rows("a.dead.jsonl") if path.exists() else []


def test_one_wrong_flag_stops_the_run_before_it_burns_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(400))

    with simulated() as server:
        model = ("-m", "openai/any", "--base-url", server.url)
        ran = run(tmp_path, "a.jsonl", *model, "--param", "max_tokens=x")
        asked, dead = server.stats()["requests"], letters(ran)
        again = run(tmp_path, "a.jsonl", *model, "--param", "max_tokens=50", "--on-change", "redo")

    assert ran.code == 3
    assert 0 < len(dead) <= 20
    assert asked < 100
    assert "max_tokens" in ran.stderr
    assert "--on-change redo" in ran.hint
    assert again.code == 0
    assert len(again.rows("a.out.jsonl")) == 400


def test_a_server_that_is_not_there_stops_the_run(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(400))
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]

    ran = run(
        tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", f"http://127.0.0.1:{port}/v1", "--backoff", "0"
    )

    assert ran.code == 3
    assert 0 < len(letters(ran)) <= 20
    assert "--base-url" in ran.hint


def test_the_account_s_fault_stops_the_run_and_no_record_pays_for_it(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(200))

    with simulated("--quota", "30", "--api-key-env", "MINE", env={"MINE": SECRET}) as server:

        def ask(key: str, *args: str) -> Ran:
            address = ("-m", "openai/any", "--base-url", server.url, "-c", "8")
            return run(tmp_path, "a.jsonl", *address, *args, env={"OPENAI_API_KEY": key})

        wrong = ask("sk-wrong")
        refused = server.stats()
        assert names(tmp_path) == {"a.jsonl", "a.out.jsonl", "a.out.jsonl.run"}
        assert wrong.rows("a.out.jsonl") == []
        spent = ask(SECRET)
        asked = server.stats()["requests"] - refused["requests"]
        server.reset()
        more = ask(SECRET, "--limit", "55")

    assert [wrong.code, spent.code, more.code] == [3, 3, 0]
    assert refused["requests"] <= 8
    assert set(refused["statuses"]) == {"401"}
    assert "--api-key-env" in wrong.hint
    assert asked <= 30 + 8
    assert "the same command" in spent.hint
    assert letters(spent) == []
    assert [row["seq"] for row in more.rows("a.out.jsonl")] == list(range(55))
    assert "30 of them by earlier runs" in more.stderr


def test_too_many_failures_stop_the_run_and_it_goes_on_where_more_are_allowed(tmp_path: Path) -> None:
    records = [{"id": n, "text": "bad" if n % 2 else "good"} for n in range(200)]
    write(tmp_path / "a.jsonl", records)
    write(tmp_path / "share.jsonl", records)
    write(tmp_path / "replies.jsonl", [
        {"match": "good", "text": "fine"},
        {"match": "bad", "text": "", "finish": "content_filter"},
    ])  # fmt: skip
    model = ("-m", "fake/script?file=replies.jsonl&by=match", "-c", "4")

    count, share = together(
        lambda: run(tmp_path, "a.jsonl", *model, "--max-failures", "7"),
        lambda: run(tmp_path, "share.jsonl", *model, "--max-failures", "20%"),
    )
    more = run(tmp_path, "a.jsonl", *model, "--max-failures", "100%")

    assert [count.code, share.code, more.code] == [3, 3, 1]
    assert "more than --max-failures 7" in count.stderr
    assert "more than --max-failures 20%" in share.stderr
    assert 50 <= len(share.rows("share.out.jsonl")) + len(share.rows("share.dead.jsonl")) < 150
    assert [len(more.rows("a.out.jsonl")), len(letters(more))] == [100, 100]


def test_failures_that_are_accepted_make_no_exit_code(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"id": n, "text": "bad" if n % 10 == 3 else "good"} for n in range(100)])
    write(tmp_path / "replies.jsonl", [
        {"match": "good", "text": "fine"},
        {"match": "bad", "text": "", "finish": "content_filter"},
    ])  # fmt: skip
    command = ("a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match")
    codes = [run(tmp_path, *command, "--accept-failures", most).code for most in ("10", "9", "10%", "9%")]
    assert codes == [0, 1, 0, 1]
    assert run(tmp_path, *command).code == 1
    assert len(rows(tmp_path / "a.dead.jsonl")) == 10


def test_a_long_wait_that_is_asked_of_us_stops_the_run(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(5))
    refusal = {"status": 429, "message": "come back tomorrow", "headers": {"Retry-After": "86400"}}
    write(tmp_path / "replies.jsonl", [{"match": "ok", "error": refusal}])

    ran = run(tmp_path, "a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match", "--max-stall", "1h")

    assert ran.code == 3
    assert "86400 s" in ran.stderr
    assert letters(ran) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP], ids=lambda sent: sent.name)
def test_a_signal_keeps_the_answers_that_came_and_says_how_to_go_on(
    sent: signal.Signals, tmp_path: Path
) -> None:
    records = [*tickets(6), {"id": "never", "text": "hangs"}, *tickets(6, 6)]
    write(tmp_path / "a.jsonl", records)
    replies = [{"match": "ok", "text": "fine"}, {"match": "hangs", "text": "late", "latency_ms": 1e7}]
    write(tmp_path / "replies.jsonl", replies)

    with started(
        tmp_path, "a.jsonl", "-m", "fake/script?file=replies.jsonl&by=match", "-vv", "--grace", "0.1"
    ) as process:
        wait_for_settled(process, 12)
        process.send_signal(sent)
        ran = ended(tmp_path, process)

    assert ran.code == 128 + sent
    assert f"stopped: by {sent.name}" in ran.stderr
    assert "run the same command again" in ran.hint
    assert "calls in flight: 1" in ran.stderr
    assert sorted(row["seq"] for row in ran.rows("a.out.jsonl")) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]


def test_a_first_signal_waits_for_calls_in_flight_and_starts_no_new_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "first"}, {"text": "slow"}, *tickets(50)])
    write(tmp_path / "replies.jsonl", [
        {"match": "first", "text": "fine"},
        {"match": "slow", "text": "in time", "latency_ms": 700},
        {"match": "ok", "text": "fine", "latency_ms": 700},
    ])  # fmt: skip

    with started(
        tmp_path,
        "a.jsonl",
        "-m",
        "fake/script?file=replies.jsonl&by=match",
        "-vv",
        "--grace",
        "60",
        "-c",
        "2",
    ) as process:
        wait_for_settled(process, 1)
        process.send_signal(signal.SIGTERM)
        ran = ended(tmp_path, process)

    assert ran.code == 143
    assert [row["output"] for row in ran.rows("a.out.jsonl")] == ["fine", "in time", "fine"]
    assert "given up" not in ran.stderr


class _Echoing(BaseHTTPRequestHandler):
    """Answers every question, and every error holds the key that it came with."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"]
        asked = body["messages"][-1]["content"]
        error = {"message": f"Incorrect key provided: {key}", "code": f"odd {key}", "type": key}
        if "page" in asked:
            self._send(502, f"<html><title>{key}</title></html>".encode(), "text/html")
        elif "bad" in asked:
            self._send(400, json.dumps({"error": error}).encode())
        elif "inside" in asked:
            self._send(200, json.dumps({"error": error}).encode())
        elif "key" in asked:
            self._send(401, json.dumps({"error": error}).encode())
        else:
            message = {"role": "assistant", "content": "fine"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send(200, json.dumps({"model": "any", "choices": [choice]}).encode())

    def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def echoing() -> Iterator[str]:
    """The address of a server that echoes keys."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echoing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()


def test_no_key_is_ever_in_a_file_or_in_a_message(tmp_path: Path) -> None:
    asks = ["fine", "bad one", "page", "inside", "fine too"]
    write(tmp_path / "a.jsonl", [{"id": ask, "text": ask} for ask in asks])
    write(tmp_path / "b.jsonl", [{"text": "the key is wrong"}])
    common = ("-m", "openai/any", "-vv", "--backoff", "0")
    key = {"OPENAI_API_KEY": SECRET}

    with echoing() as address:
        plain, fatal, inside = together(
            lambda: run(tmp_path, "a.jsonl", *common, "--base-url", f"http://{address}", env=key),
            lambda: run(tmp_path, "b.jsonl", *common, "--base-url", f"http://{address}", env=key),
            lambda: run(
                tmp_path, "a.jsonl", *common, "-o", "c.jsonl", "--base-url", f"http://me:{SECRET}@{address}"
            ),
        )

    assert [plain.code, fatal.code] == [1, 3]
    assert [letter["id"] for letter in letters(plain)] == ["bad one", "page", "inside"]
    for ran in (plain, fatal, inside):
        assert SECRET not in ran.stderr
        assert SECRET[3:] not in ran.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET[3:].encode() not in path.read_bytes(), path


def test_an_answer_that_is_no_answer_costs_its_record_alone(tmp_path: Path) -> None:
    mix = "html:0.2,truncate:0.2,shape:0.2,empty:0.2,drop:0.2"
    write(tmp_path / "a.jsonl", tickets(60))

    with simulated("--faults", mix) as server:
        ran = run(
            tmp_path, "a.jsonl", "-m", "openai/any", "--base-url", server.url,
            "--max-retries", "1", "--backoff", "0", "--repair", "0",
        )  # fmt: skip

    assert ran.code == 1
    assert ran.rows("a.out.jsonl") == []
    told = [letter["error"] for letter in ran.rows("a.dead.jsonl")]
    assert {error["kind"] for error in told} == {"exhausted", "invalid"}
    assert {error["cause"] for error in told} == {"html", "disconnected", "not_completion", "empty"}
