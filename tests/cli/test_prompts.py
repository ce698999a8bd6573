"""Prompts over real runs: examples, chats, messages and models of records, images as a server gets them."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.running import ECHO, Ran, names, refusal, rows, run, tickets, together, write

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
FUNCTION = """
import json

def messages(messages):
    return json.dumps(messages)
"""


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint on 127.0.0.1 that answers "ok" as the model asked for: its address, and what it got."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append(body)
            unknown = body["model"] == "unknown"
            message = {"role": "assistant", "content": "ok"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            answer: dict[str, Any] = {"object": "chat.completion", "model": body["model"], "choices": choices}
            if unknown:
                answer = {
                    "error": {"message": "The model `unknown` does not exist", "code": "model_not_found"}
                }
            content = json.dumps(answer).encode()
            self.send_response(404 if unknown else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_images_reach_the_server_as_parts_and_bad_ones_are_dead_letters(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(PNG)
    (tmp_path / "photos" / "notes.png").write_text("no image")
    (tmp_path / "secret.png").write_bytes(PNG)
    records = [
        {"id": "file", "pic": "cat.jpg"}, {"id": "url", "pic": "https://x.test/a.png"}, {"id": "none"},
        {"id": "text", "pic": "notes.png"}, {"id": "out", "pic": "../secret.png"},
        {"id": "gone", "pic": "x.png"},
    ]  # fmt: skip
    write(tmp_path / "a.jsonl", records)
    given = ("-p", "What is {{ id }}?", "--image", "pic", "--image-root", "photos")
    with listening() as (url, bodies):
        ran = run(tmp_path, "a.jsonl", "-m", "openai/eyes", "--base-url", url, *given, "-c", "1")

    assert ran.code == 1, ran.stderr
    sent = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert [body["messages"][0]["content"] for body in bodies] == [
        [
            {"type": "text", "text": "What is file?"},
            {"type": "image_url", "image_url": {"url": sent}},
        ],
        [
            {"type": "text", "text": "What is url?"},
            {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        ],
        "What is none?",
    ]
    dead = {letter["id"]: letter["error"] for letter in ran.rows("a.dead.jsonl")}
    assert {error["kind"] for error in dead.values()} == {"bad_input"}
    assert {error["cause"] for error in dead.values()} == {"image"}
    assert "notes.png (in pic) is no PNG" in dead["text"]["message"]
    assert "../secret.png (in pic) leads out of photos" in dead["out"]["message"]
    assert "x.png (in pic) can't be read" in dead["gone"]["message"]


def test_each_record_may_name_its_model_and_parameters_and_the_output_tells_who_answered(
    tmp_path: Path,
) -> None:
    records = [
        {"id": "own", "text": "a"},
        {"id": "other", "text": "b", "llm": "openai/large", "ask": {"max_tokens": 5, "seed": 2}},
        {"id": "none", "text": "c", "llm": None, "ask": None},
        {"id": "modern", "text": "d", "llm": "o3", "ask": {"max_tokens": 7}},
        {"id": "unknown", "text": "e", "llm": "unknown"},
        {"id": "away", "text": "f", "llm": "anthropic/claude"},
        {"id": "wrong", "text": "g", "ask": "hot"},
        {"id": "last", "text": "h"},
    ]
    write(tmp_path / "a.jsonl", records)
    fields = ("--model-field", "llm", "--params-field", "ask", "--param", "seed=1")
    with listening() as (url, bodies):
        ran = run(tmp_path, "a.jsonl", "-m", "openai/small", "--base-url", url, *fields, "-c", "1")

    assert ran.code == 1, ran.stderr
    assert {row["id"]: row["model"] for row in ran.rows("a.out.jsonl")} == {
        "own": "small", "other": "large", "none": "small", "modern": "o3", "last": "small",
    }  # fmt: skip
    asked = {body["messages"][0]["content"]: body for body in bodies}
    assert [asked[text]["seed"] for text in "abc"] == [1, 2, 1]
    assert asked["b"]["max_tokens"] == 5
    assert asked["d"]["max_completion_tokens"] == 7
    dead = {letter["id"]: letter["error"] for letter in ran.rows("a.dead.jsonl")}
    assert {id: (error["kind"], error["cause"]) for id, error in dead.items()} == {
        "unknown": ("refused", "model_not_found"),
        "away": ("bad_input", "model"),
        "wrong": ("bad_input", "params"),
    }


def test_examples_and_chats_of_a_job_file_are_sent_and_the_same_file_resumes(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(FUNCTION)
    (tmp_path / "ask.txt").write_text("Sort: {{ text }}")
    write(tmp_path / "a.jsonl", [{"text": "hello"}])
    model = 'model = "python/./look.py:messages"\n'
    examples = '[[example]]\nrecord = {text = "win"}\nanswer = {label = "spam", score = 1}\n'
    examples += '[[example]]\nuser = "raw"\nanswer = "ham"\n'
    (tmp_path / "shots.toml").write_text(f'{model}prompt = "@ask.txt"\nsystem = "Be brief."\n{examples}')
    chat = '[[message]]\nrole = "system"\ncontent = "Be kind."\n'
    chat += '[[message]]\nrole = "user"\ncontent = "@ask.txt"\n'
    (tmp_path / "chat.toml").write_text(model + chat)

    def asked(name: str) -> Ran:
        return run(tmp_path, "a.jsonl", "-j", f"{name}.toml", "-o", f"{name}.jsonl")

    shots, whole = together(partial(asked, "shots"), partial(asked, "chat"))
    again = asked("shots")

    assert [shots.code, whole.code, again.code] == [0, 0, 0], shots.stderr + whole.stderr + again.stderr
    (shot,), (talk,) = shots.rows("shots.jsonl"), whole.rows("chat.jsonl")
    assert [(each["role"], each["content"]) for each in json.loads(shot["output"])] == [
        ("system", "Be brief."),
        ("user", "Sort: win"),
        ("assistant", '{"label":"spam","score":1}'),
        ("user", "raw"),
        ("assistant", "ham"),
        ("user", "Sort: hello"),
    ]
    assert [each["content"] for each in json.loads(talk["output"])] == ["Be kind.", "Sort: hello"]


def test_whole_messages_of_records_are_sent_and_broken_ones_are_dead_letters(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "from messages"}
    bad: list[Any] = [asked, {"role": "user", "content": 5}]
    write(
        tmp_path / "a.jsonl", [{"messages": [asked]}, {"messages": bad}, {"text": "from text"}, {"body": "x"}]
    )

    ran = run(tmp_path, "a.jsonl", *ECHO, "-s", "Be brief.")

    assert ran.code == 1, ran.stderr
    assert [row["output"] for row in ran.rows("a.out.jsonl")] == ["echo: from messages", "echo: from text"]
    first, second = [letter["error"] for letter in ran.rows("a.dead.jsonl")]
    assert (first["cause"], "messages[1].content is a number" in first["message"]) == ("messages", True)
    assert "no messages in 'messages' either" in second["message"]


WRONG: dict[str, tuple[tuple[str, ...], str, list[str]]] = {
    "an unknown key in an example": (
        (), '[[example]]\nuser = "a"\nanswer = "b"\n[[example]]\nuser = "a"\nanswr = "b"\n',
        ["job.toml line 1", "example 2: unknown key 'answr'"],
    ),
    "an example of nothing": ((), '[[example]]\nanswer = "b"\n', ["example 1", "record or user"]),
    "an example without a field": ((), '[[example]]\nrecord = {}\nanswer = "b"\n', ["example 1", "'text'"]),
    "a role that is none": ((), '[[message]]\nrole = "usr"\ncontent = "a"\n', ["message 1: role is one of"]),
    "a chat and a prompt": (
        ("-p", "x"), '[[message]]\nrole = "user"\ncontent = "a"\n',
        ["[[message]] (job.toml line 1)", "--prompt"],
    ),
    "a chat with a field that no record has": (
        (), '[[message]]\nrole = "user"\ncontent = "{{ txet }}"\n', ["'txet'"],
    ),
    "an image field that no record has": (("--image", "pic"), "", ["--image names 'pic'"]),
    "a folder that is none": (("--image", "text", "--image-root", "no"), "", ["no is no folder"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_prompt_is_named(case: str, tmp_path: Path) -> None:
    args, job, told = WRONG[case]
    write(tmp_path / "a.jsonl", tickets(3))
    (tmp_path / "job.toml").write_text(job)
    refused = refusal(tmp_path, "a.jsonl", "-j", "job.toml", *ECHO, *args)
    for words in told:
        assert words in refused.error
    assert refused.hint
    assert names(tmp_path) == {"a.jsonl", "job.toml"}


def test_a_job_file_found_by_itself_may_not_open_other_folders_to_images(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write(tmp_path / "a.jsonl", [{"text": "a", "pic": None}])
    (tmp_path / "batchllm.toml").write_text('image = ["pic"]\nimage_root = "photos"\n')
    inside = run(tmp_path, "a.jsonl", *ECHO)
    (tmp_path / "batchllm.toml").write_text('image = ["pic"]\nimage_root = "/"\n')
    outside = run(tmp_path, "a.jsonl", *ECHO)

    assert (inside.code, outside.code) == (0, 2), inside.stderr
    assert "batchllm.toml line 2" in outside.error
    assert len(rows(tmp_path / "a.out.jsonl")) == 1
