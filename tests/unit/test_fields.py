"""Classes of fields: made as their fields say, and equal, hashed and shown by them."""

from __future__ import annotations

import dataclasses
from dataclasses import field, replace

import pytest

from batchllm.fields import frozen, mutable


@frozen
class Place:
    line: int
    name: str = "a"
    marks: list[int] = field(default_factory=list)


@frozen
class Named(Place):
    key: str = field(default="secret", repr=False)


@mutable
class Count:
    n: int = 0

    def __post_init__(self) -> None:
        self.n += 1


def test_fields_are_taken_by_place_and_by_name_with_their_defaults() -> None:
    for _ in range(2):  # the first object is made another way than the second
        place = Place(3, name="b")
        assert (place.line, place.name, place.marks) == (3, "b", [])
        assert Place(3).marks is not Place(3).marks
    with pytest.raises(TypeError, match="line"):
        Place()
    with pytest.raises(TypeError, match="lines"):
        Place(1, lines=2)


def test_a_class_may_add_fields_to_another_s_and_either_may_be_the_first_that_is_made() -> None:
    named = Named(1, "c", key="k")

    assert (named.line, named.name, named.marks, named.key) == (1, "c", [], "k")
    assert [each.name for each in dataclasses.fields(named)] == ["line", "name", "marks", "key"]
    assert Place(1, "c") == Place(1, "c") != named


def test_they_are_equal_hashed_and_shown_by_their_fields() -> None:
    assert Place(1) != Place(2)
    assert hash(Place(1, marks=())) == hash(Place(1, marks=()))
    assert repr(Named(1)) == "Named(line=1, name='a', marks=[])"
    assert replace(Place(1), name="z") == Place(1, "z")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Count())
    with pytest.raises(AttributeError):
        Place(1).other = 1


def test_what_comes_after_the_fields_is_done_for_each_object() -> None:
    assert [Count(1).n, Count().n] == [2, 1]
