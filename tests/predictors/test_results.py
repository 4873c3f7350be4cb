"""Results that follow from the arguments and from earlier results, learned by example."""

from __future__ import annotations

import json

import anyio
import pytest

from headstart import Agent, Effect, tool
from headstart._events import EarlyResultGiven
from headstart.predictors import LearnedResults
from headstart.testing import ScriptedModel

from .conversations import (
    call,
    called,
    change,
    contents,
    gave,
    look,
    play_both,
    said,
    steps,
    talk,
    teach,
)
from .tickets import (
    TOOLS,
    closed_as,
    closing,
    exchange,
    foretold,
    last_of,
    refusal,
    sending,
    stated,
    taught,
    ticket,
)


def test_an_earlier_object_with_constants_and_arguments_in_it_is_stated():
    learned = taught(*(closing(n, f"because {n}") for n in range(8)))
    got, real = foretold(learned, closing(99, "it works"))
    assert got == real


def test_how_probable_it_is_is_learned():
    few = taught(*(closing(n) for n in range(3)), min_probability=0.0)
    many = taught(*(closing(n) for n in range(40)), min_probability=0.0)
    before, wanted, _ = last_of(closing(99))
    (unsure,), (sure,) = stated(few, before, wanted), stated(many, before, wanted)
    assert unsure.probability < sure.probability
    assert 0.9 < sure.probability <= 0.98


def test_nothing_is_stated_by_who_has_learned_nothing():
    before, wanted, _ = last_of(closing(1))
    assert stated(LearnedResults(), before, wanted) == []


def test_nothing_is_stated_where_the_object_was_not_read():
    learned = taught(*(closing(n) for n in range(20)))
    assert stated(learned, [said("Close T99.")], last_of(closing(99))[1]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"separators": (",", ":")},
        {"indent": 2},
        {"indent": 4, "ensure_ascii": False},
        {"separators": (",", ":"), "ensure_ascii": False},
    ],
)
def test_json_is_written_as_the_tool_writes_it(options):
    def conversation(number):
        before = ticket(number, owner={"name": f"Ö {number} 名前"})
        after = json.dumps(before | {"state": "closed"}, **options)
        return closed_as(before, after)

    learned = taught(*map(conversation, range(10)))
    got, real = foretold(learned, conversation(99))
    assert got == real


def test_json_in_a_style_of_its_own_is_not_stated():
    def conversation(number):
        before = ticket(number)
        return closed_as(before, json.dumps(before).replace(", ", " ,  "))

    learned = taught(*map(conversation, range(10)))
    before, wanted, _ = last_of(conversation(99))
    assert stated(learned, before, wanted) == []


def test_fields_may_be_added_removed_and_changed_deep_inside():
    def conversation(number):
        before = ticket(number)
        after = {k: v for k, v in before.items() if k != "notes"}
        after["owner"] = {"name": before["owner"]["name"], "city": "nowhere"}
        return closed_as(before, after | {"last": before["id"], "ok": True})

    learned = taught(*map(conversation, range(10)))
    got, real = foretold(learned, conversation(99))
    assert got == real


def test_lists_grow_by_what_follows_from_the_call():
    def conversation(number):
        before = ticket(number)
        note = {"text": f"why {number}", "by": before["notes"][0]["by"]}
        after = before | {"notes": [*before["notes"], note]}
        return closed_as(before, after, f"why {number}")

    learned = taught(*map(conversation, range(10)))
    got, real = foretold(learned, conversation(99))
    assert got == real


def test_elements_that_arguments_name_are_replaced_by_what_was_found_elsewhere():
    learned = taught(*(exchange(n) for n in range(30)))
    right = 0
    for number in range(100, 110):
        got, real = foretold(learned, exchange(number, count=2))
        right += got == real
    assert right >= 9


def test_what_decides_between_success_and_refusal_is_learned():
    history = [closing(n) for n in range(12)]
    history += [refusal(n, "closed") for n in range(20, 26)]
    learned = taught(*history)
    for messages in (closing(98), refusal(99, "closed")):
        got, real = foretold(learned, messages)
        assert got == real


