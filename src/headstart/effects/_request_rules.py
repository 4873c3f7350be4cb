"""Which HTTP requests only read: what the seams of all HTTP clients go by.

Rules of this file:

1. In doubt a request does not only read. An `unsafe` rule that may match does, a `safe`
   one has to match for certain, and what is both is unsafe.
2. A method is believed only where nothing in the request says that it is another one.
"""

from __future__ import annotations

import inspect
import logging
import posixpath
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from headstart._errors import UsageError

logger = logging.getLogger("headstart")

Rule: TypeAlias = str | Callable[[Any], object]
"""A pattern of URLs, or a function of the request, as the client's library has it."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that only read, by RFC 9110."""

_OTHERWISE = ("upgrade", "x-http-method", "x-http-method-override", "x-method-override")
"""Headers that make more of a request than its method says: the names in lower case."""

_PATTERN = re.compile(
    r"(?P<scheme>\*|[a-z][a-z0-9+.-]*)://"
    r"(?P<host>\[[0-9a-f:.]+\]|[^/?#@\[\]:\s]+)(?::(?P<port>\*|\d+))?"
    r"(?P<path>/[^?#\s]*)",
    re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class _URLPattern:
    __slots__ = ("_host", "_path", "_port", "_scheme")

    def __init__(self, text: str, *, unsafe: bool) -> None:
        match = _PATTERN.fullmatch(text)
        if match is None:
            msg = (
                f"{text!r} is no pattern of URLs: write the scheme, the host and a path "
                "without a query, such as 'https://api.example.com/search/*'. A '*' "
                "stands for any characters, in each of the three."
            )
            raise UsageError(msg)
        self._scheme = _wild(match["scheme"].lower())
        self._host = _wild(match["host"].lower().strip("[]").rstrip("."))
        self._path = _wild(unquote(match["path"]), re.IGNORECASE if unsafe else 0)
        port = match["port"]
        if port is None:
            self._port: int | str = "*" if unsafe else "default"
        else:
            self._port = port if port == "*" else int(port)

    def matches(self, url: SplitResult, paths: Iterable[str]) -> bool:
        default = _DEFAULT_PORTS.get(url.scheme)
        port = default if self._port == "default" else self._port
        return bool(
            self._scheme.fullmatch(url.scheme)
            and self._host.fullmatch((url.hostname or "").rstrip("."))
            and port in ("*", url.port or default)
            and any(self._path.fullmatch(path) for path in paths)
        )


def _wild(text: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), flags | re.DOTALL)


class RequestRules:
    """What the user says of requests, beyond what their methods say.

    Args:
        unsafe: Requests that change something, whatever their method.
        safe: Requests that only read: a pattern is for `POST` alone.

    Raises:
        UsageError: A rule is neither a pattern nor a plain function.
    """

    __slots__ = ("_safe", "_unsafe")

    def __init__(self, *, unsafe: Iterable[Rule], safe: Iterable[Rule]) -> None:
        self._unsafe = _read_rules(unsafe, "unsafe")
        self._safe = _read_rules(safe, "safe")

    def only_reads(self, request: Any) -> bool:
        """Whether a request changes nothing for certain."""
        method = request.method
        if method in SAFE_METHODS:
            headers = request.headers
            if any(name in headers for name in _OTHERWISE):
                return False
            return not (self._unsafe and self._is_unsafe(request))
        if not self._safe or (self._unsafe and self._is_unsafe(request)):
            return False
        return self._is_safe(request, patterns=method == "POST")

    def _is_unsafe(self, request: Any) -> bool:
        url = urlsplit(str(request.url))
        path = unquote(url.path) or "/"
        paths = {path, posixpath.normpath("/" + path.lstrip("/"))}
        return any(
            rule.matches(url, paths)
            if isinstance(rule, _URLPattern)
            else _ask(rule, request, doubt=True)
            for rule in self._unsafe
        )

    def _is_safe(self, request: Any, *, patterns: bool) -> bool:
        url = urlsplit(str(request.url))
        path = unquote(url.path) or "/"
        # What one server reads as a path, the next may read as another.
        plain = not (
            {"", ".", ".."} & set(path[1:].split("/")[:-1])
            or path.endswith(("/.", "/.."))
            or "%2f" in url.path.lower()
            or "\\" in path
        )
        return any(
            patterns and plain and rule.matches(url, (path,))
            if isinstance(rule, _URLPattern)
            else _ask(rule, request, doubt=False)
            for rule in self._safe
        )


def what_is(request: Any) -> str:
    """A request in an error: no path, which may hold what is secret."""
    return f"a {request.method} to {urlsplit(str(request.url)).hostname}"


def _ask(rule: Callable[[Any], object], request: Any, *, doubt: bool) -> bool:
    try:
        return bool(rule(request))
    except Exception:  # held like any request that nothing is known of
        logger.warning("A rule for HTTP requests failed.", exc_info=True)
        return doubt


def _read_rules(
    rules: Iterable[Rule], option: str
) -> tuple[_URLPattern | Callable[[Any], object], ...]:
    if isinstance(rules, str) or callable(rules):
        msg = f"{option!r} is a list: {option}=[...]."
        raise UsageError(msg)
    read: list[_URLPattern | Callable[[Any], object]] = []
    for rule in rules:
        if isinstance(rule, str):
            read.append(_URLPattern(rule, unsafe=option == "unsafe"))
        elif callable(rule) and not (
            inspect.iscoroutinefunction(rule)
            or inspect.iscoroutinefunction(getattr(rule, "__call__", None))  # noqa: B004
        ):
            read.append(rule)
        else:
            msg = (
                f"{option!r} lists patterns of URLs, or plain functions of a request "
                f"that answer at once; not {rule!r}."
            )
            raise UsageError(msg)
    return tuple(read)
