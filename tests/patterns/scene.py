"""Small runs of made-up agents, and a predictor that learns them."""

from __future__ import annotations

import json
import random
from typing import Any

from headstart import Effect, Tool, ToolCall, tool
from headstart._messages import Message, ModelResponse
from headstart.predictors import Conversation, PatternPredictor, Prediction


@tool(effect=Effect.READ)
def find_customer(name: str, town: str) -> str:
    return f"{name}{town}"


@tool(effect=Effect.READ)
def get_customer(customer: str) -> str:
    return customer


@tool(effect=Effect.READ)
def get_parcel(parcel: str) -> str:
    return parcel


@tool(effect=Effect.READ)
def list_depots(country: str, kind: str = "all") -> str:
    return f"{country}{kind}"


@tool(effect=Effect.READ, egress=True)
def fetch(url: str) -> str:
    return url


@tool
def cancel_parcel(parcel: str) -> str:
    return parcel


TOOLS: dict[str, Tool] = {
    each.name: each
    for each in (
        find_customer,
        get_customer,
        get_parcel,
        list_depots,
        fetch,
        cancel_parcel,
    )
}

Call = tuple[str, dict[str, Any]]


class Run:
    """A conversation, written down message by message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def user(self, text: str) -> Run:
        self.messages.append(Message(role="user", content=text))
        return self

    def says(self, text: str) -> Run:
        self.messages.append(Message(role="assistant", content=text))
        return self

    def asks(self, *calls: Call, text: str = "") -> Run:
        start = len(self.messages)
        made = tuple(
            ToolCall(f"c{start}-{number}", name, json.dumps(arguments))
            for number, (name, arguments) in enumerate(calls)
        )
        self.messages.append(Message(role="assistant", content=text, tool_calls=made))
        return self

    def gets(self, *results: object) -> Run:
        asked = next(m for m in reversed(self.messages) if m.tool_calls)
        open_calls = asked.tool_calls[self._answered(asked) :]
        for call, result in zip(open_calls, results, strict=False):
            content = result if isinstance(result, str) else json.dumps(result)
            self.messages.append(
                Message(
                    role="tool", content=content, tool_call_id=call.id, name=call.name
                )
            )
        return self

    def _answered(self, asked: Message) -> int:
        ids = {call.id for call in asked.tool_calls}
        return sum(message.tool_call_id in ids for message in self.messages)


def now(run: Run, *, partial: str = "", tools: dict[str, Tool] = TOOLS) -> Conversation:
    """What a predictor sees at the end of what was written so far."""
    return Conversation(messages=tuple(run.messages), partial=partial, tools=tools)


def teach(
    patterns: PatternPredictor, run: Run, *, tools: dict[str, Tool] = TOOLS
) -> None:
    """Tell a predictor of every answer of a run, in order."""
    for position, message in enumerate(run.messages):
        if message.role == "assistant":
            patterns.learn(
                Conversation(messages=tuple(run.messages[:position]), tools=tools),
                ModelResponse(text=message.content, tool_calls=message.tool_calls),
            )


def expected(patterns: PatternPredictor, run: Run, **options: Any) -> list[Call]:
    """The calls that are proposed now, the most probable first."""
    return [
        (each.tool, json.loads(each.arguments_text))
        for each in patterns.propose(now(run, **options))
    ]


def prediction(
    patterns: PatternPredictor, run: Run, call: Call, **options: Any
) -> Prediction:
    """What is proposed of one call."""
    return next(
        each
        for each in patterns.propose(now(run, **options))
        if (each.tool, json.loads(each.arguments_text)) == call
    )


NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jan", "Kim")
TOWNS = ("Lund", "Metz", "Nice", "Oslo", "Pisa", "Riga", "Sion", "Turin", "Ulm", "Vigo")


class Customer:
    """Somebody with parcels, different for each number."""

    def __init__(self, number: int, *, parcels: int = 3) -> None:
        chance = random.Random(number)
        self.name = chance.choice(NAMES)
        self.town = chance.choice(TOWNS)
        self.id = f"cust_{chance.randrange(10**5):05}"
        self.parcels = [f"P-{chance.randrange(10**6):06}" for _ in range(parcels)]

    @property
    def record(self) -> dict[str, Any]:
        return {"id": self.id, "town": self.town, "parcels": self.parcels}


def support_run(number: int, *, parallel: bool = False, until: str = "end") -> Run:
    """A customer is found by name and town, and their parcels are looked at.

    Args:
        number: Which customer.
        parallel: Whether all parcels are asked for at once.
        until: Where to stop: `asked`, `found`, `customer`, `first` or `end`.
    """
    who = Customer(number)
    run = Run().user(f"Hello, my name is {who.name} and I live in {who.town}. Help!")
    if until == "asked":
        return run
    run.asks(("find_customer", {"name": who.name, "town": who.town})).gets(who.id)
    if until == "found":
        return run
    run.asks(("get_customer", {"customer": who.id})).gets(who.record)
    if until == "customer":
        return run
    if parallel:
        run.asks(*(("get_parcel", {"parcel": parcel}) for parcel in who.parcels))
        run.gets(*({"parcel": parcel, "state": "sent"} for parcel in who.parcels))
        return run.says("All of your parcels are on their way.")
    for parcel in who.parcels:
        run.asks(("get_parcel", {"parcel": parcel}))
        run.gets({"parcel": parcel, "state": "sent"})
        if until == "first":
            return run
    return run.says("All of your parcels are on their way.")


def taught(runs: int = 12, **options: Any) -> PatternPredictor:
    """A predictor that has learned so many runs of the support agent."""
    patterns = PatternPredictor()
    for number in range(runs):
        teach(patterns, support_run(number, **options))
    patterns.settle()
    return patterns
