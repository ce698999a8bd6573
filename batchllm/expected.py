"""The answer that a record says it should get: where it stands, and whether an output is it.

Pure. The settings check the form with it, `lines` judges each answer, the report reads what was answered.
"""

from __future__ import annotations

from typing import Any

from batchllm import exact

FORM = "expected FIELD=output or FIELD=output.path, such as label=output.category"
NOTHING = object()
"""What an output holds where the path leads nowhere."""


class Expectation:
    """`label=output.category`: the record's field `label` holds what the output's `category` should be.

    `path` are the names and indices below the output, outermost first; none for the whole output.
    """

    __slots__ = ("field", "path")

    def __init__(self, text: str) -> None:
        """Read `FIELD=output.path`; ValueError with the form for anything else."""
        field, equals, path = text.partition("=")
        root, *below = path.strip().split(".")
        if not equals or not field.strip() or root != "output" or not all(below):
            raise ValueError(FORM)
        self.field = field.strip()
        self.path = tuple(below)

    def verdict(self, data: dict[str, Any] | None, output: Any) -> dict[str, Any]:
        """`expected` and `correct` for the output line; nothing where the record lacks the field."""
        if data is None or self.field not in data:
            return {}
        expected = data[self.field]
        return {"expected": expected, "correct": fits(self.answered(output), expected)}

    def answered(self, output: Any) -> Any:
        """What the output holds at the path, or NOTHING."""
        for name in self.path:
            if isinstance(output, dict) and name in output:
                output = output[name]
            elif isinstance(output, list) and name.isdecimal() and len(name) < 10 and int(name) < len(output):
                output = output[int(name)]
            else:
                return NOTHING
        return output


def fits(answered: Any, expected: Any) -> bool:
    """Whether the two are equal as JSON values: numbers by value, no number is a boolean.

    Texts are compared without the white space around them. A text where another kind of value is expected
    is read as JSON: models without a schema answer `3` as text.
    """
    if isinstance(answered, str):
        if isinstance(expected, str):
            return answered.strip() == expected.strip()
        try:
            answered = exact.loads(answered)
        except ValueError:
            return False
    return answered is not NOTHING and _equal(answered, expected)


def _equal(one: Any, other: Any) -> bool:
    """Equality of JSON values; a list of what is left to compare, since they may be nested deep."""
    left = [(one, other)]
    while left:
        a, b = left.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            left += [(a[name], b[name]) for name in a]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            left += zip(a, b, strict=True)
        elif isinstance(a, bool) is not isinstance(b, bool) or a != b:
            return False
    return True
