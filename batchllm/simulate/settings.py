"""How a rehearsal behaves, as plain data; `cli.simulate` fills it in, the app goes by it."""

from __future__ import annotations

from dataclasses import field

from batchllm.faults import FaultMix
from batchllm.fields import frozen


@frozen
class Settings:
    """How the endpoint behaves: times in seconds, `jitter` a share of the latency, limits a minute.

    `key` is what requests must carry, None for no check; after `quota` good answers the account is spent.
    `window` is the span that limits are enforced over, None for token buckets; `slack` seconds' worth may
    be overdrawn. `service` words the refusals and `headers` (see `bodies.SERVICES`, `headers.HEADERS`) tells
    the limits, None for those that fit the path; `told` says where a refusal tells the time to wait: yes
    (everywhere), text or no. Beyond `knee` requests at once the others wait in a line of `queue_max`;
    `overload` is how often and for how long the server is overloaded; `refuse` names features that it lacks
    (`faults.REFUSABLE`).
    """

    latency: float = 0.0
    jitter: float = 0.0
    rpm: int | None = None
    tpm: int | None = None
    input_tpm: int | None = None
    output_tpm: int | None = None
    window: float | None = None
    slack: float = 0.5
    mix: FaultMix = field(default_factory=FaultMix)
    hang: float = 30.0
    retry_after: float = 0.2
    told: str = "yes"
    service: str | None = None
    headers: str | None = None
    seed: int = 0
    key: str | None = field(default=None, repr=False)
    quota: int | None = None
    knee: int | None = None
    queue_max: int | None = None
    overload: tuple[float, float] | None = None
    refuse: tuple[str, ...] = ()

    @property
    def limits(self) -> dict[str, int | None]:
        """The limits by the dimension's name in headers."""
        return {
            "requests": self.rpm,
            "tokens": self.tpm,
            "input-tokens": self.input_tpm,
            "output-tokens": self.output_tpm,
        }
