from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from batchllm.errors import ConfigError, LedgerFailed
from batchllm.quota import SharedLimits
from batchllm.quota.processes import Identity, lives, this_process
from batchllm.quota.slots import SlotFile
from tests.sharing import Admission, Clock, most, opened, saturated

ONE = (1.0, 0.0, 0.0, 0.0)
FAST = {"requests": 60_000.0}


def tokens(amount: float) -> tuple[float, ...]:
    return (1.0, amount, 0.0, 0.0)


def taken(limits: SharedLimits, now: float, need: tuple[float, ...] = ONE) -> int:
    """How many needs go at once."""
    count = 0
    while limits.take(need, now) == 0.0:
        count += 1
    return count


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A real process that runs `script` and speaks over its pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def gone() -> Identity:
    """A process that was here and has ended."""
    process = child("")
    process.communicate()
    me = this_process()
    return Identity(process.pid, "1", me.space, me.clock)


def spoil(path: Path, slots: tuple[int, ...]) -> None:
    with path.open("r+b") as file:
        for slot in slots:
            file.seek(4096 + slot * 65536 + 40)
            file.write(b"\xff" * 20)


def state(path: Path) -> bytes:
    """What the file says, read under its lock."""
    file = SlotFile(str(path))
    assert file.lock()
    found = file.read()
    file.close()
    assert found is not None
    return found


def newest(path: Path) -> int:
    data = path.read_bytes()
    numbers = [int.from_bytes(data[4096 + slot * 65536 :][:8], "little") for slot in (0, 1)]
    return numbers.index(max(numbers))


# ---- one bucket for all


def test_two_runs_draw_from_one_bucket(tmp_path: Path) -> None:
    clock = Clock()
    one, two = opened(tmp_path / "q", clock), opened(tmp_path / "q", clock)
    assert [one.take(ONE, clock.now) for _ in range(3)] == [0.0] * 3
    assert taken(two, clock.now) == 2
    assert one.take(ONE, clock.now) > 0
    one.close()
    two.close()


def test_other_models_and_accounts_have_buckets_of_their_own(tmp_path: Path) -> None:
    clock = Clock()
    one, other = opened(tmp_path / "q", clock), opened(tmp_path / "q", clock, model="n")
    assert taken(one, clock.now) == 5
    assert taken(other, clock.now) == 5
    one.close()
    other.close()


def test_a_run_is_held_to_its_own_dimensions_only(tmp_path: Path) -> None:
    clock = Clock()
    one = opened(tmp_path / "q", clock, {"tokens": 600.0})
    two = opened(tmp_path / "q", clock, {"requests": 600.0})
    assert one.take(tokens(5), clock.now) == 0.0
    assert one.take(tokens(5), clock.now) > 0
    assert taken(two, clock.now, tokens(5)) == 5
    one.close()
    two.close()


def test_all_dimensions_are_taken_together_or_none(tmp_path: Path) -> None:
    clock = Clock()
    limits = opened(tmp_path / "q", clock, {"requests": 600.0, "tokens": 600.0})
    assert limits.take(tokens(5), clock.now) == 0.0
    assert limits.take(tokens(1), clock.now) == pytest.approx(0.1)
    assert taken(limits, clock.now, tokens(0)) == 4  # no request was taken for what was refused
    limits.close()


def test_a_need_larger_than_the_bucket_leaves_a_debt_that_all_pay(tmp_path: Path) -> None:
    clock = Clock()
    one, two = (opened(tmp_path / "q", clock, {"tokens": 600.0}) for _ in range(2))
    assert one.take(tokens(25), clock.now) == 0.0
    assert two.take(tokens(1), clock.now) == 1.0  # told again each second
    assert two.take(tokens(1), clock.now + 2.05) == pytest.approx(0.05)
    assert two.take(tokens(1), clock.now + 2.11) == 0.0
    one.close()
    two.close()


def test_what_was_not_used_comes_back_and_what_was_used_beyond_goes(tmp_path: Path) -> None:
    clock = Clock()
    one, two = (opened(tmp_path / "q", clock, {"tokens": 600.0}) for _ in range(2))
    assert one.take(tokens(5), clock.now) == 0.0
    one.settle(tokens(5), tokens(1))  # told at once, being much
    assert two.take(tokens(4), clock.now) == 0.0
    two.settle(tokens(4), tokens(14))
    assert one.take(tokens(1), clock.now + 0.9) > 0
    assert one.take(tokens(1), clock.now + 1.2) == 0.0
    one.settle(tokens(1), tokens(0.9))  # little: told when it asks next
    one.settle(tokens(1), tokens(101))
    assert two.take(tokens(1), clock.now + 9.0) > 0
    one.close()
    two.close()


