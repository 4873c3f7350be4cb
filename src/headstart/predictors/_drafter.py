"""A drafter: a fast model that is asked which calls the agent's model will make."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from headstart._calls import canonical_arguments
from headstart._errors import PredictorError, UsageError
from headstart._messages import Message, ModelRequest
from headstart._policy import REST_S, is_overload

from ._predictor import Conversation, Prediction
from ._tally import Chances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from headstart._messages import Model, ModelDelta, ModelResponse, Usage
    from headstart._tools import Tool

logger = logging.getLogger("headstart")

MAX_CALLS = 8
"""Calls that are looked at, of one draft."""
MAX_DRAFTS = 64
"""Drafts that are kept: of the conversations that were asked about last."""
MAX_RUNS = 1_024
MAX_SENT = 2
"""How often the same is sent, where the answer was not waited for."""

Redact: TypeAlias = "Callable[[Sequence[Message]], Sequence[Message]]"
_Key: TypeAlias = "tuple[tuple[Message, ...], frozenset[str]]"


class Drafter:
    """Proposes the calls that a fast model makes in the agent's place.

    The model is sent the conversation and the tools, and whatever calls it answers with
    are proposed. How probable they are is learned from the confirmed answers, for each
    tool.

    **The conversation goes to another model**, and maybe to another provider: `redact`
    decides what of it. A draft's calls are launched like those of any predictor; tools
    declared `egress` are not.

    It sends only when there is something to answer: after a user message, or when every
    call of the last message has its result. The same conversation is sent once.
    After HTTP 429 or 5xx nothing is sent for 30 seconds. Cancelling `predict` cancels
    the request. Failures of the model are raised as `PredictorError`.

    The limits hold for what was sent: nothing more is sent when it could take the
    tokens or the money above them, by an estimate that is learned from the model's own
    figures. A request that was cancelled, or reports no usage, counts as estimated.

    Args:
        model: Any chat model. A small fast one: an answer that comes after the agent's
            model has answered is of no use.
        tools: Which tools it is offered, by name; all of the agent's if not given.
        prompt: A system message that is put first. By default none: the model answers
            in the agent's place, with the agent's own system message.
        redact: What of the messages may be sent: a function from the messages to those
            that are. Nothing is sent where it raises, or gives no messages.
        settings: Sent with each request, such as `{"temperature": 0}`.
        max_output_tokens: What an answer is taken to have at most, for the limits. It
            is no setting of the model: say that in `settings`, as its provider calls
            it.
        max_tokens_a_run: Tokens a conversation. Conversations of the same `deps` that
            begin alike share it while they go on at once.
        max_tokens: Tokens in all.
        max_usd: US dollars in all; needs `usd_per_token`.
        usd_per_token: What a token costs; or a pair, for input and output.
        probability: Of a drafted call, before anything was learned.

    Raises:
        UsageError: A limit is negative, or cannot be held without `usd_per_token`.
    """

    reads_partial = False  # the engine does not cancel a draft for it

    def __init__(
        self,
        model: Model,
        *,
        tools: Iterable[str] | None = None,
        prompt: str | None = None,
        redact: Redact | None = None,
        settings: Mapping[str, Any] | None = None,
        max_output_tokens: int = 500,
        max_tokens_a_run: int = 50_000,
        max_tokens: int = 2_000_000,
        max_usd: float | None = None,
        usd_per_token: float | tuple[float, float] | None = None,
        probability: float = 0.5,
    ) -> None:
        if not callable(getattr(model, "respond", None)):
            msg = f"A Drafter's model has a respond() method, as a Model has; {model!r} has none."
            raise UsageError(msg)
        if not 0 <= probability <= 1:
            msg = f"A Drafter's probability is from 0 to 1, not {probability!r}."
            raise UsageError(msg)
        if max_usd is not None and usd_per_token is None:
            msg = (
                "max_usd cannot be held without usd_per_token: say what a token costs."
            )
            raise UsageError(msg)
        costs = usd_per_token if usd_per_token is not None else 0.0
        self._costs = costs if isinstance(costs, tuple) else (costs, costs)
        figures = (max_output_tokens, max_tokens_a_run, max_tokens, *self._costs)
        if not all(each >= 0 for each in (*figures, max_usd or 0.0)):
            msg = "The limits and costs of a Drafter are not negative."
            raise UsageError(msg)
        self._model = model
        self._offered = None if tools is None else frozenset(tools)
        self._prompt = prompt
        self._redact = redact
        self._settings = dict(settings or {})
        self._max_output_tokens = max_output_tokens
        self._max_tokens_a_run = max_tokens_a_run
        self._max_tokens = max_tokens
        self._max_usd = math.inf if max_usd is None else max_usd
        self._chances = Chances({"": probability})
        self._drafts: OrderedDict[_Key, _Draft] = OrderedDict()
        self._runs: OrderedDict[tuple[int, str], _Run] = OrderedDict()
        self._tokens_per_character = 0.5
        self._rests_until = -math.inf
        self._reserved = 0
        self._reserved_usd = 0.0
        self.requests = 0
        self.tokens = 0
        self.usd = 0.0

    def __repr__(self) -> str:
        return f"<Drafter {self.requests} requests, {self.tokens} tokens>"

    async def predict(self, conversation: Conversation, /) -> list[Prediction]:
        """The calls that the model drafts, if it may be asked and was not yet.

        Raises:
            PredictorError: The model failed.
        """
        key = self._key(conversation)
        if key is None:
            return []
        draft = self._draft(key)
        if draft.calls is None and draft.sent < MAX_SENT and not self._rests():
            request = self._request(conversation)
            if request is not None:
                await self._send(request, draft, self._run(conversation))
        return self._proposed(draft, conversation)

    def learn(self, conversation: Conversation, response: ModelResponse, /) -> None:
        """See which drafted calls the agent's model has made."""
        key = self._key(conversation)
        draft = None if key is None else self._drafts.get(key)
        run = self._runs.get(_run_key(conversation))
        if run is not None:
            run.answered = True
        if draft is None or not draft.calls or draft.learned:
            return
        draft.learned = True
        asked = [
            _canonical(call.name, call.arguments, conversation.tools)
            for call in response.tool_calls
        ]
        for name, arguments in draft.calls:
            call = _canonical(name, arguments, conversation.tools)
            hit = call is not None and call in asked
            if hit:
                asked.remove(call)
            self._chances.note("", name, hit=hit)

    def _key(self, conversation: Conversation) -> _Key | None:
        """What a draft depends on; `None` where there is nothing to draft."""
        if not (_is_to_be_answered(conversation.messages) and conversation.tools):
            return None
        return conversation.messages, frozenset(conversation.tools)

    def _draft(self, key: _Key) -> _Draft:
        draft = self._drafts.get(key)
        if draft is None:
            draft = self._drafts[key] = _Draft()
        self._drafts.move_to_end(key)
        while len(self._drafts) > MAX_DRAFTS:
            self._drafts.popitem(last=False)
        return draft

    def _run(self, conversation: Conversation) -> _Run:
        """The account of a conversation's run."""
        key = _run_key(conversation)
        run = self._runs.get(key)
        begins = not any(each.role == "assistant" for each in conversation.messages)
        if run is None or (begins and run.answered):
            run = self._runs[key] = _Run()
        self._runs.move_to_end(key)
        while len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return run

    def _request(self, conversation: Conversation) -> ModelRequest | None:
        messages: Sequence[Message] = conversation.messages
        if self._redact is not None:
            try:
                messages = tuple(self._redact(messages))
            except Exception as error:
                msg = "The drafter's redact function failed, so nothing was sent."
                raise PredictorError(msg, reason="redact") from error
            if not messages:
                return None
        if self._prompt is not None:
            messages = (Message(role="system", content=self._prompt), *messages)
        tools = [
            tool
            for name, tool in conversation.tools.items()
            if self._offered is None or name in self._offered
        ]
        return ModelRequest(messages, tools, self._settings) if tools else None

    async def _send(self, request: ModelRequest, draft: _Draft, run: _Run) -> None:
        characters = _characters(request)
        estimate = math.ceil(characters * self._tokens_per_character)
        tokens = estimate + self._max_output_tokens
        usd = self._price(estimate, self._max_output_tokens)
        if (
            run.tokens + run.reserved + tokens > self._max_tokens_a_run
            or self.tokens + self._reserved + tokens > self._max_tokens
            or self.usd + self._reserved_usd + usd > self._max_usd
        ):
            logger.debug("The drafter's limits are reached: nothing is sent.")
            return
        draft.sent += 1
        self.requests += 1
        run.reserved += tokens
        self._reserved += tokens
        self._reserved_usd += usd
        # What it is billed for if it is cancelled or fails: the whole input at least.
        billed = estimate, 0
        try:
            response = await self._model.respond(request, _ignore)
            billed = self._billed(response.usage, characters, estimate)
        except Exception as error:
            if is_overload(error):
                self._rests_until = anyio.current_time() + REST_S
                billed = 0, 0  # it was turned away
            msg = f"The drafter's model failed with {type(error).__name__}."
            raise PredictorError(msg, reason="model") from error
        finally:
            run.reserved -= tokens
            self._reserved -= tokens
            self._reserved_usd -= usd
            run.tokens += sum(billed)
            self.tokens += sum(billed)
            self.usd += self._price(*billed)
        draft.calls = [
            (call.name, call.arguments)
            for call in itertools.islice(response.tool_calls, MAX_CALLS)
        ]

    def _billed(self, usage: Usage, characters: int, estimate: int) -> tuple[int, int]:
        if usage.input_tokens <= 0:
            return estimate, max(usage.output_tokens, 0) or self._max_output_tokens
        measured = usage.input_tokens / max(1, characters)
        # At once upwards, slowly downwards: in doubt a request is taken to be larger.
        known = self._tokens_per_character
        self._tokens_per_character = max(measured, known + (measured - known) / 4)
        return usage.input_tokens, max(usage.output_tokens, 0)

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        return input_tokens * self._costs[0] + output_tokens * self._costs[1]

    def _rests(self) -> bool:
        # Another event loop's clock may be far behind the one that was read.
        return 0 < self._rests_until - anyio.current_time() <= REST_S

    def _proposed(self, draft: _Draft, conversation: Conversation) -> list[Prediction]:
        proposed: list[Prediction] = []
        for name, arguments in draft.calls or ():
            tool = conversation.tools.get(name)
            decoded = _decode(arguments)
            if tool is None or decoded is None or tool.fingerprint(arguments) is None:
                logger.debug("The drafter's model made a call that is none.")
                continue
            proposed.append(
                Prediction(
                    tool=name,
                    arguments=decoded,  # in whatever style is right
                    probability=self._chances.chance("", name),
                    origin="drafter",
                )
            )
        return proposed


