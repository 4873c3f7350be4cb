"""A memory of results: what an equal call gave before."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from headstart._calls import canonical_arguments
from headstart._errors import UsageError
from headstart._resources import EVERYTHING, NOTHING, ResourceKeys, overlaps
from headstart._tools import Effect, InvalidArgumentsError, Tool

from ._predictor import Conversation, Prediction, ResultPrediction
from ._tally import Chances, ended_calls, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from headstart._calls import ToolCall, ToolResult
    from headstart._messages import Message, ModelResponse

Tenancy: TypeAlias = "Literal['deps'] | Callable[[Any], Hashable | None] | None"

PRIORS = {"fresh": 0.9, "changed": 0.4, "elsewhere": 0.4, "write": 0.2}
"""The chance that an equal call gives the same again, before anything was learned."""
MAX_SEARCHED = 5_000
"""Only so many messages are searched for an equal call, from the end."""
MAX_READ = 4_096


@dataclass(frozen=True, slots=True)
class _Reading:
    """A call, in the form in which it is compared."""

    key: tuple[str, str]
    reads: ResourceKeys
    writes: ResourceKeys
    constant: bool  # no write changes it


@dataclass(slots=True)
class _Entry:
    result: ToolResult
    reads: ResourceKeys


class ResultMemory:
    """States the result of a call that is equal to an earlier one.

    Equal means: the same tool, and arguments that mean the same. How probable it is
    that the result is the same again is learned for each tool, and apart for calls

    - with no overlapping write since (`Tool.reads` and `writes` say what overlaps),
    - with one since: the old result may still be right, and running ahead on it costs
      nothing but tokens where it is not,
    - of an earlier conversation of the same tenant,
    - that change something themselves.

    Everything is found in the conversation's own messages. Across conversations
    nothing is kept unless `tenant` says whose it is.

    It proposes no calls: `predict` gives nothing.

    Args:
        tenant: Whom a result belongs to, across conversations. `"deps"`: the object
            that the session has as `deps`, by identity, for as long as it lives
            (objects that cannot be referred to weakly, such as a dict, share
            nothing). A function of `deps`: equal keys share, and `None` shares
            nothing. By default nothing is shared.
        min_probability: Less probable results are not stated.
        max_entries: How many results of earlier conversations are kept; the least
            recently used go first.
        max_bytes: How much those may take, as UTF-8.
        max_result_characters: Longer results are neither kept nor stated.
    """

    def __init__(
        self,
        *,
        tenant: Tenancy = None,
        min_probability: float = 0.3,
        max_entries: int = 2_000,
        max_bytes: int = 20_000_000,
        max_result_characters: int = 200_000,
    ) -> None:
        if tenant is not None and tenant != "deps" and not callable(tenant):
            msg = f"A memory's tenant is 'deps', a function of deps or None, not {tenant!r}."
            raise UsageError(msg)
        if not 0 <= min_probability <= 1:
            msg = f"min_probability is from 0 to 1, not {min_probability!r}."
            raise UsageError(msg)
        self.min_probability = min_probability
        self.max_result_characters = max_result_characters
        self._tenants = _Tenants(tenant)
        self._kept = _Store(max_entries, max_bytes)
        self._chances = Chances(PRIORS)
        self._readings: dict[tuple[Tool, str], _Reading] = {}

    def __repr__(self) -> str:
        return f"<ResultMemory of {self.kept} results of earlier conversations>"

    @property
    def kept(self) -> int:
        """How many results of earlier conversations are kept."""
        return len(self._kept)

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """No calls: a memory knows results only."""
        del conversation
        return []

    def predict_results(
        self, call: ToolCall, conversation: Conversation, /
    ) -> list[ResultPrediction]:
        """What the equal call gave last, if there was one. Never waits."""
        wanted = self._read(call.name, call.arguments, conversation.tools)
        if wanted is None:
            return []
        known = self._recall(wanted, conversation, without=call.id)
        if known is None:
            return []
        family, result = known
        probability = self._chances.chance(family, call.name)
        if probability < self.min_probability:
            return []
        return [ResultPrediction(result=result, probability=probability)]

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        """Compare the results that were just confirmed with what was known before."""
        del response
        for gone in self._tenants.gone():
            self._kept.forget(gone, None)
        tenant = self._tenants.key(conversation.deps)
        messages = conversation.messages
        for position, name, arguments, result in ended_calls(messages):
            read = self._read(name, arguments, conversation.tools)
            if read is None:
                if tenant is not None:  # who knows what it has changed
                    self._kept.forget(tenant, EVERYTHING)
                continue
            before = Conversation(
                messages=messages[:position],
                tools=conversation.tools,
                deps=conversation.deps,
            )
            known = self._recall(read, before)
            if known is not None:
                self._chances.note(known[0], name, hit=known[1] == result)
            if tenant is None:
                continue
            self._kept.forget(tenant, read.writes)
            small = len(result.content) <= self.max_result_characters
            if small and not read.writes:
                self._kept.put((tenant, read.key), _Entry(result, read.reads))

    def forget(self, deps: Any = None) -> None:
        """Drop what is kept across conversations: all of it, or one tenant's."""
        if deps is None:
            self._kept.clear()
            return
        tenant = self._tenants.key(deps)
        if tenant is not None:
            self._kept.forget(tenant, None)

    def _recall(
        self, wanted: _Reading, conversation: Conversation, *, without: str = ""
    ) -> tuple[str, ToolResult] | None:
        """The newest result of an equal call, and what kind of memory it is."""
        changed = False
        results: dict[str | None, ToolResult] = {}
        searched = conversation.messages[-MAX_SEARCHED:]
        for message in reversed(searched):
            if message.role == "tool":
                results[message.tool_call_id] = result_of(message)
                continue
            if not message.tool_calls:
                continue
            found, overlapping = self._search(
                wanted, message, results, conversation.tools, without
            )
            if found is not None:
                if len(found.content) > self.max_result_characters:
                    return None
                return _family(wanted, changed=changed or overlapping), found
            changed = changed or overlapping
            without = ""  # in older messages it is another call of the same identifier
            results.clear()
        tenant = self._tenants.key(conversation.deps)
        entry = None if tenant is None else self._kept.get((tenant, wanted.key))
        return None if entry is None else ("elsewhere", entry.result)

    def _search(
        self,
        wanted: _Reading,
        message: Message,
        results: Mapping[str | None, ToolResult],
        tools: Mapping[str, Tool],
        without: str,
    ) -> tuple[ToolResult | None, bool]:
        """An equal call's result in one message, and whether one of it overlaps."""
        found: ToolResult | None = None
        overlapping = False
        for call in message.tool_calls:
            if call.id == without:
                continue
            tool = tools.get(call.name)
            if tool is not None and tool.effect is Effect.READ:
                if found is None and call.name == wanted.key[0] and call.id in results:
                    read = self._read(call.name, call.arguments, tools)
                    if read is not None and read.key == wanted.key:
                        found = results[call.id]
                continue
            read = self._read(call.name, call.arguments, tools)
            if read is not None and read.key == wanted.key and call.id in results:
                found = results[call.id]
            writes = EVERYTHING if read is None else read.writes
            overlapping = overlapping or (
                not wanted.constant and overlaps(writes, wanted.reads)
            )
        return found, overlapping

    def _read(
        self, name: str, arguments: str, tools: Mapping[str, Tool]
    ) -> _Reading | None:
        """A call in comparable form; `None` where it is of no use."""
        tool = tools.get(name)
        if tool is None:
            return None
        known = self._readings.get((tool, arguments))
        if known is None:
            known = _reading(tool, arguments)
            if known is None:
                return None
            if len(self._readings) >= MAX_READ:
                self._readings.clear()
            self._readings[tool, arguments] = known
        return known


