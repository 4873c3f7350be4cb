"""An agent of the OpenAI Agents SDK with and without headstart, without key or network.

The model is one of our own, which takes a second an answer.

python examples/with_openai_agents.py
"""

from __future__ import annotations

import time
from typing import Any

import anyio
from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from agents.testing import assistant_message, function_call

from headstart import current_context
from headstart.adapters.openai_agents import Speculation
from headstart.predictors import RulePredictor, rule

cancelled: list[str] = []


@function_tool
async def get_order(order_id: str) -> str:
    """What is known of an order."""
    await anyio.sleep(0.5)
    return f"Order {order_id} was not sent yet."


@function_tool
async def cancel_order(order_id: str) -> str:
    """Cancel an order."""
    await anyio.sleep(0.25)  # look it up, check the permission
    if context := current_context():
        context.early_result("cancelled")
        await context.barrier.wait()  # nothing is cancelled before it is asked for
    await anyio.sleep(0.5)
    cancelled.append(order_id)
    return "cancelled"


class SlowModel(Model):
    async def get_response(self, *_: Any, **request: Any) -> ModelResponse:
        await anyio.sleep(1)
        calls = ["get_order", "cancel_order"]
        given = request["input"]
        asked = sum(each.get("type") == "function_call" for each in given)
        if asked == len(calls):
            said = assistant_message("Order 7 is cancelled.")
        else:
            said = function_call(calls[asked], {"order_id": "7"}, call_id=f"{asked}")
        return ModelResponse(output=[said], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *_: Any, **request: Any) -> Any:
        raise NotImplementedError


agent = Agent(name="orders", model=SlowModel(), tools=[get_order, cancel_order])
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
config = RunConfig(tracing_disabled=True)


async def main() -> None:
    began = time.perf_counter()
    result = await Runner.run(agent, "Cancel order 7.", run_config=config)
    show("without", time.perf_counter() - began, result.final_output)

    began = time.perf_counter()
    async with speculation.run(run_config=config) as run:
        result = await Runner.run(
            run.wrap(agent), "Cancel order 7.", run_config=run.run_config
        )
    show("with", time.perf_counter() - began, result.final_output)


def show(name: str, seconds: float, answer: str) -> None:
    print(f"{name:>7} headstart: {seconds:.2f} s  {answer}  {cancelled}")
    cancelled.clear()


if __name__ == "__main__":
    anyio.run(main)
