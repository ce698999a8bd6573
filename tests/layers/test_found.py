"""Limits used to the full and not broken, on a virtual clock: told, told by the service, or found.

The long proof over sockets is `make limits`; the figures asked for here are the same or stricter.
"""

from __future__ import annotations

import random

import pytest

from batchllm.errors import CallError, Disconnected, Overloaded, RateLimited, Stalled, TimedOut
from batchllm.model import Standing
from tests.limited import Crowd, Service

SIZES = (20, 50, 100, 400, 1000, 2000)


def sizes(draw: random.Random) -> int:
    return draw.choice(SIZES)


def test_a_limit_that_is_told_is_used_to_97_per_cent_without_a_refusal() -> None:
    crowd = Crowd(service := Service({"requests": 600}), {"requests": 600}).run()
    assert service.share(600, 0, crowd.seconds) >= 0.97
    assert service.refused == []


def test_a_limit_in_tokens_that_is_told_is_used_as_well_by_records_of_all_sizes() -> None:
    crowd = Crowd(service := Service({"tokens": 20_000}), {"tokens": 20_000}, sizes=sizes).run()
    assert service.share(20_000, 0, crowd.seconds, tokens=True) >= 0.97
    assert service.refused == []


@pytest.mark.parametrize(("tells", "refused"), [("headers", 0.0), ("words", 0.02)])
@pytest.mark.parametrize("concurrency", [20, 200])
def test_a_limit_that_the_service_tells_is_used_after_30_s_and_hardly_a_call_refused(
    tells: str, refused: float, concurrency: int
) -> None:
    crowd = Crowd(service := Service({"requests": 600}, tells=tells), concurrency=concurrency).run()
    assert service.share(600, 30, crowd.seconds) >= 0.97
    assert service.share_refused <= refused


@pytest.mark.parametrize(("tells", "refused"), [("headers", 0.01), ("words", 0.05)])
def test_a_limit_in_tokens_that_the_service_tells_is_used_too(tells: str, refused: float) -> None:
    crowd = Crowd(service := Service({"tokens": 20_000}, tells=tells), sizes=sizes).run()
    assert service.share(20_000, 30, crowd.seconds, tokens=True) >= 0.95
    assert service.share_refused <= refused


@pytest.mark.parametrize(
    ("rpm", "latency", "waits", "share", "refused"),
    [
        (600, 0.1, True, 0.95, 0.02),
        (600, 0.1, False, 0.95, 0.02),
        (600, 2.0, True, 0.95, 0.02),
        (6000, 0.1, True, 0.95, 0.02),
        (60, 0.1, True, 0.90, 0.05),
    ],
)
def test_a_limit_that_nobody_tells_is_found_from_its_refusals(
    rpm: int, latency: float, waits: bool, share: float, refused: float
) -> None:
    crowd = Crowd(service := Service({"requests": rpm}, latency, waits=waits), concurrency=50).run()
    assert service.share(rpm, 30, crowd.seconds) >= share
    assert service.share_refused <= refused


def test_a_limit_is_found_again_when_it_is_raised_or_lowered() -> None:
    raised, lowered = Service({"requests": 600}), Service({"requests": 600})
    Crowd(raised, at={60: lambda crowd: raised.change({"requests": 3000}, 60.0)}).run()
    Crowd(lowered, at={60: lambda crowd: lowered.change({"requests": 150}, 60.0)}).run()
    assert raised.share(3000, 120, 180) >= 0.8
    assert 0.9 <= lowered.share(150, 90, 180) <= 1.6
    assert max(raised.share_refused, lowered.share_refused) <= 0.05


def test_the_users_own_limit_stays_the_ceiling_of_what_the_service_tells() -> None:
    service = Service({"requests": 6000}, tells="headers")
    crowd = Crowd(service, {"requests": 600}, seconds=60).run()
    assert service.share(600, 0, 60) <= 1.01
    assert crowd.limiter.limits()["requests"] == 600


