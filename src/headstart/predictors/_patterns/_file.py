"""Patterns as JSON: what is written, and what is checked when it is read.

Rules of this file:

1. What is read is not trusted: every figure is checked to be finite and brought into
   its range, every name to be text, every table to its size.
2. It holds names of tools, arguments and fields, shapes, words and constants that
   several runs had in common, and figures; never a value that belongs to one run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headstart._errors import UsageError

from ._reliability import BINS, MAX_SEEN
from ._weights import LEAST_WEIGHT, LIMIT, MAX_FEATURES, Scope, Weights

if TYPE_CHECKING:
    import os

    from ._reliability import Reliability

VERSION = 1
MAX_FILE_CHARACTERS = 50_000_000
_MAX_NAME = 2_000
_MOST = 1e9


def load_patterns(path: str | os.PathLike[str]) -> Any:
    """Read a patterns file as JSON.

    Raises:
        UsageError: It cannot be read, or is not JSON.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        msg = f"The patterns file {name!r} cannot be read: {error.strerror or error}."
        raise UsageError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"The patterns file {name!r} is not UTF-8 text."
        raise UsageError(msg) from error
    if len(text) > MAX_FILE_CHARACTERS:
        msg = (
            f"The patterns file {name!r} is too long to be one: {len(text)} characters."
        )
        raise UsageError(msg)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"The patterns file {name!r} is not JSON: {error}."
        raise UsageError(msg) from error


def save_patterns(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write a patterns file, a line for each tool, argument or context.

    Raises:
        UsageError: It cannot be written.
    """
    entries = ",\n".join(f"{json.dumps(key)}: {_lines(data[key])}" for key in data)
    try:
        Path(path).write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        msg = f"The patterns file {str(path)!r} cannot be written: {reason}."
        raise UsageError(msg) from error


def _lines(value: object) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    fields = cast("dict[str, object]", value)
    lines = [f" {json.dumps(key)}: {json.dumps(each)}" for key, each in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}" if lines else "{}"


def check_version(data: object) -> dict[str, Any]:
    """The patterns' tables.

    Raises:
        UsageError: These are no patterns, or of another version.
    """
    if not isinstance(data, dict) or "version" not in data:
        msg = "Patterns are a JSON object with a 'version': learn them with headstart."
        raise UsageError(msg)
    tables = cast("dict[str, Any]", data)
    if tables["version"] != VERSION:
        msg = (
            f"These patterns have the version {tables['version']!r}, and this headstart "
            f"reads version {VERSION}: learn them again."
        )
        raise UsageError(msg)
    return tables


def table(data: dict[str, Any], name: str) -> dict[str, Any]:
    """One table of patterns; empty where it is missing.

    Raises:
        UsageError: It is no object.
    """
    found: object = data.get(name, {})
    if not isinstance(found, dict):
        raise _wrong(name, "is an object")
    return cast("dict[str, Any]", found)


def read_number(value: object, where: str) -> float:
    """A finite number that is not negative.

    Raises:
        UsageError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, "holds numbers")
    number = float(value) if abs(value) < _MOST else math.inf
    if not 0 <= number < math.inf:
        raise _wrong(where, f"holds numbers from 0 to {_MOST:g}")
    return number


def write_counts(tables: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Tables of counts, with the figures that matter."""
    return {
        name: {key: round(count, 2) for key, count in counts.items()}
        for name, counts in tables.items()
    }


def read_counts(data: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
    """Tables of counts.

    Raises:
        UsageError: They are no such tables.
    """
    tables: dict[str, dict[str, float]] = {}
    for key, counts in table(data, name).items():
        if not isinstance(counts, dict) or len(key) > _MAX_NAME:
            raise _wrong(name, "holds objects with numbers")
        tables[key] = {
            each: read_number(count, name)
            for each, count in cast("dict[str, Any]", counts).items()
        }
    return tables


def write_weights(weights: Weights) -> dict[str, dict[str, list[float]]]:
    """Weights by scope and feature, with how much was learned about each."""
    return {
        name: {
            feature: [round(weight, 3), round(scope.seen[feature], 3)]
            for feature, weight in scope.weights.items()
            if abs(weight) >= LEAST_WEIGHT
        }
        for name, scope in weights.scopes.items()
    }


def read_weights(data: dict[str, Any], name: str, weights: Weights) -> None:
    """Fill in weights.

    Raises:
        UsageError: They are no weights.
    """
    for key, features in table(data, name).items():
        if not isinstance(features, dict):
            raise _wrong(name, "holds objects with pairs of numbers")
        scope = weights.scopes[key] = Scope()
        for feature, pair in cast("dict[str, Any]", features).items():
            match pair:
                case [int() | float() as weight, seen] if abs(weight) <= LIMIT:
                    scope.weights[feature] = float(weight)
                    scope.seen[feature] = read_number(seen, name)
                case _:
                    raise _wrong(name, f"holds pairs of a weight of at most {LIMIT}")
        if len(scope.weights) > MAX_FEATURES:
            scope.forget()


def write_reliability(reliability: Reliability) -> dict[str, list[list[float]]]:
    """How often stated probabilities came true, by tool."""
    return {
        name: [[round(count, 2) for count in entry] for entry in bins]
        for name, bins in reliability.bins.items()
    }


def read_reliability(data: dict[str, Any], name: str, reliability: Reliability) -> None:
    """Fill in how often stated probabilities came true.

    Raises:
        UsageError: These are no such figures.
    """
    for key, bins in table(data, name).items():
        if not isinstance(bins, list) or len(cast("list[Any]", bins)) != BINS:
            raise _wrong(name, f"holds lists of {BINS} triples")
        read: list[list[float]] = []
        for entry in cast("list[Any]", bins):
            match entry:
                case [_, _, _]:
                    seen, stated, true = (read_number(count, name) for count in entry)
                    scale = min(1.0, MAX_SEEN / max(seen, 1.0))
                    counts = seen, min(stated, seen), min(true, seen)
                    read.append([scale * count for count in counts])
                case _:
                    raise _wrong(name, f"holds lists of {BINS} triples")
        reliability.bins[key] = read


def _wrong(name: str, what: str) -> UsageError:
    return UsageError(f"These are no patterns: their {name!r} {what}.")