def test_jobs_that_follow_one_another_share_the_bucket_too(tmp_path: Path) -> None:
    clock = Clock()
    first = opened(tmp_path / "q", clock)
    assert taken(first, clock.now) == 5
    first.close()
    clock.now += 0.1
    second = opened(tmp_path / "q", clock)
    assert taken(second, clock.now) == 1
    second.close()


def test_a_run_that_leaves_gives_back_its_slice(tmp_path: Path) -> None:
    clock = Clock()
    one, two = opened(tmp_path / "q", clock, FAST), opened(tmp_path / "q", clock, FAST)
    assert one.take(ONE, clock.now) == 0.0
    one.close()
    one.close()
    assert taken(two, clock.now) == 499
    two.close()


# ---- slices and the line


def test_a_fast_run_asks_the_file_once_a_slice(tmp_path: Path) -> None:
    clock = Clock()
    limits = opened(tmp_path / "q", clock, FAST)
    assert limits.take(ONE, clock.now) == 0.0
    before = (tmp_path / "q").read_bytes()
    assert [limits.take(ONE, clock.now) for _ in range(49)] == [0.0] * 49
    assert (tmp_path / "q").read_bytes() == before
    assert limits.take(ONE, clock.now) == 0.0
    assert (tmp_path / "q").read_bytes() != before
    limits.close()


def test_an_unspent_slice_is_lost_after_half_a_second_and_its_room_free_again(tmp_path: Path) -> None:
    clock = Clock()
    one, two = opened(tmp_path / "q", clock, FAST), opened(tmp_path / "q", clock, FAST)
    assert one.take(ONE, clock.now) == 0.0
    assert two.take((500.0, 0.0, 0.0, 0.0), clock.now + 0.4) > 0  # 24 are with the other one
    assert two.take((476.0, 0.0, 0.0, 0.0), clock.now + 0.4) == 0.0
    late = clock.now + 2.0
    assert two.take(ONE, late) == 0.0
    assert one.take(ONE, late + 0.1) == 0.0  # from the file, not from what it had
    assert taken(two, late + 0.1) + taken(one, late + 0.1) <= 600
    one.close()
    two.close()


@pytest.mark.parametrize(("rpm", "seconds"), [(60.0, 60.0), (600.0, 60.0), (6_000.0, 15.0)])
def test_four_runs_together_keep_the_limit_use_it_and_share_it_fairly(
    tmp_path: Path, rpm: float, seconds: float
) -> None:
    rate = rpm / 60
    runs = [opened(tmp_path / "q", Clock(), {"requests": rpm}) for _ in range(4)]
    let = saturated(runs, seconds, lambda _: ONE)
    assert most(let, "requests", 10.0) <= rpm / 6 + max(1.0, 0.5 * rate)
    assert len(let) >= 0.93 * rate * seconds
    for run in range(4):
        assert sum(each.run == run for each in let) >= 0.2 * len(let)
    for each in runs:
        each.close()


def test_four_runs_share_tokens_whatever_the_sizes_of_their_records(tmp_path: Path) -> None:
    runs = [opened(tmp_path / "q", Clock(), {"tokens": 20_000.0}) for _ in range(4)]
    sizes = (50.0, 100.0, 300.0, 2000.0)
    let = saturated(runs, 180.0, lambda draw: tokens(draw.choice(sizes)))
    assert most(let, "tokens", 10.0) <= 20_000 / 6 + 2000  # one larger than the bucket goes alone
    assert sum(each.need[1] for each in let) >= 0.93 * 60_000
    for run in range(4):
        assert sum(each.run == run for each in let) >= 0.2 * len(let)
    for each in runs:
        each.close()


def test_a_run_that_always_comes_late_still_gets_its_turns(tmp_path: Path) -> None:
    runs = [opened(tmp_path / "q", Clock(), {"requests": 6_000.0}) for _ in range(4)]
    draw, now, late = random.Random(2), 1000.0, 0.4
    due = [now] * 4
    counts = [0] * 4
    while now < 1020.0:
        run = min(range(4), key=due.__getitem__)
        now = due[run]
        wait = runs[run].take(ONE, now)
        counts[run] += not wait
        due[run] = now + (wait + (late if run == 0 else 0.003) * draw.random() if wait else 1e-6)
    assert counts[0] >= 20  # one each time it comes, at least
    assert sum(counts) >= 0.93 * 2_000
    for each in runs:
        each.close()