def test_outcomes_that_nothing_tells_apart_are_alternatives():
    history = [closing(n) if n % 3 else refusal(n, "open") for n in range(60)]
    learned = taught(*history, min_probability=0.0)
    before, wanted, content = last_of(closing(99))
    success, failure = stated(learned, before, wanted)
    assert success.result.content == content
    assert failure.result.content == "Error: T99 is not open"
    assert success.probability > failure.probability
    assert success.probability + failure.probability == pytest.approx(1, abs=0.25)


def test_a_text_with_arguments_in_it_is_stated():
    learned = taught(*(sending(n, f"User {n}") for n in range(20, 30)))
    got, real = foretold(learned, sending(77, "Eve"))
    assert got == real


def test_a_constant_text_is_stated():
    learned = taught(*(sending(n, text="Done.") for n in range(20, 30)))
    assert foretold(learned, sending(77, text="Done."))[0] == ["Done."]


def test_a_text_that_lacks_an_argument_is_not_stated():
    learned = taught(*(sending(n, f"User {n}") for n in range(20, 30)))
    assert stated(learned, [said("Send.")], call("send", {"n": 7})) == []


def test_a_read_after_a_write_gives_what_the_write_has_shown():
    def conversation(number):
        after = ticket(number, state="closed")
        return [
            *closed_as(ticket(number), after),
            called(("get", {"id": f"T{number}"}), start=2),
            gave(2, after),
        ]

    learned = taught(*map(conversation, range(12)))
    got, real = foretold(learned, conversation(99))
    assert got == real


def test_only_tools_of_the_effects_asked_for_are_learned():
    history = [closing(n) for n in range(10)]
    learned = taught(*history, effects=["unsafe"])
    before, wanted, _ = last_of(closing(99))
    assert stated(learned, before, wanted) == []


def test_the_writes_before_a_call_in_its_message_are_taken_into_account():
    history = []
    for number in range(15):
        before = ticket(number)
        closed = before | {"state": "closed", "reason": "x"}
        moved = closed | {"place": "attic"}
        history.append(
            [
                *steps(("get", {"id": f"T{number}"}, before), text=f"Do {number}."),
                called(
                    ("close", {"id": f"T{number}", "reason": "x"}),
                    ("move", {"id": f"T{number}", "place": "attic"}),
                    start=1,
                ),
                gave(1, closed),
                gave(2, moved),
            ]
        )
    learned = taught(*history[:-1])
    messages = history[-1]
    second = messages[-3].tool_calls[1]
    assert contents(stated(learned, messages[:-2], second)) == [messages[-1].content]


def test_a_call_before_it_that_has_its_result_already_is_not_made_twice():
    def conversation(number):
        before = ticket(number, notes=[{"text": "a"}])
        noted = before | {"notes": [*before["notes"], {"text": f"why {number}"}]}
        moved = noted | {"place": "attic"}
        arguments = {"id": f"T{number}"}
        return [
            *steps(("get", arguments, before), text=f"Do {number}."),
            called(
                ("close", arguments | {"reason": f"why {number}"}),
                ("move", arguments | {"place": "attic"}),
                start=1,
            ),
            gave(1, noted),
            gave(2, moved),
        ]

    learned = taught(*map(conversation, range(15)))
    messages = conversation(99)
    second = messages[-3].tool_calls[1]
    for known in (
        messages[:-2],
        messages[:-1],
    ):  # before the first has ended, and after
        assert contents(stated(learned, known, second)) == [messages[-1].content]


def test_calls_before_it_that_nothing_is_known_of_are_passed_over():
    learned = taught(*(closing(n) for n in range(10)))
    before, wanted, content = last_of(closing(99))
    others = [("get", {}), ("move", {}), ("close", "no JSON"), ("close", {"id": "?"})]
    asking = called(*others, ("close", wanted.arguments), start=1)
    messages = [*before, asking]
    assert contents(stated(learned, messages, asking.tool_calls[-1])) == [content]


def test_numbers_of_the_other_sign_and_parts_of_the_object_are_found():
    def conversation(number):
        paid = 100 + number
        before = ticket(number, paid=paid, names={"first": f"Name {number}"})
        after = before | {"refund": -paid, "closed_by": f"Name {number}"}
        return closed_as(before, after)

    learned = taught(*map(conversation, range(10)))
    got, real = foretold(learned, conversation(99))
    assert got == real


