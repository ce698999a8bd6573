"""The steps of the ETL sample that are no model: taking a line apart, and loading a row into SQLite."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

TABLE = """create table if not exists invoices
    (id text primary key, supplier text, number text, total real, due text)"""
ROW = "insert or replace into invoices values (:id, :supplier, :number, :total, :due)"


def extract(record: dict[str, Any]) -> dict[str, Any]:
    """The parts of a line; an empty line is none."""
    parts = [part.strip() for part in record["text"].split(";") if part.strip()]
    if not parts:
        raise ValueError("the line is empty")
    return {"parts": parts}


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """The table, open for the whole run; the one thread of the stage uses it."""
    with closing(sqlite3.connect(os.environ["INVOICES_DB"], check_same_thread=False)) as opened:
        opened.execute("pragma journal_mode = wal")
        opened.execute(TABLE)
        yield opened


def load(record: dict[str, Any], answers: dict[str, Any], resource: sqlite3.Connection) -> str:
    """Put the row under the record's id: loading it again changes nothing."""
    with resource:
        resource.execute(ROW, {"id": record["id"], **answers["transform"]})
    return str(record["id"])


def total() -> None:
    """Say what the table holds, once everything is loaded."""
    with closing(sqlite3.connect(os.environ["INVOICES_DB"])) as opened:
        rows, euros = opened.execute("select count(*), sum(total) from invoices").fetchone()
    print(f"{rows} invoices, {euros:.2f} EUR", file=sys.stderr)
