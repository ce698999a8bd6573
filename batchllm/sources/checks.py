"""What is refused as a whole, before a record is read: paths that can't be read, and files of another format.

Each refusal is a ConfigError whose hint is a command that converts the file. `check_inputs` is called once
before a run; `JsonlSource` asks `refusal` about the first line of a pipe, which can't be looked at before.
"""

from __future__ import annotations

import json
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from batchllm.errors import ConfigError
from batchllm.sources.blocks import (
    GZIP_MAGIC,
    STDIN,
    ZSTD_MAGIC,
    Broken,
    PackedFile,
    Pipe,
    PlainFile,
    open_blocks,
)
from batchllm.sources.splitting import BOM, KEPT_BYTES

_PACKED = {
    GZIP_MAGIC: ("gzip", "gunzip -c"),
    ZSTD_MAGIC: ("zstd", "zstd -dc"),
    b"BZh91AY&SY": ("bzip2", "bunzip2 -c"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
}
_NAMED = {".gz": "gzip", ".zst": "zstd"}
_COLUMN = re.compile(r"""["']?[^\W\d][\w .\-/]{0,63}["']?""")
_CSV_PROGRAM = (
    "import csv,json,sys;"
    "[print(json.dumps(r)) for r in csv.DictReader("
    "open(sys.argv[1],encoding='utf-8-sig',newline=''),delimiter={delimiter})]"
)


def check_inputs(paths: Sequence[str]) -> None:
    """Raise ConfigError for the first input that can't be read or is no JSONL; `-` is stdin.

    Nothing is taken from a pipe, so its content is judged when it comes.
    """
    if list(paths).count(STDIN) > 1:
        raise ConfigError("stdin is named twice as an input", "name `-` once")
    for path in paths:
        _check(path)


def refusal(path: str, head: bytes, *, packing: str | None = None, piped: bool = False) -> ConfigError | None:
    """Why content that begins with `head` is no JSONL, or None; `packing`: it came out of gzip or zstd."""
    name = called(path)
    for magic, (what, program) in _PACKED.items():
        if head.startswith(magic):
            return ConfigError(f"{name} is {what} data, not JSONL", _convert(path, program, packing, piped))
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        program = "iconv -f UTF-16 -t UTF-8"
        return ConfigError(f"{name} is UTF-16, not UTF-8", _convert(path, program, packing, piped))
    first, second = _two_lines(head)
    if first.startswith(b"["):
        program = "jq -c '.[]'"
        return ConfigError(
            f"{name} is a JSON array, not one object a line", _convert(path, program, packing, piped)
        )
    if first == b"{":
        return ConfigError(
            f"{name} is a JSON object over several lines, not one object a line",
            _convert(path, "jq -c .", packing, piped),
        )
    delimiter = _delimiter(first, second)
    if delimiter:
        code = _CSV_PROGRAM.format(delimiter=repr(delimiter))
        return ConfigError(
            f"{name} looks like CSV, not JSONL: its first line is `{first.decode()[:60]}`",
            _convert(path, f'python3 -c "{code}"', packing, piped),
        )
    return None


def called(path: str) -> str:
    """A path as messages name it."""
    return "stdin" if path == STDIN else path


def line_id(paths: Sequence[str], file: int, number: int) -> str:
    """The id of a record that has none: its physical line, with the file's name where there are several."""
    path = paths[file]
    if len(paths) == 1:
        return f"line-{number}"
    return f"{'stdin' if path == STDIN else Path(path).name}:line-{number}"


def _check(path: str) -> None:
    name = called(path)
    try:
        if path != STDIN and stat.S_ISFIFO(Path(path).stat().st_mode):
            return  # opened and closed again, its writer would lose its reader
        blocks = open_blocks(path, block_bytes=KEPT_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{name} does not exist", "check the path of the input") from error
    except PermissionError as error:
        raise ConfigError(
            f"{name} may not be read: permission denied", f"ls -l {shlex.quote(path)}"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{name} can't be read: {reason}", "check the path of the input") from error
    except Broken as broken:
        raise ConfigError(f"{name} {broken.what}", broken.hint) from broken
    try:
        if not isinstance(blocks, Pipe):
            _check_head(path, blocks)
    finally:
        blocks.close()


def _check_head(path: str, blocks: PlainFile | PackedFile) -> None:
    try:
        head = blocks.fetch()
    except Broken as broken:
        if isinstance(blocks, PackedFile):
            return  # a defect of the content is the run's to tell, with the line where it is
        raise ConfigError(f"{called(path)} {broken.what}", broken.hint) from broken
    packing = blocks.packing if isinstance(blocks, PackedFile) else None
    named = _NAMED.get(Path(path).suffix)
    if named and not packing and head:
        plain = shlex.quote(str(Path(path).with_suffix("")))
        raise ConfigError(
            f"{path} is not {named} data, in spite of its name",
            f"if it is plain JSONL: mv {shlex.quote(path)} {plain}",
        )
    refused = refusal(path, head, packing=packing)
    if refused is not None:
        raise refused


def _convert(path: str, program: str, packing: str | None, piped: bool) -> str:
    """The command that makes JSONL of the input with `program`, which takes a file name as its last word."""
    if path == STDIN or piped:
        return f"pipe it through: {program} /dev/stdin"
    source = shlex.quote(path)
    target = shlex.quote(path.removesuffix(".gz").removesuffix(".zst") + ".jsonl")
    if packing:
        unpack = {"gzip": "gunzip -c", "zstd": "zstd -dc"}[packing]
        return f"{unpack} {source} | {program} /dev/stdin > {target}"
    return f"{program} {source} > {target}"


def _two_lines(head: bytes) -> tuple[bytes, bytes]:
    """The first two lines that aren't blank, without surrounding whitespace."""
    lines = [line for line in (part.strip() for part in head.removeprefix(BOM).split(b"\n")) if line]
    return (lines[0] if lines else b""), (lines[1] if len(lines) > 1 else b"")


def _delimiter(first: bytes, second: bytes) -> str | None:
    """What separates the columns if `first` is the header of a CSV file, else None."""
    if first[:1] in (b"", b"{") or second.startswith(b"{"):
        return None
    try:
        json.loads(first)
        return None
    except (ValueError, RecursionError):
        pass
    try:
        header = first.decode()
    except UnicodeDecodeError:
        return None
    delimiter = max(",\t;", key=header.count)
    columns = header.split(delimiter)
    names = [column.strip() for column in columns]
    if len(names) < 2 or len(set(names)) < len(names) or not all(map(_COLUMN.fullmatch, names)):
        return None
    # A sentence has commas too, but blanks behind them: then the next line has to look the same.
    if names != columns and delimiter.encode() not in second:
        return None
    return delimiter
