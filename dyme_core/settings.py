"""What values a setting may have: its annotated type, finite numbers, a range or a list of choices."""
from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

Bounds = tuple[float, float | None] | tuple[str, ...]  # lowest and highest (None: none), or choices


def check(settings: Any, part: str, **bounds: Bounds) -> None:
    """Check every field of a frozen dataclass of settings; lists stand for tuples, as in JSON.

    Args:
        part: name before the dot in errors; "" for none.
        bounds: by field; None passes where its type allows it, of a dict or tuple every value is checked.
    Raises:
        ValueError: naming the setting, what it takes, what came, and its default.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{part}.{field.name}".lstrip(".")
        wanted, bound = _types(type(settings))[field.name], bounds.get(field.name, ())
        if not (_fits(value, wanted) and _is_within(value, bound)):
            raise ValueError(f"{name} must be {_words(wanted, bound)}: got {value!r:.200}{_remedy(field)}")


@functools.cache
def _types(part: type) -> dict[str, Any]:
    return typing.get_type_hints(part)


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis and isinstance(value, tuple | list) else inner
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[0]) and _fits(value[one], inner[1]) for one in value)
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    if wanted is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, wanted)


def _is_within(value: Any, bound: Bounds) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(_is_within(one, bound) for one in (value.values() if isinstance(value, dict) else value))
    if not bound or value is None:
        return True
    if _is_choice(bound):
        return value in bound
    low, high = bound
    return low <= value and (high is None or value <= high)


def _is_choice(bound: Sequence[Any]) -> bool:
    return any(isinstance(one, str) for one in bound)


def _words(wanted: Any, bound: Bounds) -> str:
    inner = typing.get_args(wanted)
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if _is_choice(bound):
        kind = f"one of {bound}"
        return kind if wanted is str else f"a list of values, each {kind}"
    if typing.get_origin(wanted) in (tuple, dict):
        what = "a list of values" if typing.get_origin(wanted) is tuple else "an object of names and values"
        return f"{what}, each {_words(inner[-1] if inner[-1] is not Ellipsis else inner[0], bound)}"
    if inner:
        return f"{_words(next(one for one in inner if one is not type(None)), bound)}, or null"
    if dataclasses.is_dataclass(wanted):
        return "set field by field, as PART.FIELD"
    ranged = f" from {bound[0]:g}" + (f" to {bound[1]:g}" if bound[1] is not None else " on") if bound else ""
    return f"{named.get(wanted, getattr(wanted, '__name__', 'a value'))}{ranged}"


def _remedy(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "; give one"
    return f"; give one, or leave it out for {field.default!r}"