def test_a_place_in_the_line_is_kept_for_a_second_after_its_time_and_no_longer(tmp_path: Path) -> None:
    clock = Clock()
    one, two = (opened(tmp_path / "q", clock, {"requests": 60.0}) for _ in range(2))
    assert taken(one, clock.now) == 1  # and it stands in the line now, for a second
    assert two.take(ONE, clock.now + 1.1) > 0
    assert two.take(ONE, clock.now + 2.1) == 0.0
    one.close()
    two.close()


# ---- who lives, and who disagrees


def test_a_differing_limit_is_refused_while_another_run_holds_it(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    one = opened(path, clock)
    with pytest.raises(ConfigError) as refused:
        opened(path, clock, {"requests": 300.0})
    assert refused.value.message == f"{path} holds requests at 600 a minute, this run asks 300"
    assert refused.value.hint is not None
    opened(path, clock, {"requests": 300.0}, model="n").close()
    opened(path, clock, {"tokens": 300.0}).close()
    one.close()
    other = opened(path, clock, {"requests": 300.0})
    assert other.take((3.0, 0.0, 0.0, 0.0), clock.now) == 0.0  # a bucket of 2.5: this is its debt
    assert other.take(ONE, clock.now) == pytest.approx(0.3)
    other.close()


def test_a_run_whose_process_has_ended_holds_nothing(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    dead = opened(path, clock, FAST, identity=gone())
    assert dead.take(ONE, clock.now) == 0.0
    alive = opened(path, clock, {"requests": 600.0})
    alive.close()
    dead.close()


def test_the_share_of_a_dead_process_is_back_within_five_seconds(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    dead, alive = opened(path, clock, identity=gone()), opened(path, clock)
    assert taken(dead, clock.now) == 5  # and it stands first in the line
    let = saturated([alive], 30.0, lambda _: ONE)
    assert sum(each.at < 1005.0 for each in let) >= 40
    assert sum(each.at >= 1005.0 for each in let) >= 0.97 * 250
    assert state(path).count(b'"pid"') == 1
    dead.close()
    alive.close()


def test_a_run_whose_process_cannot_be_looked_up_lives_as_long_as_it_is_seen(tmp_path: Path) -> None:
    clock, path, me = Clock(), tmp_path / "q", this_process()
    far = opened(path, clock, identity=Identity(me.pid, "1", "pid:[1]", me.clock))
    clock.now += 4.0
    with pytest.raises(ConfigError):
        opened(path, clock, {"requests": 300.0})
    clock.now += 2.0
    near = opened(path, clock, {"requests": 300.0})
    assert far.take(ONE, clock.now) == 0.0  # still there after all: it joins again, at the limit that stands
    assert far.take((5.0, 0.0, 0.0, 0.0), clock.now) == pytest.approx(0.2)
    far.close()
    near.close()


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    me = this_process()
    assert lives(me.pid, me.started)
    assert lives(me.pid, None)
    assert not lives(me.pid, "1")
    dead = gone()
    assert not lives(dead.pid, None)


# ---- the file


def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for content in (b"my notes\n", b"\0" * 200_000, b"batchllm quota 2\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is no quota file"):
            opened(path, Clock())
        assert path.read_bytes() == content
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong in (pipe, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is no quota file"):
            opened(wrong, Clock())


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "q"):
        with pytest.raises(ConfigError, match="can't open the quota file") as refused:
            opened(path, Clock())
        assert refused.value.hint is not None


def test_a_lock_that_is_held_costs_a_short_wait_and_never_blocks(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    limits = opened(path, clock)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waits = [limits.take(ONE, clock.now) for _ in range(10)]
        assert waits[0] == 0.0005
        assert waits == sorted(waits)
        assert waits[-1] == 0.016
        limits.settle((100.0, 0.0, 0.0, 0.0), ONE)
        with pytest.raises(ConfigError, match="has been locked for 2 s"):
            opened(path, clock)
    assert taken(limits, clock.now) == 5
    limits.close()


def test_a_torn_slot_falls_back_to_what_stood_before(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    limits = opened(path, clock)
    assert [limits.take(ONE, clock.now) for _ in range(3)] == [0.0] * 3
    spoil(path, (newest(path),))
    assert taken(limits, clock.now) == 3  # the third of those was never answered, had its process died there
    limits.close()


def test_a_file_that_is_torn_all_over_is_taken_for_empty_not_for_full(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    one, two = opened(path, clock), opened(path, clock)
    assert one.take(ONE, clock.now) == 0.0
    spoil(path, (0, 1))
    assert two.take(ONE, clock.now) == pytest.approx(0.1)
    assert opened(path, clock, model="n").take(ONE, clock.now) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="holds requests at 600"):
        opened(path, clock, {"requests": 300.0})
    clock.now += 1.0
    assert taken(two, clock.now) + taken(one, clock.now) == 5
    one.close()
    two.close()


def test_slices_that_a_torn_file_no_longer_knows_of_are_not_admitted_twice(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    one, two = opened(path, clock, FAST), opened(path, clock, FAST)
    spent = taken(one, clock.now) + taken(two, clock.now)
    assert spent == 500
    clock.now += 0.1
    assert one.take(ONE, clock.now) == 0.0
    spoil(path, (0, 1))
    assert two.take(ONE, clock.now) > 0
    assert taken(two, clock.now + 0.45) == 0
    assert taken(one, clock.now + 0.45) == 24  # what it had leased
    assert 0 < taken(two, clock.now + 0.6) <= 100
    one.close()
    two.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 8192])
def test_a_file_emptied_under_a_run_is_made_anew_and_taken_for_empty(tmp_path: Path, content: bytes) -> None:
    clock, path = Clock(), tmp_path / "q"
    limits = opened(path, clock)
    path.write_bytes(content)
    assert limits.take(ONE, clock.now) == pytest.approx(0.1)
    opened(path, clock).close()
    limits.close()


def test_a_run_follows_to_the_file_that_replaced_its_own(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    one = opened(path, clock)
    path.unlink()
    two = opened(path, clock)
    assert taken(two, clock.now) == 5
    clock.now += 1.0
    assert taken(one, clock.now) + taken(two, clock.now) == 5
    one.close()
    two.close()


def test_a_file_that_became_something_else_stops_the_run(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    limits = opened(path, clock)
    path.write_bytes(b"my notes\n")
    with pytest.raises(LedgerFailed, match="is no quota file"):
        limits.take(ONE, clock.now)
    limits.close()
    assert path.read_bytes() == b"my notes\n"


def test_after_a_restart_of_the_machine_everything_starts_anew_and_empty(tmp_path: Path) -> None:
    clock, path, me = Clock(), tmp_path / "q", this_process()
    before = opened(path, clock)
    assert before.take((100.0, 0.0, 0.0, 0.0), clock.now) == 0.0
    restarted = Identity(me.pid, me.started, me.space, "another start")
    with pytest.raises(ConfigError, match="another machine"):
        opened(path, clock, identity=restarted)
    os.utime(path, (time.time() - 60, time.time() - 60))
    clock.now = 7.0
    after = opened(path, clock, {"requests": 300.0}, identity=restarted)
    assert after.take(ONE, clock.now) == pytest.approx(0.2)
    assert after.take(ONE, clock.now + 0.6) > 0  # what might still be leased runs out first
    assert after.take(ONE, clock.now + 0.7) == 0.0
    before.close()
    after.close()


def test_a_clock_without_a_name_that_began_anew_is_found_out(tmp_path: Path) -> None:
    clock, path, me = Clock(), tmp_path / "q", this_process()
    nameless = Identity(me.pid, me.started, me.space, "")
    before = opened(path, clock, identity=nameless)
    clock.now = 7.0
    after = opened(path, clock, identity=nameless)
    assert after.take(ONE, clock.now) == pytest.approx(0.1)
    before.close()
    after.close()


def test_a_clock_read_a_moment_before_others_gives_nothing(tmp_path: Path) -> None:
    clock = Clock()
    one, two = opened(tmp_path / "q", clock), opened(tmp_path / "q", clock)
    assert taken(one, clock.now) == 5
    assert two.take(ONE, clock.now - 100.0) > 0
    assert taken(one, clock.now + 0.1) == 1
    one.close()
    two.close()


def test_more_runs_than_the_file_holds_are_refused_and_those_inside_go_on(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    runs: list[SharedLimits] = []

    def crowd() -> None:
        while True:
            runs.append(opened(path, clock, {"requests": 6e6, "tokens": 7e6}, model="m" * 100))

    with pytest.raises(ConfigError, match="too many runs"):
        crowd()
    assert len(runs) > 50
    for each in runs:
        each.take(tokens(1 / 3), clock.now + 1 / 7)
    assert runs[0].take(tokens(1 / 3), clock.now + 1.0) == 0.0
    for each in runs:
        each.close()


def test_the_state_that_is_read_is_one_that_was_written_wherever_a_writing_broke_off(tmp_path: Path) -> None:
    path = tmp_path / "q"
    file = SlotFile(str(path))
    assert file.begin()
    states = [bytes([65 + i]) * (5000 - 900 * i) for i in range(5)]
    for before, after in pairwise(states):
        file.write(before)
        old = path.read_bytes()
        file.write(after)
        new = path.read_bytes().ljust(len(old), b"\0")
        old = old.ljust(len(new), b"\0")
        changed = [i for i in range(len(new)) if old[i] != new[i]]
        for cut in (*changed[:20], *changed[20:-20:97], *changed[-20:]):
            path.write_bytes(new[:cut] + old[cut:])
            assert file.read() == before
        path.write_bytes(new)
        assert file.read() == after
    file.close()


# ---- real processes

TAKE = """
import sys, time
from batchllm.quota import open_shared

path, per_minute, burst = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
limits = open_shared(path, "account", "m", {"requests": per_minute}, burst)
print("ready", flush=True)
end = float(sys.stdin.readline())
let = []
while (now := time.monotonic()) < end:
    wait = limits.take((1.0, 0.0, 0.0, 0.0), now)
    if wait:
        time.sleep(wait)
    else:
        let.append(now)
limits.close()
print(*let)
"""

HAMMER = """
import sys
from batchllm.quota import open_shared

limits = open_shared(sys.argv[1], "account", "m", {"requests": 6e5}, 0.5)
now, last = float(sys.argv[2]), None
for turn in range(10**9):
    limits.take((1.0, 0.0, 0.0, 0.0), now)
    if turn == 50:
        print("at it", flush=True)
"""

HOLD = """
import sys
from batchllm.quota.slots import SlotFile

file = SlotFile(sys.argv[1])
print(file.lock(), flush=True)
sys.stdin.read()
"""


def test_four_processes_together_keep_the_limit_and_use_it(tmp_path: Path) -> None:
    rate, burst, seconds = 100.0, 1.0, 2.0
    children = [child(TAKE, tmp_path / "q", rate * 60, burst) for _ in range(4)]
    for each in children:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    start = time.monotonic()
    for each in children:
        assert each.stdin is not None
        each.stdin.write(f"{start + seconds}\n")
        each.stdin.flush()
    told = [each.communicate()[0].split() for each in children]
    assert [each.returncode for each in children] == [0] * 4
    let = sorted((Admission(float(at), run, ONE) for run, ats in enumerate(told) for at in ats), key=_at)
    for window in (0.05, 0.5, 1.0, 10.0):
        assert (
            most(let, "requests", window) <= rate * min(window, let[-1].at - let[0].at) + rate * burst + 1e-6
        )
    assert len(let) >= 0.93 * (rate * seconds + rate * burst)
    assert min(map(len, told)) >= 0.1 * len(let)  # the first to start may have the whole first burst


def _at(admission: Admission) -> float:
    return admission.at


def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path, draw = tmp_path / "q", random.Random(3)
    now = time.monotonic()
    limits = opened(path, lambda: now, {"requests": 6e5})
    for _ in range(5):
        process = child(HAMMER, path, now)
        assert process.stdout is not None
        assert process.stdout.readline() == "at it\n"
        for _ in range(draw.randrange(200)):
            limits.take(ONE, now)
        ended(process)
        assert state(path)
        now += 2.0
        assert limits.take(ONE, now) == 0.0
    now += 2.0
    assert limits.take(ONE, now) == 0.0
    other = opened(path, lambda: now, {"requests": 6e5})
    assert other.take(ONE, now) == 0.0
    assert state(path).count(b'"pid"') == 2
    limits.close()
    other.close()


def test_a_suspended_process_that_holds_the_lock_stalls_the_others_and_no_more(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "q"
    limits = opened(path, clock)
    process = child(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    process.send_signal(signal.SIGSTOP)
    assert 0 < limits.take(ONE, clock.now) < 0.1
    ended(process)
    assert taken(limits, clock.now) == 5
    limits.close()
