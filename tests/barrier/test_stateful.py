"""The write barrier against a model that walks up the tree each time it is asked."""

import gc
from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from headstart import BarrierState, WriteBarrier
from headstart._errors import UsageError, WriteDenied

HELD, FLUSHED, DENIED = BarrierState


@dataclass(eq=False)
class Naive:
    """What a barrier means: no state but its own, everything else by walking up."""

    barrier: WriteBarrier | None
    parents: list["Naive"] = field(default_factory=list)
    own: BarrierState = HELD
    reason: str | None = None

    def ancestors(self) -> set["Naive"]:
        """Itself, and whatever has to be open before it is."""
        found, left = {self}, [self]
        while left:
            new = set(left.pop().parents) - found
            found |= new
            left += new
        return found

    def effective(self) -> BarrierState:
        states = {ancestor.own for ancestor in self.ancestors()}
        if DENIED in states:
            return DENIED
        return FLUSHED if states == {FLUSHED} else HELD

    def reasons(self) -> set[str]:
        """The reasons that it may give: those of all that deny it."""
        return {one.reason for one in self.ancestors() if one.own is DENIED}

    def settle(self, state: BarrierState, reason: str | None = None) -> bool:
        if self.own is not HELD:
            return False
        self.own, self.reason = state, reason
        return True


def wait(barrier: WriteBarrier) -> BarrierState | str:
    """What comes of a wait. It leaves no reference to the barrier in a traceback."""
    try:
        barrier.wait_blocking(0)
    except WriteDenied as error:
        return error.reason
    except TimeoutError:
        return HELD
    return FLUSHED


class BarrierMachine(RuleBasedStateMachine):
    barriers = Bundle("barriers")

    def __init__(self):
        super().__init__()
        self.everything: list[Naive] = []
        self.numbers = iter(range(10**9))

    def add(self, barrier: WriteBarrier, parents: list[Naive]) -> Naive:
        naive = Naive(barrier, parents)
        self.everything.append(naive)
        return naive

    @rule(target=barriers, parents=st.lists(barriers, max_size=3))
    def create(self, parents):
        kept = [parent for parent in parents if parent.barrier is not None]
        return self.add(WriteBarrier(*(parent.barrier for parent in kept)), kept)

    @rule(target=barriers, parent=barriers)
    def child(self, parent):
        if parent.barrier is None:
            return multiple()
        return self.add(parent.barrier.child(), [parent])

    @rule(naive=barriers, condition=barriers)
    def require(self, naive, condition):
        if naive.barrier is None or condition.barrier is None:
            return
        cycle = naive in condition.ancestors()
        before = naive.effective(), condition.effective()
        try:
            naive.barrier.require(condition.barrier)
        except UsageError:
            assert cycle
            return
        # A cycle of which one is settled does no harm, and may go unnoticed.
        assert not cycle or set(before) & {FLUSHED, DENIED}
        if before[0] is not FLUSHED:
            naive.parents.append(condition)

    @rule(naive=barriers)
    def flush(self, naive):
        if naive.barrier is not None:
            assert naive.barrier.flush() == naive.settle(FLUSHED)

    @rule(naive=barriers)
    def deny(self, naive):
        if naive.barrier is not None:
            reason = f"reason {next(self.numbers)}"
            assert naive.barrier.deny(reason) == naive.settle(DENIED, reason)

    @rule(naive=barriers)
    def drop(self, naive):
        naive.barrier = None
        naive.settle(DENIED, "its owner dropped it")

    @rule(naive=barriers, error=st.booleans())
    def leave_scope(self, naive, error):
        if naive.barrier is None:
            return
        try:
            with naive.barrier:
                if error:
                    raise KeyError
        except KeyError:
            assert error
        reason = "KeyError was raised" if error else "its scope was left"
        naive.settle(DENIED, reason)

    @rule()
    def collect(self):
        gc.collect(0)

    @invariant()
    def agrees(self):
        for naive in self.everything:
            barrier = naive.barrier
            if barrier is None:
                continue
            expected = naive.effective()
            assert barrier.state is naive.own
            assert barrier.effective_state is expected
            waited = wait(barrier)
            if expected is DENIED:
                assert {barrier.reason, waited} <= naive.reasons()
                assert naive.own is not DENIED or barrier.reason == naive.reason
            else:
                assert barrier.reason is None
                assert waited is expected


BarrierMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)


@pytest.mark.requirement("barrier:no-effect-before-flush")
@pytest.mark.requirement("barrier:parent-first")
@pytest.mark.requirement("barrier:terminal")
@pytest.mark.requirement("barrier:fail-closed")
class TestBarrier(BarrierMachine.TestCase):
    """The machine, as a test."""
