"""One rule: when to expect which call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from headstart._errors import UsageError

from ._templates import EVERY, Placeholder, read_value

if TYPE_CHECKING:
    from headstart._tools import Tool

_REGEX_CHARACTERS = frozenset(r"\.^$*+?{}[]|()")
_ROOTS = ("deps", "result", "results", "user_text")
_FILE_KEYS = frozenset({"after", "arguments", "call", "probability", "when"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    r"""When to expect which call. `rule` is the short way to write one.

    Attributes:
        call: The tool's name.
        when: A keyword (text without any of `\ . ^ $ * + ? { } [ ] | ( )`: whole
            words, in any case) or a regular expression, as it is written.
        after: A tool whose result is searched instead of what the user said.
        probability: That the model will ask for exactly this call, from 0 to 1.
        arguments: Argument names to templates and JSON values. A named group of
            `when` is the argument of that name where there is no entry for it.
        pattern: `when`, compiled.
        read_arguments: `arguments`, read by `read_value`.
        placeholders: Those of all arguments.
    """

    call: str
    when: str | re.Pattern[str] | None = None
    after: str | None = None
    probability: float = 0.5
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    read_arguments: Mapping[str, object] = field(init=False, repr=False, compare=False)
    placeholders: tuple[Placeholder, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            _check_types(self.call, self.after, self.probability, self.arguments)
            pattern = _compile(self.when, needed=self.after is None)
            read: dict[str, object] = {}
            placeholders: dict[Placeholder, None] = {}
            for name, value in self.arguments.items():
                read[name], found = read_value(value)
                placeholders |= dict.fromkeys(found)
            self._check_placeholders(placeholders, pattern)
        except UsageError as error:
            raise UsageError(f"{self}: {error}") from error
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "read_arguments", read)
        object.__setattr__(self, "placeholders", tuple(placeholders))

    def __str__(self) -> str:
        text = f"The rule that calls {self.call!r}"
        if self.when is not None:
            text += f" when {getattr(self.when, 'pattern', self.when)!r}"
        return text if self.after is None else f"{text} after {self.after!r}"

    @classmethod
    def from_dict(cls, data: object) -> Rule:
        """Read a rule as it stands in a file.

        Raises:
            UsageError: It is no rule; the message says why.
        """
        if not isinstance(data, dict):
            raise UsageError(
                "a rule is a table such as { when = '...', call = '...' }."
            )
        read = cast("dict[str, Any]", data)
        unknown = read.keys() - _FILE_KEYS
        if unknown:
            known = ", ".join(sorted(_FILE_KEYS))
            raise UsageError(f"{min(unknown)!r} is unknown. A rule has {known}.")
        if "call" not in read:
            raise UsageError("'call' is missing: the name of the tool.")
        return cls(**read)

    def check(self, tools: Mapping[str, Tool]) -> None:
        """Check the rule against the tools that there are.

        Raises:
            UsageError: It names a tool, or a parameter, that there is not.
        """
        for name in (self.call, self.after):
            if name is not None and name not in tools:
                known = ", ".join(map(repr, tools)) or "none"
                raise UsageError(f"{self}: there is no tool {name!r}. Known: {known}.")
        parameters: object = tools[self.call].parameters.get("properties")
        if isinstance(parameters, dict):
            known_names = cast("dict[str, Any]", parameters)
            for name in self.arguments.keys() - known_names.keys():
                msg = f"{self}: {name!r} is no parameter of the tool {self.call!r}."
                raise UsageError(msg)

    def _check_placeholders(
        self, placeholders: Iterable[Placeholder], pattern: re.Pattern[str] | None
    ) -> None:
        groups = [] if pattern is None else list(pattern.groupindex)
        count = 0 if pattern is None else pattern.groups
        for name in groups:
            if name in _ROOTS:
                msg = f"a group cannot be named {name!r}: templates use that name."
                raise UsageError(msg)
        several = [str(each) for each in placeholders if EVERY in each.path]
        if len(several) > 1:
            msg = f"only one placeholder may have [*], not {' and '.join(several)}."
            raise UsageError(msg)
        for each in placeholders:
            if each.root == "result" and self.after is None:
                raise UsageError("{result} is known only to a rule with 'after'.")
            if each.root == "results" and not each.path:
                raise UsageError("{results} needs a tool: {results.get_user.id}.")
            numbered = each.root.isdecimal() and pattern and int(each.root) <= count
            if each.root not in (*groups, *_ROOTS) and not numbered:
                known = ", ".join(map(repr, (*groups, *_ROOTS)))
                raise UsageError(f"{each} names nothing known. There is {known}.")


def rule(
    when: str | re.Pattern[str] | None,
    call: str,
    *,
    after: str | None = None,
    probability: float = 0.5,
    **arguments: Any,
) -> Rule:
    r"""Write a rule in one line.

    ```python
    rule(r"(?P<order_id>#W\d+)", "get_order_details")
    rule("my orders", "list_orders", user_id="{deps.user_id}")
    rule(None, "get_order_details", after="get_user", order_id="{result.orders[*]}")
    ```

    Args:
        when: The keyword or regular expression (see `Rule`). Every match of one that
            has groups is a call. `None` with `after` fires on every result.
        call: The tool's name.
        after: Fires on the results of this tool, when they are the last to have come,
            instead of on what the user said last.
        probability: That the model will ask for exactly this call, from 0 to 1.
        **arguments: Templates and JSON values. `{group}` and `{1}` are groups of
            `when`, `{result.a[0].b}` a field of the result that `after` fired on,
            `{results.TOOL.a}` one of the last result of a tool, `{deps.a}` one of the
            caller's own, and `{user_text}` what the user said last. A template that is
            one placeholder keeps the JSON type, and `[*]` makes a call an element.

    Raises:
        UsageError: The rule can never work; the message says which and why.
    """
    return Rule(
        when=when,
        call=call,
        after=after,
        probability=probability,
        arguments=arguments,
    )


def _check_types(
    call: object, after: object, probability: object, arguments: object
) -> None:
    if not isinstance(call, str) or not call:
        raise UsageError("'call' is the name of a tool.")
    if after is not None and (not isinstance(after, str) or not after):
        raise UsageError("'after' is the name of a tool.")
    if not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise UsageError(f"'probability' is from 0 to 1, not {probability!r}.")
    if not isinstance(arguments, Mapping):
        raise UsageError("'arguments' maps argument names to templates.")


def _compile(when: object, *, needed: bool) -> re.Pattern[str] | None:
    if when is None:
        if needed:
            raise UsageError("it needs 'when' or 'after', or it would always fire.")
        return None
    if isinstance(when, re.Pattern):
        compiled = cast("re.Pattern[Any]", when)
        if isinstance(compiled.pattern, str):
            return compiled
    if not isinstance(when, str) or not when.strip():
        raise UsageError("'when' is a keyword or a regular expression over text.")
    try:
        if _REGEX_CHARACTERS.isdisjoint(when):
            words = r"\s+".join(map(re.escape, when.split()))
            return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
        return re.compile(when)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"'when' is no regular expression: {error}.") from error
