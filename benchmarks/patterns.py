"""What learned patterns cost: deciding, learning, and their file. In one process.

    python benchmarks/patterns.py [--quick]

Runs are made up from a seed. An agent has 100 tools in 20 families; a run is about three of
these. In each it asks for a record by a name that the user gave, then for some of the items
in it, looks one of them up elsewhere, and may change it; results are JSON objects of some
fields, and users and the model write sentences. Times are those of the processor, in
which other work on the machine counts less. No figure here is a test.
"""

from __future__ import annotations

import json
import random
import sys
import time

from headstart import Effect, Message, ModelResponse, ToolCall, tool
from headstart.predictors import Conversation, PatternPredictor

QUICK = "--quick" in sys.argv
FAMILIES = 20
MESSAGES = 50
FIRST = 5 if QUICK else 10
"""Runs of which learning is timed, and ten and a hundred times as many."""
TRAINED = 30 if QUICK else 264
DECIDED = 20 if QUICK else 100
"""Runs of which decisions are timed at every moment from `MESSAGES` messages on."""
TEXT = (
    "account address balance because before cancel change check colour confirm could "
    "delivery different exchange forgot friend happens instead latest money morning "
    "number offer order package payment please problem received refund remember replace "
    "return second should something status thanks there tomorrow wanted weekend wrong"
)
WORDS = TEXT.split()
NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ilse", "Jon", "Kim")


def make_tools():
    tools = {}
    for family in range(FAMILIES):
        for verb in ("find", "get", "list", "trace", "change"):

            @tool(
                name=f"{verb}_{family}",
                effect=Effect.UNSAFE if verb == "change" else Effect.READ,
            )
            def each(key: str) -> str:
                """One of many."""
                return key

            tools[each.name] = each
    return tools


TOOLS = make_tools()


class Run:
    """The messages of one made-up run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.messages = [Message(role="system", content=self.sentences(40))]

    def sentences(self, count: int) -> str:
        chosen = [
            " ".join(self.random.choices(WORDS, k=self.random.randint(5, 14)))
            for _ in range(count)
        ]
        return " ".join(f"{each.capitalize()}." for each in chosen)

    def say(self, role: str, text: str) -> None:
        self.messages.append(Message(role=role, content=text))

    def call(self, name: str, key: str, result: object) -> None:
        call = ToolCall(f"call_{len(self.messages)}", name, json.dumps({"key": key}))
        self.messages.append(Message(role="assistant", tool_calls=(call,)))
        content = json.dumps(result)
        self.messages.append(
            Message(role="tool", content=content, tool_call_id=call.id, name=name)
        )

    def record(self, key: str) -> dict[str, object]:
        items = [self.number() for _ in range(self.random.randint(2, 6))]
        fields = {f"field_{i}": self.random.choice(WORDS) for i in range(6)}
        parts = [{"part": self.number(), "colour": self.random.choice(WORDS)}] * 3
        return {"key": key, "items": items, "parts": parts, **fields}

    def number(self) -> str:
        return f"#W{self.random.randint(1_000_000, 9_999_999)}"

    def serve(self, family: int) -> None:
        """One thing that the user wants."""
        name = self.random.choice(NAMES)
        self.say("user", f"Hello, I am {name}. {self.sentences(3)}")
        owner = f"{name.lower()}_{self.random.randint(1000, 9999)}"
        self.call(f"find_{family}", name, owner)
        record = self.record(owner)
        self.call(f"get_{family}", owner, record)
        items = record["items"]
        for item in items[: self.random.randint(1, len(items))]:
            self.call(f"list_{family}", item, self.record(item))
        self.say("assistant", f"I found {items[0]}. {self.sentences(4)}")
        self.say("user", f"{self.sentences(1)} It is {items[-1]}.")
        self.call(f"trace_{family}", items[-1], self.record(items[-1]))
        if self.random.random() < 0.5:
            self.call(f"change_{family}", items[-1], "done")
        self.say("assistant", self.sentences(3))


def make_run(seed: int, *, least: int = 0) -> tuple[Message, ...]:
    run = Run(seed)
    things = 0
    while things < 2 or len(run.messages) < least:
        run.serve(run.random.randrange(FAMILIES))
        things += 1
    return tuple(run.messages)


def learn(patterns: PatternPredictor, messages: tuple[Message, ...]) -> None:
    for position, message in enumerate(messages):
        if message.role == "assistant":
            patterns.learn(
                Conversation(messages=messages[:position], tools=TOOLS),
                ModelResponse(text=message.content, tool_calls=message.tool_calls),
            )


def learning(count: int) -> tuple[PatternPredictor, float, float]:
    """Patterns of so many runs, the seconds it took, and the size of their file."""
    patterns = PatternPredictor()
    runs = [make_run(seed) for seed in range(count)]
    began = time.process_time()
    for each in runs:
        learn(patterns, each)
    patterns.settle()
    taken = time.process_time() - began
    return patterns, taken, len(json.dumps(patterns.to_dict())) / 1e6


def deciding(patterns: PatternPredictor) -> list[float]:
    """Seconds of each decision, in conversations that go on, as in a session."""
    seconds: list[float] = []
    for seed in range(DECIDED):
        messages = make_run(1_000_000 + seed, least=MESSAGES + 6)
        for length in range(1, MESSAGES + 7):
            conversation = Conversation(messages=messages[:length], tools=TOOLS)
            began = time.process_time()
            patterns.propose(conversation)
            if length >= MESSAGES:
                seconds.append(time.process_time() - began)
    return sorted(seconds)


def main() -> None:
    patterns, taken, size = learning(TRAINED)
    answers = patterns.answers / TRAINED
    print(
        f"learning {TRAINED} runs of {answers:.0f} answers: {TRAINED / taken:.0f} runs/s"
    )
    print(f"their file: {size:.2f} MB")
    seconds = deciding(patterns)
    median, late = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    print(
        f"deciding at {len(TOOLS)} tools and {MESSAGES} messages: "
        f"median {1e3 * median:.2f} ms, 99th percentile {1e3 * late:.2f} ms"
    )
    for times in (1, 10, 100):
        _, taken, size = learning(FIRST * times)
        each = 1e3 * taken / (FIRST * times)
        print(f"{FIRST * times:5} runs: {each:.1f} ms a run, {size:.2f} MB")


if __name__ == "__main__":
    main()
