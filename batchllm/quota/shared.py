"""The limits that a run shares with others through a file: the Allowance behind `--quota-file`.

Owns one run's entry in the file and the slice that it has leased. It holds the file's lock for microseconds
and never waits for it inside `take`; what is decided under it is in `shares`. `wire` opens and closes it, the
gate asks it, on one thread.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from batchllm.errors import BatchError, ConfigError, LedgerFailed
from batchllm.model import DIMENSIONS
from batchllm.quota import shares
from batchllm.quota.processes import Identity, lives, this_process
from batchllm.quota.shares import Group, Run
from batchllm.quota.slots import LARGEST, SlotFile

SILENT = 5.0
"""Seconds after which a run that can't be looked up, since its process numbers aren't ours, counts as gone;
and after which a file that another clock wrote is no longer in use there."""
LOOK = 1.0
"""Seconds between two looks for runs that have died and for the file having been replaced."""
BUSY = 0.001
"""Seconds to wait where the lock is held; doubled up to 32 times that."""
PATIENCE = 2.0
"""Seconds that opening waits for the lock, at most."""
ROOM = LARGEST // 2
"""Bytes of state beyond which no more runs are let in, so that those who are can always write theirs."""

_State = dict[str, Any]


class SharedLimits:
    """One run's part in the limits of an account and model; implements `ports.Allowance`.

    Made by `open_shared`. Amounts in dimensions that the run doesn't limit are ignored.
    """

    def __init__(
        self,
        file: SlotFile,
        key: str,
        rates: Sequence[float],
        burst: float,
        identity: Identity,
        draw: Callable[[], float],
    ) -> None:
        self._file = file
        self._key = key
        self._rates = tuple(rates)
        self._limits = [i for i, rate in enumerate(rates) if rate]
        self._burst = burst
        self._me = identity
        self._draw = draw
        self._name = os.urandom(6).hex()
        self._lease = shares.nothing()
        self._until = 0.0
        self._owed = shares.nothing()
        self._refused = 0
        self._looked = 0.0

    def take(self, need: Sequence[float], now: float) -> float:
        """0.0 and taken, or nothing taken and the seconds to wait, at most 1, before asking again.

        Raises LedgerFailed where the file can no longer be written.
        """
        lease, owed = self._lease, self._owed
        if now < self._until:
            for i in self._limits:
                if need[i] > lease[i] + min(0.0, owed[i]) + shares.NEAR:
                    break
            else:
                for i in self._limits:
                    lease[i] -= need[i]
                return 0.0
        if not any(need[i] > 0 for i in self._limits):
            return 0.0
        return self._ask(need, now)

    def settle(self, reserved: Sequence[float], used: Sequence[float]) -> None:
        """Correct an admission; others see it when this run asks next, or at once where it is much."""
        much = False
        for i in self._limits:
            self._owed[i] += reserved[i] - used[i]
            much = much or abs(self._owed[i]) > shares.SLICE * self._rates[i]
        if much:
            self._correct()

    def join(self, now: float, *, new: bool) -> None:
        """Enter this run into the file, under its lock; ConfigError where another one's limit differs."""
        state = self._read()
        if state is None or state["clock"] != self._me.clock:
            if state is not None and -SILENT < self._file.age(time.time()) < SILENT:
                raise ConfigError(
                    f"{self._file.path} is in use by another machine, or by a container with its own clock",
                    f"share it on one machine only; after a restart wait {SILENT:.0f} s and run this again",
                )
            state = self._anew(None if new else now)
        groups = {key: shares.group_of(parts) for key, parts in state["groups"].items()}
        for key, group in list(groups.items()):
            if group.at > now + LOOK:  # a clock that began anew without another name
                del groups[key]
                state["since"] = now
                continue
            self._bury(group, now, 0.0)
            shares.advance(group, now)
            if not group.runs and group.levels == group.sizes:
                del groups[key]
        group = groups.get(self._key) or self._group(state, now)
        self._agree(group)
        self._enter(group, state, now)
        groups[self._key] = group
        state["groups"] = groups
        body = orjson.dumps(state)
        if len(body) > ROOM:
            raise ConfigError(
                f"too many runs, accounts and models share {self._file.path}",
                "give some of them a quota file of their own: --quota-file FILE",
            )
        self._file.write(body)
        self._looked = now

    def close(self) -> None:
        """Give back what is unspent and leave; what can't be written is found out by the others."""
        try:
            if _locked(self._file, 50 * BUSY, time.sleep):
                state = self._read()
                parts = state["groups"].get(self._key) if state else None
                if state and parts and self._name in parts["runs"]:
                    group = shares.group_of(parts)
                    self._settle_accounts(group, group.runs[self._name])
                    del group.runs[self._name]
                    state["groups"][self._key] = group
                    self._file.write(orjson.dumps(state))
        except OSError:
            pass  # the run's end is no time to fail: a lease runs out by itself
        finally:
            self._file.close()

    def _ask(self, need: Sequence[float], now: float) -> float:
        """Ask the file, or wait a moment where another process is at it."""
        try:
            look = now - self._looked >= LOOK
            if look:
                self._looked = now
                self._follow()
            if not self._file.lock():
                self._refused += 1
                return BUSY * 2.0 ** min(self._refused - 1, 5) * (0.5 + 0.5 * self._draw())
            try:
                self._refused = 0
                return self._turn(need, now, look)
            finally:
                self._file.unlock()
        except (OSError, ConfigError) as error:
            raise LedgerFailed(
                f"can't use the quota file {self._file.path}: {_reason(error)}",
                "make room or mend the file, then run the same command again",
            ) from error

    def _turn(self, need: Sequence[float], now: float, look: bool) -> float:
        """Settle accounts with the file and ask it for `need`; under its lock."""
        state = self._read()
        if state is None:
            self._file.begin()
        if state is None or state["clock"] != self._me.clock:
            state = self._anew(now)
        parts = state["groups"].get(self._key)
        group = shares.group_of(parts) if parts else self._group(state, now)
        if look:
            self._bury(group, now, LOOK)
        if self._name not in group.runs:
            self._enter(group, state, now)
        run = group.runs[self._name]
        shares.advance(group, now)
        self._settle_accounts(group, run)
        run.seen = group.at
        wait = shares.ask(group, run, need, now)
        state["groups"][self._key] = group
        self._file.write(orjson.dumps(state))
        self._lease, self._until, self._owed = run.lease, run.until, shares.nothing()
        return wait

    def _correct(self) -> None:
        """Tell the file of corrections now, where its lock is free; else the next `take` does."""
        try:
            if self._file.lock():
                try:
                    state = self._read()
                    parts = state["groups"].get(self._key) if state else None
                    if state and parts and self._name in parts["runs"]:
                        group = shares.group_of(parts)
                        shares.correct(group, group.runs[self._name], self._owed)
                        state["groups"][self._key] = group
                        self._file.write(orjson.dumps(state))
                        self._owed = shares.nothing()
                finally:
                    self._file.unlock()
        except OSError:
            pass  # an answer that came is never lost for it; the next `take` finds the same and stops

    def _settle_accounts(self, group: Group, run: Run) -> None:
        """What was leased and not spent goes back, what was used otherwise than reserved is corrected."""
        shares.give_back(group, run, self._lease)
        shares.correct(group, run, self._owed)

    def _anew(self, since: float | None) -> _State:
        """A state that knows of nobody; what went before `since` isn't known, None where nothing did."""
        return {"clock": self._me.clock, "since": since, "groups": {}}

    def _group(self, state: _State, now: float) -> Group:
        """A group of nobody; while there may be leases that aren't known any more, nothing flows in."""
        since = state["since"]
        return Group(now if since is None else max(now, since + shares.LEASE))

    def _enter(self, group: Group, state: _State, now: float) -> None:
        run = Run(self._me.pid, self._me.started, self._me.space, self._limits, now)
        known = math.inf if state["since"] is None else now - state["since"]
        shares.enter(group, self._name, run, self._rates, self._burst, known)

    def _read(self) -> _State | None:
        body = self._file.read()
        return orjson.loads(body) if body is not None else None

    def _agree(self, group: Group) -> None:
        differing = shares.conflict(group, self._rates)
        if differing is not None:
            theirs, ours = (rates[differing] * 60 for rates in (group.rates, self._rates))
            raise ConfigError(
                f"{self._file.path} holds {DIMENSIONS[differing]} at {theirs:.10g} a minute,"
                f" this run asks {ours:.10g}",
                "give this run the limit of those that share the file now, or a quota file of its own",
            )

    def _bury(self, group: Group, now: float, unseen: float) -> None:
        """Drop the runs whose process is gone, of those that nobody has seen for `unseen` seconds."""
        for name, run in list(group.runs.items()):
            silent = now - run.seen
            if name == self._name or silent < unseen:
                continue
            ours = run.space == self._me.space
            if not (lives(run.pid, run.started) if ours else silent < SILENT):
                del group.runs[name]

    def _follow(self) -> None:
        """Go over to the file that is at the path now, where somebody replaced or removed ours."""
        if not self._file.current():
            file = SlotFile(self._file.path)
            self._file.close()
            self._file = file


