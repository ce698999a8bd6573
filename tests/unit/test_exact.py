"""JSON with integers of any size: read as it stands, and the same bytes for the same value."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from batchllm import exact
from batchllm.expected import fits

LARGE = 2**70
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_what_is_written_is_read_as_it_was(value: object) -> None:
    assert exact.loads(exact.dumps(value)) == value == json.loads(exact.dumps(value))


@given(values, values)
def test_keys_are_equal_where_values_are(one: object, other: object) -> None:
    turned = dict(reversed(one.items())) if isinstance(one, dict) else one
    assert exact.ordered(one) == exact.ordered(turned)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (exact.ordered(one) == exact.ordered(other)) == same


def test_half_a_surrogate_pair_is_kept() -> None:
    assert json.loads(exact.dumps({"a": "half \ud800"})) == {"a": "half \ud800"}


def test_a_large_number_in_a_text_is_compared_exactly() -> None:
    assert fits(str(LARGE + 1), LARGE + 1)
    assert not fits(str(LARGE), LARGE + 1)
