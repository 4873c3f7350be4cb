"""Our own small host: a model, its tools, and the loop between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

import anyio
from typing_extensions import TypeVar

from ._call_speculation import close_quietly
from ._errors import ModelError, UsageError
from ._messages import (
    Message,
    Model,
    ModelRequest,
    ModelResponse,
    TextDelta,
    Usage,
)
from ._policy import Experience
from ._session import Approve, Permit, Session
from .predictors import ToolCheck

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup
    from anyio.streams.memory import (
        MemoryObjectReceiveStream,
        MemoryObjectSendStream,
    )

    from ._barrier import WriteBarrier
    from ._events import Sink
    from ._policy import Policy
    from ._tools import Tool
    from .predictors import Predictor

Deps = TypeVar("Deps", default=Any)
Messages: TypeAlias = str | Sequence["Message | Mapping[str, Any]"]
StreamItem: TypeAlias = TextDelta | Message
_Put: TypeAlias = Callable[[StreamItem], None]
INFINITE = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What an agent's run came to.

    Attributes:
        messages: The whole conversation: what was given, and what the run added.
        usage: Tokens billed for the turns that became part of the conversation.
    """

    messages: tuple[Message, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """The text of the last message: the answer."""
        return self.messages[-1].content


class Agent(Generic[Deps]):
    """A model that calls tools until it has an answer.

    ```python
    agent = Agent(model, tools=[get_incident, pause_incident], predictors=[rules])
    result = await agent.run("Pause incident 7 until noon.", deps=deps)
    ```

    Args:
        model: Who is asked.
        tools: What it may call.
        predictors: Who guesses its calls.
        policy: Which guesses are launched. What it goes by, hit rates and latencies, is
            learned across all sessions of the agent.
        instructions: A system message before every conversation that has none.
        settings: Sent with every request: temperature and so on.
        max_turns: Model requests that one run may take.
        approve: Decides each real call of a tool with `approval`.
        permit: Says whether a real call may use a launch now; see `Session`.

    Raises:
        UsageError: Two tools have the same name, a tool needs an approval that nobody can
            give, or a predictor says that it can never work with these tools.
    """

    def __init__(
        self,
        model: Model,
        tools: Iterable[Tool] = (),
        *,
        predictors: Sequence[Predictor] = (),
        policy: Policy | None = None,
        instructions: str | None = None,
        settings: Mapping[str, Any] | None = None,
        max_turns: int = 20,
        approve: Approve | None = None,
        permit: Permit | None = None,
    ) -> None:
        self.model = model
        self.tools = tuple(tools)
        self.predictors = tuple(predictors)
        self.policy = policy
        self.instructions = instructions
        self.settings = dict(settings or {})
        self.max_turns = max_turns
        self.approve = approve
        self.permit = permit
        self._experience = Experience()
        # What can never work is said now.
        session = Session(self.tools, approve=approve)
        by_name = {tool.name: tool for tool in session.tools}
        for predictor in self.predictors:
            if isinstance(predictor, ToolCheck):
                predictor.check(by_name)

    def open_session(
        self,
        *,
        deps: Deps | None = None,
        sink: Sink | None = None,
        experience: Experience | None = None,
        conditions: Sequence[WriteBarrier] = (),
        speculate: bool = True,
        name: str | None = None,
    ) -> Session[Deps]:
        """A session for one conversation, to be used in `async with`.

        With one, reads that were launched early are kept from a user message to the
        next. The arguments are those of `Session`. Without `experience`, the sessions of an
        agent share one; give each tenant its own if one's bad guesses must not slow
        another down.
        """
        return Session(
            self.tools,
            deps=deps,
            predictors=self.predictors,
            policy=self.policy,
            experience=experience if experience is not None else self._experience,
            sink=sink,
            approve=self.approve,
            permit=self.permit,
            conditions=conditions,
            speculate=speculate,
            name=name,
        )

    async def run(
        self,
        messages: Messages,
        *,
        deps: Deps | None = None,
        session: Session[Deps] | None = None,
    ) -> RunResult:
        """Answer the last message of a conversation.

        Args:
            messages: The conversation, which ends with what the user says now; a text
                is a conversation of one message.
            deps: What tools receive, where no session is given.
            session: An open session of this agent, for more than one user message.

        Returns:
            The conversation with everything that the run added.

        Raises:
            ModelError: The model failed, or still calls tools after `max_turns`.
            UsageError: `messages` is empty or no conversation.

        Cancelling it cancels everything that it started.
        """
        if session is not None:
            return await self.run_into(_ignore, messages, session)
        async with self.open_session(deps=deps) as own:
            return await self.run_into(_ignore, messages, own)

    def stream(
        self,
        messages: Messages,
        *,
        deps: Deps | None = None,
        session: Session[Deps] | None = None,
    ) -> AgentStream[Deps]:
        """Like `run`, and show what happens as it does.

        ```python
        async with agent.stream("How is incident 7?", deps=deps) as stream:
            async for item in stream:
                if isinstance(item, TextDelta):
                    print(item.text, end="")
        ```

        The items are `TextDelta` and, once it is part of the conversation, each
        `Message`. Only confirmed work is shown. Leaving the block early cancels the run.
        """
        return AgentStream(self, messages, deps, session)

    async def run_into(
        self, put: _Put, messages: Messages, session: Session[Deps]
    ) -> RunResult:
        """Like `run`, and give each item of `stream` to `put` as it comes."""
        history = self._read(messages)
        usage = Usage()

        def receive(delta: object) -> None:
            if isinstance(delta, TextDelta):
                put(delta)

        for _ in range(self.max_turns):
            request = ModelRequest(history, session.tools, self.settings)
            response: ModelResponse = await session.ask(
                request, self.model.respond, receive
            )
            usage += response.usage
            put(response.message)
            history = (*history, response.message)
            if not response.tool_calls:
                return RunResult(messages=history, usage=usage)
            results = await session.call_all(response.tool_calls)
            answers = tuple(map(Message.for_result, response.tool_calls, results))
            for answer in answers:
                put(answer)
            history = (*history, *answers)
        msg = f"The model still calls tools after {self.max_turns} turns."
        raise ModelError(msg)

    def _read(self, messages: Messages) -> tuple[Message, ...]:
        if isinstance(messages, str):
            messages = [Message(role="user", content=messages)]
        if not isinstance(messages, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"A run takes a text or messages, not {type(messages).__name__}."
            raise UsageError(msg)
        history = ModelRequest(messages).history
        if not history:
            msg = "A run needs at least one message: what the user says."
            raise UsageError(msg)
        if self.instructions is not None and history[0].role != "system":
            system = Message(role="system", content=self.instructions)
            history = (system, *history)
        return history


def _ignore(item: StreamItem) -> None:
    del item


class AgentStream(Generic[Deps]):
    """The items of one run, as they come. Made by `Agent.stream`.

    Attributes:
        result: What the run came to, once the items have ended; `None` before.
    """

    def __init__(
        self,
        agent: Agent[Deps],
        messages: Messages,
        deps: Deps | None,
        session: Session[Deps] | None,
    ) -> None:
        self._agent = agent
        self._messages = messages
        self._deps = deps
        self._session = session
        self._error: Exception | None = None
        self._items: MemoryObjectReceiveStream[StreamItem] | None = None
        self.result: RunResult | None = None

    async def __aenter__(self) -> AgentStream[Deps]:
        async with AsyncExitStack() as stack:
            session = self._session
            if session is None:
                session = self._agent.open_session(deps=self._deps)
                await stack.enter_async_context(session)
            send, items = anyio.create_memory_object_stream[StreamItem](INFINITE)
            stack.callback(items.close)
            self._group = await stack.enter_async_context(_CancelledGroup())
            self._group.start_soon(self._run, session, send, name="headstart stream")
            self._stack = stack.pop_all()
        self._items = items
        return self

    async def _run(
        self, session: Session[Deps], send: MemoryObjectSendStream[StreamItem]
    ) -> None:
        with send:
            try:
                self.result = await self._agent.run_into(
                    send.send_nowait, self._messages, session
                )
            except Exception as error:  # noqa: BLE001 - raised where it is iterated
                self._error = error

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._items = None
        await self._stack.aclose()

    def __aiter__(self) -> AgentStream[Deps]:
        return self

    async def __anext__(self) -> StreamItem:
        """The next item.

        Raises:
            UsageError: The stream is not open.
            BaseException: What `Agent.run` would have raised, after the last item.
        """
        if self._items is None:
            msg = "A stream is read while it is open: use it in 'async with'."
            raise UsageError(msg)
        try:
            return await self._items.receive()
        except anyio.EndOfStream:
            error, self._error = self._error, None
        if error is None:
            raise StopAsyncIteration
        raise error  # outside of the `except`, so that its own context stays


class _CancelledGroup:
    """A task group that is cancelled when it is left, however it is left."""

    async def __aenter__(self) -> TaskGroup:
        self._group = anyio.create_task_group()
        return await self._group.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        self._group.cancel_scope.cancel()
        await close_quietly(self._group)
