"""What a check of the user's own may say, and what each of it comes to."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from batchllm.errors import ConfigError, Internal
from batchllm.schema.checking import Check


def complaints(function: Any, record: dict[str, Any] | None = None) -> tuple[str, ...]:
    return tuple(anyio.run(Check(function, "m:f", 0.05), 1, record))


def raising(error: BaseException) -> Any:
    def check(value: Any) -> None:
        raise error

    return check


@pytest.mark.parametrize("verdict", [None, True, "", [], ["", " "]])
def test_nothing_to_say_is_no_complaint(verdict: Any) -> None:
    assert complaints(lambda value: verdict) == ()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (False, ("the check said no",)),
        ("too\nlong", ("too long",)),
        (["a", "", "b"], ("a", "b")),
        (["x"] * 7, ("x", "x", "x", "x", "x", "and 2 more")),
        ("y" * 600, ("y" * 500 + "…",)),
    ],
)
def test_what_it_says_is_a_list_of_short_lines(verdict: Any, said: tuple[str, ...]) -> None:
    assert complaints(lambda value: verdict) == said


def test_value_and_assertion_errors_are_complaints() -> None:
    assert complaints(raising(ValueError("no such\nproduct"))) == ("no such product",)
    assert complaints(raising(AssertionError())) == ("the check said no",)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (raising(KeyError("x")), "KeyError"),
        (raising(SystemExit(1)), "SystemExit"),
        (raising(GeneratorExit()), "GeneratorExit"),
        (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
        (lambda v: 3, "TypeError"),
    ],
)
def test_a_check_that_fails_is_internal(function: Any, cause: str) -> None:
    with pytest.raises(Internal, match="the check m:f") as caught:
        complaints(function)
    assert caught.value.cause == cause


def test_it_sees_the_record_if_it_takes_two_and_may_be_async() -> None:
    async def check(value: Any, record: dict[str, Any]) -> str:
        await anyio.lowlevel.checkpoint()
        return f"{value} is not {record['n']}"

    assert Check(check, "m:f", 1).wants_record
    assert complaints(check, {"n": 2}) == ("1 is not 2",)
    assert not Check(len, "m:f", 1).wants_record


def test_half_a_surrogate_pair_in_what_it_says_is_a_replacement_character() -> None:
    assert complaints(raising(ValueError("bad \ud800 char"))) == ("bad \ufffd char",)
    assert complaints(lambda value: ["no \udfff", "a pair: \ud83d\ude00"]) == ("no \ufffd", "a pair: 😀")
    with pytest.raises(Internal, match="bad \ufffd"):
        complaints(raising(RuntimeError("bad \ud800")))


def test_what_it_changes_is_a_copy_of_its_own() -> None:
    def check(value: Any, record: dict[str, Any]) -> None:
        value["a"].clear()
        record["tags"].append("seen")

    value, record = {"a": [10**30, None, 1.5, "\ud800"]}, {"tags": []}
    anyio.run(Check(check, "m:f", 1), value, record)
    assert (value, record) == ({"a": [10**30, None, 1.5, "\ud800"]}, {"tags": []})


def test_one_that_never_comes_back_is_given_up() -> None:
    async def check(value: Any) -> None:
        await anyio.sleep_forever()

    with pytest.raises(Internal, match=r"within 0\.05 s"):
        complaints(check)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="m:f is no function"):
        Check(3, "m:f", 1)
