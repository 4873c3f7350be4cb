"""A turn's calls: when their text is complete, what is shown, what is in the way."""

import itertools
import json

import pytest
from hypothesis import given, strategies as st

from headstart import (
    CallDelta,
    Effect,
    Message,
    ModelRequest,
    ModelResponse,
    TextDelta,
    Tool,
    ToolCall,
    ToolResult,
    WriteBarrier,
)
from headstart._resources import EVERYTHING, NOTHING
from headstart._turn import CallAssembler, DeltaRelay, Slot, Turn, touched
from headstart.predictors import ResultPrediction

PROBABLY = (ResultPrediction(result=ToolResult("probably"), probability=0.8),)

# --- when a call is complete -----------------------------------------------------------


def stream(pieces, *, index=0, assembler=None):
    """What each piece of an argument text seals."""
    assembler = assembler or CallAssembler()
    assert assembler.put(CallDelta(index=index, id="call-1", name="look_up")) is None
    return [assembler.put(CallDelta(index=index, arguments=piece)) for piece in pieces]


def sealed(arguments, index=0):
    return index, ToolCall("call-1", "look_up", arguments)


def splits(text):
    """Every way to cut a text into pieces."""
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        places = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(text)]
        yield [text[start:end] for start, end in itertools.pairwise(places)]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": 1}',
        '{"a":"}"}',
        '{"a":"\\"}"}',
        '{"a":"\\\\"}',
        '{"}{":[]}',
        '{"a":{"b":{}}}',
        '{"a":"]"}',
        ' {"a":[1]}',
    ],
)
def test_a_call_is_sealed_by_its_closing_brace_however_it_is_cut(text):
    for pieces in splits(text):
        *before, last = stream(pieces)
        assert last == sealed(text), pieces
        assert before == [None] * len(before), pieces


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.sampled_from('ab{}[]"\\,: \n\u00e9\U0001f600')),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet='a{}"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)
objects = st.dictionaries(st.text(alphabet='a{}[]"\\', max_size=3), values, max_size=3)
texts = st.builds(
    json.dumps,
    objects,
    indent=st.sampled_from([None, 0, 2]),
    ensure_ascii=st.booleans(),
)


@st.composite
def cut(draw, text):
    """A text in pieces; some are empty, as providers send them."""
    places = draw(st.lists(st.integers(0, len(text)), max_size=12))
    places = [0, *sorted(places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(st.data(), texts)
def test_any_object_is_sealed_by_its_last_character_and_no_sooner(data, text):
    pieces = data.draw(cut(text))
    sealing = max(place for place, piece in enumerate(pieces) if piece)
    expected = [None] * len(pieces)
    expected[sealing] = sealed(text)
    assert stream(pieces) == expected


@given(st.data(), texts, st.text(alphabet='{}[]", \n', max_size=6))
def test_what_follows_a_sealed_call_seals_nothing_more(data, text, rest):
    pieces = [*data.draw(cut(text)), *data.draw(cut(rest))]
    seals = [seal for seal in stream(pieces) if seal is not None]
    assert seals == [sealed(text)]


@pytest.mark.requirement("engine:default-deny")
@given(st.data(), st.text(alphabet='{}[]"\\:,a1 ', max_size=24))
def test_only_a_json_object_is_ever_sealed(data, text):
    pieces = data.draw(cut(text))
    seals = [seal for seal in stream(pieces) if seal is not None]
    assert len(seals) <= 1
    for _, call in seals:
        assert text.startswith(call.arguments)
        assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "[]",
        '[{"a": 1}]',
        '"{}"',
        "null",
        "1",
        '{"a": 1',
        '{"a": "}',
        '{"a": [}',
        '{"a": [1}]',
        "}{",
        "]",
        "{a: 1}",
        "{'a': '}'}",
        '{"a": NaN}',
        '{"a": 1e999}',
        'x{"a": 1}',
        '```{"a": 1}',
        '{"a": 1,}',
    ],
)
def test_text_that_is_no_complete_object_is_never_sealed(text):
    for pieces in ([text], list(text), [*text, ""], [text, " "]):
        assert stream(pieces) == [None] * len(pieces)


@pytest.mark.requirement("engine:default-deny")
def test_a_closing_brace_with_more_behind_it_in_one_piece_seals_nothing():
    assert stream(['{"a": 1}{"a": 2}']) == [None]
    assert stream(['{"a": 1', '}"', "}"]) == [None, None, None]
    assert stream(['{"a": 1', "} \n"]) == [None, sealed('{"a": 1} \n')]


