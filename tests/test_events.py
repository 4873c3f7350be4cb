"""Events: written and read back equal, by this version and by later ones."""

import dataclasses
import json
import logging

import pytest
from hypothesis import given, strategies as st

from headstart._errors import TraceFormatError
from headstart._events import (
    EVENT_TYPES,
    SCHEMA_VERSION,
    CallEnded,
    CallLaunched,
    EventLog,
    ModelAnswered,
    Recorder,
    SessionStarted,
    SpeculationAdopted,
    SpeculationDiscarded,
    Summary,
    ToolsEnded,
    TurnConfirmed,
    TurnDiscarded,
    TurnStarted,
    dump_event,
    load_event,
    summarize,
)

# A lone surrogate has no UTF-8 form, and no place in an identifier.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FIELDS = {
    "str": texts,
    "int": st.integers(),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "int | None": st.none() | st.integers(),
    "float | None": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "str | None": st.none() | texts,
}


def build(kind):
    """Any event of a kind."""
    fields = {
        field.name: FIELDS[field.type]
        for field in dataclasses.fields(kind)
        if field.name not in ("event", "schema_version")
    }
    return st.builds(kind, **fields)


events = st.one_of(*map(build, EVENT_TYPES))


@pytest.mark.requirement("trace:round-trip")
@given(st.lists(events, max_size=20))
def test_a_stream_written_and_read_back_is_equal(stream):
    lines = [dump_event(event) for event in stream]
    assert all("\n" not in line for line in lines)
    assert [load_event(line) for line in lines] == stream
    assert [load_event(line.encode()) for line in lines] == stream


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
def test_every_kind_of_event_has_a_name_of_its_own_that_it_is_read_by(kind):
    (tag,) = (f.default for f in dataclasses.fields(kind) if f.name == "event")
    words = "".join(part.capitalize() for part in tag.split("_"))
    assert words == kind.__name__
    assert dataclasses.fields(kind)[0].name == "event"


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
def test_every_event_names_its_session_and_its_time(kind):
    names = {field.name for field in dataclasses.fields(kind)}
    assert {"session", "at_s"} <= names


@pytest.mark.requirement("trace:round-trip")
def test_a_line_from_before_a_field_was_added_is_read_with_its_default():
    line = '{"event": "turn_started", "session": "s", "at_s": 1.5, "turn": 2}'
    assert load_event(line) == TurnStarted(session="s", at_s=1.5, turn=2)
    line = '{"event": "session_started", "session": "s", "at_s": 0}'
    assert load_event(line) == SessionStarted(session="s", at_s=0.0)


@pytest.mark.requirement("trace:round-trip")
@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_field_with_a_default_may_be_absent(kind, data):
    event = data.draw(build(kind))
    line = json.loads(dump_event(event))
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING and field.name != "event"
    }
    for name in defaults:
        del line[name]
    assert load_event(json.dumps(line)) == dataclasses.replace(event, **defaults)


def test_a_field_that_a_later_version_added_is_ignored():
    line = '{"event":"session_ended","session":"s","at_s":1.0,"new_field":{"a":[1]}}'
    assert load_event(line).session == "s"


@pytest.mark.requirement("trace:round-trip")
def test_a_trace_of_a_later_schema_is_refused():
    event = SessionStarted(session="s", at_s=0.0, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(TraceFormatError, match="upgrade"):
        load_event(dump_event(event))
    older = dataclasses.replace(event, schema_version=SCHEMA_VERSION)
    assert load_event(dump_event(older)) == older


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        "{}",
        "not json",
        b"\xff",
        '{"event": "unheard_of", "session": "s", "at_s": 0}',
        '{"event": "session_ended", "session": "s"}',
        '{"event": "session_ended", "session": 7, "at_s": 0}',
        '{"event": "session_ended", "session": "s", "at_s": "soon"}',
        '{"event": ["session_ended"], "session": "s", "at_s": 0}',
        "[" * 100_000,
    ],
    ids=range(12),
)
def test_what_is_no_event_is_a_trace_format_error(line):
    with pytest.raises(TraceFormatError):
        load_event(line)


def test_events_cannot_be_changed_and_take_no_other_attributes():
    event = TurnStarted(session="s", at_s=0.0, turn=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.turn = 2
    assert not hasattr(event, "__dict__")


# --- who is told -------------------------------------------------------------------


def test_a_log_keeps_events_in_order():
    log = EventLog()
    times = iter([10.0, 10.5, 12.0])
    recorder = Recorder("s", log, lambda: next(times))
    recorder.emit(SessionStarted)
    recorder.emit(TurnStarted, turn=1)
    assert log.events == [
        SessionStarted(session="s", at_s=0.5),
        TurnStarted(session="s", at_s=2.0, turn=1),
    ]


def test_a_sink_that_fails_is_not_called_again(caplog):
    calls = []

    class Failing:
        def emit(self, event, /):
            calls.append(event)
            raise OSError("disk full")

    recorder = Recorder("s", Failing(), lambda: 0.0)
    with caplog.at_level(logging.WARNING, logger="headstart"):
        recorder.emit(SessionStarted)
        recorder.emit(SessionStarted)
    assert len(calls) == 1
    assert "not called again" in caplog.text


def test_without_a_sink_nothing_happens():
    Recorder("s", None, lambda: 0.0).emit(SessionStarted)


# --- sums --------------------------------------------------------------------------


def test_a_summary_adds_up_what_happened():
    at = {"session": "s", "at_s": 0.0}
    call = {**at, "turn": 1, "tool": "get"}
    stream = [
        SessionStarted(**at),
        CallLaunched(**call, span="a", cause="predicted"),
        CallLaunched(**call, span="b", cause="predicted"),
        CallLaunched(**call, span="c", cause="sealed"),
        ModelAnswered(**at, turn=1, duration_s=1.5, tool_calls=2),
        SpeculationAdopted(
            **call, span="a", call_id="1", cause="predicted", hidden_s=1.0, ready=True
        ),
        SpeculationAdopted(
            **call, span="c", call_id="2", cause="sealed", hidden_s=0.5, ready=False
        ),
        SpeculationDiscarded(
            **call, span="b", cause="predicted", reason="unclaimed", wasted_s=0.25
        ),
        CallEnded(
            **call,
            call_id="1",
            duration_s=1.0,
            wait_s=0.0,
            adopted=True,
            is_error=False,
        ),
        ToolsEnded(**at, turn=1, calls=1, serial_s=2.0, wait_s=0.5),
        TurnConfirmed(**at, turn=2, hidden_s=0.75),
        TurnDiscarded(**at, turn=3, reason="differs", wasted_s=2.0, wasted_tokens=40),
    ]
    total = summarize(stream)
    assert dataclasses.asdict(total) == dataclasses.asdict(
        Summary(
            turns=1,
            calls=1,
            hits=1,
            early_starts=1,
            ready=1,
            misses=1,
            launches=3,
            predicted_launches=2,
            run_ahead=1,
            run_ahead_discarded=1,
            model_s=1.5,
            tool_s=2.0,
            hidden_s=2.25,
            wasted_s=2.25,
            wasted_tokens=40,
            discard_reasons={"unclaimed": 1},
        )
    )


def test_nothing_adds_up_to_nothing():
    assert summarize([]) == Summary()


def test_text_that_is_no_unicode_is_written_with_replacements():
    event = TurnDiscarded(
        session="a", at_s=1.0, turn=3, reason="half \ud83d of it", wasted_s=2.0
    )
    read = load_event(dump_event(event))
    assert read == dataclasses.replace(event, reason="half ? of it")
