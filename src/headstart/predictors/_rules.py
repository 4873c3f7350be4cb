"""A predictor by rules: what somebody who knows the agent would bet on."""

from __future__ import annotations

import functools
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from headstart._calls import canonical_arguments
from headstart._errors import UsageError
from headstart._tools import Effect, InvalidArgumentsError

from ._predictor import Conversation, Prediction
from ._rule import Rule
from ._templates import Placeholder, fill, values_at

if TYPE_CHECKING:
    import os

    from headstart._messages import Message
    from headstart._tools import Tool

SEARCHED_CHARACTERS = 20_000
"""Only the last part of a longer text is searched."""
PARSED_CHARACTERS = 1_000_000
"""A longer result has no fields, only text."""
FIRINGS_PER_RULE = 64
PROPOSALS_PER_RULE = 8
PROPOSALS = 32

Tools: TypeAlias = "Iterable[Tool] | Mapping[str, Tool]"
CallKey: TypeAlias = tuple[str, str | None]


class RulePredictor:
    """Proposes the calls that its rules expect.

    A rule proposes nothing where a group, a field or a required argument is missing or
    null, or the tool's schema refuses the arguments. A call that the model has asked
    for since the user last spoke is not proposed again, except a read after a call that
    is none. Never waits, and proposes 8 calls a rule and 32 in all at most.

    Args:
        rules: The rules. Of equal calls the most probable one is proposed.
        tools: The agent's tools, to check the rules against at once.

    Raises:
        UsageError: A rule names a tool or a parameter that there is not.
    """

    def __init__(self, rules: Iterable[Rule], *, tools: Tools | None = None) -> None:
        self.rules = tuple(rules)
        for each in self.rules:
            if not isinstance(each, Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
                msg = f"A RulePredictor takes rules, made by rule(), not {each!r}."
                raise UsageError(msg)
        if tools is not None:
            self.check(tools)

    def __repr__(self) -> str:
        return f"<RulePredictor of {len(self.rules)} rules>"

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, tools: Tools | None = None
    ) -> RulePredictor:
        """Read rules from a TOML file: `rules = [{ when = "...", call = "..." }, ...]`.

        Raises:
            UsageError: The file cannot be read, or a rule can never work; the message
                gives its number, from 1.
        """
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"The rules file {str(path)!r} cannot be read: {error.strerror}."
            raise UsageError(msg) from error
        except (ValueError, RecursionError) as error:
            msg = f"The rules file {str(path)!r} is not TOML: {error}."
            raise UsageError(msg) from error
        entries: object = document.get("rules")
        if not isinstance(entries, list) or document.keys() != {"rules"}:
            msg = f"The rules file {str(path)!r} has one key, 'rules', with a list."
            raise UsageError(msg)
        rules: list[Rule] = []
        by_name = None if tools is None else _by_name(tools)
        for number, entry in enumerate(cast("list[object]", entries), start=1):
            try:
                rules.append(Rule.from_dict(entry))
                if by_name is not None:
                    rules[-1].check(by_name)
            except UsageError as error:
                raise UsageError(f"Rule {number} of {str(path)!r}: {error}") from error
        return cls(rules)

    def check(self, tools: Tools) -> None:
        """Check the rules against the tools that there are.

        Raises:
            UsageError: A rule names a tool, or a parameter, that there is not.
        """
        by_name = _by_name(tools)
        for each in self.rules:
            each.check(by_name)

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """The calls that the rules expect now, the most probable first."""
        return self.predict_nowait(conversation)

    def predict_nowait(self, conversation: Conversation) -> list[Prediction]:
        """`predict` as a plain function: it waits for nothing."""
        facts = _Facts(conversation)
        expected: dict[CallKey, Prediction] = {}
        for number, each in enumerate(self.rules, start=1):
            tool = conversation.tools.get(each.call)
            if tool is None:
                continue
            for arguments in _proposals(each, facts, tool):
                key = _key(tool, arguments)
                known = expected.get(key)
                if key in facts.asked or (
                    known is not None and known.probability >= each.probability
                ):
                    continue
                expected[key] = Prediction(
                    tool=each.call,
                    arguments=json.loads(arguments),  # in whatever style is right
                    probability=each.probability,
                    origin=f"rule {number}",
                )
        ordered = sorted(expected.values(), key=lambda found: -found.probability)
        return ordered[:PROPOSALS]


class _Facts:
    """What the rules look at in one conversation, read once."""

    def __init__(self, conversation: Conversation) -> None:
        self.deps = conversation.deps
        self.user_text = conversation.user_text
        self.asked: set[CallKey] = set()
        self.latest_results: dict[str, list[str]] = {}
        self._messages = conversation.messages
        self._tools = conversation.tools
        self._parsed: dict[str, object] = {}
        names: dict[str | None, str] = {}
        for message in _since_user(conversation.messages):
            if message.role == "assistant":
                self.latest_results.clear()
                self._note_calls(message)
                names = {call.id: call.name for call in message.tool_calls}
            elif message.role == "tool" and message.content:
                name = message.name or names.get(message.tool_call_id, "")
                self.latest_results.setdefault(name, []).append(message.content)

    @functools.cached_property
    def last_results(self) -> dict[str, str]:
        """The content of the last result of each tool in the conversation."""
        names: dict[str | None, str] = {}
        contents: dict[str, str] = {}
        for message in self._messages:
            names |= {call.id: call.name for call in message.tool_calls}
            if message.role == "tool":
                name = message.name or names.get(message.tool_call_id, "")
                contents[name] = message.content
        return contents

    def _note_calls(self, message: Message) -> None:
        called = [(call, self._tools.get(call.name)) for call in message.tool_calls]
        if any(tool is None or tool.effect is not Effect.READ for _, tool in called):
            self.asked = {
                key
                for key in self.asked
                if self._tools[key[0]].effect is not Effect.READ
            }
        self.asked |= {
            _key(tool, call.arguments) for call, tool in called if tool is not None
        }

    def parse(self, content: str) -> object:
        """A result as JSON; as it is where it is none."""
        if content not in self._parsed:
            self._parsed[content] = content
            if len(content) <= PARSED_CHARACTERS:
                try:
                    parsed = json.loads(content, parse_constant=_refuse_constant)
                except (ValueError, RecursionError):
                    pass
                else:
                    self._parsed[content] = parsed
        return self._parsed[content]