@pytest.mark.requirement("engine:default-deny")
@pytest.mark.parametrize("known", [{"id": "call-1"}, {"name": "look_up"}, {}])
def test_a_call_without_identifier_or_name_is_not_sealed(known):
    assembler = CallAssembler()
    assert assembler.put(CallDelta(index=0, **known)) is None
    assert assembler.put(CallDelta(index=0, arguments="{}")) is None


def test_a_whole_call_in_one_delta_is_sealed():
    delta = CallDelta(index=4, id="call-1", name="look_up", arguments='{"a": 1}')
    assert CallAssembler().put(delta) == sealed('{"a": 1}', 4)


def test_identifier_and_name_may_come_again_and_apart():
    assembler = CallAssembler()
    assert assembler.put(CallDelta(index=0, id="call-1", arguments="{")) is None
    assert assembler.put(CallDelta(index=0, name="look_up", arguments='"a"')) is None
    last = CallDelta(index=0, id="call-1", name="look_up", arguments=":1}")
    assert assembler.put(last) == sealed('{"a":1}')


def test_text_seals_nothing():
    assembler = CallAssembler()
    assert assembler.put(TextDelta("{}")) is None
    assert stream(["{", "}"], assembler=assembler) == [None, sealed("{}")]
    assert assembler.put(TextDelta("}")) is None


@given(st.data(), texts, texts)
def test_calls_that_come_interleaved_are_sealed_each_by_its_own_end(data, one, other):
    left = {0: data.draw(cut(one)), 1: data.draw(cut(other))}
    whole = {0: one, 1: other}
    assembler, written, seals = CallAssembler(), {0: "", 1: ""}, []
    for index in left:
        delta = CallDelta(index=index, id=f"call-{index}", name="look_up")
        assert assembler.put(delta) is None
    while left:
        index = data.draw(st.sampled_from(sorted(left)))
        piece = left[index].pop(0)
        if not left[index]:
            del left[index]
        written[index] += piece
        seal = assembler.put(CallDelta(index=index, arguments=piece))
        if piece and written[index] == whole[index]:
            seals.append(index)
            assert seal == (index, ToolCall(f"call-{index}", "look_up", whole[index]))
        else:
            assert seal is None
    assert sorted(seals) == [0, 1]


def test_a_long_text_in_single_characters_is_sealed():
    text = json.dumps({"text": "{" * 50_000})
    *before, last = stream(list(text))
    assert last == sealed(text)
    assert not any(before)


# --- what is shown ----------------------------------------------------------------------

DELTAS = [TextDelta(str(number)) for number in range(5)]


@pytest.mark.requirement("engine:invisible")
def test_deltas_are_held_until_the_turn_is_confirmed_and_shown_in_order():
    for confirmed_after in range(6):
        shown, relay = [], DeltaRelay()
        for number, delta in enumerate(DELTAS):
            if number == confirmed_after:
                assert shown == []
                assert not relay.delivered
                relay.open(shown.append)
                assert relay.delivered is (number > 0)
            relay.put(delta)
        if confirmed_after == 5:
            assert shown == []
            relay.open(shown.append)
        assert shown == DELTAS
        assert relay.delivered


def test_a_host_that_wants_no_deltas_has_seen_none():
    relay = DeltaRelay()
    relay.put(DELTAS[0])
    relay.open(None)
    relay.put(DELTAS[1])
    assert not relay.delivered


def test_a_delta_counts_as_seen_even_if_its_receiver_failed():
    def receive(delta):
        raise ValueError(delta)

    relay = DeltaRelay()
    relay.open(receive)
    with pytest.raises(ValueError, match="0"):
        relay.put(DELTAS[0])
    assert relay.delivered


# --- what is in the way -----------------------------------------------------------------


async def take(arguments):
    """A function of a tool whose schema comes from elsewhere."""


def make_tool(effect, **keys):
    return Tool(take, effect=effect, parameters={"type": "object"}, **keys)


READ_ROW = make_tool(Effect.READ, reads=["row:{row}"])
READ_ALL = make_tool(Effect.READ)
WRITE_ROW = make_tool(Effect.GATED, reads=[], writes=["row:{row}"])
WRITE_ALL = make_tool(Effect.GATED)
CHECK_AND_POST = make_tool(Effect.GATED, reads=["row:{row}"], writes=["posts"])
UNSAFE = make_tool(Effect.UNSAFE, reads=[], writes=["row:{row}"])


def make_turn(*asked, parent=None):
    """A turn with a call of each tool, for a row each."""
    request = ModelRequest([Message(role="user", content="Go.")])
    turn = Turn(1, request, WriteBarrier(), parent=parent, started_at=0.0)
    for index, (called, row) in enumerate(asked):
        arguments = {"row": row}
        slot = Slot(
            index,
            turn,
            ToolCall(f"call-{index}", called.name, json.dumps(arguments)),
            called,
            arguments=arguments,
            writes=called.write_keys(arguments),
        )
        turn.slots.append(slot)
    return turn


