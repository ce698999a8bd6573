"""How a rehearsal behaves, as plain data; `cli.simulate` fills it in, the app goes by it."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchllm.faults import FaultMix


@dataclass(frozen=True)
class Settings:
    """How the endpoint behaves: times in seconds, `jitter` a share of the latency, limits a minute.

    `key` is what requests must carry as a bearer token, None for no check; after `quota` good answers the
    account is spent.
    """

    latency: float = 0.0
    jitter: float = 0.0
    rpm: int | None = None
    tpm: int | None = None
    mix: FaultMix = field(default_factory=FaultMix)
    hang: float = 30.0
    retry_after: float = 0.2
    seed: int = 0
    key: str | None = field(default=None, repr=False)
    quota: int | None = None
