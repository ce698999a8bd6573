"""Which files a run reads and writes: names derived as the contract says, clashes refused.

It looks at the file system and changes nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from batchllm.errors import ConfigError
from batchllm.fields import frozen
from batchllm.job import Job

_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".gz", ".zst"})


@frozen
class Places:
    """`inputs` are paths, `-` for stdin; `output` a path, or `-` for stdout; `dead_letter` a path.

    `-` for both of them is nowhere: outcomes are only handed to the program.
    """

    inputs: tuple[str, ...]
    output: str
    dead_letter: str

    @property
    def on_stdout(self) -> bool:
        """Whether the output is stdout, which has no run folder."""
        return self.output == "-"

    @property
    def nowhere(self) -> bool:
        """Whether nothing is written at all."""
        return self.dead_letter == "-"


def places(job: Job, *, handed: bool = False) -> Places:
    """The files of this job; ConfigError where two of them are one, or one can't be.

    Records that a program hands over are like a pipe, but without an output there is no file at all.
    """
    if handed and (refused := _not_for_handed(job)):
        raise ConfigError(*refused)
    if handed and job.output is None:
        return Places(("-",), "-", "-")
    inputs = ("-",) if handed else job.input or _piped()
    if inputs.count("-") > 1:
        raise ConfigError("stdin (-) is named twice among the inputs", "name it once")
    output = job.output or _default_output(inputs[0])
    dead = job.dead_letter or _default_dead(inputs[0], output)
    if dead == "-":
        raise ConfigError("dead letters can't go to stdout", "give a file: -d FILE")
    kept = [(job.cache, "cache")] if job.cache is not None else []
    _check_names([*inputs, output, dead, *(path for path, _ in kept)])
    for name, path in (("output", output), ("dead-letter file", dead)):
        _check_target(name, path)
    _check_distinct(
        [*((path, "input") for path in inputs), (output, "output"), (dead, "dead-letter file"), *kept]
    )
    return Places(inputs, output, dead)


def letters_beside(output: str) -> str:
    """The dead letters of an output, where no other name was given: `a.out.jsonl` → `a.dead.jsonl`."""
    return f"{_stem(output, _SUFFIXES | {'.out'})}.dead.jsonl"


def _piped() -> tuple[str, ...]:
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        mode = 0
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
        return ("-",)
    raise ConfigError("no input", "name a file: batchllm run tickets.jsonl, or pipe records in")


def _not_for_handed(job: Job) -> tuple[str, str] | None:
    """What a job for handed records may not say, and what to do."""
    if job.input:
        return "records are handed over, and input names others", "leave input out, or use batchllm.run"
    if job.output == "-":
        return "outcomes are handed over, and output names stdout", "leave output out, or name a file"
    if job.output is None and job.dead_letter is not None:
        return "a dead-letter file goes with an output", "give output too"
    if job.output is None and job.finish is not None:
        return (
            "finish is given the files of a run, and there is no output",
            "give output, or leave finish out",
        )
    return None


def _stem(path: str, suffixes: frozenset[str] = _SUFFIXES) -> Path:
    """The path less all known suffixes: `a/b.jsonl.gz` → `a/b`."""
    stem = Path(path)
    while stem.suffix.lower() in suffixes:
        stem = stem.with_suffix("")
    return stem


def _default_output(first: str) -> str:
    return "-" if first == "-" else f"{_stem(first)}.out.jsonl"


def _default_dead(first: str, output: str) -> str:
    if output != "-":
        return letters_beside(output)
    return "stdin.dead.jsonl" if first == "-" else f"{_stem(first)}.dead.jsonl"


def _check_target(name: str, path: str) -> None:
    if path == "-":
        return
    target = Path(path)
    if target.suffix.lower() in (".gz", ".zst"):
        raise ConfigError(
            f"the {name} {path} would be compressed, which can't be resumed", "write plain .jsonl"
        )
    if target.is_dir():
        raise ConfigError(f"the {name} {path} is a directory", "name a file in it")
    folder = (Path(os.path.realpath(target)) if target.is_symlink() else target).parent
    if not folder.is_dir():
        raise ConfigError(f"the folder of the {name} does not exist: {folder}", f"mkdir -p {folder}")
    writable = os.access(target, os.W_OK) if target.exists() else os.access(folder, os.W_OK)
    if not writable:
        raise ConfigError(
            f"can't write the {name} {path}: permission denied", "choose another: -o FILE, -d FILE"
        )


def _check_names(paths: list[str]) -> None:
    """Names are kept in JSON, which holds Unicode alone."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode(errors="backslashreplace").decode()
            raise ConfigError(f"the file name {shown} is not UTF-8", "rename it, or pipe it in") from None


def _check_distinct(named: list[tuple[str, str]]) -> None:
    seen: dict[object, str] = {}
    for path, role in named:
        file = _identity(path, role)
        if file is None:
            continue
        if file in seen:
            name = {"input": "stdin", "output": "stdout"}[role] if path == "-" else path
            both = f"{role}, twice" if seen[file] == role else f"both {seen[file]} and {role}"
            raise ConfigError(f"{name} is {both}", "give each its own file: -o FILE, -d FILE")
        seen[file] = role


def _identity(path: str, role: str) -> object:
    """What makes two names one file, links and redirections included; None for a pipe or a terminal."""
    try:
        facts = os.fstat(0 if role == "input" else 1) if path == "-" else Path(path).stat()
    except OSError:
        return None if path == "-" else os.path.realpath(path)
    if path == "-" and not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_dev, facts.st_ino