def test_an_account_that_others_use_too_is_shared_without_a_storm() -> None:
    """The headers tell that less and less remains; the run follows before it is refused."""
    service = Service({"requests": 600}, tells="headers", window=60)
    others = {5.0 + n / 5: lambda crowd: service.used_by_others() for n in range(600)}
    Crowd(service, at=others, seconds=120).run()
    assert service.share_refused <= 0.05
    assert service.share(600, 60, 120) >= 0.35


def test_a_small_bucket_that_is_honestly_empty_after_each_call_is_used_all_the_same() -> None:
    """A service that tells limit 120, remaining 0, reset 0.5 s with each answer."""

    class Small(Service):
        def _told(self, now: float) -> tuple[Standing, ...]:
            return (Standing("requests", 120.0, 0.0, 0.5),)

    service = Small({"requests": 120}, tells="headers")
    Crowd(service, seconds=60).run()
    assert service.share(120, 5, 60) >= 0.8  # the reset is counted from when the answer comes
    assert service.share_refused <= 0.05


def test_what_was_used_up_is_back_at_its_reset_even_if_nobody_says_so() -> None:
    class Once(Service):
        def _told(self, now: float) -> tuple[Standing, ...]:
            return (Standing("requests", 60.0, 0.0, 20.0),) if now < 1 else ()

    service = Once(tells="headers")
    Crowd(service, seconds=60).run()
    assert service.share(60, 22, 60) >= 0.9


def test_a_service_that_allows_next_to_nothing_stops_the_run_after_max_stall() -> None:
    class Stingy(Service):
        def _told(self, now: float) -> tuple[Standing, ...]:
            return (Standing("tokens", 2.0, 0.0, 60.0),)

    crowd = Crowd(Stingy(tells="headers"), seconds=4000, max_stall=300).run()
    assert isinstance(crowd.stop.reason, Stalled)
    assert "tokens a minute" in crowd.stop.reason.message


@pytest.mark.parametrize("share", [0.02, 0.04, 0.1])
def test_refusals_that_have_nothing_to_do_with_the_rate_do_not_throttle_the_run(share: float) -> None:
    draw = random.Random(5)

    def failing(call: int, now: float) -> CallError | None:
        return RateLimited("busy", retry_after=0.2) if draw.random() < share else None

    service = Service(failing=failing)
    Crowd(service, concurrency=100, seconds=60).run()
    assert len(service.admitted) / 60 >= 200  # of 1,000 without any


def test_slow_down_halves_the_rate_and_holds_it_for_a_quarter_of_an_hour() -> None:
    def failing(call: int, now: float) -> CallError | None:
        if call != 150:
            return None
        error = RateLimited("slow down", status=503, retry_after=1.0)
        error.cause = "slow_down"
        return error

    service = Service(latency=0.4, failing=failing)
    Crowd(service, concurrency=1, seconds=2400).run()
    before, after = service.share(150, 5, 55), service.share(150, 120, 900)
    assert before == pytest.approx(1.0, abs=0.05)
    assert after == pytest.approx(0.5, abs=0.05)
    assert service.share(150, 2000, 2400) > 0.8


def test_a_service_that_is_down_is_probed_and_not_hammered_and_costs_no_record() -> None:
    def failing(call: int, now: float) -> CallError | None:
        return Overloaded("502", status=502) if 30 <= now < 330 else None

    crowd = Crowd(service := Service(latency=0.4, failing=failing), concurrency=50, seconds=400).run()
    probes = [at for at in service.calls if 32 <= at < 330]
    assert 10 <= len(probes) <= 40
    assert len(crowd.failed) <= 2 * 60  # all 60 askers wait, and once more when nobody is left to probe
    assert service.share(7500, 350, 400) >= 0.95


def test_a_service_that_stays_down_stops_the_run_after_max_stall_and_no_record_is_lost() -> None:
    def failing(call: int, now: float) -> CallError | None:
        return Disconnected("refused") if now >= 30 else None

    crowd = Crowd(Service(latency=0.4, failing=failing), concurrency=50, seconds=4000).run()
    assert isinstance(crowd.stop.reason, Stalled)
    assert crowd.stop.reason.message.startswith("nothing has succeeded for 9")
    assert len([error for error in crowd.failed if isinstance(error, CallError)]) <= 4 * 60


