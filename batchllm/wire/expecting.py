"""What answers are compared with: `--expect` checked against the job and its first records."""

from __future__ import annotations

from collections.abc import Sequence

from batchllm.errors import ConfigError
from batchllm.expected import Expectation
from batchllm.job import Job
from batchllm.model import Record


def expectation(job: Job) -> Expectation | None:
    """How answers are judged, None where they aren't; ConfigError where they can't be."""
    if job.expect is None:
        return None
    expect = Expectation(job.expect)
    if job.emit != "result":
        raise ConfigError(
            f"--expect puts its verdicts into lines of --emit result, and this is --emit {job.emit}",
            "leave out --emit, or --expect",
        )
    schemas = [job.schema, *(table.get("schema") for table in (*(job.variant or ()), *(job.stage or ())))]
    of_functions = any("run" in stage for stage in job.stage or ())
    if expect.path and not any(schemas) and not of_functions:
        raise ConfigError(
            f"--expect {job.expect}: without a schema the answer is a text, which has nothing inside",
            f"give a --schema, or compare the whole text: --expect {expect.field}=output",
        )
    return expect


def unlabelled(job: Job, first: Sequence[Record]) -> list[str]:
    """A warning where none of the first records has the field with the expected answer."""
    if job.expect is None or not first:
        return []
    field = Expectation(job.expect).field
    if any(record.data is not None and field in record.data for record in first):
        return []
    return [f"none of the {len(first)} records read so far has the field {field!r} of --expect"]
