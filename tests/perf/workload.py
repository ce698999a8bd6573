"""What the benchmarks run: the questions, the prompt, the schema, and a certificate for TLS.

The questions come from the JSONL file that $BATCHLLM_BENCH_DATA names (field `text`); without it they are
made up, as long as those of a bank's customers.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

DATA_VARIABLE = "BATCHLLM_BENCH_DATA"
PROMPT = "Classify this customer question into one of 77 categories.\nQuestion: {{ text }}"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"type": "integer", "minimum": 0, "maximum": 76},
        "urgent": {"type": "boolean"},
        "reason": {"type": "string", "maxLength": 200},
    },
    "required": ["category", "urgent", "reason"],
    "additionalProperties": False,
}
_MADE_UP, _SEED = 5_000, 20260101
_WORDS = (
    "I my the a card account money transfer payment was not still have why did you can how top up cash "
    "machine refund charged twice weeks ago order new stolen abroad rate exchange identity verify pending"
)


def questions() -> list[str]:
    """The texts of the records, over which a longer input goes again."""
    given = os.environ.get(DATA_VARIABLE)
    if given:
        with Path(given).open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]
    chance, words = random.Random(_SEED), _WORDS.split()
    return [" ".join(chance.choices(words, k=round(chance.triangular(3, 24, 5)))) for _ in range(_MADE_UP)]


def write_input(path: Path, count: int) -> None:
    """So many records as JSONL, written as they are made: a benchmark's own memory must stay small."""
    with path.open("w", encoding="utf-8") as file:
        for n, text in zip(range(count), itertools.cycle(questions()), strict=False):
            file.write(json.dumps({"id": f"r{n}", "text": text}) + "\n")


def certificate(folder: Path) -> tuple[str, str]:
    """The paths of a certificate for 127.0.0.1, signed by itself, and of its key, made with `openssl`."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -keyout key.pem -out cert.pem -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return str(folder / "cert.pem"), str(folder / "key.pem")
