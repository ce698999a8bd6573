"""The settings as keywords: names and types for editors and type checkers, and their way into a Job.

The table of settings reads the values, as it does for options; what is wrong is a ConfigError.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from batchllm.errors import ConfigError
from batchllm.job import Loaded, load
from batchllm.job import settings as table

__all__ = ["CallSettings", "JobLike", "Settings", "Unpack", "read", "read_calls"]

FilePath = str | os.PathLike[str]
JobLike = FilePath | Mapping[str, Any]
"""A job file, or the settings that could stand in one."""
Duration = float | str
"""Seconds, or a text such as "90", "15m", "1h30m"."""
Share = int | str
"""A count such as 50, or a share such as "5%"."""


class CallSettings(TypedDict, total=False):
    """How calls are made and where outcomes go; README.md tells what each means."""

    output: FilePath
    dead_letter: FilePath
    id_field: str
    max_line: int
    emit: Literal["result", "merged", "openai-batch"]
    keep: str | Sequence[str]
    merge_failed: bool
    durability: Literal["none", "batch", "record"]
    resume_by: Literal["position", "id"]
    if_input_changed: Literal["new", "refuse"]
    on_change: Literal["refuse", "redo"]
    concurrency: int | Literal["auto"]
    rpm: float
    rps: float
    burst: Duration
    quota_file: FilePath
    timeout: Duration
    record_timeout: Duration
    max_retries: int
    backoff: float
    max_failures: Share
    max_stall: Duration
    deadline: Duration
    rounds: int
    grace: float
    fresh: bool
    limit: int


Tables = Sequence[Mapping[str, Any]]
"""The tables of a job file that share a name."""


class Settings(CallSettings, total=False):
    """Every setting of the table, under its name there; README.md tells what each means."""

    input: FilePath | Sequence[FilePath]
    input_format: Literal["auto", "records", "dead", "openai-batch"]
    ordered: bool
    model: str
    prompt: str
    system: str
    message: Sequence[Mapping[str, str]]
    example: Tables
    messages_field: str
    image: str | Sequence[str]
    image_root: FilePath
    params_field: str
    model_field: str
    schema: FilePath | Mapping[str, Any]
    schema_mode: Literal["native", "tool", "prompt"]
    check: str
    fallback: str | Sequence[str]
    fallback_answer: Any
    param: Mapping[str, Any] | Sequence[str]
    base_url: str
    api_key_env: str
    tpm: float
    input_tpm: float
    output_tpm: float
    repair: int
    max_tokens_ceiling: int
    variant: Sequence[str | Mapping[str, Any]]
    stage: Tables
    expect: str
    cache: FilePath
    cache_ttl: Duration
    pilot: int
    yes: bool
    accept_failures: Share
    finish: Mapping[str, Any]
    http: Literal["own", "stock"]
    progress: Literal["auto", "bar", "log", "json", "none"]
    progress_interval: float
    quiet: bool
    verbose: int


def read(job: JobLike | None, given: Mapping[str, Any], environ: Mapping[str, str]) -> Loaded:
    """Keywords > a mapping > environment > job file > defaults. Raises ConfigError.

    A mapping stands in the place of a job file: then none is looked for in the working folder.
    """
    options = dict(given)
    base: dict[str, Any] | None = None
    if isinstance(job, Mapping):
        options = {name.replace("-", "_"): value for name, value in job.items()} | options
        base = {}
    elif job is not None:
        options["job"] = job
    known = [*table(), "job"]
    for name in options:
        if name not in known:
            raise unknown(name, known)
    return load({name: plain(value) for name, value in options.items()}, environ, Path(), base=base)


def read_calls(given: Mapping[str, Any], model: str) -> Loaded:
    """The settings of calls of a function alone: no environment, no job file. Raises ConfigError."""
    known = [*CallSettings.__annotations__, "ordered"]
    for name in given:
        if name not in known:
            raise unknown(name, known)
    base = {"model": model, "input_format": "records"}
    return load({name: plain(value) for name, value in given.items()}, {}, Path(), base=base)


def unknown(name: str, known: Sequence[str]) -> ConfigError:
    """The refusal of a name that is none of `known`."""
    if "key" in name or "secret" in name:
        return ConfigError(
            f"there is no setting {name!r}",
            "secrets stay in the environment: name the variable that holds the key with api_key_env, or give "
            "a mapping as environ",
        )
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "the settings are the options of batchllm run --help"
    return ConfigError(f"there is no setting {name!r}", hint)


def plain(value: Any) -> Any:
    """The value as options hold it: paths as text, any sequence as a list, any mapping as a dict."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value
