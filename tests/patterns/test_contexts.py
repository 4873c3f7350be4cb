from __future__ import annotations

from headstart.predictors import Learner, PatternPredictor
from headstart.predictors._patterns._contexts import ContextCounts

from .scene import (
    TOOLS,
    Customer,
    Run,
    expected,
    now,
    prediction,
    support_run,
    taught,
    teach,
)

NEW = 1_000


async def test_predict_says_what_propose_says():
    patterns = taught()
    conversation = now(support_run(NEW, until="customer"))
    assert isinstance(patterns, Learner)
    assert await patterns.predict(conversation) == patterns.propose(conversation)


def test_predictions_are_sorted_by_probability():
    predictions = taught().propose(now(support_run(NEW, until="customer")))
    probabilities = [each.probability for each in predictions]
    assert len(predictions) >= 3
    assert probabilities == sorted(probabilities, reverse=True)


def test_nothing_learned_proposes_nothing():
    patterns = PatternPredictor()
    assert patterns.propose(now(Run())) == []
    assert patterns.propose(now(support_run(NEW))) == []
    assert patterns.probability_of_no_call(now(Run().user("hello"))) == 0.5


def test_a_dozen_runs_are_enough_to_be_right_every_time():
    patterns = taught(12)
    who = Customer(NEW)
    right = {
        "asked": ("find_customer", {"name": who.name, "town": who.town}),
        "found": ("get_customer", {"customer": who.id}),
        "customer": ("get_parcel", {"parcel": who.parcels[0]}),
        "first": ("get_parcel", {"parcel": who.parcels[1]}),
    }
    for until, call in right.items():
        run = support_run(NEW, until=until)
        assert expected(patterns, run)[0] == call
        assert prediction(patterns, run, call).probability >= 0.5


def test_one_run_is_enough_to_propose_and_not_enough_to_be_sure():
    patterns = taught(1)
    who = Customer(NEW)
    call = ("get_customer", {"customer": who.id})
    found = prediction(patterns, support_run(NEW, until="found"), call)
    assert 0 < found.probability <= 0.75


def test_the_next_in_order_is_expected_in_a_loop():
    patterns = taught(15)
    who = Customer(NEW)
    run = support_run(NEW, until="first")
    run.asks(("get_parcel", {"parcel": who.parcels[1]})).gets({"state": "sent"})
    assert expected(patterns, run)[0] == ("get_parcel", {"parcel": who.parcels[2]})


def test_the_rest_of_a_loop_is_worth_launching_at_once():
    patterns = taught(15)
    who = Customer(NEW)
    run = support_run(NEW, until="customer")
    last = prediction(patterns, run, ("get_parcel", {"parcel": who.parcels[2]}))
    assert last.eventually is not None
    assert last.eventually >= 0.5 > last.probability


def test_parallel_calls_are_all_expected_in_the_next_answer():
    patterns = taught(15, parallel=True)
    who = Customer(NEW)
    run = support_run(NEW, until="customer")
    top = expected(patterns, run)[:3]
    assert sorted(arguments["parcel"] for _, arguments in top) == sorted(who.parcels)
    for call in top:
        assert prediction(patterns, run, call).probability >= 0.5


def test_the_style_of_a_run_tells_parallel_calls_from_single_ones():
    patterns = PatternPredictor()
    for number in range(30):
        who = Customer(number, parcels=6)
        run = Run().user("Where are they?")
        run.asks(("get_customer", {"customer": "me"})).gets(
            {"parcels": who.parcels[:3]}
        )
        pairs = [who.parcels[:3]] if number % 2 else [[p] for p in who.parcels[:3]]
        for group in pairs:
            run.asks(*(("get_parcel", {"parcel": parcel}) for parcel in group))
            run.gets(*("sent" for _ in group))
        run.says("All are sent.").user("And the others?")
        run.asks(("get_customer", {"customer": "me"})).gets(
            {"parcels": who.parcels[3:]}
        )
        pairs = [who.parcels[3:]] if number % 2 else [[p] for p in who.parcels[3:]]
        for group in pairs:
            run.asks(*(("get_parcel", {"parcel": parcel}) for parcel in group))
            run.gets(*("sent" for _ in group))
        teach(patterns, run.says("All are sent."))
    patterns.settle()

    def third(*, parallel: bool) -> float:
        run = Run().user("Where are they?")
        run.asks(("get_customer", {"customer": "me"})).gets({"parcels": ["P-1", "P-2"]})
        groups = [["P-1", "P-2"]] if parallel else [["P-1"], ["P-2"]]
        for group in groups:
            run.asks(*(("get_parcel", {"parcel": parcel}) for parcel in group))
            run.gets(*("sent" for _ in group))
        run.says("All are sent.").user("And the others?")
        run.asks(("get_customer", {"customer": "me"}))
        run.gets({"parcels": ["P-7", "P-8", "P-9"]})
        return prediction(patterns, run, ("get_parcel", {"parcel": "P-9"})).probability

    assert third(parallel=True) > 0.5 > third(parallel=False)


def test_no_call_is_an_outcome_of_its_own():
    patterns = taught(15)
    assert patterns.probability_of_no_call(now(support_run(NEW, until="found"))) < 0.2
    done = support_run(NEW)
    done.messages.pop()
    assert patterns.probability_of_no_call(now(done)) > 0.5