def test_a_list_is_made_for_each_element_of_an_argument():
    def conversation(number, count):
        seats = [{"seat": f"{number}{n}", "row": number} for n in range(count)]
        shown = [each | {"state": "free"} for each in seats]
        names = [each["seat"] for each in seats]
        return steps(
            ("price", {"of": number}, {"product": f"P{number}", "seats": shown}),
            (
                "send",
                {"seats": names, "n": number},
                {"booked": [{"seat": n, "row": number, "by": "us"} for n in names]},
            ),
            text=f"Book {number}.",
        )

    learned = taught(*(conversation(n, 2 + n % 3) for n in range(20, 40)))
    got, real = foretold(learned, conversation(77, 4))
    assert got == real
    assert stated(learned, conversation(77, 2)[:-2], call("send", {"seats": 7})) == []


def test_elements_that_nothing_names_and_lists_of_other_things_are_not_stated():
    def conversation(number, **after):
        before = ticket(number, marks=[1, 2], tags=["a"], rows=[{"n": 1}, "x"])
        return closed_as(before, before | after)

    history = [
        conversation(n, marks=[1, n], tags=[f"t{n}"], rows=[{"n": n}, "x"])
        for n in range(10, 30)
    ]
    learned = taught(*history, min_probability=0.0)
    got, real = foretold(learned, conversation(99, marks=[1, 99]))
    assert got != real


def test_an_object_of_another_shape_than_before_is_survived():
    learned = taught(*(exchange(n) for n in range(20)), min_probability=0.0)
    before, wanted, _ = last_of(exchange(99))
    for items in ("none", {"item": "I990"}, [], [7], [{"other": 1}]):
        order = json.loads(before[2].content) | {"items": items}
        messages = [*before[:2], gave(0, order), *before[3:]]
        stated(learned, messages, wanted)
    for arguments in ({"id": "T99"}, {"id": "T99", "old": "I990", "new": {}}):
        stated(learned, before, call("move", arguments))


def test_results_that_are_too_many_to_keep_are_read_again():
    learned = taught(*(closing(n) for n in range(10)))
    pages = [("get", {"n": n}, {"page": n, "text": "x" * 150_000}) for n in range(40)]
    before, wanted, content = last_of(closing(99))
    teach(learned, steps(*pages), TOOLS)
    assert contents(stated(learned, before, wanted)) == [content]
    assert learned._reader._characters <= 4_000_000


# In an agent


async def test_the_model_goes_on_while_a_write_is_on_its_way():
    learned = LearnedResults()
    history = []
    for row in range(12, 24):
        before, after = {"row": row, "state": "new"}, {"row": row, "state": "changed"}
        history.append(
            steps(
                ("look", {"row": row}, json.dumps(before, separators=(",", ":"))),
                ("change", {"row": row}, json.dumps(after, separators=(",", ":"))),
                text=f"Change {row}.",
            )
        )
    for messages in history:
        teach(learned, messages, (look, change))
    row = {"row": 77}
    model = ScriptedModel([[("look", row)], [("change", row)], "Done."], delay=1.0)
    off, on, events = await play_both(
        Agent(model, [look, change], predictors=[learned])
    )
    assert off == 3 * 1.0 + 2 * 2.0
    assert on == off - 2.0
    early = [each for each in events if isinstance(each, EarlyResultGiven)]
    assert [each.tool for each in early] == ["look", "change"]
    assert {each.source for each in early} == {"LearnedResults"}


async def test_it_proposes_no_calls():
    assert await LearnedResults().predict(talk([said("Go.")], TOOLS)) == []


def test_it_says_how_much_it_knows():
    assert repr(taught(closing(1))) == "<LearnedResults of 2 tools>"


async def test_a_failure_is_learned_as_a_failure():
    @tool(effect=Effect.GATED)
    async def close(ticket: str) -> str:
        await anyio.sleep(2.0)
        raise PermissionError(f"{ticket} is not yours")

    learned = LearnedResults()
    for number in range(20):
        ticket = f"T-{number}31"
        model = ScriptedModel([[("close", {"ticket": ticket})], "Sorry."], delay=1.0)
        began = anyio.current_time()
        agent = Agent(model, [close], predictors=[learned])
        await agent.run(f"Close {ticket}.")
        took = anyio.current_time() - began
    assert took == 1.0 + 2.0
