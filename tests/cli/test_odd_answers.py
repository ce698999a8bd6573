"""Answers that a run meets rarely, over real sockets: of a key that has ended, blocked ones, unknown ones."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.running import run, started, tickets, write

LONGEST_S = 20.0
"""Seconds after which the server goes on though the calls that it waits for haven't come."""


class Service(ThreadingHTTPServer):
    """Answers every question with "fine", or as its text says; after `good` answers the key is no more.

    The first `held` refusals leave together, so that calls are in flight when the key ends. `said` counts
    the answers by status, `asked` how often each text came.
    """

    daemon_threads = True

    def __init__(self, good: int | None = None, held: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.good, self.held = good, held
        self.said: Counter[int] = Counter()
        self.asked: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._waiting = 0

    def refuses(self) -> bool:
        """Whether the key is no more, for the request that has just come."""
        with self._changed:
            if self.good is None:
                return False
            self.good -= 1
            if self.good >= 0:
                return False
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting >= self.held, LONGEST_S)
            return True

    def answer(self, text: str) -> tuple[int, dict[str, Any]]:
        """Status and body for a question."""
        self.asked[text] += 1
        if self.refuses():
            return 403, {"message": "Forbidden"}
        if "blocked" in text:
            return 200, {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
        if "lost" in text or ("odd" in text and self.asked[text] == 1):
            return 599, {"error": {"message": "what?"}}
        message = {"role": "assistant", "content": "half \ud83d" if "half" in text else "fine"}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


class Handler(BaseHTTPRequestHandler):
    """One connection, kept open."""

    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = self.server.answer(body["messages"][-1]["content"])
        self.server.said[status] += 1
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(service: Service) -> Iterator[tuple[str, ...]]:
    """The options that lead a run to the service."""
    with service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        try:
            yield ("-m", "openai/any", "--base-url", f"http://127.0.0.1:{service.server_address[1]}/v1")
        finally:
            service.shutdown()
            thread.join()


def test_a_key_that_is_revoked_in_the_middle_stops_the_run_and_costs_one_record_at_most(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.jsonl", tickets(300))
    service = Service(good=80, held=12)
    with serving(service) as model:
        stopped = run(tmp_path, "a.jsonl", *model, "-c", "20", "--max-retries", "0")
        refused = service.said[403]
        letters = len(stopped.rows("a.dead.jsonl")) if (tmp_path / "a.dead.jsonl").exists() else 0
        answered = len(stopped.rows("a.out.jsonl"))
        service.good = None
        again = run(tmp_path, "a.jsonl", *model, "-c", "20")

    assert stopped.code == 3, stopped.stderr
    assert "--api-key-env" in stopped.hint
    assert (answered, letters <= 1) == (80, True)
    assert 12 <= refused <= 2 * 20 + 2
    assert again.code == (1 if letters else 0), again.stderr
    settled = [row["seq"] for row in again.rows("a.out.jsonl")]
    settled += [row["seq"] for row in again.rows("a.dead.jsonl")] if letters else []
    assert sorted(settled) == list(range(300))


def test_blocks_and_halves_and_unknown_answers_cost_no_more_than_they_must(tmp_path: Path) -> None:
    asks = ["fine", "blocked", "half", "odd", "lost"]
    write(tmp_path / "a.jsonl", [{"id": ask, "text": ask} for ask in asks])
    service = Service()
    with serving(service) as model:
        told = ("--progress", "json", "--max-retries", "2", "--backoff", "0", "-c", "1")
        ran = run(tmp_path, "a.jsonl", *model, *told)
        table = run(tmp_path, "a.jsonl", *model)

    assert ran.code == 1
    assert {row["id"]: row["output"] for row in ran.rows("a.out.jsonl")} == {
        "fine": "fine",
        "half": "half \ufffd",
        "odd": "fine",
    }
    assert service.asked == {"fine": 1, "blocked": 1, "half": 1, "odd": 2, "lost": 3}
    letters = {row["id"]: row for row in ran.rows("a.dead.jsonl")}
    errors = {name: (row["error"]["kind"], row["error"]["cause"]) for name, row in letters.items()}
    assert errors == {"blocked": ("refused", "content_filter"), "lost": ("exhausted", "unknown")}
    assert "PROHIBITED_CONTENT" in letters["blocked"]["error"]["message"]
    assert list(letters["lost"]["attempts"][0]) == [
        *("at", "seconds", "status", "error", "usage", "request_id")
    ]
    summary = json.loads(ran.stderr.splitlines()[-1])
    assert (summary["operation"], summary["unknown"], summary["unknown_calls"]) == ("summary", 1, 4)
    assert "answers that no rule knows: 4; dead letters of them: 1" in table.stderr


def test_records_that_wait_to_be_tried_again_are_told_while_they_wait(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", tickets(30))
    write(tmp_path / "replies.jsonl", [{"match": "ok", "error": {"status": 503, "message": "no"}}])
    model = ("-m", "fake/script?file=replies.jsonl&by=match", "-c", "10", "--backoff", "1000")
    with started(tmp_path, "a.jsonl", *model, "--progress", "json", "--progress-interval", "0.02") as process:
        assert process.stderr is not None
        while not (line := json.loads(process.stderr.readline()))["waiting"]:
            pass
    count, words = line["waiting"].split(" ", 1)
    assert words == "waiting to be tried again"
    assert 2 <= int(count) <= 30
