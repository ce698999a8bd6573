"""`batchllm simulate`: reads the options of the rehearsal server and starts it.

The options become one `Settings`; what they do is the business of `batchllm.simulate`.
"""

from __future__ import annotations

import math
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchllm.errors import ConfigError

if TYPE_CHECKING:
    from batchllm.faults import FaultMix


class Service(StrEnum):
    """Whose refusals the server words: the names of `batchllm.simulate.bodies.SERVICES`."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"
    AZURE = "azure"


class Headers(StrEnum):
    """Whose headers tell the limits: the names of `batchllm.simulate.headers.HEADERS`."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    NONE = "none"


def _option(text: str, **more: Any) -> Any:
    return typer.Option(help=text, **more)


Port = Annotated[int, _option("Port to listen on; 0 takes a free one.", min=0, max=65535)]
Host = Annotated[str, _option("Loopback address to listen on.")]
Latency = Annotated[float, _option("Time before each answer.", min=0)]
Jitter = Annotated[float, _option("Share by which it varies, up and down.", min=0, max=1)]
Knee = Annotated[int | None, _option("Requests answered at once; more wait in line.", min=1)]
QueueMax = Annotated[int | None, _option("Most in line behind --knee; more get a 503 or 529.", min=0)]
Rpm = Annotated[int | None, _option("Requests a minute; more get a 429.", min=1)]
Tpm = Annotated[int | None, _option("Tokens a minute; more get a 429.", min=1)]
InputTpm = Annotated[int | None, _option("Input tokens a minute.", min=1)]
OutputTpm = Annotated[int | None, _option("Output tokens a minute.", min=1)]
Window = Annotated[
    float | None,
    _option(
        "Count limits over the last so many seconds, such as 60, 10 or 1; else by a token bucket.",
        min=0.1,
        max=60,
    ),
]
Slack = Annotated[float, _option("Seconds' worth of a limit that may be overdrawn.", min=0)]
ServiceName = Annotated[Service | None, _option("Whose refusals to give; else those that fit the path.")]
HeaderStyle = Annotated[Headers | None, _option("Whose headers tell the limits; else the service's.")]
ErrorRate = Annotated[float | None, _option("Share of requests that meet a usual fault.", min=0, max=1)]
Faults = Annotated[
    str | None,
    _option("Faults and shares: a JSON or TOML file, or 429:0.04,drop:0.01.", metavar="FILE|MIX"),
]
Overload = Annotated[
    str | None, _option("Every so many seconds overloaded for so many.", metavar="EVERY,FOR")
]
HangS = Annotated[float, _option("How long a hanging request gets no answer.", min=0)]
RetryAfter = Annotated[
    str,
    _option(
        "Whether a 429 tells the wait: yes, no, or text (in words, not in headers); a number is the wait"
        " in seconds that those of --faults tell.",
        metavar="yes|no|text|S",
    ),
]
Seed = Annotated[int, _option("Another seed, other faults; the same seed, the same.")]
KeyName = Annotated[
    str | None, _option("Variable with the key that requests must carry, else a 401.", metavar="NAME")
]
Refuse = Annotated[
    list[str] | None,
    _option("A feature that it refuses: strict, schema or tools; repeatable.", metavar="FEATURE"),
]
Account = Annotated[int | None, _option("Good answers until the account is spent.", min=0)]


