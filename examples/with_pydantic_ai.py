"""An agent of pydantic-ai with and without headstart, without a key or a network.

The model is pydantic-ai's `FunctionModel`, which takes a second an answer.

python examples/with_pydantic_ai.py
"""

from __future__ import annotations

import time

import anyio
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from headstart import current_context
from headstart.adapters.pydantic_ai import Speculation
from headstart.predictors import RulePredictor, rule

cancelled: list[str] = []


async def get_order(order_id: str) -> str:
    """What is known of an order."""
    await anyio.sleep(0.5)
    return f"Order {order_id} was not sent yet."


async def cancel_order(order_id: str) -> str:
    """Cancel an order."""
    await anyio.sleep(0.25)  # look it up, check the permission
    if context := current_context():
        context.early_result("cancelled")
        await context.barrier.wait()  # nothing is cancelled before it is asked for
    await anyio.sleep(0.5)
    cancelled.append(order_id)
    return "cancelled"


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    await anyio.sleep(1)
    calls = ["get_order", "cancel_order"]
    asked = sum(isinstance(message, ModelResponse) for message in messages)
    if asked == len(calls):
        return ModelResponse(parts=[TextPart("Order 7 is cancelled.")])
    return ModelResponse(parts=[ToolCallPart(calls[asked], {"order_id": "7"})])


agent = Agent(FunctionModel(answer), tools=[get_order, cancel_order])
rules = [
    rule(r"(?i)order (?P<order_id>\d+)", "get_order"),
    rule(r"(?i)cancel order (?P<order_id>\d+)", "cancel_order"),
]
speculation = Speculation(
    effects={
        "get_order": {"effect": "READ", "reads": ["order:{order_id}"]},
        "cancel_order": {"effect": "GATED", "writes": ["order:{order_id}"]},
    },
    predictors=[RulePredictor(rules)],
)


async def main() -> None:
    for name, capabilities in (("without", []), ("with", [speculation])):
        began = time.perf_counter()
        result = await agent.run("Cancel order 7.", capabilities=capabilities)
        seconds = time.perf_counter() - began
        print(f"{name:>7} headstart: {seconds:.2f} s  {result.output}  {cancelled}")
        cancelled.clear()


if __name__ == "__main__":
    anyio.run(main)
