"""Conversations about tickets and orders, from which results are learned."""

from __future__ import annotations

import random

from headstart import Effect
from headstart.predictors import LearnedResults

from .conversations import (
    contents,
    make_tool,
    steps,
    talk,
    teach,
)

TOOLS = (
    make_tool("get"),
    make_tool("price"),
    make_tool("close", Effect.GATED),
    make_tool("move", Effect.UNSAFE),
    make_tool("send", Effect.UNSAFE),
)


def ticket(number, **fields):
    """An object that a read shows."""
    return {
        "id": f"T{number}",
        "owner": {"name": f"Owner {number}", "city": "Ulm"},
        "state": "open",
        "notes": [{"text": f"Note {number}", "by": f"U{number}"}],
        **fields,
    }


def closing(number, reason="done", **fields):
    """A conversation in which a ticket is read and closed."""
    before = ticket(number, **fields)
    after = before | {"state": "closed", "reason": reason}
    return closed_as(before, after, reason)


def closed_as(before, after, reason="done"):
    name = before["id"]
    return steps(
        ("get", {"id": name}, before),
        ("close", {"id": name, "reason": reason}, after),
        text=f"About {name}.",
    )


def taught(*conversations, **options):
    learned = LearnedResults(**options)
    for messages in conversations:
        teach(learned, messages, TOOLS)
    return learned


def stated(learned, messages, wanted, tools=TOOLS):
    return learned.predict_results(wanted, talk(messages, tools))


def last_of(messages):
    """What stands before the last call, that call, and what it gave."""
    return messages[:-2], messages[-2].tool_calls[0], messages[-1].content


def foretold(learned, messages):
    """What is stated of a conversation's last call, and what it really gave."""
    before, wanted, content = last_of(messages)
    return contents(stated(learned, before, wanted))[:1], [content]


def exchange(number, count=2):
    """Items of an order become others, whose prices stand in another result."""
    dice = random.Random(number)
    items = [
        {"item": f"I{number}{n}", "price": dice.randrange(1, 900) / 10}
        for n in range(4)
    ]
    order = {"id": f"T{number}", "items": items, "total": 0.0, "state": "open"}
    offers = {
        f"N{number}{n}": {
            "item": f"N{number}{n}",
            "price": dice.randrange(1, 900) / 10,
            "sold": False,
        }
        for n in range(6)
    }
    old = dice.sample([each["item"] for each in items], count)
    new = dice.sample(sorted(offers), count)
    chosen = dict(zip(old, new, strict=True))
    after = [
        each
        if each["item"] not in chosen
        else {
            "item": chosen[each["item"]],
            "price": offers[chosen[each["item"]]]["price"],
        }
        for each in items
    ]
    prices = {each["item"]: each["price"] for each in items}
    difference = 0
    for one, other in chosen.items():
        difference += offers[other]["price"] - prices[one]
    return steps(
        ("get", {"id": order["id"]}, order),
        ("price", {"of": f"P{number}"}, {"product": f"P{number}", "offers": offers}),
        (
            "move",
            {"id": order["id"], "old": old, "new": new},
            order
            | {
                "items": after,
                "total": round(difference, 2),
                "state": "moved",
                "kind": "more" if difference > 0 else "less",
                "moved": sorted(new),
            },
        ),
        text=f"Exchange {number}.",
    )


def refusal(number, state, **options):
    before = ticket(number, state=state)
    return closed_as(before, f"Error: T{number} is not open", **options)


def sending(number, to="Ada", text=None):
    return steps(
        ("send", {"to": to, "n": number}, text or f"Sent {number} to {to}."),
        text=f"Send {number}.",
    )
