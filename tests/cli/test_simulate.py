"""`batchllm simulate` over real sockets: what clients get, what it counts, and how it starts and ends."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.running import refusal
from tests.serving import ROOT, Simulated, simulated

HTML = b"<!DOCTYPE html>"


@pytest.fixture(scope="module")
def plain() -> Iterator[Simulated]:
    with simulated() as server:
        yield server


def ask(server: Simulated, text: str, *, headers: dict[str, str] | None = None, **more: Any) -> Any:
    """One chat completion over a connection of its own: (status, headers, raw body)."""
    return post(server, "/chat/completions", text, headers=headers, **more)


def post(
    server: Simulated, path: str, text: str, *, headers: dict[str, str] | None = None, **more: Any
) -> Any:
    """One request with this question to any path under /v1."""
    body = json.dumps({"model": "any", "messages": [{"role": "user", "content": text}], **more})
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request("POST", f"/v1{path}", body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def kind(server: Simulated, text: str) -> str:
    """What became of one request, as a client sees it."""
    try:
        status, _, body = ask(server, text)
    except http.client.IncompleteRead:
        return "truncate"
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return "drop"
    if status != 200:
        return str(status)
    if body.startswith(HTML):
        return "html"
    parsed = json.loads(body)
    if "choices" not in parsed:
        return "shape"
    content = parsed["choices"][0]["message"]["content"]
    assert content in ("", f"echo: {text}")
    return "ok" if content else "empty"


def sent(server: Simulated) -> socket.socket:
    """A connection on which a request has been sent and nothing was read."""
    address = urlsplit(server.url)
    body = b'{"model":"any","messages":[{"role":"user","content":"x"}]}'
    connection = socket.create_connection((address.hostname, address.port or 0), timeout=30)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def wait_for(server: Simulated, *, in_flight: int) -> None:
    """Look at the server's counts until so many requests are in flight."""
    end = time.monotonic() + 30
    while server.stats()["in_flight"] != in_flight:
        assert time.monotonic() < end, f"never {in_flight} in flight"


def refused(*args: str) -> subprocess.CompletedProcess[str]:
    """The command with options that it must not start with."""
    command = [sys.executable, "-m", "batchllm", "simulate", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)


def test_an_answer_is_the_echo_of_its_question(plain: Simulated) -> None:
    status, headers, body = ask(plain, "where is my parcel? ✓")
    assert status == 200
    assert headers["x-request-id"]
    assert json.loads(body)["choices"][0]["message"]["content"] == "echo: where is my parcel? ✓"


def test_counts_hold_each_request_and_how_often_each_id_was_asked(plain: Simulated) -> None:
    plain.reset()
    for key in ("a", "b", "a"):
        ask(plain, "x", headers={"Idempotency-Key": key})
    ask(plain, "y")
    ask(plain, "y")
    ask(plain, "z", max_tokens="x")
    stats = plain.stats(ids=True)
    assert (stats["requests"], stats["ok"], stats["statuses"]) == (6, 5, {"200": 5, "400": 1})
    assert (stats["in_flight"], stats["highest_in_flight"]) == (0, 1)
    assert (stats["ids"]["a"], stats["ids"]["b"], stats["asked_again"]) == (2, 1, 2)
    assert "ids" not in plain.stats()


def test_a_body_of_many_megabytes_is_answered_whole(plain: Simulated) -> None:
    text = "x" * 5_000_000
    _, _, body = ask(plain, text)
    assert json.loads(body)["choices"][0]["message"]["content"] == f"echo: {text}"


