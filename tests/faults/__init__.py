"""The faults that headstart must survive: a test for each, or where it is, or why not.

The numbers have gaps. Those of section C, of stores, leases and processes, are not here
yet. A test that holds one is named `test_fault_<number>_...`, and one for a way out of
asyncio `test_escape_<number>_...`; `test_list.py` holds that none is missing.
"""

from __future__ import annotations

FAULTS: dict[int, str] = {
    # A. Decision and tree
    1: "a wrong guess, denied after the tool has finished",
    2: "a denial before the tool starts",
    3: "a denial while the tool runs, which swallows its cancellation",
    4: "a second flush",
    7: "a parent that is denied after its child was flushed",
    8: "a parent that is flushed while its child is held",
    9: "a child of a parent that is settled already",
    11: "an exception, GeneratorExit or KeyboardInterrupt in a barrier's scope",
    12: "a wait at a settled barrier, and a thousand waits",
    # B. asyncio and threads
    13: "a tool in a thread that is cancelled",
    14: "an effect from a thread or process that has no context",
    15: "an orphan task or callback of a tool that has returned",
    17: "a cancellation before the first step",
    18: "a tool that never returns, or ignores its cancellation",
    19: "Ctrl-C, or a closed event loop, with a hundred held barriers",
    20: "a fork, and an event loop within an event loop's thread",
    21: "a tool that raises a BaseException or returns what is no result",
    # D. Speculation semantics
    36: "arguments that differ by type, order, default, Unicode form or float",
    37: "equal parallel calls, of which two effects are wanted",
    38: "a read that was launched before a write to the same",
    39: "an early result that has become too old",
    40: "two turns run ahead on a guess that is wrong",
    42: "a launch that fails or takes too long where the real call would not",
    44: "tools that must never start early",
    # E. Security and load
    45: "a server that calls a write read-only",
    46: "an annotation or schema that changes between listing and call",
    47: "injected text that makes a predictor send a secret away",
    48: "a permission or approval that is withdrawn after the start",
    51: "a forged barrier identifier, epoch or notification",
    52: "poisoned patterns",
    53: "429, 5xx and slow providers",
    56: "a payload that runs code when it is read",
    57: "the library off, the store down, a predictor that crashes",
    58: "a day of running",
}

ESCAPES: dict[int, str] = {
    1: "cancelling or timing out a thread leaves its effect to come",
    2: "a tool that swallows its cancellation goes on to its effect",
    3: "a context variable reaches neither executors nor plain threads",
    4: "an orphan task outlives the tool that made it",
    5: "a decision and a cancellation in the same tick",
    6: "a task that is cancelled before its first step runs no 'finally'",
    7: "an asynchronous generator left by 'break' is closed late",
}

_BARRIER = "tests/barrier/"
_CALL = "tests/test_call_speculation.py::"
_SESSION = "tests/session/"
_SEAMS = "tests/effects/"
_MCP = "tests/adapters/test_mcp.py::"

COVERED: dict[int, tuple[str, ...]] = {
    2: (_CALL + "test_a_call_cancelled_before_its_first_step_never_runs",),
    4: (
        _BARRIER + "test_verdicts.py::test_the_first_of_flush_and_deny_wins",
        _CALL + "test_adopting_twice_gives_the_result_twice_and_the_effect_once",
    ),
    7: (
        _BARRIER
        + "test_verdicts.py::test_a_denied_ancestor_denies_a_flushed_descendant",
    ),
    8: (
        _BARRIER + "test_verdicts.py::test_a_flushed_ancestor_leaves_a_held_child_held",
    ),
    12: (
        _BARRIER + "test_waiting.py::test_a_thousand_tasks_wait_and_all_go_on",
        _BARRIER + "test_waiting.py::test_a_thousand_tasks_wait_and_all_are_denied",
        _BARRIER + "test_verdicts.py::test_the_first_of_flush_and_deny_wins",
    ),
    20: (
        _BARRIER
        + "test_fail_closed.py::test_a_forked_process_finds_every_barrier_denied",
        _BARRIER
        + "test_waiting.py::test_two_event_loops_in_two_threads_wait_at_one_barrier",
        (
            "tests/test_call_failures.py::"
            "test_a_hold_in_an_event_loop_of_the_tools_own_is_told_in_the_hosts"
        ),
    ),
    38: (
        _SESSION
        + "test_freshness.py::test_a_read_that_ended_before_a_write_began_runs_again",
        _SESSION + "test_freshness.py::"
        "test_a_read_that_still_runs_when_a_write_begins_runs_again",
    ),
    39: (
        _SESSION + "test_prediction.py::"
        "test_a_kept_read_is_used_up_to_its_max_age_and_not_beyond",
        _SESSION + "test_prediction.py::"
        "test_a_read_that_grows_too_old_between_response_and_call_runs_again",
    ),
    44: (
        _SESSION
        + "test_authority.py::test_a_read_that_needs_approval_does_not_run_before_it",
        _SESSION + "test_authority.py::"
        "test_the_real_call_is_approved_once_and_a_guess_never",
        _SESSION + "test_prediction.py::"
        "test_a_tool_that_is_unsafe_or_undeclared_is_never_launched",
        _SESSION + "test_early_start.py::"
        "test_a_tool_that_is_unsafe_or_undeclared_never_starts_early",
    ),
    45: (
        _SEAMS + "test_mcp_seam.py::test_a_tool_is_no_read_because_its_server_says_so",
        _MCP + "test_nothing_starts_early_on_the_word_of_a_server_that_is_not_trusted",
    ),
    46: (
        _SEAMS + "test_mcp_seam.py::test_another_schema_or_annotation_ends_trust",
        _MCP + "test_another_annotation_or_name_ends_trust",
        _MCP + "test_another_schema_ends_trust",
    ),
    53: (
        _SESSION + "test_policy_in_use.py::"
        "test_a_tool_whose_provider_has_too_much_to_do_is_not_launched_for_a_while",
        _SESSION + "test_policy_in_use.py::"
        "test_no_request_is_sent_ahead_after_the_model_was_overloaded",
    ),
    57: (
        (
            "tests/simulation/test_simulation.py::"
            "test_random_programs_do_the_same_as_without_headstart"
        ),
        _SESSION
        + "test_bad_predictors.py::test_whatever_a_predictor_raises_is_an_event",
    ),
    56: (
        "tests/store/test_files.py::test_lines_that_are_no_events_are_left_out",
        "tests/store/test_files.py::test_a_row_that_is_no_event_is_refused",
    ),
}
"""The tests elsewhere that hold a fault."""

COVERED_ESCAPES: dict[int, tuple[str, ...]] = {
    3: (
        _BARRIER + "test_interface.py::"
        "test_the_current_barrier_reaches_tasks_and_worker_threads",
        (
            "tests/faults/test_asyncio.py::"
            "test_fault_14_an_effect_that_lost_its_context_finds_no_barrier_to_pass"
        ),
    ),
    6: (
        _CALL + "test_a_call_cancelled_before_its_first_step_never_runs",
        (
            "tests/test_call_failures.py::"
            "test_an_event_loop_that_ends_settles_calls_that_never_came_to_run"
        ),
    ),
}

NOT_YET: dict[int, str] = {
    51: "Barriers are not in a store yet, and so there is nothing to forge.",
    58: "A day does not fit a test: the soak comes with barriers in stores.",
}
"""Why a fault has no test yet."""
