"""What the default policy admits: a pure decision on plain figures."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, strategies as st

from headstart import (
    Candidate,
    Effect,
    Expectation,
    LimitPolicy,
    Record,
    RunAhead,
    UsageError,
    ValuePolicy,
    tool,
)


def read(**options):
    @tool(effect=Effect.READ, **options)
    async def look_up() -> None:
        """Look something up."""

    return look_up


CANDIDATE = Candidate(
    tool=read(),
    probability=0.5,
    cause="predicted",
    depth=0,
    in_flight=0,
    in_flight_of_tool=0,
    wasted_s=0.0,
    spent_usd=0.0,
)
SEALED = replace(CANDIDATE, cause="sealed", probability=1.0)


def refuse(candidate=CANDIDATE, policy=None, **figures):
    return (policy or LimitPolicy()).refuse_launch(replace(candidate, **figures))


def test_an_ordinary_prediction_is_admitted():
    assert refuse() is None
    assert refuse(SEALED) is None


@pytest.mark.parametrize(
    ("limit", "value", "figure", "last_admitted", "first_refused"),
    [
        ("min_probability", 0.5, "probability", 0.5, 0.499),
        ("min_probability", 0.0, "probability", 0.0, math.nan),
        ("max_in_flight", 3, "in_flight", 2, 3),
        ("max_in_flight_of_tool", 3, "in_flight_of_tool", 2, 3),
        ("max_depth", 2, "depth", 2, 3),
        ("max_depth", 0, "depth", 0, 1),
        ("max_wasted_s", 10.0, "wasted_s", 9.99, 10.0),
        ("max_spent_usd", 1.0, "spent_usd", 1.0, 1.01),
    ],
)
def test_each_limit_admits_up_to_itself(
    limit, value, figure, last_admitted, first_refused
):
    policy = LimitPolicy(**{limit: value})
    assert refuse(policy=policy, **{figure: last_admitted}) is None
    assert refuse(policy=policy, **{figure: first_refused})


@pytest.mark.parametrize("limit", ["max_in_flight", "max_in_flight_of_tool"])
@pytest.mark.parametrize("candidate", [CANDIDATE, SEALED])
def test_a_limit_of_nothing_in_flight_admits_nothing(limit, candidate):
    assert refuse(candidate, LimitPolicy(**{limit: 0}))


def test_a_tools_own_concurrency_goes_before_the_policys():
    policy = LimitPolicy(max_in_flight_of_tool=2)
    patient, eager = read(max_concurrency=1), read(max_concurrency=5)
    assert refuse(policy=policy, tool=patient, in_flight_of_tool=0) is None
    assert refuse(policy=policy, tool=patient, in_flight_of_tool=1)
    assert refuse(policy=policy, tool=eager, in_flight_of_tool=4) is None
    assert refuse(policy=policy, tool=eager, in_flight_of_tool=5)


def test_a_call_is_refused_that_would_take_the_cost_over_the_limit():
    policy = LimitPolicy(max_spent_usd=1.0)
    costly = read(cost_usd=0.25)
    assert refuse(policy=policy, tool=costly, spent_usd=0.75) is None
    assert refuse(policy=policy, tool=costly, spent_usd=0.76)
    assert refuse(SEALED, policy, tool=costly, spent_usd=0.76)
    assert refuse(policy=LimitPolicy(max_spent_usd=0.0), tool=read()) is None


def test_wasted_seconds_stop_guesses_and_not_what_the_model_has_written():
    assert refuse(wasted_s=1e9)
    assert refuse(SEALED, wasted_s=1e9) is None


@pytest.mark.requirement("engine:default-deny")
def test_arguments_leave_the_system_on_a_guess_only_if_the_policy_says_so():
    sends = read(egress=True)
    generous = LimitPolicy(allow_egress=True)
    assert refuse(tool=sends)
    assert refuse(policy=generous, tool=sends) is None
    assert refuse(SEALED, tool=sends) is None
    # What the model writes in an unconfirmed turn may rest on a false early result.
    assert refuse(SEALED, tool=sends, depth=1)
    assert refuse(SEALED, generous, tool=sends, depth=1) is None


def ahead(*probabilities, **figures):
    expectations = tuple(
        Expectation(probability=p, total=p, record=figures.get("record", Record()))
        for p in probabilities
    )
    figures = {"depth": 1, **figures}
    figures.pop("record", None)
    return RunAhead(expectations=expectations, **figures)


@pytest.mark.parametrize("policy", [LimitPolicy, ValuePolicy])
def test_turns_run_ahead_up_to_each_limit(policy):
    refuse = policy(max_depth=2, max_branches=3, max_wasted_tokens=100).refuse_run_ahead
    assert refuse(ahead(depth=2, branch=2, wasted_tokens=99)) is None
    assert refuse(ahead(depth=3)) == "too deep"
    assert refuse(ahead(branch=3)) == "too many branches"
    assert refuse(ahead(wasted_tokens=100)) == "tokens wasted"
    assert policy(max_depth=0).refuse_run_ahead(ahead())


@pytest.mark.parametrize("policy", [LimitPolicy, ValuePolicy])
def test_turns_run_ahead_on_results_that_are_probable_enough_together(policy):
    refuse = policy(min_ahead_probability=0.36).refuse_run_ahead
    assert refuse(ahead()) is None
    assert refuse(ahead(0.9, 0.4)) is None
    assert refuse(ahead(0.9, 0.39)) == "improbable"
    assert refuse(ahead(math.nan)) == "improbable"


@pytest.mark.parametrize("policy", [LimitPolicy, ValuePolicy])
def test_no_request_is_sent_beside_the_running_one_unless_it_is_asked_for(policy):
    def refuse(*probabilities, least=0.9, **figures):
        bold = policy(min_beside_probability=least, max_wasted_tokens=100)
        return bold.refuse_run_ahead(ahead(*probabilities, beside=True, **figures))

    assert policy().refuse_run_ahead(ahead(1.0, beside=True))
    assert refuse(0.9) is None
    assert refuse(0.89)
    assert refuse(math.nan)
    assert refuse(1.0, depth=2)
    assert refuse(1.0, wasted_tokens=100)
    # What is switched off is not even probed.
    for refused in range(40):
        assert refuse(1.0, least=1.1, record=Record(refused=refused))


@pytest.mark.requirement("policy:never-over-budget")
@pytest.mark.parametrize(
    "figures",
    [
        {"in_flight": 8},
        {"in_flight_of_tool": 4},
        {"wasted_s": 600.0},
        {"spent_usd": 1.0, "tool": read(cost_usd=0.25)},
        {"depth": 2},
    ],
)
def test_a_probe_is_launched_within_every_limit(figures):
    policy = ValuePolicy(probe_every=10)
    probing = replace(CANDIDATE, record=Record(misses=30, refused=9))
    assert refuse(probing, policy) is None
    assert refuse(probing, policy, **figures)


def test_results_that_were_never_right_are_run_ahead_on_only_to_probe():
    policy = ValuePolicy(probe_every=10)
    wrong = Record(misses=30)
    assert policy.refuse_run_ahead(ahead(0.9, record=wrong)) == "seldom right"
    probing = replace(wrong, refused=9)
    assert policy.refuse_run_ahead(ahead(0.9, record=probing)) is None
    assert policy.refuse_run_ahead(ahead(0.9, record=probing, depth=9))
    assert LimitPolicy().refuse_run_ahead(ahead(0.9, record=wrong)) is None


def test_what_is_improbable_as_stated_is_not_even_probed():
    policy = ValuePolicy(probe_every=10, min_beside_probability=0.2)
    for refused in range(40):
        record = Record(misses=30, refused=refused)
        assert refuse(policy=policy, probability=0.1, record=record) == "improbable"
        for beside in (False, True):
            candidate = ahead(0.1, record=record, beside=beside)
            assert policy.refuse_run_ahead(candidate) == "improbable"


@pytest.mark.parametrize("policy", [LimitPolicy, ValuePolicy])
def test_a_turn_ahead_of_an_improbable_one_is_less_probable(policy):
    refuse = policy(min_ahead_probability=0.4).refuse_run_ahead
    assert refuse(ahead(0.9, turn_probability=0.5)) is None
    assert refuse(ahead(0.9, turn_probability=0.4)) == "improbable"
    assert refuse(ahead(turn_probability=0.3)) == "improbable"


def test_alternatives_share_what_their_statements_deserve():
    record = Record(hits=2, misses=6)  # a quarter of what was stated was right
    half = Expectation(probability=0.4, total=0.8, record=record)
    assert half.calibrated(weight=0) == pytest.approx(0.5 * 0.25, rel=0.01)
    assert replace(half, record=Record()).calibrated(weight=4) == pytest.approx(0.4)
    assert Expectation(probability=0.0, total=0.0).calibrated(weight=4) == 0.0
    both = RunAhead(depth=1, expectations=(half, half))
    assert both.probability == pytest.approx(0.16)
    assert both.calibrated(weight=0) == pytest.approx(0.125**2, rel=0.02)


@pytest.mark.parametrize(
    "limits",
    [
        {"min_probability": -0.1},
        {"min_probability": 1.1},
        {"min_probability": math.nan},
        {"max_in_flight": -1},
        {"max_in_flight_of_tool": -1},
        {"max_depth": -1},
        {"max_branches": -1},
    ],
)
def test_a_limit_that_makes_no_sense_is_an_error(limits):
    with pytest.raises(UsageError):
        LimitPolicy(**limits)


def test_a_policy_is_not_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        LimitPolicy().max_depth = 9


counts = st.integers(0, 5)
amounts = st.floats(0, 10)
candidates = st.builds(
    Candidate,
    tool=st.sampled_from(
        [read(), read(egress=True), read(cost_usd=2.0), read(max_concurrency=2)]
    ),
    probability=st.floats(0, 1) | st.just(math.nan),
    cause=st.sampled_from(["predicted", "sealed"]),
    depth=counts,
    in_flight=counts,
    in_flight_of_tool=counts,
    wasted_s=amounts,
    spent_usd=amounts,
)
policies = st.builds(
    LimitPolicy,
    min_probability=st.floats(0, 1),
    max_in_flight=counts,
    max_in_flight_of_tool=counts,
    max_depth=counts,
    max_wasted_s=amounts,
    max_spent_usd=amounts,
    allow_egress=st.booleans(),
)


@given(policies, candidates)
def test_whatever_is_admitted_is_within_every_limit(policy, candidate):
    reason = policy.refuse_launch(candidate)
    assert reason is None or (isinstance(reason, str) and reason)
    assert policy.refuse_launch(candidate) == reason  # pure
    if reason is not None:
        return
    called = candidate.tool
    of_tool = policy.max_in_flight_of_tool
    assert candidate.probability >= policy.min_probability
    assert candidate.in_flight + 1 <= policy.max_in_flight
    assert candidate.in_flight_of_tool + 1 <= (called.max_concurrency or of_tool)
    assert candidate.depth <= policy.max_depth
    assert candidate.spent_usd + called.cost_usd <= policy.max_spent_usd
    if candidate.cause == "predicted":
        assert candidate.wasted_s < policy.max_wasted_s
    if called.egress and not policy.allow_egress:
        assert (candidate.cause, candidate.depth) == ("sealed", 0)


def test_a_probability_is_corrected_by_how_many_more_hits_there_were_than_stated():
    record = Record(hits=30, misses=30, stated=15.0)  # twice as many as stated
    low, high = (record.calibrated(p, weight=0.01) for p in (0.1, 0.5))
    assert low == pytest.approx(0.25, abs=0.01)
    assert high == pytest.approx(0.75, abs=0.01)
    as_stated = Record(hits=20, misses=40, stated=20.0)
    for p in (0.1, 0.5, 0.9):
        assert as_stated.calibrated(p, weight=2) == pytest.approx(p)


@given(
    st.floats(0, 1),
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 1),
    st.floats(0, 10),
)
def test_a_corrected_probability_is_one_and_grows_with_the_hits(
    p, hits, misses, level, weight
):
    stated = level * (hits + misses)
    record = Record(hits=hits, misses=misses, stated=stated)
    corrected = record.calibrated(p, weight=weight)
    assert 0 <= corrected <= 1
    better = replace(record, hits=hits + 1.0, stated=stated)
    if hits + misses:
        assert better.calibrated(p, weight=weight) >= corrected - 1e-9
