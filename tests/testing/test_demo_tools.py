"""No false alarm: the demo's tools are safe, and the kit says so of each of them."""

from dataclasses import replace

import pytest

from headstart import Effect
from headstart.demo._latencies import TOOL_LATENCIES, Latencies
from headstart.demo._services import Table, _seed, open_services
from headstart.demo._tools import TOOLS
from headstart.testing import SpeculationLab, assert_speculation_safe

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(60)]

QUICK = Latencies(
    tools={
        name: replace(latency, preparation_s=0.002, effect_s=0.002)
        for name, latency in TOOL_LATENCIES.items()
    }
)
ARGUMENTS = {
    "get_incident": {"incident_id": 204},
    "list_open_incidents": {},
    "get_on_call": {"service": "checkout"},
    "search_runbooks": {"query": "IndexLagHigh"},
    "get_service_health": {"service": "checkout"},
    "pause_incident": {"incident_id": 204, "until": "18:00"},
    "set_severity": {"incident_id": 204, "severity": "sev1"},
    "post_update": {"incident_id": 204, "text": "We are on it."},
}


def resetting(services):
    """What brings the services back to where they were."""

    async def reset():
        engine = services.deps.database.kw["bind"]
        async with engine.begin() as connection:
            for table in reversed(Table.metadata.sorted_tables):
                await connection.execute(table.delete())
        async with services.deps.database.begin() as session:
            session.add_all(_seed())
        services.chat.posted.clear()

    return reset


RUNBOOK = {"query": "DbConnectionsSaturated"}
CASES = [
    pytest.param(made, with_reset, id=f"{made.name}{'-reset' * with_reset}")
    for made in TOOLS
    for with_reset in (False, True)
    if not with_reset or made.effect is Effect.GATED
]


@pytest.mark.parametrize(("made", "with_reset"), CASES)
async def test_a_tool_of_the_demo_is_safe(made, with_reset, tmp_path):
    async with open_services(tmp_path, latencies=QUICK) as services:
        safety = await assert_speculation_safe(
            made,
            ARGUMENTS[made.name],
            deps=services.deps,
            observe=[services.deps.database.kw["bind"], lambda: services.chat.posted],
            reset=resetting(services) if with_reset else None,
            settle=0.01,
        )
    gated = made.effect is Effect.GATED
    assert safety.held == gated
    assert safety.cancelled > 0
    assert bool(safety.effect) == gated
    assert (safety.cancelled_after > 0) == gated
    unrepeated = made.name in ("pause_incident", "set_severity") and not with_reset
    assert len(safety.notes) == unrepeated


async def test_an_agent_with_the_demos_tools_is_the_same_off_and_on(tmp_path):
    async with open_services(tmp_path, latencies=QUICK) as services:
        lab = SpeculationLab(
            tools=TOOLS,
            script=[
                [("list_open_incidents", {})],
                [("get_incident", {"incident_id": 204}), ("search_runbooks", RUNBOOK)],
                [("pause_incident", ARGUMENTS["pause_incident"])],
                [("get_incident", {"incident_id": 204})],
                [("set_severity", ARGUMENTS["set_severity"])],
                [("post_update", ARGUMENTS["post_update"])],
                "It is paused, and the channel knows.",
            ],
            observe=[services.deps.database.kw["bind"], lambda: services.chat.posted],
            reset=resetting(services),
            deps=services.deps,
            wrong=[("pause_incident", {"incident_id": 207, "until": "18:00"})],
            slowest=1 / 64,
        )
        report = await lab.check_all(range(12))
    assert report.adopted
    assert report.discarded
    assert report.turns_ahead
    assert {change.observer for change in report.effect} == {"database", "state"}
