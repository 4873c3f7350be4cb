"""Headstart in langchain agents and langgraph graphs.

Rules of this file and of those in `_langchain`:

1. Both seams are below langchain's callbacks: what generates in a copy of the model,
   and what runs in a copy of the tool. So whatever langchain does around a request or a
   call (callbacks, traces, streams, validation, errors) it does once, when it is real.
2. What runs ahead runs without a `RunnableConfig`, and out of every trace.
3. A request or a call that is not the run's own goes straight through.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ._speculation import HostRun, Speculation as _Speculation

try:
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.language_models import BaseChatModel

    from ._langchain import Run, current, running, wrap_model
except ImportError as error:
    msg = 'Please install `langchain`: pip install "headstart[langchain]"'
    raise ImportError(msg, name=error.name) from error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from headstart._barrier import WriteBarrier

__all__ = ("Speculation",)

logger = logging.getLogger("headstart")


class Speculation(_Speculation):
    """What may start early in langchain agents and langgraph graphs, and by whose word.

    ```python
    speculation = Speculation(effects={"get_order": "READ"}, predictors=[rules])
    agent = create_agent(model, tools, middleware=[..., speculation.middleware()])

    async with speculation.run(deps):
        await agent.ainvoke({"messages": messages})
    ```

    Put the middleware last, so that others see what they would see without it. In a
    graph of your own, use `model` where the graph has its chat model, and give
    `awrap_tool_call` and `wrap_tool_call` to its `ToolNode`.

    Args:
        approvals: Names of tools whose calls somebody has to approve, as in
            `HumanInTheLoopMiddleware`: they are never started early, whatever is
            declared.
        stream: Ask for streams also where the agent is not streamed, so that calls
            start as soon as the model has written them.
        **options: Those of `headstart.adapters.Speculation`.
    """

    def __init__(
        self, *, approvals: Iterable[str] = (), stream: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.approvals = frozenset(approvals)
        self.stream = stream

    @asynccontextmanager
    async def run(
        self,
        deps: Any = None,
        *,
        conditions: Sequence[WriteBarrier] = (),
        name: str | None = None,
    ) -> AsyncGenerator[HostRun]:
        """One run of an agent: what it asks for in the block may have begun before.

        Whatever still runs ahead when the block is left, in any way, ends with it.

        Args:
            deps: What predictors and tools' contexts receive.
            conditions: Barriers that must be open before any effect of this run.
            name: What it is called in events.
        """
        async with self.open_run(deps=deps, conditions=conditions, name=name) as host:
            run = Run(host, approvals=self.approvals)
            token = current.set(run)
            try:
                yield host
            finally:
                run.open = False
                current.reset(token)

    def middleware(self) -> AgentMiddleware[Any, Any, Any]:
        """The middleware for `create_agent`; outside of a run it does nothing."""
        return _Middleware(self)

    def model(self, model: BaseChatModel) -> BaseChatModel:
        """A chat model like `model`, for a graph of your own. Bind the tools to it."""
        return wrap_model(model, stream=self.stream)

    def wrap_tool_call(self, request: Any, execute: Callable[[Any], Any]) -> Any:
        """For `ToolNode`, where the graph is run by `invoke`: nothing starts early."""
        _say_that_nothing_is_early()
        return execute(request)

    async def awrap_tool_call(
        self, request: Any, execute: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        """For `ToolNode`: adopts what was launched for the call."""
        run = running()
        if run is None or request.tool is None:
            return await execute(request)
        return await execute(request.override(tool=run.stand_in(request)))


class _Middleware(AgentMiddleware[Any, Any, Any]):
    def __init__(self, speculation: Speculation) -> None:
        super().__init__()
        self.tools = []
        self._speculation = speculation

    @property
    def name(self) -> str:
        return "Headstart"

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        _say_that_nothing_is_early()
        return handler(request)

    async def awrap_model_call(
        self, request: Any, handler: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        if running() is None or not isinstance(request.model, BaseChatModel):
            return await handler(request)
        model = self._speculation.model(request.model)
        return await handler(request.override(model=model))

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        return self._speculation.wrap_tool_call(request, handler)

    async def awrap_tool_call(
        self, request: Any, handler: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        return await self._speculation.awrap_tool_call(request, handler)


def _say_that_nothing_is_early() -> None:
    run = current.get()
    if run is not None and run.open and not run.warned:
        run.warned = True
        logger.warning(
            "The agent is run by a sync method, so nothing of it is started early: "
            "use ainvoke() or astream()."
        )
