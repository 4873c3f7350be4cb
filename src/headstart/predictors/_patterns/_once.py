"""Attributes that are worked out when they are asked for first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

Value = TypeVar("Value")


class once(Generic[Value]):  # noqa: N801 - a decorator
    """Work an attribute out once.

    That of `functools` takes a lock in Python 3.11, which costs more than most of the
    attributes here.
    """

    __slots__ = ("_find", "_name")

    def __init__(self, find: Callable[[Any], Value]) -> None:
        self._find = find
        self._name = find.__name__

    @overload
    def __get__(self, owner: None, of: type[Any]) -> Self: ...

    @overload
    def __get__(self, owner: object, of: type[Any]) -> Value: ...

    def __get__(self, owner: object, of: type[Any]) -> Value | Self:
        if owner is None:
            return self
        value = owner.__dict__[self._name] = self._find(owner)
        return value