@pytest.mark.requirement("engine:no-stale-read")
@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ((READ_ROW, 1), (READ_ROW, 1), False),
        ((READ_ROW, 1), (READ_ALL, 1), False),
        ((READ_ROW, 1), (WRITE_ROW, 1), True),
        ((READ_ROW, 1), (WRITE_ROW, 2), False),
        ((READ_ROW, 1), (UNSAFE, 1), True),
        ((READ_ALL, 1), (WRITE_ROW, 2), True),
        ((READ_ROW, 1), (WRITE_ALL, 2), True),
        ((WRITE_ROW, 1), (WRITE_ROW, 1), True),
        ((WRITE_ROW, 1), (WRITE_ROW, 2), False),
        ((WRITE_ROW, 1), (CHECK_AND_POST, 1), True),
        ((WRITE_ROW, 2), (CHECK_AND_POST, 1), False),
        ((CHECK_AND_POST, 1), (CHECK_AND_POST, 2), True),
        ((READ_ROW, 1), (CHECK_AND_POST, 1), False),
    ],
)
def test_two_calls_conflict_when_one_changes_what_the_other_touches(
    one, other, conflict
):
    turn = make_turn(one, other)
    assert [turn.conflicts(slot) for slot in turn.slots] == [conflict, conflict]


def test_a_call_does_not_conflict_with_itself():
    turn = make_turn((WRITE_ALL, 1))
    assert not turn.conflicts(turn.slots[0])


def test_a_call_that_cannot_run_conflicts_with_nothing():
    turn = make_turn((READ_ALL, 1), (WRITE_ALL, 1))
    broken = Slot(2, turn, ToolCall("call-2", "nobody"), None)
    turn.slots.append(broken)
    assert not turn.conflicts(broken)
    assert broken.fingerprint is None


@pytest.mark.requirement("engine:no-stale-read")
def test_a_write_is_in_the_way_until_it_has_its_result():
    turn = make_turn((WRITE_ROW, 1), (READ_ROW, 2))
    row_1, row_2 = frozenset({"row:1"}), frozenset({"row:2"})
    assert turn.has_unfinished_write(row_1)
    assert turn.has_unfinished_write(EVERYTHING)
    assert not turn.has_unfinished_write(row_2)
    assert not turn.has_unfinished_write(NOTHING)
    turn.slots[0].early = PROBABLY
    assert turn.has_unfinished_write(row_1)
    turn.slots[0].result = ToolResult("done")
    assert not turn.has_unfinished_write(row_1)


def test_a_call_touches_what_it_reads_and_what_it_writes():
    arguments = {"row": 1}
    assert touched(READ_ROW, arguments) == {"row:1"}
    assert touched(CHECK_AND_POST, arguments) == {"row:1", "posts"}
    assert touched(READ_ALL, arguments) == EVERYTHING
    assert touched(WRITE_ALL, arguments) == EVERYTHING
    assert touched(READ_ROW, {}) == EVERYTHING


def test_the_final_result_counts_before_the_early_one():
    slot = make_turn((READ_ROW, 1)).slots[0]
    assert slot.outcomes == ()
    slot.early = PROBABLY
    assert slot.outcomes == PROBABLY
    slot.result = ToolResult("certainly")
    (outcome,) = slot.outcomes
    assert (outcome.result, outcome.probability) == (slot.result, 1.0)


def test_a_turn_stands_on_itself_and_on_those_that_it_was_run_ahead_on():
    first = make_turn()
    second = make_turn(parent=first)
    third = make_turn(parent=second)
    assert third.stands_on(first)
    assert third.stands_on(third)
    assert not first.stands_on(second)
    assert [turn.depth for turn in (first, second, third)] == [0, 1, 2]
    assert [turn.confirmed for turn in (first, second, third)] == [True, False, False]
    assert not third.stands_on(make_turn())


def test_the_conversation_holds_the_answer_and_the_final_results():
    turn = make_turn((READ_ROW, 1), (READ_ROW, 2))
    assert turn.conversation == turn.request.history
    calls = tuple(slot.call for slot in turn.slots)
    turn.response = ModelResponse(text="Looking.", tool_calls=calls)
    turn.slots[0].early = PROBABLY
    turn.slots[1].result = ToolResult("certainly")
    assert turn.conversation == (
        *turn.request.history,
        turn.response.message,
        Message.for_result(calls[1], ToolResult("certainly")),
    )