def simulate(
    port: Port = 8000,
    host: Host = "127.0.0.1",
    latency_ms: Latency = 0.0,
    jitter: Jitter = 0.0,
    knee: Knee = None,
    queue_max: QueueMax = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    input_tpm: InputTpm = None,
    output_tpm: OutputTpm = None,
    window: Window = None,
    slack: Slack = 0.5,
    service: ServiceName = None,
    headers: HeaderStyle = None,
    error_rate: ErrorRate = None,
    faults: Faults = None,
    overload: Overload = None,
    hang_s: HangS = 30.0,
    retry_after: RetryAfter = "yes",
    seed: Seed = 0,
    api_key_env: KeyName = None,
    quota: Account = None,
    refuse: Refuse = None,
) -> None:
    """Serve an OpenAI- and Anthropic-compatible endpoint on this machine to rehearse a run against.

    Each answer is the echo of its question, or an instance of the schema. GET /stats counts what was asked,
    POST /quota renews a spent account, POST /reset starts anew, Ctrl-C ends it.
    """
    from batchllm.simulate.server import run
    from batchllm.simulate.settings import Settings

    _check_line(knee, queue_max, latency_ms)
    told, wait = _told(retry_after)
    settings = Settings(
        latency=latency_ms / 1000,
        jitter=jitter,
        rpm=rpm,
        tpm=tpm,
        input_tpm=input_tpm,
        output_tpm=output_tpm,
        window=window,
        slack=slack,
        mix=_mix(faults, error_rate),
        hang=hang_s,
        retry_after=wait,
        told=told,
        service=service,
        headers=headers,
        seed=seed,
        key=_key(api_key_env),
        quota=quota,
        knee=knee,
        queue_max=queue_max,
        overload=_episodes(overload),
        refuse=_refusable(refuse or []),
    )
    run(settings, host, port, _announce)


def _check_line(knee: int | None, queue_max: int | None, latency_ms: float) -> None:
    """Raise ConfigError for a line that could never form."""
    if knee is not None and latency_ms == 0:
        raise ConfigError("--knee needs a time that answers take", "add --latency-ms 200")
    if queue_max is not None and knee is None:
        raise ConfigError("--queue-max needs --knee", "add --knee 64")


def _told(retry_after: str) -> tuple[str, float]:
    """Whether refusals tell the wait, and the seconds that those of the faults tell."""
    if retry_after in ("yes", "no", "text"):
        return retry_after, 0.2
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(f"--retry-after is {retry_after!r}", "give yes, no, text or a number of seconds")
    return "yes", seconds


def _episodes(overload: str | None) -> tuple[float, float] | None:
    """The two numbers of --overload."""
    if overload is None:
        return None
    try:
        every, lasts = map(float, overload.split(","))
    except ValueError:
        every = lasts = math.nan
    if not 0 < lasts < every < math.inf:
        raise ConfigError(
            f"--overload is {overload!r}", "give two numbers of seconds, the second smaller, such as 60,5"
        )
    return every, lasts


def _refusable(names: list[str]) -> tuple[str, ...]:
    """The features of --refuse, each of which must be known."""
    from batchllm.faults import REFUSABLE

    if unknown := [name for name in names if name not in REFUSABLE]:
        raise ConfigError(f"--refuse {unknown[0]} names no feature", f"one of: {', '.join(REFUSABLE)}")
    return tuple(names)


def _announce(url: str) -> None:
    typer.echo(f"listening on {url}")
    typer.echo(f"try: batchllm run tickets.jsonl -m openai/any --base-url {url}", err=True)


def _key(name: str | None) -> str | None:
    """The value of the variable that --api-key-env names."""
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"the variable {name} is not set", f"export {name}=… and start again")
    return key


def _mix(faults: str | None, error_rate: float | None) -> FaultMix:
    """The mix in a file, or the one written out in the option itself, or the usual one."""
    import json
    import tomllib

    from batchllm.faults import FaultMix

    if faults is None:
        return FaultMix.spread(error_rate or 0.0)
    if error_rate is not None:
        raise ConfigError("--faults and --error-rate exclude each other", "give one of them")
    path = Path(faults)
    if ":" in faults and not path.exists():
        return FaultMix.parse(faults)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"can't read the faults in {faults}: {error}", "give a JSON or TOML file"
        ) from error
    try:
        shares = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{faults} is neither JSON nor TOML: {error}", 'write {"429": 0.04}') from error
    if not isinstance(shares, dict):
        raise ConfigError(f"{faults} holds no names and shares", 'write {"429": 0.04}')
    return FaultMix.from_mapping(shares)
