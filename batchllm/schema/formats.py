"""The formats of JSON Schema that are checked here, by the grammars that the standard names for them.

One checker for all drafts, on top of jsonschema's own, which knows few formats without further packages.
Pure; `validating` imports it for schemas that hold a `format`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date

from jsonschema import FormatChecker

_DATE = r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
_TIME = (
    r"(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d):(?P<second>[0-5]\d|60)(?:\.\d+)?"
    r"(?:[zZ]|(?P<sign>[+-])(?P<hours>[01]\d|2[0-3]):(?P<minutes>[0-5]\d))"
)
# RFC 3339, appendix A: of ISO 8601's durations those whose units leave no gap, and without fractions.
_HOURS = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DURATION = rf"P(?:\d+W|{_HOURS}|(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)(?:{_HOURS})?)"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"
_RELATIVE_POINTER = rf"(?:0|[1-9]\d*)(?:[+-](?:0|[1-9]\d*))?(?:#|{_POINTER})"
_VARIABLE = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*(?::[1-9]\d{0,3}|\*)?"
_TEMPLATE = (
    r"(?:[^\x00-\x20\x7f-\x9f\"<>\\^`{|}%]|%[0-9A-Fa-f]{2}"
    rf"|\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
)
_BEYOND_ASCII = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U000dffff"
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U0010ffff"


def _references(beyond: str, private: str) -> tuple[str, str]:
    """The grammars of an address and of a reference (RFC 3986, 3.2 to 4.2; RFC 3987 with more characters)."""
    plain, escape = rf"A-Za-z0-9._~!$&'()*+,;={beyond}-", "%[0-9A-Fa-f]{2}"
    char = rf"(?:[:@{plain}]|{escape})"
    authority = rf"(?:(?:[:{plain}]|{escape})*@)?(?:\[(?P<literal>[^\]]*)\]|(?:[{plain}]|{escape})*)(?::\d*)?"
    hosted = rf"//{authority}(?:/{char}*)*"
    absolute, rootless = rf"/(?:{char}+(?:/{char}*)*)?", rf"{char}+(?:/{char}*)*"
    unlike_a_scheme = rf"(?:[@{plain}]|{escape})+(?:/{char}*)*"
    rest = rf"(?:\?(?:[:@/?{private}{plain}]|{escape})*)?(?:#(?:[:@/?{plain}]|{escape})*)?"
    address = rf"[A-Za-z][A-Za-z0-9+.-]*:(?:{hosted}|{absolute}|{rootless}|){rest}"
    return address, rf"(?:{hosted}|{absolute}|{unlike_a_scheme}|){rest}"


_URI, _RELATIVE_URI = _references("", "")
_IRI, _RELATIVE_IRI = _references(_BEYOND_ASCII, _PRIVATE)


def _is(pattern: str, text: str) -> re.Match[str] | None:
    return re.fullmatch(pattern, text, re.ASCII)


def _is_date(text: str) -> bool:
    found = _is(_DATE, text)
    if not found:
        return False
    try:
        date(int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError:
        return False
    return True


def _is_time(text: str) -> bool:
    """RFC 3339's full-time: with an offset, a leap second only where a day of UTC ends."""
    found = _is(_TIME, text)
    if not found:
        return False
    if found["second"] != "60":
        return True
    ahead = 60 * int(found["hours"] or 0) + int(found["minutes"] or 0)
    local = 60 * int(found["hour"]) + int(found["minute"])
    return (local + (ahead if found["sign"] == "-" else -ahead)) % 1440 == 1439


def _is_date_time(text: str) -> bool:
    return text[10:11] in ("T", "t") and _is_date(text[:10]) and _is_time(text[11:])


def _is_hostname(text: str) -> bool:
    """RFC 1123, 2.1; a label that is encoded has to be what Punycode writes."""
    if len(text) > 253 or not _is(rf"{_LABEL}(?:\.{_LABEL})*", text):
        return False
    return all(_is_decodable(label) for label in text.lower().split(".") if label[2:4] == "--")


def _is_decodable(label: str) -> bool:
    try:
        return label.startswith("xn--") and not label[4:].encode().decode("punycode").isascii()
    except UnicodeError:
        return False


def _is_address(*patterns: str) -> Callable[[str], bool]:
    """Whether a text fits one of the grammars; an address in brackets has to be one of IPv6 or later."""

    def fits(text: str) -> bool:
        found = next(filter(None, (_is(pattern, text) for pattern in patterns)), None)
        literal = found["literal"] if found else None
        return found is not None and (literal is None or _is_literal(literal))

    return fits


def _is_literal(text: str) -> bool:
    if text[:1] in ("v", "V"):
        return _is(r"[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+", text) is not None
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


_CHECKS: dict[str, Callable[[str], object]] = {
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_date_time,
    "duration": lambda text: _is(_DURATION, text),
    "hostname": _is_hostname,
    "uri": _is_address(_URI),
    "uri-reference": _is_address(_URI, _RELATIVE_URI),
    "iri": _is_address(_IRI),
    "iri-reference": _is_address(_IRI, _RELATIVE_IRI),
    "uri-template": lambda text: _is(_TEMPLATE, text),
    "json-pointer": lambda text: _is(_POINTER, text),
    "relative-json-pointer": lambda text: _is(_RELATIVE_POINTER, text),
    "regex": _is_regex,
}
_OF_JSONSCHEMA = ("email", "idn-email", "idn-hostname", "ipv4", "ipv6", "uuid")
CHECKED = frozenset({*_CHECKS, *_OF_JSONSCHEMA})
"""The formats that a value is held to; any other says nothing."""


def format_checker() -> FormatChecker:
    """What jsonschema asks about the formats of texts."""
    checker = FormatChecker(name for name in _OF_JSONSCHEMA if name in FormatChecker.checkers)
    for name, check in _CHECKS.items():
        checker.checks(name)(_of_texts(check))
    return checker


def _of_texts(check: Callable[[str], object]) -> Callable[[object], bool]:
    """A check that has nothing to say about what is no text."""
    return lambda value: not isinstance(value, str) or bool(check(value))
