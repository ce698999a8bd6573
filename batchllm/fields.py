"""Classes of fields, made in a fraction of the time: dataclasses whose `__init__` is made when it is needed.

Python compiles a dataclass's methods when its module is imported, which took a tenth of the program's start.
Here the standard library finds the fields and makes the slots; the `__init__` is compiled when the first
object is made, comparing and showing go over the fields. `dataclasses.replace` and `fields` work as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """A class of fields that the type checker keeps frozen, equal by its fields and hashed by them.

    Python's own frozen dataclasses are more than that, and each object costs 8 µs more to make.
    """
    return _made(cls, _hashed)


@dataclass_transform()
def mutable(cls: type[T]) -> type[T]:
    """A class of fields that may change, equal by its fields."""
    return _made(cls, None)


def _made(cls: type[T], hashed: Callable[[Any], int] | None) -> type[T]:
    made: Any = dataclass(init=False, eq=False, repr=False, slots=True)(cls)

    def first(self: Any, *args: Any, **given: Any) -> None:
        made.__init__ = _init_of(made)
        made.__init__(self, *args, **given)

    made.__init__, made.__eq__, made.__repr__, made.__hash__ = first, _equal, _shown, hashed
    found: type[T] = made
    return found


def _init_of(cls: Any) -> Any:
    """An `__init__` that takes the fields in their order, with their defaults."""
    names: dict[str, Any] = {"MISSING": MISSING}
    parameters, lines = ["self"], []
    for each in fields(cls):
        name, value = each.name, each.name
        if each.default_factory is not MISSING:
            names[f"make_{name}"] = each.default_factory
            value = f"make_{name}() if {name} is MISSING else {name}"
        names[f"default_{name}"] = each.default
        optional = each.default is not MISSING or each.default_factory is not MISSING
        parameters.append(f"{name}=default_{name}" if optional else name)
        lines.append(f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    code = f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or [" pass"])
    exec(code, names)
    names["__init__"].__qualname__ = f"{cls.__qualname__}.__init__"
    return names["__init__"]


def _values(this: Any) -> tuple[Any, ...]:
    return tuple([getattr(this, each.name) for each in fields(this)])


def _equal(this: Any, other: Any) -> bool:
    return type(other) is type(this) and _values(this) == _values(other)


def _hashed(this: Any) -> int:
    return hash(_values(this))


def _shown(this: Any) -> str:
    shown = [(each.name, getattr(this, each.name)) for each in fields(this) if each.repr]
    return f"{type(this).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"
