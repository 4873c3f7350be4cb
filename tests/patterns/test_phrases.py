from __future__ import annotations

import pytest

from headstart.predictors import PatternPredictor

from .scene import Run, expected, teach

PLACES = ["Ashford", "Barlow", "Corfe", "Denby", "Elstow", "Fenny", "Garth", "Holme"]


def searching(sentence: str, argument: str = "{}") -> PatternPredictor:
    """An agent that looks up what the user names in a sentence."""
    patterns = PatternPredictor()
    for first, second in zip(PLACES, PLACES[1:] + PLACES[:1], strict=True):
        name = f"{first} {second}"
        parcel = ("get_parcel", {"parcel": argument.format(name)})
        teach(patterns, Run().user(sentence.format(name)).asks(parcel))
    return patterns


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Which Upper Mill rooms are free?", "Upper Mill"),
        ("Is Upper Mill open?", "Upper Mill"),
        ("The Upper Mill has closed.", "Upper Mill"),
        ("When did Upper Mill and Nether Hall close?", "Upper Mill"),
        ("Who owns Upper Mill (Barn and all)?", "Upper Mill"),
        ('They call it "Upper Mill." The rest is known.', "Upper Mill"),
    ],
)
def test_a_name_ends_where_other_words_that_are_capitalised_begin(
    said: str, meant: str
):
    patterns = searching("Tell me what you know of {} today.")
    first = expected(patterns, Run().user(said))[0]
    assert first == ("get_parcel", {"parcel": meant})


def test_a_name_of_one_word_is_told_from_a_part_of_a_name():
    patterns = PatternPredictor()
    for first, second in zip(PLACES, PLACES[1:] + PLACES[:1], strict=True):
        run = Run().user(f"Did Old {second} Lane come before {first} was built?")
        teach(patterns, run.asks(("get_parcel", {"parcel": first})))
    asked = Run().user("Did Old Nether Lane come before Upper was built?")
    assert expected(patterns, asked)[0] == ("get_parcel", {"parcel": "Upper"})


def test_a_number_behind_a_name_may_belong_to_it():
    patterns = searching("Tell me what you know of {} 3 today.", "{} 3")
    asked = Run().user("Tell me what you know of Upper Mill 19 today.")
    first = expected(patterns, asked)[0]
    assert first == ("get_parcel", {"parcel": "Upper Mill 19"})


def test_a_name_within_a_quotation_is_not_taken_for_the_whole():
    patterns = PatternPredictor()
    for place in PLACES:
        sung = f"{place} Fair in the long summer"
        run = Run().user(f'Who sang "{sung}" and made {place} Street known?')
        teach(patterns, run.asks(("get_parcel", {"parcel": f"{place} Street"})))
    asked = Run().user('Who sang "Upper Fair in the long summer" in Nether Street?')
    first = expected(patterns, asked)[0]
    assert first == ("get_parcel", {"parcel": "Nether Street"})
