"""The table of settings: one frozen `Job`, each field with its flags, help, reader and kind.

A setting is *meaning* (what is asked: it must be the same to resume), *operation* (how: free to change) or
*place* (which files). The contract is docs/contract.md; `cli` and `load` read the table, nobody else.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from batchllm.fields import frozen
from batchllm.job import values
from batchllm.job.files import FileSettings
from batchllm.job.shapes import chat, examples
from batchllm.job.table import Setting, how, row, tables


@frozen
class Job(FileSettings):
    """Everything that a run was told, merged. Times are in seconds; texts are contents, not paths."""

    model: str | None = row(
        None,
        "meaning",
        values.text,
        "-m --model",
        "PROVIDER/NAME",
        "openai/gpt-4o-mini, local/smollm2, fake/echo …",
    )
    prompt: str | None = row(
        None,
        "meaning",
        values.template,
        "-p --prompt",
        "TEXT|@FILE",
        "Jinja2 over the record's fields (default {{ text }})",
    )
    system: str | None = row(
        None, "meaning", values.text, "-s --system", "TEXT|@FILE", "The system prompt, Jinja2 too"
    )
    message: list[dict[str, str]] | None = tables(
        "meaning", None, chat, "A chat in place of prompt and system: role and content, Jinja2"
    )
    example: list[dict[str, Any]] | None = tables(
        "meaning", None, examples, "What was asked (record or user) and the answer that was wanted"
    )
    messages_field: str = row(
        "messages", "meaning", values.text, "--messages-field", "NAME",
        "Field with whole chat messages, where no prompt is given (default messages)",
    )  # fmt: skip
    image: list[str] | None = row(
        None, "meaning", values.name_list, "--image", "FIELD",
        "Field with an image's URL or path, or a list of them; repeatable",
        many=True,
    )  # fmt: skip
    image_root: str | None = row(
        None, "operation", values.text, "--image-root", "DIR",
        "Folder that image paths start at and stay in (default: this one)",
    )  # fmt: skip
    params_field: str | None = row(
        None, "meaning", values.text, "--params-field", "NAME", "Field with a record's own request parameters"
    )
    model_field: str | None = row(
        None, "meaning", values.text, "--model-field", "NAME", "Field with the name of a record's own model"
    )
    schema: dict[str, Any] | None = row(
        None, "meaning", values.text, "--schema", "FILE", "JSON Schema, or module:Model, of the answer"
    )
    schema_mode: str = row(
        "native", "meaning", values.word("native", "tool", "prompt"), "--schema-mode", "MODE",
        "How the model is told: native, tool or prompt (default native)",
    )  # fmt: skip
    check: str | None = row(
        None, "meaning", values.text, "--check", "MODULE:FUNC", "Validator of one's own, after the schema"
    )
    fallback: list[str] | None = row(
        None, "meaning", values.models, "--fallback", "MODEL", "Asked where a record fails; repeatable",
        many=True,
    )  # fmt: skip
    fallback_answer: str | None = row(
        None, "meaning", values.answer, "--fallback-answer", "JSON", "Stands in where all models failed"
    )
    param: dict[str, Any] = row(
        None,
        "meaning",
        values.params,
        "--param",
        "KEY=VALUE",
        "Request parameter, such as temperature=0; repeatable",
        many=True,
    )
    variant: list[dict[str, Any]] | None = row(
        None,
        "meaning",
        values.anything,
        "--variant",
        "NAME=TEXT|@FILE",
        "Ask each record under this prompt too, to compare; repeatable",
        many=True,
    )
    stage: list[dict[str, Any]] | None = tables(
        "meaning", None, values.anything, "Stages that each record goes through, one after the other"
    )
    base_url: str | None = row(
        None,
        "operation",
        values.address,
        "--base-url",
        "URL",
        "The server's address (default: the provider's)",
    )
    api_key_env: str | None = row(
        None,
        "operation",
        values.text,
        "--api-key-env",
        "NAME",
        "The variable that holds the key (default: the provider's)",
    )

    concurrency: int | Literal["auto"] = how(
        20,
        values.concurrency,
        "-c --concurrency",
        "N|auto",
        "Calls in flight; auto finds how many (default 20)",
    )
    rpm: float | None = how(None, values.limit, "--rpm", "N", "Requests a minute")
    rps: float | None = how(None, values.limit, "--rps", "N", "Requests a second")
    tpm: float | None = how(None, values.limit, "--tpm", "N", "Tokens a minute")
    input_tpm: float | None = how(None, values.limit, "--input-tpm", "N", "Input tokens a minute")
    output_tpm: float | None = how(None, values.limit, "--output-tpm", "N", "Output tokens a minute")
    burst: float = how(
        0.5,
        values.duration,
        "--burst",
        "S",
        "Seconds' worth of a limit that may go out at once (default 0.5)",
    )
    quota_file: str | None = how(
        None, values.text, "--quota-file", "FILE", "Share the limits with other runs that name this file"
    )
    cache: str | None = how(
        None, values.text, "--cache", "FILE", "Keep answers here, and answer the same request from it"
    )
    cache_ttl: float | None = how(
        None, values.duration, "--cache-ttl", "DURATION", "How long a kept answer is good (default for ever)"
    )
    timeout: float = how(
        120.0,
        values.duration,
        "--timeout",
        "S",
        "One attempt, from send to last byte, in seconds (default 120)",
    )
    record_timeout: float | None = how(
        None,
        values.duration,
        "--record-timeout",
        "S",
        "One record in all, pauses and limits' waits not counted",
    )
    max_retries: int = how(
        3,
        values.whole(0, 1000),
        "--max-retries",
        "N",
        "Tries again after transient failures of a request (default 3)",
    )
    backoff: float = how(
        1.0, values.number(0), "--backoff", "S", "First wait before a retry; doubled, full jitter (default 1)"
    )
    repair: int = how(
        1,
        values.whole(0, 100),
        "--repair",
        "N",
        "Extra asks when an answer is invalid, empty or cut (default 1)",
    )
    max_tokens_ceiling: int | None = how(
        None, values.whole(1), "--max-tokens-ceiling", "N", "Most tokens that a cut answer is given"
    )
    max_failures: int | float | None = how(
        None, values.count_or_share, "--max-failures", "N|P%", "Stop (exit 3) beyond so many dead letters"
    )
    pilot: int | None = how(
        None, values.whole(1), "--pilot", "N", "Run the first N records and go on only if they went well"
    )
    yes: bool = how(False, values.flag, "-y --yes", None, "Go on after the pilot unasked", once=True)
    accept_failures: int | float = how(
        0,
        values.count_or_share,
        "--accept-failures",
        "N|P%",
        "Finished with no more dead letters is exit 0 (default 0)",
    )
    max_stall: float = how(
        900.0,
        values.duration,
        "--max-stall",
        "DURATION",
        "Stop (exit 3) when nothing has succeeded so long (default 15m)",
    )
    deadline: float | None = how(
        None, values.duration, "--deadline", "DURATION", "Stop (exit 3) after so long, such as 2h"
    )
    rounds: int = how(
        0,
        values.whole(0, 100),
        "--rounds",
        "N",
        "Try what failed for transient reasons again after the full pass (default 0)",
    )
    grace: float = how(
        4.0,
        values.number(0),
        "--grace",
        "S",
        "How long a signal or the deadline waits for calls in flight (default 4)",
    )
    http: str = how(
        "own",
        values.word("own", "stock"),
        "--http",
        "CLIENT",
        "own, or stock for httpx's client: slow, knows HTTP/2 (default own)",
    )
    fresh: bool = how(
        False, values.flag, "--fresh", None, "Forget the earlier run of this output (moved aside)", once=True
    )
    limit: int | None = how(
        None, values.whole(1), "--limit", "N", "Only the first N records, this time", once=True
    )

    finish: dict[str, Any] | None = tables(
        "operation", None, values.finish, "What is done with the finished files"
    )

    progress: str = how(
        "auto",
        values.word("auto", "bar", "log", "json", "none"),
        "--progress",
        "KIND",
        "auto, bar, log, json or none; on stderr (default auto)",
        panel="What is shown",
    )
    progress_interval: float = how(
        5.0,
        values.number(0, above=True),
        "--progress-interval",
        "S",
        "Seconds between lines (default 5)",
        panel="What is shown",
    )
    quiet: bool = how(False, values.flag, "-q --quiet", None, "Errors only", panel="What is shown")
    verbose: int = how(
        0,
        values.whole(0, 3),
        "-v --verbose",
        None,
        "More; -vv a JSON event per attempt",
        panel="What is shown",
    )


def settings() -> dict[str, Setting]:
    """The table by name, in the order in which `--help` shows it."""
    return {
        f.name: Setting(name=f.name, default=f.default, **f.metadata)  # fields keep their order
        for f in fields(Job)
    }
