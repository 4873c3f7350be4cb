"""The life of a speculation: its table is the whole truth."""

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headstart._errors import InternalError
from headstart._lifecycle import (
    TERMINAL,
    TRANSITIONS,
    Lifecycle,
    SpeculationInput,
    SpeculationState,
    diagram,
)

S, I = SpeculationState, SpeculationInput  # noqa: E741


def after(*steps):
    lifecycle = Lifecycle()
    for step in steps:
        lifecycle.advance(step)
    return lifecycle.state


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], S.PREDICTED),
        ([I.REFUSE], S.REFUSED),
        ([I.ADMIT, I.DISCARD], S.DISCARDED),
        ([I.ADMIT, I.LAUNCH, I.FINISH, I.FLUSH], S.ADOPTED),
        ([I.ADMIT, I.LAUNCH, I.FLUSH, I.FINISH], S.ADOPTED),
        ([I.ADMIT, I.LAUNCH, I.FLUSH, I.FAIL], S.ADOPTED),
        ([I.ADMIT, I.LAUNCH, I.FLUSH, I.CANCEL], S.CANCELLED),
        ([I.ADMIT, I.LAUNCH, I.FAIL, I.FLUSH], S.ADOPTED),
        ([I.ADMIT, I.LAUNCH, I.FAIL, I.DISCARD], S.DISCARDED),
        ([I.ADMIT, I.LAUNCH, I.DISCARD], S.DISCARDED),
    ],
)
def test_a_life_runs_from_the_prediction_to_its_end(steps, state):
    assert after(*steps) is state


@pytest.mark.parametrize("step", I)
@pytest.mark.parametrize("state", S)
def test_a_step_that_is_not_in_the_table_is_an_internal_error(state, step):
    lifecycle = Lifecycle()
    lifecycle.state = state
    legal = (state, step) in TRANSITIONS
    assert lifecycle.accepts(step) is legal
    if legal:
        lifecycle.advance(step)
        assert lifecycle.state is TRANSITIONS[state, step]
    else:
        with pytest.raises(InternalError):
            lifecycle.advance(step)
        assert lifecycle.state is state


def test_the_ends_are_those_that_nothing_follows():
    assert {S.ADOPTED, S.DISCARDED, S.REFUSED, S.CANCELLED} == TERMINAL


def test_every_state_can_be_reached_and_every_life_can_end():
    reached = {S.PREDICTED}
    while more := {TRANSITIONS[s, i] for s, i in TRANSITIONS if s in reached} - reached:
        reached |= more
    assert reached == set(S)
    ending = set(TERMINAL)
    while more := {s for (s, _), t in TRANSITIONS.items() if t in ending} - ending:
        ending |= more
    assert ending == set(S)


def test_every_input_means_something_somewhere():
    assert {step for _, step in TRANSITIONS} == set(I)


@pytest.mark.requirement("barrier:flushed-runs")
def test_what_is_confirmed_can_no_longer_be_discarded():
    confirmed = {t for (_, step), t in TRANSITIONS.items() if step is I.FLUSH}
    for state in confirmed:
        assert (state, I.DISCARD) not in TRANSITIONS


class LifecycleMachine(RuleBasedStateMachine):
    """Random steps: a legal one moves along the table, any other changes nothing."""

    def __init__(self):
        super().__init__()
        self.lifecycle = Lifecycle()
        self.flushes = 0

    @rule(step=st.sampled_from(I))
    def take(self, step):
        before = self.lifecycle.state
        try:
            self.lifecycle.advance(step)
        except InternalError:
            assert self.lifecycle.state is before
            assert (before, step) not in TRANSITIONS
        else:
            assert self.lifecycle.state is TRANSITIONS[before, step]
            self.flushes += step is I.FLUSH

    @invariant()
    def is_confirmed_once_and_only_if_flushed(self):
        assert self.flushes <= 1
        confirmed = self.lifecycle.state in (S.CONFIRMED, S.ADOPTED, S.CANCELLED)
        assert confirmed == (self.flushes == 1)

    @invariant()
    def ends_for_good(self):
        if self.lifecycle.state in TERMINAL:
            assert not any(self.lifecycle.accepts(step) for step in I)


LifecycleMachine.TestCase.settings = settings(max_examples=100, deadline=None)
TestLifecycle = LifecycleMachine.TestCase


@given(st.lists(st.sampled_from(I), max_size=12))
def test_every_life_ends_within_four_steps(steps):
    lifecycle = Lifecycle()
    taken = 0
    for step in steps:
        if lifecycle.accepts(step):
            lifecycle.advance(step)
            taken += 1
    assert taken <= 4


def test_the_diagram_shows_every_transition_and_every_end():
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> predicted"]
    assert len(lines) == 2 + len(TRANSITIONS) + len(TERMINAL)
    assert "    running --> confirmed: flush" in lines
    assert "    adopted --> [*]" in lines