class _Firing:
    """One time that a rule fires: on a match, in a result or in what the user said."""

    def __init__(
        self, facts: _Facts, result: str | None, match: re.Match[str] | None
    ) -> None:
        self._facts = facts
        self._result = result
        self.match = match

    def values(self, placeholder: Placeholder) -> Iterator[object]:
        """The values of a placeholder: none where something is missing."""
        root, path = placeholder.root, placeholder.path
        if root == "deps":
            return values_at(self._facts.deps, path)
        if root == "user_text":
            return values_at(self._facts.user_text, path)
        if root == "result" and self._result is not None:
            return values_at(self._facts.parse(self._result), path)
        if root == "results" and path[0] in self._facts.last_results:
            content = self._facts.last_results[path[0]]
            return values_at(self._facts.parse(content), path[1:])
        if self.match is not None and root not in ("result", "results"):
            group = self.match[int(root) if root.isdecimal() else root]
            return values_at(group, path)
        return iter(())


def _since_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for position in reversed(range(len(messages))):
        if messages[position].role == "user":
            return messages[position + 1 :]
    return messages


def _firings(rule: Rule, facts: _Facts) -> Iterator[_Firing]:
    if rule.after is None:
        searched = [(facts.user_text, None)]
    else:
        searched = [(text, text) for text in facts.latest_results.get(rule.after, ())]
    for text, result in searched:
        if rule.pattern is None:
            yield _Firing(facts, result, None)
            continue
        for match in rule.pattern.finditer(text[-SEARCHED_CHARACTERS:]):
            yield _Firing(facts, result, match)
            if not rule.pattern.groups:
                break


def _proposals(rule: Rule, facts: _Facts, tool: Tool) -> Iterator[str]:
    """Argument texts, different, at most `PROPOSALS_PER_RULE`."""
    texts = (
        text
        for firing in itertools.islice(_firings(rule, facts), FIRINGS_PER_RULE)
        for chosen in itertools.product(
            *(
                itertools.islice(firing.values(placeholder), PROPOSALS_PER_RULE)
                for placeholder in rule.placeholders
            )
        )
        if (text := _arguments(rule, tool, firing, chosen)) is not None
    )
    return itertools.islice(dict.fromkeys(texts), PROPOSALS_PER_RULE)


def _arguments(
    rule: Rule, tool: Tool, firing: _Firing, chosen: tuple[object, ...]
) -> str | None:
    found: object = tool.parameters.get("properties")
    properties = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    groups = {} if firing.match is None else firing.match.groupdict()
    arguments: dict[str, Any] = {
        name: text
        for name, text in groups.items()
        if name in properties and text is not None
    }
    values = dict(zip(rule.placeholders, chosen, strict=True))
    try:
        arguments |= {
            name: fill(value, values) for name, value in rule.read_arguments.items()
        }
    except LookupError:
        return None
    if not arguments.keys() >= {*tool.parameters.get("required", ())}:
        return None
    fitted = {
        name: _fit(value, properties.get(name)) for name, value in arguments.items()
    }
    try:
        text = json.dumps(fitted, allow_nan=False)
        tool.validate(text)
    except (InvalidArgumentsError, ValueError, RecursionError):
        return None
    return text


def _fit(value: object, schema: object) -> object:
    """Turn text into the number that a schema wants, and a number into its text."""
    wanted = _types(schema)
    if isinstance(value, str) and "string" not in wanted:
        if "integer" in wanted and re.fullmatch(r"-?[0-9]{1,18}", value):
            return int(value)
        if "number" in wanted and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]+)?", value):
            return float(value) if "." in value else int(value)
        if "boolean" in wanted and value.lower() in ("true", "false"):
            return value.lower() == "true"
    if type(value) is int and wanted == {"string"}:
        return str(value)
    return value


def _types(schema: object) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    read = cast("dict[str, Any]", schema)
    named = read.get("type", ())
    wanted: set[str] = {named} if isinstance(named, str) else set(named)
    for each in read.get("anyOf", ()):
        wanted |= _types(each)
    return wanted - {"null"}


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _key(tool: Tool, arguments: str) -> CallKey:
    ignored = tool.ignore_arguments
    return tool.name, canonical_arguments(arguments, ignored_prefixes=ignored)


def _by_name(tools: Tools) -> Mapping[str, Tool]:
    if isinstance(tools, Mapping):
        return cast("Mapping[str, Tool]", tools)
    return {tool.name: tool for tool in tools}