def _reading(tool: Tool, arguments: str) -> _Reading | None:
    ignored = tool.ignore_arguments
    canonical = canonical_arguments(arguments, ignored_prefixes=ignored)
    if canonical is None:
        return None
    try:
        values = tool.validate(arguments)
    except InvalidArgumentsError:
        return None
    return _Reading(
        key=(tool.name, canonical),
        reads=NOTHING if tool.deterministic else tool.read_keys(values),
        writes=tool.write_keys(values),
        constant=tool.deterministic,
    )


def _family(wanted: _Reading, *, changed: bool) -> str:
    if wanted.writes:
        return "write"
    return "changed" if changed else "fresh"


class _Tenants:
    """Whose a conversation's results are, by what its session has as `deps`."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy
        self._alive: dict[int, tuple[weakref.ref[Any], object]] = {}
        self._gone: list[object] = []

    def gone(self) -> list[object]:
        """The tenants that have ceased to be since this was asked last."""
        gone, self._gone = self._gone, []
        return gone

    def key(self, deps: Any) -> Hashable | None:
        """The tenant, or `None` where nothing is to be shared."""
        if self._tenancy is None:
            return None
        if self._tenancy != "deps":
            of_user = cast("Callable[[Any], Hashable | None]", self._tenancy)
            key = of_user(deps)
            return None if key is None else ("user", key)
        return self._identity(deps)

    def _identity(self, deps: Any) -> Hashable | None:
        # The number of a dead object is given to a new one: so each object gets a token,
        # which goes when the object does.
        known = self._alive.get(id(deps))
        if known is not None and known[0]() is deps:
            return known[1]
        number, token = id(deps), object()

        def note_gone(_: object) -> None:  # maybe in the middle of anything
            if self._alive.get(number, (None, None))[1] is token:
                del self._alive[number]
            self._gone.append(token)

        try:
            reference = weakref.ref(deps, note_gone)
        except TypeError:
            return None
        self._alive[number] = reference, token
        return token


class _Store:
    """Results of earlier conversations, the least recently used first."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[Hashable, tuple[str, str]], _Entry]
        self._entries = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[Hashable, tuple[str, str]]) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: tuple[Hashable, tuple[str, str]], entry: _Entry) -> None:
        self._drop(key)
        self._entries[key] = entry
        self._bytes += _size(key, entry)
        while self._entries and (
            len(self._entries) > self._max_entries or self._bytes > self._max_bytes
        ):
            self._drop(next(iter(self._entries)))

    def forget(self, tenant: Hashable, writes: ResourceKeys | None) -> None:
        """Drop a tenant's results that a write overlaps; all of them without one."""
        doomed = [
            key
            for key, entry in self._entries.items()
            if key[0] == tenant and (writes is None or overlaps(writes, entry.reads))
        ]
        for key in doomed:
            self._drop(key)

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0

    def _drop(self, key: tuple[Hashable, tuple[str, str]]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(key, entry)


def _size(key: tuple[Hashable, tuple[str, str]], entry: _Entry) -> int:
    return len(entry.result.content.encode(errors="replace")) + len(key[1][1])
