"""What images promise: the right content parts, and no file that isn't below the folder that was named."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchllm.errors import BadInput, ConfigError
from batchllm.job import Job
from batchllm.prompt import Prompt
from batchllm.prompt.images import LARGEST, Images, data_url, kind_of
from batchllm.wire.prompting import check_first

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
ASKED = [{"role": "system", "content": "Look."}, {"role": "user", "content": "What is it?"}]


def attached(root: Path, data: dict[str, Any], messages: Any = ASKED) -> list[dict[str, Any]]:
    return anyio.run(Images(["pic", "more"], str(root)).attach, messages, data)


def refused(root: Path, value: Any) -> str:
    with pytest.raises(BadInput) as caught:
        attached(root, {"pic": value})
    assert caught.value.cause == "image"
    return caught.value.message


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def png() -> str:
    return "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_images_follow_the_text_of_the_last_user_message(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    data = {"pic": ["a.png", "https://x.test/b.jpg"], "more": "DATA:image/gif;base64,R0lG"}
    system, asked = attached(tmp_path, data)
    assert system == ASKED[0]
    assert asked["content"] == [
        {"type": "text", "text": "What is it?"}, part(png()), part("https://x.test/b.jpg"),
        part("DATA:image/gif;base64,R0lG"),
    ]  # fmt: skip
    assert ASKED[1]["content"] == "What is it?", "what was given stays as it was"


def test_images_join_parts_that_are_there_and_need_a_user_message(tmp_path: Path) -> None:
    own = {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}]}
    answer = {"role": "assistant", "content": "b"}
    found = attached(tmp_path, {"pic": "http://x.test/"}, [own, answer])
    assert found == [{**own, "content": [*own["content"], part("http://x.test/")]}, answer]
    with pytest.raises(BadInput, match="no user message"):
        attached(tmp_path, {"pic": "http://x.test/"}, [answer])


@pytest.mark.parametrize("data", [{}, {"pic": None}, {"pic": []}, {"pic": "", "more": None}])
def test_a_record_without_an_image_is_asked_without_one(tmp_path: Path, data: dict[str, Any]) -> None:
    assert attached(tmp_path, data) is ASKED


def test_the_kind_is_told_by_the_first_bytes_not_the_name(tmp_path: Path) -> None:
    heads = [
        PNG,
        b"\xff\xd8\xff\xe0rest",
        b"GIF89arest",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"",
    ]
    assert [kind_of(head) for head in heads] == [
        "image/png", "image/jpeg", "image/gif", "image/webp", None, None,
    ]  # fmt: skip
    (tmp_path / "photo.png").write_bytes(heads[1])
    assert data_url("photo.png", str(tmp_path), "pic").startswith("data:image/jpeg;base64,")


def test_what_is_no_image_that_can_be_sent_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "big.png").open("wb") as file:
        file.write(PNG)
        file.truncate(LARGEST + 1)
    told = {
        "text.png": "the image text.png (in pic) is no PNG, JPEG, GIF or WebP image",
        "gone.png": "the image gone.png (in pic) can't be read: no such file or directory",
        "folder": "the image folder (in pic) is no file",
        "pipe": "the image pipe (in pic) is no file",
        "big.png": "the image big.png (in pic) has 20,971,521 bytes, more than 20 MiB",
        "s3://bucket/a.png": "is neither an http, https or data URL nor a path",
        "a\0b": "is no path",
        "\ud800": "half a character",
    }
    for name, message in told.items():
        assert message in refused(tmp_path, name)
    for value in (5, {"url": "a"}, ["a.png", None], [""]):
        assert "pic holds no image" in refused(tmp_path, value)


def test_no_path_leads_out_of_the_folder_by_dots_or_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "a.png").write_bytes(PNG)
    (root / "own.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "inside.png").symlink_to("own.png")
    for out in (
        "../secret.png", "sub/../../secret.png", str(tmp_path / "secret.png"), "link.png", "up/secret.png",
        "../root-too/a.png", "/etc/passwd",
    ):  # fmt: skip
        assert "leads out of" in refused(root, out), out
    for inside in ("own.png", "sub/../own.png", str(root / "own.png"), "inside.png", "up/root/own.png"):
        assert attached(root, {"pic": inside})[1]["content"][1] == part(png())
    (tmp_path / "alias").symlink_to(root)
    assert data_url("own.png", str(tmp_path / "alias"), "pic") == png(), "the folder may be a link itself"


def test_a_field_that_no_record_has_is_a_mistake_in_the_settings() -> None:
    job, prompt = Job(param={}, image=["pcture"]), Prompt("{{ q }}")
    check_first(job, prompt, [{"q": 1}, {"q": 2, "pcture": None}])
    with pytest.raises(ConfigError, match="--image names 'pcture', which none of the 1 records") as caught:
        check_first(job, prompt, [{"q": 1, "picture": "a.png"}])
    assert "did you mean 'picture'?" in (caught.value.hint or "")
