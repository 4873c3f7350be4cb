"""The bound of the demo, against examples that were computed by hand."""

import pytest

from headstart.demo import BoundCall, BoundTurn, bound_seconds, serial_seconds


def read(seconds, known_from="message"):
    return BoundCall(preparation_s=seconds, known_from=known_from)


def write(preparation_s, effect_s, known_from="message", early_result=True):
    return BoundCall(
        preparation_s=preparation_s,
        effect_s=effect_s,
        known_from=known_from,
        early_result=early_result,
    )


def turn(model_s, *calls):
    return BoundTurn(model_s=model_s, calls=calls)


def test_no_turn_takes_no_time():
    assert bound_seconds([]) == 0


def test_a_reply_without_tools_cannot_be_faster():
    assert bound_seconds([turn(1.5)]) == 1.5 == serial_seconds([turn(1.5)])


def test_a_read_shorter_than_the_model_is_hidden():
    # 0 to 0.8 the read, 0 to 1 the model; 0.8 to 2.8 the reply, beside it.
    turns = [turn(1, read(0.8)), turn(2)]
    assert bound_seconds(turns) == pytest.approx(2.8)
    assert serial_seconds(turns) == pytest.approx(3.8)


def test_of_a_longer_read_the_model_s_time_is_hidden():
    # The read ends at 1.5; the reply at 3.5.
    assert bound_seconds([turn(1, read(1.5)), turn(2)]) == 3.5


def test_parallel_reads_cost_the_longest():
    turns = [turn(1, read(1.5), read(1.2)), turn(2)]
    assert bound_seconds(turns) == 3.5
    assert serial_seconds(turns) == 4.5


def test_a_read_known_from_a_result_starts_when_that_is_there():
    # 0 to 0.4 the first read, 0.4 to 2.4 the second, while the model has ended its
    # first answer at 1 and its second at 2; the reply takes 2.4 to 3.4.
    turns = [turn(1, read(0.4)), turn(1, read(2, known_from=(0, 0))), turn(1)]
    assert bound_seconds(turns) == pytest.approx(3.4)
    assert serial_seconds(turns) == pytest.approx(5.4)


def test_a_read_known_from_the_message_starts_at_once_whatever_its_turn():
    # 0 to 2 the second turn's read; the model's answers end at 1 and 2.
    turns = [turn(1, read(0.4)), turn(1, read(2)), turn(1)]
    assert bound_seconds(turns) == 3


def test_a_read_that_only_the_model_knows_is_not_hidden():
    turns = [turn(1, read(0.5, known_from="model")), turn(2)]
    assert bound_seconds(turns) == 3.5 == serial_seconds(turns)


def test_an_effect_longer_than_the_reply_is_waited_for():
    # Prepared 0 to 0.5; certain at 1; effect 1 to 4; the reply, asked at 1, waits from 2.
    turns = [turn(1, write(0.5, 3)), turn(1)]
    assert bound_seconds(turns) == 4
    assert serial_seconds(turns) == 5.5


def test_an_effect_shorter_than_the_reply_is_hidden():
    # Effect 1 to 2, the reply 0.5 to 2.5.
    assert bound_seconds([turn(1, write(0.5, 1)), turn(2)]) == 2.5


def test_a_preparation_longer_than_the_model_delays_effect_and_reply():
    # Prepared at 1.5, effect to 2.5, reply 1.5 to 3.5.
    assert bound_seconds([turn(1, write(1.5, 1)), turn(2)]) == 3.5


def test_a_write_without_an_early_result_holds_the_reply_back():
    # Effect 1 to 2, reply 2 to 4.
    assert bound_seconds([turn(1, write(0.5, 1, early_result=False)), turn(2)]) == 4


def test_a_write_that_only_the_model_knows_still_lets_the_reply_run_ahead():
    # Prepared 1 to 1.5, effect to 2.5, reply 1.5 to 3.5.
    assert bound_seconds([turn(1, write(0.5, 1, "model")), turn(2)]) == 3.5


def test_an_effect_waits_for_those_of_the_turn_before():
    # Effect 1 to 4; the second answer, complete at 2, is accepted at 4; its effect
    # takes 4 to 5; the third answer, asked at 2 and complete at 3, is accepted at 5.
    turns = [turn(1, write(0, 3)), turn(1, write(0, 1)), turn(1)]
    assert bound_seconds(turns) == 5


def test_the_bound_is_never_above_the_serial_time():
    turns = [
        turn(1, read(3), write(1, 1, "model")),
        turn(0.5, read(1, (0, 1)), write(2, 0.5, (0, 0), early_result=False)),
        turn(2),
    ]
    assert bound_seconds(turns) <= serial_seconds(turns)
