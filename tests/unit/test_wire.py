"""Which files a run uses, which provider a name means, and what is refused before either is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchllm.errors import ConfigError
from batchllm.job import Job, Loaded
from batchllm.wire import provider_of
from batchllm.wire.places import places

NO_KEYS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()


def job(*inputs: str, **more: Any) -> Job:
    return Job(input=inputs, param={}, **more)


@pytest.mark.parametrize(
    ("given", "output", "dead"),
    [
        (job("a.jsonl"), "a.out.jsonl", "a.dead.jsonl"),
        (job("sub/a.jsonl.gz"), "sub/a.out.jsonl", "sub/a.dead.jsonl"),
        (job("a.b.NDJSON"), "a.b.out.jsonl", "a.b.dead.jsonl"),
        (job("tickets"), "tickets.out.jsonl", "tickets.dead.jsonl"),
        (job("a.jsonl", "b.jsonl"), "a.out.jsonl", "a.dead.jsonl"),
        (job("a.jsonl", output="sub/o.jsonl"), "sub/o.jsonl", "sub/o.dead.jsonl"),
        (job("a.jsonl", output="sub/o.txt"), "sub/o.txt", "sub/o.txt.dead.jsonl"),
        (job("a.jsonl", output="o.jsonl", dead_letter="sub/d.jsonl"), "o.jsonl", "sub/d.jsonl"),
        (job("-"), "-", "stdin.dead.jsonl"),
        (job("-", output="o.jsonl"), "o.jsonl", "o.dead.jsonl"),
        (job("sub/a.jsonl", output="-"), "-", "sub/a.dead.jsonl"),
    ],
)
def test_names_follow_from_the_first_input_and_from_the_output(given: Job, output: str, dead: str) -> None:
    found = places(given)

    assert (found.output, found.dead_letter) == (output, dead)
    assert found.on_stdout == (output == "-")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (job("a.jsonl", output="o.jsonl.gz"), "can't be resumed"),
        (job("a.jsonl", dead_letter="d.jsonl.zst"), "can't be resumed"),
        (job("a.jsonl", output="sub"), "the output sub is a directory"),
        (job("a.jsonl", dead_letter="."), "the dead-letter file . is a directory"),
        (job("a.jsonl", output="no/o.jsonl"), "the folder of the output does not exist: no"),
        (job("a.jsonl", dead_letter="no/d.jsonl"), "the folder of the dead-letter file does not exist: no"),
        (job("a.jsonl", dead_letter="-"), "can't go to stdout"),
        (job("a.jsonl", output="sub/../a.jsonl"), "both input and output"),
        (job("a.jsonl", dead_letter="a.jsonl"), "both input and dead-letter file"),
        (job("a.jsonl", output="x", dead_letter="./x"), "both output and dead-letter file"),
        (job("a.jsonl", "sub/../a.jsonl"), "is input, twice"),
        (job("-", "-"), "stdin"),
        (job("caf\udce9.jsonl"), "caf\\udce9.jsonl is not UTF-8"),
    ],
)
def test_files_that_can_not_be_or_are_one_are_refused_with_a_hint(given: Job, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        places(given)

    assert message in caught.value.message
    assert caught.value.hint


def test_a_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "a.jsonl")

    for output in ("link.jsonl", "hard.jsonl"):
        with pytest.raises(ConfigError, match="both input and output"):
            places(job("a.jsonl", output=output))


def chosen(environ: dict[str, str] = NO_KEYS, *, terminal: bool = False, **given: Any) -> Any:
    return provider_of(Loaded(Job(param={}, **given), {"model": "--model"}), environ, terminal=terminal)


def test_key_and_address_come_from_the_variables_of_the_provider_unless_others_are_named() -> None:
    environ = {"OPENAI_API_KEY": " k1\n", "MINE": "k2", "OPENAI_BASE_URL": "http://theirs/v1"}

    plain = chosen(environ, model="openai/a/b:c")
    other = chosen(environ, model="openai/x", api_key_env="MINE", base_url="http://mine/v1")
    keyless = chosen(model="openai/x", base_url="http://mine/v1")

    assert (plain.model, plain.spec.model) == ("openai/a/b:c", "a/b:c")
    assert (plain.spec.key, plain.spec.base_url) == ("k1", "http://theirs/v1")
    assert (other.spec.key, other.spec.base_url) == ("k2", "http://mine/v1")
    assert keyless.spec.key is None
    assert (keyless.spec.http, chosen(model="fake/echo", http="stock").spec.http) == ("own", "stock")


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"model": "opnai/gpt"}, "--model: no provider 'opnai' in 'opnai/gpt'", "did you mean openai/"),
        ({"model": "gpt-4o-mini"}, "no provider 'gpt-4o-mini'", "openai/gpt-4o-mini"),
        ({"model": "openai"}, "'openai'", "write it as openai/gpt-4o-mini"),
        ({"model": "openai/"}, "'openai'", "write it as openai/gpt-4o-mini"),
        ({"model": "openai/gpt-4o-mini"}, "OPENAI_API_KEY is not set", "export OPENAI_API_KEY=…"),
        ({"model": "openai/x", "api_key_env": "NONE"}, "the variable NONE that", "export NONE=…"),
        ({}, "no model was named", "BATCHLLM_MODEL"),
    ],
)  # fmt: skip
def test_a_provider_that_can_not_be_is_refused_with_what_to_write(
    given: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(**given)

    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