def open_shared(
    path: str,
    account: str,
    model: str,
    per_minute: Mapping[str, float],
    burst: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[], float] = random.random,
    identity: Identity | None = None,
) -> SharedLimits:
    """Join the runs that share the limits of this account and model through the file at `path`.

    `account` is a digest, never a key; `per_minute` has a limit for each of DIMENSIONS that has one, in
    units a minute; `burst` is the seconds' worth of each that may go out at once. `clock` is monotonic.
    Raises ConfigError: another run that is alive limits the same otherwise, or the file can't be used.
    """
    rates = [(per_minute.get(dimension) or 0.0) / 60 for dimension in DIMENSIONS]
    while True:
        file = SlotFile(path)
        try:
            if not _locked(file, PATIENCE, sleep):
                raise ConfigError(
                    f"the quota file {path} has been locked for {PATIENCE:.0f} s",
                    "a run that was suspended may hold it: let it go on (kill -CONT), or end it",
                )
            if not file.current():  # removed between opening and locking it
                file.close()
                continue
            shared = SharedLimits(file, f"{account} {model}", rates, burst, identity or this_process(), draw)
            shared.join(clock(), new=file.begin())
            file.unlock()
            return shared
        except BatchError:
            file.close()
            raise
        except OSError as error:
            file.close()
            raise ConfigError(
                f"can't use the quota file {path}: {_reason(error)}",
                "name one on a local disk that isn't full: --quota-file FILE",
            ) from error


def _locked(file: SlotFile, patience: float, sleep: Callable[[float], None]) -> bool:
    """Take the lock, trying every few milliseconds for `patience` seconds."""
    for _ in range(max(1, round(patience / (5 * BUSY)))):
        if file.lock():
            return True
        sleep(5 * BUSY)
    return False


def _reason(error: OSError | ConfigError) -> str:
    if isinstance(error, ConfigError):
        return error.message
    return (error.strerror or str(error)).lower()
