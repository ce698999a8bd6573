"""Formats by their grammars: what each takes and refuses, in every draft, whatever else is installed."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from batchllm.schema import Schema
from batchllm.schema.formats import CHECKED

GOOD = {
    "date": ["2024-02-29", "1999-12-31"],
    "time": ["00:00:00Z", "23:59:59.123z", "07:05:00-11:30", "23:59:60Z", "00:59:60+01:00"],
    "date-time": ["2024-02-29T12:00:00Z", "1990-12-31t15:59:60-08:00", "2020-01-01T00:00:00.5+14:00"],
    "duration": ["P3W", "P1Y", "P2M10D", "PT5S", "P1DT2H3M4S", "P01D"],
    "email": ["a@b.example"],
    "hostname": ["a", "localhost", "a-b.example.com", "1.2", "xn--mnchen-3ya.de", "a" * 63 + ".x"],
    "ipv4": ["10.0.0.1"],
    "ipv6": ["::1"],
    "uuid": ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"],
    "uri": [
        *("https://u:p@a.example:8080/x;y/%7Ez?q=1?#f/?", "urn:a:b", "mailto:a@b.c", "file:///etc", "a:"),
        *("http://[::1]:80/", "http://[v1.x:y]", "http://@h", "http://:80", "x://"),
    ],
    "uri-reference": ["", "a/b", "../x?y", "//h/p", "#f", "?q", "./a:b", "http://x"],
    "iri": ["http://münchen.example/ö?\ue000#ü"],
    "iri-reference": ["/straße", "", "ü"],
    "uri-template": ["", "/a/{b}", "{+x,y*,z:3}", "{?q.r}", "it's%20{%41b}"],
    "json-pointer": ["", "/", "/a~0b~1c/0", "/ö\n"],
    "relative-json-pointer": ["0", "10/a", "1#", "0-1/b"],
    "regex": ["^a+$", ""],
}
BAD = {
    "date": [
        "2023-02-29",
        "2024-2-1",
        "20240201",
        "2024-02-01T00:00:00Z",
        "２０２４-01-01",
        "2024-01-01\n",
        "",
    ],
    "time": [
        "12:00:00",
        "24:00:00Z",
        "12:60:00Z",
        "1:00:00Z",
        "12:00Z",
        "12:00:60Z",
        "12:00:00+24:00",
        "1२:00:00Z",
    ],
    "date-time": [
        "2024-02-30T12:00:00Z",
        "2024-01-01 12:00:00Z",
        "2024-01-01T12:00:00",
        "2024-01-01",
        "soon",
    ],
    "duration": ["P", "PT", "P1YT", "P1", "1D", "P1W2D", "PT1D", "P1S", "PT0.5S", "PT1H2S", "-P1D", "P1D\n"],
    "email": ["nobody"],
    "hostname": [
        "",
        "-a",
        "a-",
        "a_b",
        "a..b",
        "a.",
        "ü.de",
        "a" * 64,
        "a." * 127 + "a",
        "ab--c",
        "xn--99999999999",
        "a\n",
    ],
    "ipv4": ["10.0.0.256", "10.0.0.01"],
    "ipv6": ["::g", "fe80::1%eth0"],
    "uuid": ["2eb8aa08"],
    "uri": [
        *("/a", "a", "", "http://a b", "http://a/%zz"),
        *("1a:b", "http://a:b", "http://a@b@c", "http://[::1", ":a"),
        *("http://[::1%25e]", "http://[]", "http://h/["),
        *("http://h/ö", "http://h/\\", "http://h\n", "http://h/<x>"),
    ],
    "uri-reference": ["\\\\x y", "1:b", "#a#b", "a b", "/%a", "//h:x", "ü"],
    "iri": ["/ö", "http://ö/ x", "http://\ue000.de/", "http://x/\ud800"],
    "iri-reference": ["ö ö", "\\ö"],
    "uri-template": ["{", "}", "{}", "{a", "{a,}", "{a b}", "{v:0}", "{v:12345}", "a b", "%4", "{a..b}"],
    "json-pointer": ["a", "/~", "/~2", "#/a"],
    "relative-json-pointer": ["", "/a", "-1", "01", "0##", "1#/a", "1a", "0+", "0-01"],
    "regex": ["(", "a{99999999999999999999}"],
}
DRAFTS = ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"]


def of(name: str, draft: str = DRAFTS[0]) -> Schema:
    return Schema.load({"$schema": draft, "properties": {"a": {"format": name}}}, "s.json")


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.parametrize("draft", DRAFTS)
def test_a_format_takes_what_its_grammar_writes_and_nothing_else(name: str, draft: str) -> None:
    schema = of(name, draft)
    assert [text for text in GOOD[name] if not schema.accepts({"a": text})] == []
    assert [text for text in BAD[name] if schema.accepts({"a": text})] == []
    assert all(schema.accepts({"a": value}) for value in (None, 1, 1.5, True, [], {}))
    assert schema.violations({"a": BAD[name][-1]}) == [f"at $.a: {BAD[name][-1]!r} is not a {name!r}"]


def test_all_that_is_checked_is_held_to_cases() -> None:
    assert GOOD.keys() == BAD.keys() == CHECKED - {"idn-email", "idn-hostname"}


@pytest.mark.parametrize("name", sorted(CHECKED))
@pytest.mark.parametrize("text", ["a" * 50_000, "%41" * 20_000, "http://" + "a:" * 20_000, "{a" * 20_000])
def test_no_text_makes_a_format_fail(name: str, text: str) -> None:
    assert of(name).accepts({"a": text}) in (True, False)


def test_a_format_that_nobody_knows_is_said_and_takes_everything(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "batchllm"):
        document: dict[str, Any] = {"format": "date", "items": [{"format": "isbn"}, {"format": "int32"}]}
        schema = Schema.load({"$schema": DRAFTS[1], **document}, "s.json")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["s.json: nobody checks the format 'isbn'; a pattern would be checked"]
    assert schema.accepts(["anything", "goes"])


def test_formats_are_only_imported_for_schemas_that_hold_one() -> None:
    code = (
        "import sys, batchllm.schema as s; s.Schema.load({'properties': {'format': {}}}, 's'); "
        "before = 'batchllm.schema.formats' in sys.modules; s.Schema.load({'format': 'uri'}, 's'); "
        "sys.exit(before or 'batchllm.schema.formats' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
