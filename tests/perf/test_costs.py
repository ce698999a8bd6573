"""The pieces that `make bench` takes the costs of: each still fits the program and costs something."""

from __future__ import annotations

import pytest

from tests.perf import costs
from tests.perf.serving import serving


def test_every_piece_runs_and_costs_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "COUNT", 100)
    monkeypatch.setattr(costs, "ROUNDS", 1)
    with serving() as url:
        found = dict(costs.table(url))

    assert {"read the input", "the wire", "the engine", "the ledger"} <= found.keys()
    assert all(us > 0 for us in found.values())
