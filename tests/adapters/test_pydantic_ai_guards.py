"""The adapter for pydantic-ai: what it must not do, and must not take for the same."""

import anyio
import pytest

pytest.importorskip("pydantic_ai", reason="needs headstart[pydantic-ai]")

from pydantic_ai import Agent, ModelRetry, Tool
from pydantic_ai.capabilities import AbstractCapability, NativeTool
from pydantic_ai.messages import (
    ModelRequest as NativeRequest,
    ModelResponse,
    NativeToolCallPart,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.native_tools import CodeExecutionTool, MCPServerTool, WebSearchTool
from pydantic_ai.profiles import ModelProfile

from headstart import EventLog, ToolResult
from headstart.adapters._pydantic_ai._messages import Reader, read_messages
from headstart.adapters._pydantic_ai._stream import DeltaReader
from headstart.adapters.pydantic_ai import Speculation
from headstart.predictors import ResultPrediction

from .test_pydantic_ai import (
    CHANGE_7,
    LOOK_7,
    READS,
    Scripted,
    World,
    asyncio_only,
    plain,
    slow,
    speculation,
    timed,
)


@asyncio_only
async def test_a_tool_whose_arguments_somebody_judges_is_not_launched():
    ran, log = [], EventLog()

    async def look(row: int) -> str:
        ran.append(row)
        return "new"

    async def judge(ctx, row):
        raise ModelRetry("Not this one.")

    tool = Tool(look, args_validator=judge, metadata={"headstart": READS})
    agent = Agent(
        Scripted(slow([LOOK_7], "Done.")),
        tools=[tool],
        capabilities=[speculation(LOOK_7, sink=log)],
    )
    result = await agent.run("Go.", deps="Ada")
    assert result.output == "Done."
    assert ran == []


class States:
    """Says what a call will give."""

    def __init__(self, result):
        self.result = result

    async def predict(self, conversation):
        return []

    def predict_results(self, call, conversation):
        return [ResultPrediction(result=self.result, probability=0.9)]


@asyncio_only
@pytest.mark.parametrize("stated", ["an error", "a mapping"])
async def test_what_is_stated_is_never_sent_otherwise_than_the_framework_would(stated):
    async def find(row: int) -> dict[str, int]:
        await anyio.sleep(1)
        if stated == "an error":
            raise ModelRetry("gone")
        return {"row": row}

    said = ToolResult('{"row":7}')
    if stated == "an error":
        said = ToolResult.from_error(ModelRetry("gone"))
        said = ToolResult(said.content, is_error=True)
    outcomes = []
    for capabilities in ([], [Speculation(predictors=[States(said)])]):
        sent = []

        class Noting(Scripted):
            async def request(self, messages, *args):
                sent.append(plain(messages))  # noqa: B023
                return await super().request(messages, *args)

        model = Noting(slow([("find", {"row": 7})], "Done."))
        tool = Tool(find, metadata={"headstart": "READ"})
        agent = Agent(model, tools=[tool], capabilities=capabilities)
        result, seconds = await timed(agent.run("Go."))
        parts = [m["parts"] for m in sent[-1]]
        outcomes.append((parts, plain(result.all_messages())))
        assert seconds == (2 if capabilities and stated == "a mapping" else 3)
    assert outcomes[0] == outcomes[1]


def texts(messages):
    return [(message.role, message.content, message.rest) for message in messages]


def thinking(message):
    message.parts[0].content = "other"


def called(message):
    message.parts[1].args = '{"row": 8}'


def cut_off(message):
    message.state = "interrupted"


def more(message):
    message.parts.append(TextPart("more"))


def nested(message):
    message.parts[0].content["row"] = 8


def call_nested(message):
    message.parts[0].args["row"] = 8


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (NativeRequest(parts=[UserPromptPart("Go.")]), thinking),
        (ModelResponse(parts=[ThinkingPart("so")]), thinking),
        (
            ModelResponse(parts=[TextPart("I look."), ToolCallPart("look", "{}")]),
            called,
        ),
        (ModelResponse(parts=[ToolCallPart("look", "{}")]), cut_off),
        (ModelResponse(parts=[TextPart("I look.")]), more),
        (NativeRequest(parts=[ToolReturnPart("look", {"row": 7}, "a")]), nested),
        (ModelResponse(parts=[ToolCallPart("look", {"row": 7}, "a")]), call_nested),
    ],
)
def test_a_message_that_is_changed_in_place_is_read_anew(message, change):
    reader, messages = Reader(), [message]
    before = reader.read(messages)
    assert reader.read(messages) == before == read_messages(messages)
    change(message)
    after = reader.read(messages)
    assert after != before
    assert after == read_messages(messages)


