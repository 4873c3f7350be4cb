"""Small recorded runs, and predictors whose figures can be worked out by hand."""

import json

from headstart.predictors import Prediction

TOOLS = {
    "get": {"effect": "READ", "parameters": ["id"]},
    "list": {"effect": "READ", "parameters": []},
    "put": {"effect": "UNSAFE", "parameters": ["id"]},
}


def say(role, content="", **fields):
    return {"role": role, "content": content, **fields}


def write(arguments):
    """Arguments as a session writes those of a model that has not shown its style."""
    return json.dumps(arguments, separators=(",", ":"))


def ask_for(*calls, **fields):
    """An assistant message without text, with calls like `("get", 7)`."""
    listed = [
        {
            "id": f"{name}-{value}-{number}",
            "type": "function",
            "function": {"name": name, "arguments": write({"id": value})},
        }
        for number, (name, value) in enumerate(calls)
    ]
    return say("assistant", tool_calls=listed, **fields)


def answered(message, *contents):
    """An assistant message with calls, and a result for each."""
    return [
        message,
        *(
            say("tool", content, tool_call_id=call["id"])
            for call, content in zip(message["tool_calls"], contents, strict=True)
        ),
    ]


def write_runs(path, *conversations, **fields):
    """A file with one run a conversation, each a task of its own.

    `fields` are further fields of all runs, each a list with one value a run.
    """
    lines = []
    for number, messages in enumerate(conversations):
        own = {name: values[number] for name, values in fields.items()}
        run = {"id": f"run-{number}", "task": f"task-{number}", "messages": messages}
        lines.append(json.dumps(run | own))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def write_tools(path):
    path.write_text(json.dumps(TOOLS))
    return path


def expect(name, value, probability, eventually=None):
    return Prediction(
        tool=name,
        arguments={"id": value},
        probability=probability,
        eventually=eventually,
    )


class Scripted:
    """Says what its script says of the last message's text; learns nothing."""

    def __init__(self, script):
        self.script = script

    def propose(self, conversation):
        last = conversation.messages[-1].content if conversation.messages else ""
        return self.script.get(last, [])

    def learn(self, conversation, response):
        pass

    def __deepcopy__(self, memo):
        return self
