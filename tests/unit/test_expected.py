"""What an answer is compared with, where it stands, and when the two are equal."""

from __future__ import annotations

from typing import Any

import pytest

from batchllm.expected import NOTHING, Expectation, fits


@pytest.mark.parametrize(
    "text", ["label=output", "label = output", "a b=output.category", "x=output.items.0.n"]
)
def test_the_form_is_a_field_and_a_path_below_the_output(text: str) -> None:
    assert Expectation(text).field == text.split("=")[0].strip()


@pytest.mark.parametrize(
    "text",
    ["", "label", "=output", "label=", "label=category", "label=output.", "label=output..a", "a=outputs"],
)
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as label=output\.category"):
        Expectation(text)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("output.category", "x"),
        ("output.items.1.name", "b"),
        ("output.items.2.name", NOTHING),
        ("output.items.-1.name", NOTHING),
        ("output.items.name", NOTHING),
        ("output.items.99999999999999999999", NOTHING),
        ("output.category.x", NOTHING),
        ("output.years.2024", 5),
    ],
)
def test_a_path_goes_by_names_and_by_places_in_lists(path: str, found: Any) -> None:
    output = {"category": "x", "items": [{"name": "a"}, {"name": "b"}], "years": {"2024": 5}}
    assert Expectation(f"label={path}").answered(output) is found or found == "b"


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (" billing\n", "billing"),
        ("billing", " billing "),
        (3, 3.0),
        ({"a": [1, True, None]}, {"a": [1.0, True, None]}),
        (None, None),
        ("3", 3),
        (" true\n", True),
        ('{"a": 1}', {"a": 1}),
    ],
)
def test_equal_values_fit(answered: Any, expected: Any) -> None:
    assert fits(answered, expected)


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        ("Billing", "billing"),
        (1, True),
        (True, 1),
        (0, False),
        ("true", "True"),
        (3, "3"),
        ("three", 3),
        ([1, 2], [2, 1]),
        ([1], [1, 1]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": "x "}, {"a": "x"}),
        (NOTHING, None),
        (None, "null"),
        ([], {}),
    ],
)
def test_other_values_do_not_fit(answered: Any, expected: Any) -> None:
    assert not fits(answered, expected)


def test_values_of_any_depth_are_compared() -> None:
    one: list[Any] = []
    other: list[Any] = []
    for _ in range(100_000):
        one, other = [one], [other]
    assert fits(one, other)
    assert not fits(one, [other])
    while one and other:
        one, other = one[0], other[0]


def test_a_record_without_the_field_has_no_verdict() -> None:
    expectation = Expectation("label=output")
    assert expectation.verdict({"text": "x"}, "x") == {}
    assert expectation.verdict(None, "x") == {}
    assert expectation.verdict({"label": None}, "x") == {"expected": None, "correct": False}
    assert expectation.verdict({"label": "x"}, "x\n") == {"expected": "x", "correct": True}
