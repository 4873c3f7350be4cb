"""Messages and requests: read, written, and never changed in place."""

from types import MappingProxyType

import pytest
from hypothesis import given, strategies as st

from headstart import ToolCall, ToolResult
from headstart._errors import UsageError
from headstart._messages import Message, ModelRequest, ModelResponse, Usage

CALL = ToolCall("call_1", "get", '{"id": 7}')
CALL_DICT = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get", "arguments": '{"id": 7}'},
}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"role": "user", "content": "Hi"}, Message(role="user", content="Hi")),
        ({"role": "assistant", "content": None}, Message(role="assistant")),
        ({"role": "assistant"}, Message(role="assistant")),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL_DICT]},
            Message(role="assistant", tool_calls=(CALL,)),
        ),
        (
            {"role": "assistant", "tool_calls": [CALL]},
            Message(role="assistant", tool_calls=(CALL,)),
        ),
        ({"role": "assistant", "tool_calls": None}, Message(role="assistant")),
        (
            {"role": "tool", "content": "7", "tool_call_id": "call_1", "name": "get"},
            Message(role="tool", content="7", tool_call_id="call_1", name="get"),
        ),
        (
            MappingProxyType({"role": "user", "content": "Hi", "unknown": 1}),
            Message(role="user", content="Hi"),
        ),
    ],
    ids=range(8),
)
def test_a_chat_message_is_read(data, message):
    assert Message.from_dict(data) == message


def test_a_call_without_arguments_has_none():
    for arguments in ({}, {"arguments": ""}, {"arguments": None}):
        data = {"id": "call_1", "function": {"name": "get", **arguments}}
        message = Message.from_dict({"role": "assistant", "tool_calls": [data]})
        assert message.tool_calls == (ToolCall("call_1", "get", "{}"),)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "Hi",
        ("user", "Hi"),
        {},
        {"content": "Hi"},
        {"role": "robot"},
        {"role": None},
        {"role": ["user"]},
        {"role": "user", "content": 7},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "tool_calls": 7},
        {"role": "assistant", "tool_calls": {"id": "call_1"}},
        {"role": "assistant", "tool_calls": "call_1"},
        {"role": "assistant", "tool_calls": [7]},
        {"role": "assistant", "tool_calls": [None]},
        {"role": "assistant", "tool_calls": [{"id": "call_1"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "get"}}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": "get"}]},
        {"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "get"}}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": 1}}]},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c", "function": {"name": "get", "arguments": {1: 2}}}
            ],
        },
    ],
    ids=range(22),
)
def test_what_is_no_message_is_a_usage_error(data):
    with pytest.raises(UsageError):
        Message.from_dict(data)
    with pytest.raises(UsageError):
        ModelRequest([data])


texts = st.text(max_size=8)
calls = st.builds(ToolCall, texts, texts, texts.map(lambda text: text or "{}"))
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "developer", "user", "assistant"]),
    content=texts,
    tool_calls=st.lists(calls, max_size=3).map(tuple),
    tool_call_id=st.none() | texts,
    name=st.none() | texts,
) | st.builds(
    Message, role=st.just("tool"), content=texts, tool_call_id=st.none() | texts
)


@given(messages)
def test_a_message_written_and_read_back_is_equal(message):
    assert Message.from_dict(message.to_dict()) == message


def test_empty_fields_are_not_written():
    assert Message(role="user", content="Hi").to_dict() == {
        "role": "user",
        "content": "Hi",
    }


def test_the_tools_name_is_kept_here_and_not_sent():
    message = Message.for_result(CALL, ToolResult("7"))
    assert message.name == "get"
    assert message.to_dict() == {
        "role": "tool",
        "content": "7",
        "tool_call_id": "call_1",
    }


def test_what_was_said_stands_in_no_log():
    message = Message(role="user", content="My password is hunter2.")
    request = ModelRequest([message], settings={"api_key": "hunter2"})
    response = ModelResponse(text="hunter2")
    for value in (message, request, response):
        assert "hunter2" not in repr(value)


# --- requests ----------------------------------------------------------------------


def test_a_request_takes_messages_in_either_form_and_keeps_its_own_copies():
    history = [{"role": "user", "content": "Hi"}, Message(role="assistant")]
    settings = {"temperature": 0}
    tools = ["get"]
    request = ModelRequest(history, tools, settings)
    history.clear()
    settings.clear()
    tools.clear()
    assert request.history == (
        Message(role="user", content="Hi"),
        Message(role="assistant"),
    )
    assert request.tools == ("get",)
    assert request.settings == {"temperature": 0}


def test_a_request_is_extended_into_a_new_one():
    request = ModelRequest([Message(role="user", content="Hi")], ["get"], {"n": 1})
    longer = request.extended([Message(role="assistant")])
    assert len(request.messages) == 1
    assert [message.role for message in longer.history] == ["user", "assistant"]
    assert (longer.tools, longer.settings) == (request.tools, request.settings)
    assert longer != request


def test_answers_follow_in_the_order_of_the_calls():
    other = ToolCall("call_2", "put")
    request = ModelRequest([Message(role="assistant", tool_calls=(CALL, other))])
    answered = request.answered([CALL, other], [ToolResult("a"), ToolResult("b")])
    assert answered.history[1:] == (
        Message(role="tool", content="a", tool_call_id="call_1", name="get"),
        Message(role="tool", content="b", tool_call_id="call_2", name="put"),
    )


def test_a_call_without_its_result_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        ModelRequest([]).answered([CALL], [])


def test_equal_requests_are_equal():
    first, second = (ModelRequest([{"role": "user", "content": "Hi"}]) for _ in "ab")
    assert first == second
    assert first != ModelRequest([{"role": "user", "content": "Ho"}])


# --- responses ---------------------------------------------------------------------


def test_a_response_becomes_an_assistant_message():
    response = ModelResponse(text="Look.", tool_calls=(CALL,))
    assert response.message == Message(
        role="assistant", content="Look.", tool_calls=(CALL,)
    )


def test_usage_adds_up():
    total = Usage(input_tokens=1, output_tokens=2) + Usage(input_tokens=10)
    assert total == Usage(input_tokens=11, output_tokens=2)