def test_a_rejected_parameter_is_told_as_openai_tells_it(plain: Simulated) -> None:
    status, _, body = ask(plain, "x", max_tokens="x")
    error = json.loads(body)["error"]
    assert (status, error["param"], error["code"]) == (400, "max_tokens", "invalid_type")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/health", 200),
        ("GET", "/v1/nothing", 404),
        ("GET", "/stats", 200),
    ],
)
def test_other_paths_answer_json(plain: Simulated, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(plain.url).netloc, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    assert answer.status == status
    assert json.load(answer)
    connection.close()


def test_a_wrong_key_is_refused_and_a_spent_quota_refuses_everything() -> None:
    with simulated("--api-key-env", "REHEARSAL_KEY", "--quota", "2", env={"REHEARSAL_KEY": "k"}) as server:
        right = {"Authorization": "Bearer k"}
        status, _, body = ask(server, "x", headers={"Authorization": "Bearer wrong"})
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert ask(server, "x")[0] == 401
        assert [ask(server, str(n), headers=right)[0] for n in range(4)] == [200, 200, 429, 429]
        error = json.loads(ask(server, "x", headers=right)[2])["error"]
        assert error["code"] == error["type"] == "insufficient_quota"


def test_more_than_the_limit_is_refused_with_the_time_to_wait() -> None:
    with simulated("--rpm", "1") as server:
        first, headers, _ = ask(server, "x")
        assert first == 200
        assert headers["x-ratelimit-limit-requests"] == "1"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        status, headers, body = ask(server, "x")
        assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(headers["retry-after-ms"]) <= 60_000
        assert 0 < int(headers["retry-after"]) <= 60
        assert server.stats()["limited"] == 1


def test_a_window_admits_its_part_of_the_minute_and_stats_tell_what_came_when() -> None:
    with simulated("--rpm", "60", "--window", "10") as server:
        assert Counter(ask(server, str(n))[0] for n in range(13)) == {200: 10, 429: 3}
        stats = server.stats(seconds=True)
        assert (stats["admitted"], stats["refused"], stats["refusals"]) == (10, 3, {"requests": 3})
        assert stats["highest_admitted"]["10"]["requests"] == 10
        assert stats["highest_admitted"]["10"]["tokens"] == stats["tokens_admitted"]
        assert sum(second["admitted"] for second in stats["seconds"]) == 10
        assert sum(second["refused"] for second in stats["seconds"]) == 3


def test_tokens_count_as_asked_for_at_openai_and_as_used_at_anthropic_s_endpoint() -> None:
    options = ("--output-tpm", "100", "--window", "60", "--headers", "anthropic")
    with simulated(*options) as server:
        for _ in range(2):
            status, headers, body = post(server, "/messages", "hello", max_tokens=90)
            assert (status, json.loads(body)["content"][0]["text"]) == (200, "echo: hello")
        assert headers["anthropic-ratelimit-output-tokens-remaining"] == "94"
        server.reset()
        assert [ask(server, "hello", max_tokens=90)[0] for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("service", "limits", "waits"),
    [
        ("openai", "x-ratelimit-limit-requests", {"retry-after", "retry-after-ms"}),
        ("anthropic", "anthropic-ratelimit-requests-limit", {"retry-after"}),
        ("azure", None, {"retry-after", "retry-after-ms"}),
        ("gemini", None, set[str]()),
    ],
)
def test_a_service_tells_limits_and_waits_in_its_own_headers(
    service: str, limits: str | None, waits: set[str]
) -> None:
    with simulated("--rpm", "1", "--service", service) as server:
        for status in (200, 429):
            got, headers, body = ask(server, "x")
            assert got == status
            assert [name for name in headers if name.endswith(("limit-requests", "requests-limit"))] == (
                [limits] if limits else []
            )
        assert {name for name in headers if name.startswith("retry-after")} == waits
        assert ("RetryInfo" in body.decode()) == (service == "gemini")


def test_a_refusal_tells_no_wait_where_it_must_not() -> None:
    with simulated("--rpm", "1", "--retry-after", "no", "--headers", "none") as server:
        ask(server, "x")
        status, headers, body = ask(server, "x")
        assert status == 429
        assert not [name for name in headers if "retry" in name.lower() or "ratelimit" in name.lower()]
        assert b"try again" not in body


def test_beyond_the_knee_requests_wait_in_line_and_beyond_the_line_they_are_refused() -> None:
    options = ("--knee", "1", "--latency-ms", "600000", "--queue-max", "1")
    with simulated(*options) as server, sent(server):
        wait_for(server, in_flight=1)
        with sent(server):
            wait_for(server, in_flight=2)
            status, _, body = ask(server, "x")
            assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
            stats = server.stats()
            assert (stats["highest_queued"], stats["refusals"]) == (1, {"queue": 1})


def test_a_spent_account_answers_again_once_it_is_renewed() -> None:
    with simulated("--quota", "1") as server:
        assert [ask(server, str(n))[0] for n in range(2)] == [200, 429]
        server.renew(2)
        assert [ask(server, str(n))[0] for n in range(3)] == [200, 200, 429]
        server.renew(None)
        assert [ask(server, str(n))[0] for n in range(3)] == [200, 200, 200]
        assert post(server, "/quota", "x")[0] == 400


def test_an_overload_asks_everyone_to_slow_down() -> None:
    with simulated("--overload", "0.002,0.0019999", "--service", "anthropic") as server:
        seen = Counter(ask(server, str(n))[0] for n in range(20))
        assert seen[529] > 0
        assert seen[200] > 0  # the first, before any episode
        assert server.stats()["refusals"] == {"overload": seen[529]}


def test_faults_come_in_their_kinds_and_a_seed_repeats_them(tmp_path: Path) -> None:
    shares = {"drop": 0.1, "truncate": 0.1, "html": 0.1, "empty": 0.1, "hang": 0.05, "shape": 0.1}
    shares |= {"429": 0.1, "500": 0.05, "502": 0.05, "503": 0.05, "402": 0.05}
    mix = tmp_path / "faults.toml"
    mix.write_text("".join(f'"{name}" = {share}\n' for name, share in shares.items()))
    with simulated("--faults", str(mix), "--seed", "3", "--hang-s", "0.01", "--retry-after", "0.5") as server:
        first = {f"question {n}": kind(server, f"question {n}") for n in range(150)}
        faults = Counter(server.stats()["faults"])
        seen = Counter(first.values())
        seen.pop("ok")
        assert seen == faults - Counter(hang=faults["hang"])
        assert set(faults) == set(shares)
        server.reset()
        again = {text: kind(server, text) for text in reversed(first)}
        assert again == first


def test_another_try_of_the_same_question_gets_another_draw() -> None:
    with simulated("--faults", "500:0.5") as server:
        assert {kind(server, "the same") for _ in range(40)} == {"ok", "500"}


def test_it_ends_at_once_with_a_request_still_hanging() -> None:
    with simulated("--faults", "hang:1", "--hang-s", "600") as server, sent(server):
        wait_for(server, in_flight=1)
        assert server.stop() == 0


def test_a_client_that_goes_away_is_counted_and_frees_its_place() -> None:
    with simulated("--latency-ms", "600000") as server:
        with sent(server):
            wait_for(server, in_flight=1)
        wait_for(server, in_flight=0)
        assert server.stats()["abandoned"] == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--host", "0.0.0.0"), "127.0.0.1"),
        (("--faults", "teapot:0.1"), "known faults"),
        (("--faults", "no-such-file.json"), "no-such-file.json"),
        (("--faults", "429:0.1", "--error-rate", "0.1"), "exclude"),
        (("--api-key-env", "NO_SUCH_VARIABLE_HERE"), "NO_SUCH_VARIABLE_HERE"),
        (("--knee", "4"), "--latency-ms"),
        (("--queue-max", "4"), "--knee"),
        (("--overload", "5,10"), "60,5"),
        (("--retry-after", "soon"), "yes, no, text"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_hint(
    tmp_path: Path, plain: Simulated, args: tuple[str, ...], says: str
) -> None:
    taken = str(urlsplit(plain.url).port)  # so that it would not start in any case
    told = refusal(tmp_path, "--port", taken, *args, verb="simulate")
    assert says in told.error + told.hint


def test_a_port_in_use_is_exit_2(plain: Simulated) -> None:
    result = refused("--port", str(urlsplit(plain.url).port))
    assert result.returncode == 2
    assert "--port 0" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_without_its_extra_it_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from batchllm.errors import ConfigError\n"
        "try: import batchllm.simulate.server\n"
        "except ConfigError as error: print(error.hint)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert result.stdout == "pip install 'batchllm-cli[simulate]'\n"