def test_an_error_leads_elsewhere_than_a_result():
    patterns = PatternPredictor()
    for number in range(16):
        who = Customer(number)
        run = Run().user(f"Where is {who.parcels[0]}?")
        run.asks(("get_parcel", {"parcel": who.parcels[0]}))
        if number % 2:
            run.gets("Error: there is no such parcel")
            run.asks(("list_depots", {"country": "se"})).gets("none")
        else:
            run.gets({"state": "sent"})
        teach(patterns, run.says("I am done."))
    run = Run().user("Where is P-919191?").asks(("get_parcel", {"parcel": "P-919191"}))
    assert patterns.probability_of_no_call(now(run.gets({"state": "sent"}))) > 0.6
    run.messages.pop()
    run.gets("Error: there is no such parcel")
    assert patterns.probability_of_no_call(now(run)) < 0.4
    assert expected(patterns, run)[0] == ("list_depots", {"country": "se"})


def test_what_the_model_has_begun_to_say_is_evidence():
    patterns = PatternPredictor()
    for number in range(20):
        who = Customer(number, parcels=4)
        run = Run().user("Look at one of mine")
        run.asks(("get_customer", {"customer": "me"})).gets(who.record)
        chosen = who.parcels[number % 4]
        text = f"I will look at {chosen} for you."
        teach(patterns, run.asks(("get_parcel", {"parcel": chosen}), text=text))
    run = Run().user("Look at one of mine")
    run.asks(("get_customer", {"customer": "me"}))
    run.gets({"parcels": ["P-11", "P-22", "P-33", "P-44"]})
    announced = expected(patterns, run, partial="I will look at P-33 for you")
    assert announced[0] == ("get_parcel", {"parcel": "P-33"})


def test_reads_are_proposed_while_the_user_has_yet_to_speak():
    patterns = PatternPredictor()
    for number in range(15):
        who = Customer(number)
        run = Run().user("Hello").asks(("get_customer", {"customer": "me"}))
        run.gets({"parcels": who.parcels[:1]}).says("Shall I look at your parcel?")
        run.user("yes please").asks(("get_parcel", {"parcel": who.parcels[0]}))
        teach(patterns, run)
    patterns.settle()
    run = Run().user("Hello").asks(("get_customer", {"customer": "me"}))
    run.gets({"parcels": ["P-606060"]}).says("Shall I look at your parcel?")
    found = prediction(patterns, run, ("get_parcel", {"parcel": "P-606060"}))
    assert found.eventually is not None
    assert found.eventually >= 0.5


def test_a_call_in_the_middle_of_a_turn_is_followed_by_what_comes_after_the_turn():
    patterns = taught(15)
    who = Customer(NEW)
    run = support_run(NEW, until="customer").asks(
        ("get_parcel", {"parcel": who.parcels[0]})
    )
    first, second = expected(patterns, run)[:2]
    assert first == ("get_parcel", {"parcel": who.parcels[1]})
    assert second == ("get_parcel", {"parcel": who.parcels[2]})


def test_what_a_write_comes_before_is_not_expected_to_be_used():
    patterns = PatternPredictor()
    for number in range(20):
        who = Customer(number)
        cancelled = ("cancel_parcel", {"parcel": who.parcels[0]})
        run = Run().user(f"Cancel {who.parcels[0]} and check it").asks(cancelled)
        run.gets("ok").asks(("get_parcel", {"parcel": who.parcels[0]})).gets("gone")
        teach(patterns, run.says("It is cancelled."))
    patterns.settle()
    run = Run().user("Cancel P-123123 and check it")
    assert expected(patterns, run)[0] == ("cancel_parcel", {"parcel": "P-123123"})
    for each in patterns.propose(now(run)):
        assert each.tool != "get_parcel" or (each.eventually or 0) < 0.2
    run.asks(("cancel_parcel", {"parcel": "P-123123"})).gets("ok")
    read = prediction(patterns, run, ("get_parcel", {"parcel": "P-123123"}))
    assert (read.eventually or 0) >= 0.5


def test_tools_that_are_not_offered_are_not_proposed():
    patterns = taught()
    run = support_run(NEW, until="found")
    offered = {name: each for name, each in TOOLS.items() if name != "get_customer"}
    assert all(name in offered for name, _ in expected(patterns, run, tools=offered))


def test_a_context_of_varied_outcomes_leaves_room_for_what_others_saw():
    varied, steady = ContextCounts(), ContextCounts()
    for number in range(4):
        varied.learn(["user", ":a"], [f"tool{number}"])
        steady.learn(["user", ":a"], ["tool0"])
    for counts in (varied, steady):
        counts.learn(["plain", ":a"], ["elsewhere"])
    after = ["user", ":a"]
    assert steady.probabilities(after)["elsewhere"] > 0
    assert (
        varied.probabilities(after)["elsewhere"]
        > steady.probabilities(after)["elsewhere"]
    )


def test_what_the_user_gave_still_counts_after_the_first_result():
    patterns = PatternPredictor()
    for number in range(40):
        teach(patterns, given_run(number, told=number % 2 == 0))
    patterns.settle()
    told, untold = (
        patterns.probability_of_no_call(
            now(given_run(NEW, told=told, until="customer"))
        )
        for told in (True, False)
    )
    assert told < untold - 0.05


def given_run(number: int, *, told: bool, until: str = "end") -> Run:
    """A parcel is looked up only if the user gave its number."""
    who = Customer(number)
    run = Run().user(f"Hello, it is {who.name} {who.parcels[0] if told else 7} here.")
    run.asks(("get_customer", {"customer": who.name})).gets("known")
    if until == "customer":
        return run
    if told:
        run.asks(("get_parcel", {"parcel": who.parcels[0]})).gets("sent")
    return run.says("What is it about?")
