"""A ticket service of a few lines: POST /tickets with an idempotency key, kept in SQLite.

python samples/tickets/service.py FILE PORT
"""

from __future__ import annotations

import json
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TABLE = "create table if not exists tickets (number integer primary key, key text unique, body text)"


class Service(BaseHTTPRequestHandler):
    """Takes each key once: the same request again gets the same number, and no second ticket."""

    protocol_version = "HTTP/1.1"
    file = "tickets.db"

    def do_POST(self) -> None:
        """Keep a ticket; answer with its number."""
        length = int(self.headers["content-length"])
        content = self.rfile.read(length)
        if len(content) < length:  # who asked is gone in the middle of it: this is no ticket
            self.close_connection = True
            return
        body = content.decode()
        key = self.headers["idempotency-key"]
        with sqlite3.connect(self.file, timeout=30) as database:
            database.execute("insert or ignore into tickets (key, body) values (?, ?)", (key, body))
            row = database.execute("select number from tickets where key = ?", (key,)).fetchone()
        database.close()
        answer = json.dumps({"number": row[0]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main(file: str, port: str) -> None:
    """Serve until killed; the port is printed, since 0 takes any."""
    Service.file = file
    with sqlite3.connect(file) as database:
        database.execute("pragma journal_mode = wal")
        database.execute(TABLE)
    database.close()
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Service)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
