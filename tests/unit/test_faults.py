"""A mix of faults selects what it says, in the shares it says, and refuses what it doesn't know."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.errors import ConfigError
from batchllm.faults import FAULTS, FaultMix


def test_parsing_keeps_names_shares_and_order() -> None:
    mix = FaultMix.parse(" 429:0.04, drop:.01 ,500:0.03,")
    assert mix.shares == (("429", 0.04), ("drop", 0.01), ("500", 0.03))


def test_a_name_given_twice_counts_with_both_shares() -> None:
    assert FaultMix.parse("500:0.25,500:0.5").shares == (("500", 0.75),)


def test_the_empty_text_is_a_mix_without_faults() -> None:
    assert FaultMix.parse("") == FaultMix() == FaultMix.spread(0)
    assert FaultMix().pick(0.0) is None


def test_a_draw_selects_by_its_place_among_the_shares() -> None:
    mix = FaultMix.parse("429:0.25,500:0.5")
    picked = [mix.pick(draw) for draw in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.999)]
    assert picked == ["429", "429", "500", "500", None, None]


def test_the_whole_share_selects_on_every_draw() -> None:
    mix = FaultMix.parse("hang:1")
    assert {mix.pick(n / 1000) for n in range(1000)} == {"hang"}


def test_spread_keeps_its_proportions_and_its_total() -> None:
    shares = dict(FaultMix.spread(0.15).shares)
    parts = {"429": 4, "500": 3, "503": 2, "502": 1, "drop": 1.5, "truncate": 1, "html": 1, "hang": 0.5}
    assert math.isclose(sum(shares.values()), 0.15)
    assert all(math.isclose(shares[name], part / 100) for name, part in parts.items())
    assert set(shares) == {*parts, "empty"}


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="no share"):
        FaultMix.spread(rate)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        FaultMix.from_mapping({"429": 0.1, "teapot": 0.1})
    assert "teapot" in caught.value.message
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in FAULTS)


@pytest.mark.parametrize("text", ["429", "429:", "429:x", "429:-0.1", "429:1.5", "429:nan"])
def test_a_share_that_is_none_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FaultMix.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("share", [True, "0.1", None, [0.1]])
def test_a_mapping_takes_numbers_only(share: object) -> None:
    with pytest.raises(ConfigError):
        FaultMix.from_mapping({"500": share})


def test_shares_beyond_the_whole_are_refused() -> None:
    with pytest.raises(ConfigError, match="add up to"):
        FaultMix.parse("429:0.6,500:0.6")


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from(sorted(FAULTS)), st.floats(0, 1 / len(FAULTS))))
def test_evenly_spaced_draws_meet_each_fault_in_its_share(shares: dict[str, float]) -> None:
    mix = FaultMix.from_mapping(dict(shares))
    picked = [mix.pick(n / 500) for n in range(500)]
    for name, share in shares.items():
        assert abs(picked.count(name) - 500 * share) <= 1