@dataclass(slots=True)
class _Draft:
    """What came of one conversation as it stood."""

    calls: list[tuple[str, str]] | None = field(default=None, repr=False)
    sent: int = 0
    learned: bool = False


@dataclass(slots=True)
class _Run:
    """Tokens of one conversation, sent or about to be."""

    tokens: int = 0
    reserved: int = 0
    answered: bool = False


def _is_to_be_answered(messages: tuple[Message, ...]) -> bool:
    """Whether the model is next: else there is nothing to draft, or not yet."""
    answered: set[str | None] = set()
    for message in reversed(messages):
        if message.role == "tool":
            answered.add(message.tool_call_id)
        elif message.role == "assistant":
            called = {call.id for call in message.tool_calls}
            return bool(answered) and called <= answered
        else:
            return True
    return False


def _run_key(conversation: Conversation) -> tuple[int, str]:
    first = (each.content for each in conversation.messages if each.role == "user")
    return id(conversation.deps), next(first, "")


def _canonical(
    name: str, arguments: str, tools: Mapping[str, Tool]
) -> tuple[str, str] | None:
    tool = tools.get(name)
    if tool is None:
        return None
    ignored = tool.ignore_arguments
    canonical = canonical_arguments(arguments, ignored_prefixes=ignored)
    return None if canonical is None else (name, canonical)


def _decode(arguments: str) -> dict[str, Any] | None:
    try:
        return json.loads(arguments.strip() or "{}")
    except (ValueError, RecursionError):
        return None


def _characters(request: ModelRequest) -> int:
    """How long everything is that is sent, roughly as it is written."""
    messages = sum(
        len(each.content)
        + 16
        + sum(len(call.arguments) + 32 for call in each.tool_calls)
        for each in request.history
    )
    return messages + sum(
        len(tool.description) + len(str(tool.parameters)) + 32 for tool in request.tools
    )


def _ignore(delta: ModelDelta) -> None:
    del delta
