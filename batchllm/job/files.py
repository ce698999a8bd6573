"""The settings of which files a run reads and writes, and of how lines look; `settings` has the rest."""

from __future__ import annotations

from batchllm.fields import frozen
from batchllm.job import values
from batchllm.job.table import files, row


@frozen
class FileSettings:
    """The first rows of the table: where records come from and where outcomes go."""

    input: tuple[str, ...] = files(
        "meaning", (), values.paths, "", None, "JSONL files, .gz and .zst too; - is stdin"
    )
    output: str | None = files(
        "place", None, values.text, "-o --output", "FILE", "Successes; - is stdout (default INPUT.out.jsonl)"
    )
    dead_letter: str | None = files(
        "place",
        None,
        values.text,
        "-d --dead-letter",
        "FILE",
        "Failures (default: the output's name with .dead.jsonl)",
    )
    input_format: str = files(
        "meaning",
        "auto",
        values.word("auto", "records", "dead", "openai-batch"),
        "--input-format",
        "FORMAT",
        "auto, records, dead or openai-batch (default: told by the first record)",
    )
    id_field: str = files(
        "meaning", "id", values.text, "--id-field", "NAME", "The field shown as id (default id)"
    )
    max_line: int = files(
        "operation",
        16 << 20,
        values.whole(1024, 1 << 30),
        "--max-line",
        "BYTES",
        "Longest input line (default 16 MiB)",
    )
    emit: str = files(
        "meaning",
        "result",
        values.word("result", "merged", "openai-batch"),
        "--emit",
        "SHAPE",
        "Shape of an output line: result, merged or openai-batch (default result)",
    )
    keep: tuple[str, ...] = row(
        (), "meaning", values.names, "--keep", "FIELD", "Input field carried into the result; repeatable",
        many=True, panel="Files",
    )  # fmt: skip
    expect: str | None = files(
        "meaning", None, values.expectation, "--expect", "FIELD=PATH",
        "Field with the expected answer, to measure accuracy: label=output.category",
    )  # fmt: skip
    merge_failed: bool = files(
        "meaning",
        False,
        values.flag,
        "--merge-failed",
        None,
        "Also a line with error_kind for every dead record",
    )
    durability: str = files(
        "operation",
        "batch",
        values.word("none", "batch", "record"),
        "--durability",
        "LEVEL",
        "When files are synced against power loss: none, batch or record (default batch)",
    )
    resume_by: str = files(
        "operation",
        "position",
        values.word("position", "id"),
        "--resume-by",
        "WHAT",
        "How settled records are known again: position or id (default position)",
    )
    if_input_changed: str = files(
        "operation",
        "new",
        values.word("new", "refuse"),
        "--if-input-changed",
        "WHAT",
        "Another input after a finished run: new or refuse (default new)",
    )
    on_change: str = files(
        "operation",
        "refuse",
        values.word("refuse", "redo"),
        "--on-change",
        "WHAT",
        "A changed prompt or record: refuse, or redo what changed (default refuse)",
    )
    ordered: bool | None = files(
        "operation", None, values.flag, "--ordered/--unordered", None,
        "Input order in the finished output (default: files ordered, stdout unordered)",
    )  # fmt: skip
