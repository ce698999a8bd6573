"""`batchllm simulate`: reads the options of the rehearsal server and starts it.

The options become one `Settings`; what they do is the business of `batchllm.simulate`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchllm.errors import ConfigError

if TYPE_CHECKING:
    from batchllm.faults import FaultMix


def simulate(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    latency_ms: Annotated[float, typer.Option(min=0, help="Time before each answer.")] = 0.0,
    jitter: Annotated[float, typer.Option(min=0, max=1, help="Share by which it varies, up and down.")] = 0.0,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute; more get a 429.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens a minute; more get a 429.")] = None,
    error_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of requests that meet one of the usual faults.")
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|MIX", help="Faults and shares: a JSON or TOML file, or 429:0.04,drop:0.01."
        ),
    ] = None,
    hang_s: Annotated[float, typer.Option(min=0, help="How long a hanging request gets no answer.")] = 30.0,
    retry_after: Annotated[
        float, typer.Option(min=0, help="Seconds that a 429 of the faults asks for.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Another seed, other faults; the same seed, the same.")] = 0,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variable with the key that requests must carry, else a 401."),
    ] = None,
    quota: Annotated[int | None, typer.Option(min=0, help="Good answers until the account is spent.")] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint on this machine to rehearse a run against.

    Each answer is the echo of its question, or an instance of the schema.
    GET /stats counts what was asked, POST /reset starts anew, Ctrl-C ends it.
    """
    from batchllm.faults import FaultMix
    from batchllm.simulate.server import run
    from batchllm.simulate.settings import Settings

    if faults is not None and error_rate is not None:
        raise ConfigError("--faults and --error-rate exclude each other", "give one of them")
    settings = Settings(
        latency=latency_ms / 1000,
        jitter=jitter,
        rpm=rpm,
        tpm=tpm,
        mix=_mix(faults) if faults is not None else FaultMix.spread(error_rate or 0.0),
        hang=hang_s,
        retry_after=retry_after,
        seed=seed,
        key=_key(api_key_env),
        quota=quota,
    )
    run(settings, host, port, _announce)


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


def _mix(faults: str) -> FaultMix:
    """The mix in a file, or the one written out in the option itself."""
    import json
    import tomllib

    from batchllm.faults import FaultMix

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
