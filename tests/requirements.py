"""What must always hold. Each promise has a test that is marked with its ID."""

REQUIREMENTS = {
    "barrier:no-effect-before-flush": (
        "No effect behind a barrier happens unless that barrier and all its ancestors "
        "were flushed."
    ),
    "barrier:fail-closed": (
        "A barrier left, dropped, cancelled, garbage-collected, or owned by a dead "
        "process is denied, never opened."
    ),
    "barrier:terminal": (
        "The first of flush and deny wins, from any task or thread; later calls change "
        "nothing."
    ),
    "barrier:parent-first": (
        "A denied ancestor denies every descendant, however it was settled itself. A "
        "flushed ancestor leaves a held child held."
    ),
    "barrier:flushed-runs": (
        "A confirmed call is not lost: flush followed at once by cancellation of the "
        "speculation still performs the effect once."
    ),
    "engine:same-transcript": (
        "With deterministic tools and model, a run with speculation yields the same "
        "messages, in the same order, as without."
    ),
    "engine:same-effects": (
        "... and the same effects; the effects of an earlier turn come before those of "
        "a later turn."
    ),
    "engine:once": (
        "Two equal calls that the model asks for are two executions: the k-th equal "
        "call adopts the k-th launch, never one launch twice (unless the tool is "
        "declared deterministic)."
    ),
    "engine:no-stale-read": (
        "A result read, or a gated call prepared, before a write that precedes it in "
        "program order, to an overlapping resource, is discarded (before its flush) "
        "and run again."
    ),
    "engine:contained": (
        "A failing, hanging or lying speculation never fails, changes or lengthens the "
        "turn: it becomes an event, and the real call runs."
    ),
    "engine:never-slower": (
        "With every prediction wrong, the run takes as long as without speculation "
        "(exactly so in virtual time)."
    ),
    "engine:authority": (
        "Approval, permission and guardrails are decided for the real call, at "
        "adoption; a yes for arguments A is no yes for B."
    ),
    "engine:invisible": (
        "The model, the user and the user's hooks see nothing of a speculation that is "
        "discarded. Hooks run once, at adoption."
    ),
    "engine:default-deny": (
        "A tool with no declared effect, an MCP hint from an untrusted server, or "
        "arguments not provably complete: not speculated."
    ),
    "cancel:outside-wins": (
        "Cancelling the run stops everything, authoritative and speculative, and "
        "re-raises the cancellation."
    ),
    "cancel:no-orphans": (
        "After a run ends, no task, thread hold, barrier or open speculation of it is "
        "left."
    ),
    "policy:never-over-budget": (
        "In-flight, depth, wasted seconds, tokens and money stay under the limits set."
    ),
    "trace:round-trip": (
        "An event stream written and read back is equal; older schema versions stay "
        "readable."
    ),
    "replay:deterministic": "The same trace, options and seed give the same bytes.",
}

DEFERRED: dict[str, str] = {}
"""Promises that have no test yet, each with the reason."""
