"""What is stated of a prediction, after what came of others."""

import pytest

from headstart.predictors._patterns._reliability import Reliability


def scored(outcomes: int, *, share: float, stated: float = 0.5) -> Reliability:
    reliability = Reliability(caution=1.0)
    for number in range(outcomes):
        true = int((number + 1) * share) > int(number * share)
        reliability.learn("look", stated, came_true=true)
    return reliability


def test_what_is_stated_stays_below_what_held_the_more_the_less_was_seen():
    few, many = (scored(count, share=0.5).correct("look", 0.5) for count in (20, 350))
    assert few == pytest.approx(0.40, abs=0.01)
    assert many == pytest.approx(0.46, abs=0.01)


def test_without_caution_it_is_what_held_on_average():
    reliability = Reliability()
    for number in range(20):
        reliability.learn("look", 0.5, came_true=number % 4 == 0)
    assert reliability.correct("look", 0.5) == pytest.approx(0.42, abs=0.01)


def test_what_never_held_is_hardly_stated():
    assert scored(100, share=0.0).correct("look", 0.5) < 0.2


def test_nothing_seen_means_less_than_one_half():
    assert Reliability().correct("look", 0.97) < 0.5


def test_a_surer_statement_stays_the_surer_one():
    reliability = scored(40, share=0.5)
    stated = [reliability.correct("look", place / 50) for place in range(1, 30)]
    assert stated == sorted(stated)


def test_what_is_surer_than_all_that_was_seen_is_stated_with_less_than_one_half():
    assert scored(100, share=0.5, stated=0.3).correct("look", 0.97) < 0.5


def test_what_was_seen_and_did_not_come_true_makes_nothing_surer():
    for probability in (0.6, 0.7, 0.8, 0.9, 0.97):
        failed = scored(4, share=0.0, stated=0.95).correct("look", probability)
        assert failed <= Reliability().correct("look", probability)
    assert scored(4, share=1.0, stated=0.95).correct("look", 0.9) > 0.5