def test_a_service_that_never_answered_is_no_reason_to_wait() -> None:
    crowd = Crowd(Service(failing=lambda call, now: Disconnected("refused")), concurrency=5, seconds=1).run()
    assert len(crowd.failed) > 100
    assert crowd.waits is None


def test_records_whose_own_time_is_over_say_nothing_of_the_service() -> None:
    def failing(call: int, now: float) -> CallError | None:
        return TimedOut("too slow") if now >= 10 else None

    crowd = Crowd(Service(failing=failing), concurrency=20, seconds=12, own_time=0.0).run()
    assert len(crowd.failed) > 200
    assert crowd.waits is None


def test_a_few_failures_among_answers_are_nobody_elses_business() -> None:
    draw = random.Random(2)

    def failing(call: int, now: float) -> CallError | None:
        return Overloaded("500", status=500) if draw.random() < 0.3 else None

    service = Service(failing=failing)
    crowd = Crowd(service, concurrency=20, seconds=30).run()
    assert crowd.answered / 30 >= 0.95 * 200
    assert crowd.waits is None


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_auto_settles_near_the_knee_of_a_server_that_queues(jitter: float) -> None:
    service = Service(latency=0.2, jitter=jitter, knee=64)
    crowd = Crowd(service, concurrency=None, seconds=80).run()
    windows = [window for at, window in crowd.windows if at >= 20]
    assert 48 <= min(windows) <= max(windows) <= 96
    done = sorted(seconds for at, seconds in service.took if 20 <= at < 80)
    assert len(done) / 60 >= 0.95 * 64 / 0.2
    assert sum(done) / len(done) <= 1.2 * 0.2


@pytest.mark.parametrize("jitter", [0.0, 0.9])
def test_auto_reaches_the_ceiling_where_there_is_no_knee(jitter: float) -> None:
    crowd = Crowd(Service(latency=0.5, jitter=jitter), concurrency=None, seconds=40).run()
    assert crowd.windows[-1][1] == crowd.ceiling


def test_auto_does_not_grow_a_window_that_a_limit_leaves_unused() -> None:
    crowd = Crowd(Service(latency=0.5), {"requests": 600}, concurrency=None, seconds=60).run()
    assert crowd.windows[-1][1] <= 32


def test_auto_cuts_once_an_episode_of_pressure_and_comes_back() -> None:
    def failing(call: int, now: float) -> CallError | None:
        return Overloaded("busy", status=503) if 30 <= now < 30.2 else None

    crowd = Crowd(Service(latency=0.5, failing=failing), concurrency=None, seconds=60).run()
    before = next(window for at, window in crowd.windows if at >= 29.5)
    after = min(window for at, window in crowd.windows if 30 <= at < 33)
    assert after == int(0.7 * before)
    assert crowd.windows[-1][1] > after


def test_longer_answers_are_not_taken_for_a_queue() -> None:
    service = Service(latency=0.2)
    longer = {20: lambda crowd: setattr(service, "latency", 0.6)}
    crowd = Crowd(service, concurrency=None, seconds=60, at=longer).run()
    assert crowd.windows[-1][1] == crowd.ceiling


def test_held_by_ctl_nobody_goes_out_and_the_time_is_no_stall() -> None:
    service = Service()
    Crowd(
        service,
        seconds=1510,
        max_stall=100,
        at={10: lambda crowd: crowd.gate.hold(), 1500: lambda crowd: crowd.gate.go_on()},
    ).run()
    assert [at for at in service.calls if 10.2 <= at < 1500] == []
    assert [at for at in service.calls if at >= 1500]


def test_another_limit_or_window_holds_at_once() -> None:
    service = Service()
    Crowd(
        service,
        {"requests": 1},
        seconds=60,
        at={
            20: lambda crowd: crowd.limiter.retune({"requests": 600}),
            40: lambda crowd: (crowd.limiter.retune({"requests": None}), crowd.gate.retune(2)),
        },
    ).run()
    assert len([at for at in service.calls if at < 20]) == 1
    assert service.share(600, 20, 40) == pytest.approx(1.0, abs=0.05)
    assert service.share(1200, 41, 60) == pytest.approx(1.0, abs=0.05)  # 2 at a time, 0.1 s each
