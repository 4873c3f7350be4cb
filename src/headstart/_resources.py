"""Resource keys: what calls touch, by templates over their arguments."""

from __future__ import annotations

import enum
import string
from typing import TYPE_CHECKING, Any, TypeAlias

from ._errors import ToolDefinitionError

if TYPE_CHECKING:
    from collections.abc import Sequence

ResourceKeys: TypeAlias = frozenset[str]
"""What a call touches. `"incident"` covers `"incident:7"`, and `""` covers all."""

EVERYTHING: ResourceKeys = frozenset({""})
NOTHING: ResourceKeys = frozenset()


def overlaps(left: ResourceKeys, right: ResourceKeys) -> bool:
    """Whether two sets of resource keys have anything in common."""
    return any(_covers(a, b) or _covers(b, a) for a in left for b in right)


def _covers(wide: str, narrow: str) -> bool:
    return not wide or wide == narrow or narrow.startswith(wide + ":")


def as_strings(value: Sequence[str], option: str, tool: str) -> tuple[str, ...]:
    """Take a sequence of strings, and no single one."""
    if isinstance(value, str):
        msg = f"The option {option!r} of the tool {tool!r} is a list of strings."
        raise ToolDefinitionError(msg, tool=tool)
    return tuple(value)


def read_templates(
    templates: Sequence[str] | None, option: str, tool: str, known: set[str] | None
) -> tuple[str, ...] | None:
    """Check the templates of an option of a tool; `known` are its parameters."""
    if templates is None:
        return None
    templates = as_strings(templates, option, tool)
    for template in templates:
        try:
            names = [part[1] for part in string.Formatter().parse(template)]
        except ValueError as error:
            msg = f"The resource key {template!r} of the tool {tool!r}: {error}."
            raise ToolDefinitionError(msg, tool=tool) from error
        for name in names:
            if name is not None and (
                not name.isidentifier() or (known is not None and name not in known)
            ):
                msg = (
                    f"The resource key {template!r} of the tool {tool!r} uses "
                    f"{name!r}, which is none of its parameters."
                )
                raise ToolDefinitionError(msg, tool=tool)
    return templates


def render_keys(
    templates: tuple[str, ...] | None, arguments: dict[str, Any]
) -> ResourceKeys:
    """The keys of a call. Templates that cannot be filled in touch everything."""
    if templates is None:
        return EVERYTHING
    keys: set[str] = set()
    for template in templates:
        names = {part[1] for part in string.Formatter().parse(template)} - {None}
        values = {str(name): _key_part(arguments.get(str(name))) for name in names}
        if None in values.values():
            return EVERYTHING
        try:
            keys.add(template.format_map(values))
        except Exception:  # noqa: BLE001 - a format that does not fit the value
            return EVERYTHING
    return frozenset(keys)


def _key_part(value: Any) -> Any:
    """A value as other tools would write it, whatever types they declare."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
