"""A langchain agent without and with headstart, without a key.

python examples/langchain_agent.py
"""

from __future__ import annotations

import time
from typing import Any

import anyio
from langchain.agents import (
    create_agent,  # pyright: ignore[reportUnknownVariableType]
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from headstart import current_context
from headstart.adapters.langchain import Speculation
from headstart.predictors import RulePredictor, rule

cancelled: list[str] = []


class SlowModel(BaseChatModel):
    """Takes half a second for an answer, and always gives the same ones."""

    @property
    def _llm_type(self) -> str:
        return "slow"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        await anyio.sleep(0.5)
        name = ["get_order", "cancel_order", None][
            sum(isinstance(message, AIMessage) for message in messages)
        ]
        call = {"name": name, "args": {"order_id": "W17"}, "id": f"call_{name}"}
        answer = AIMessage("", tool_calls=[call]) if name else AIMessage("Cancelled.")
        return ChatResult(generations=[ChatGeneration(message=answer)])


@tool
async def get_order(order_id: str) -> str:
    """What is known of an order."""
    await anyio.sleep(0.5)
    return f"{order_id}: not sent yet"


@tool
async def cancel_order(order_id: str) -> str:
    """Cancel an order."""
    if context := current_context():  # None without headstart
        context.early_result("cancelled")
        await context.barrier.wait()  # nothing happens before it is certain
    await anyio.sleep(0.5)
    cancelled.append(order_id)
    return "cancelled"


speculation = Speculation(
    effects={
        "get_order": {"effect": "READ", "reads": ["order:{order_id}"]},
        "cancel_order": {"effect": "GATED", "writes": ["order:{order_id}"]},
    },
    predictors=[RulePredictor([rule(r"\b(?P<order_id>W\d+)", "get_order")])],
)
agent: Any = create_agent(
    SlowModel(), [get_order, cancel_order], middleware=[speculation.middleware()]
)


async def main() -> None:
    given = {"messages": [HumanMessage("Cancel W17.")]}
    for title in ("without", "with"):
        began = time.perf_counter()
        if title == "with":
            async with speculation.run():
                state = await agent.ainvoke(given)
        else:
            state = await agent.ainvoke(given)
        seconds = time.perf_counter() - began
        print(f"{title:>7} headstart: {seconds:.1f} s, {state['messages'][-1].text}")
    print(f"effects: {cancelled}")


anyio.run(main)