def test_a_message_that_stays_is_read_once():
    reader = Reader()
    messages = [NativeRequest(parts=[UserPromptPart("Go.")])]
    (first,) = reader.read(messages)
    messages.append(ModelResponse(parts=[ToolCallPart("look", '{"row": 7}')]))
    again = reader.read(messages)
    assert again[0] is first
    assert reader.read(messages[1:])[0] is again[1]
    assert reader.read(messages)[0] is not first  # it was let go of meanwhile


@asyncio_only
async def test_a_history_that_a_hook_changes_in_place_is_asked_anew():
    class Rewrites(AbstractCapability):
        async def before_model_request(self, ctx, request_context):
            if len(request_context.messages) > 1:
                request_context.messages[0].parts[0].content = "Stop."
            return request_context

    def answer(request):
        done = request.history[-1].role == "tool"
        return request.history[0].content if done else [CHANGE_7]

    outcomes = []
    for capabilities in ([], [speculation()]):
        model = slow([CHANGE_7], "Done.")
        model = type(model)(answer, delay=1)
        agent = World().agent(model=model, capabilities=[Rewrites(), *capabilities])
        result = await agent.run("Go.", deps="Ada")
        outcomes.append(result.output)
    assert outcomes == ["Stop.", "Stop."]


def test_a_delta_of_a_part_that_is_no_call_of_ours_says_nothing():
    reader = DeltaReader()
    native = NativeToolCallPart("search", "", tool_call_id="n")
    events = [
        PartStartEvent(index=0, part=native),
        PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta='{"row": 7}')),
        PartStartEvent(index=1, part=ToolCallPart("look", "", tool_call_id="a")),
        PartDeltaEvent(index=1, delta=ToolCallPartDelta(args_delta='{"row": 7}')),
    ]
    read = [delta for event in events for delta in reader.read(event)]
    assert [(delta.index, delta.arguments) for delta in read] == [
        (0, ""),
        (0, '{"row": 7}'),
    ]


@pytest.mark.requirement("barrier:no-effect-before-flush")
@asyncio_only
@pytest.mark.parametrize(
    ("native", "count"),
    [
        (WebSearchTool(), 1),
        (MCPServerTool(id="files", url="http://files"), 0),
        (CodeExecutionTool(), 0),
    ],
)
async def test_nothing_is_run_ahead_where_the_provider_may_change_something(
    native, count
):
    ahead = []

    class Takes(Scripted):
        @classmethod
        def supported_native_tools(cls):
            return frozenset({WebSearchTool, MCPServerTool, CodeExecutionTool})

        async def request(self, messages, settings, parameters):
            ahead.append(len(parameters.native_tools))
            return await FunctionModel.request(self, messages, settings, parameters)

    log = EventLog()
    profile = ModelProfile(supported_native_tools=Takes.supported_native_tools())
    model = Takes(slow([CHANGE_7], "Done."))
    model._profile = profile
    agent = World().agent(
        model=model, capabilities=[NativeTool(native), speculation(sink=log)]
    )
    result = await agent.run("Go.", deps="Ada")
    assert result.output == "Done."
    assert ahead == [1, 1]
    confirmed = [e for e in log.events if e.event == "turn_confirmed"]
    assert len(confirmed) == count
