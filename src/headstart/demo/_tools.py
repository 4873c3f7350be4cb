"""The incident copilot's tools, each with what it does and what it touches."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
from sqlalchemy import select

from headstart._tools import Effect, ToolContext, tool

from ._services import Change, Deps, Incident, OnCall, Person, Runbook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncSession

Context = ToolContext[Deps]


@tool(effect=Effect.READ, reads=["incident:{incident_id}"])
async def get_incident(ctx: Context, incident_id: int) -> dict[str, Any]:
    """Everything known about one incident."""
    await _prepare(ctx, "get_incident")
    async with _open_session(ctx) as session:
        return (await _find_incident(session, incident_id)).as_dict()


@tool(effect=Effect.READ, reads=["incident"])
async def list_open_incidents(ctx: Context) -> list[dict[str, Any]]:
    """Number, title and severity of every open incident, the worst first."""
    await _prepare(ctx, "list_open_incidents")
    async with _open_session(ctx) as session:
        found = await session.scalars(
            select(Incident)
            .where(Incident.status == "open")
            .order_by(Incident.severity, Incident.id)
        )
        return [
            {"id": row.id, "title": row.title, "severity": row.severity}
            for row in found
        ]


@tool(effect=Effect.READ, reads=["on_call:{service}"])
async def get_on_call(ctx: Context, service: str) -> dict[str, str]:
    """Who is on call for a service, and until when."""
    await _prepare(ctx, "get_on_call")
    async with _open_session(ctx) as session:
        shift = await session.get(OnCall, service)
        if shift is None:
            raise LookupError(f"Nobody is on call for {service!r}.")
        person = await session.get_one(Person, shift.login)
        return {"service": service, "name": person.name, "until": shift.until}


@tool(effect=Effect.READ, reads=["runbooks"], max_age=300.0)
async def search_runbooks(ctx: Context, query: str) -> list[dict[str, str]]:
    """Runbooks that fit a query; the name of an alert works best."""
    await _prepare(ctx, "search_runbooks")
    words = query.lower().split()
    async with _open_session(ctx) as session:
        return [
            {"title": row.title, "first_step": row.first_step}
            for row in await session.scalars(select(Runbook).order_by(Runbook.id))
            if any(word in f"{row.alert} {row.title}".lower() for word in words)
        ]


@tool(effect=Effect.READ, reads=["health:{service}"], max_age=5.0)
async def get_service_health(ctx: Context, service: str) -> dict[str, Any]:
    """A service's state, error rate and latency over the last minutes."""
    response = await ctx.deps.http.get(f"/services/{service}/health")
    response.raise_for_status()
    return response.json()


@tool(
    effect=Effect.GATED,
    reads=["incident:{incident_id}:status"],
    writes=["incident:{incident_id}:status"],
)
async def pause_incident(ctx: Context, incident_id: int, until: str) -> dict[str, Any]:
    """Stop paging for an incident until a time today, such as 18:00 (UTC)."""
    hour, _, minute = until.partition(":")
    end = ctx.deps.now.replace(hour=int(hour), minute=int(minute or 0))
    if end <= ctx.deps.now:
        raise ValueError(f"{until} has passed: it is {ctx.deps.now:%H:%M}.")
    await _prepare(ctx, "pause_incident")
    async with _open_session(ctx) as session:
        incident = await _find_incident(session, incident_id)
        person = await session.get_one(Person, ctx.deps.user)
    if not person.may_pause:
        raise PermissionError(f"{person.name} may not pause incidents.")
    if incident.status not in ("open", "paused"):
        raise ValueError(f"Incident {incident_id} is {incident.status}.")
    paused = {
        "incident_id": incident_id,
        "status": "paused",
        "paused_until": _at(end),
        "paused_by": person.name,
    }
    ctx.early_result(paused)
    await ctx.barrier.wait()
    await _change(ctx, "pause_incident", incident_id, "status", "paused", end)
    return paused


@tool(
    effect=Effect.GATED,
    reads=["incident:{incident_id}:severity"],
    writes=["incident:{incident_id}:severity"],
)
async def set_severity(
    ctx: Context, incident_id: int, severity: Literal["sev1", "sev2", "sev3", "sev4"]
) -> dict[str, Any]:
    """Change an incident's severity; sev1 is the worst."""
    await _prepare(ctx, "set_severity")
    async with _open_session(ctx) as session:
        incident = await _find_incident(session, incident_id)
    changed = {
        "incident_id": incident_id,
        "severity_before": incident.severity,
        "severity": severity,
    }
    ctx.early_result(changed)
    await ctx.barrier.wait()
    await _change(ctx, "set_severity", incident_id, "severity", severity)
    return changed


@tool(
    effect=Effect.GATED,
    reads=["channel:{incident_id}"],
    writes=["chat:{incident_id}"],
)
async def post_update(ctx: Context, incident_id: int, text: str) -> dict[str, Any]:
    """Post an update to an incident's chat channel."""
    await _prepare(ctx, "post_update")
    async with _open_session(ctx) as session:
        channel = (await _find_incident(session, incident_id)).channel
    posted = {"incident_id": incident_id, "posted_to": f"#{channel}"}
    ctx.early_result(posted)
    await ctx.barrier.wait()
    response = await ctx.deps.http.post(
        f"/channels/{channel}/messages", json={"author": ctx.deps.user, "text": text}
    )
    response.raise_for_status()
    return posted


TOOLS = (
    get_incident,
    list_open_incidents,
    get_on_call,
    search_runbooks,
    get_service_health,
    pause_incident,
    set_severity,
    post_update,
)


async def _prepare(ctx: Context, name: str) -> None:
    """Take the time that the work before the effect takes in production."""
    await anyio.sleep(ctx.deps.latencies.tools[name].preparation_s)


@asynccontextmanager
async def _open_session(ctx: Context) -> AsyncGenerator[AsyncSession]:
    """A database session for a query of milliseconds, which cancelling waits for.

    The driver runs in a thread: leaving it alone there would cost a connection.
    """
    with anyio.CancelScope(shield=True):
        async with ctx.deps.database() as session:
            yield session


async def _find_incident(session: AsyncSession, incident_id: int) -> Incident:
    incident = await session.get(Incident, incident_id)
    if incident is None:
        raise LookupError(f"There is no incident {incident_id}.")
    return incident


async def _change(
    ctx: Context,
    name: str,
    incident_id: int,
    field: str,
    value: str,
    until: datetime | None = None,
) -> None:
    """Take the effect's time, and write one column and the change's record."""
    await anyio.sleep(ctx.deps.latencies.tools[name].effect_s)
    async with _open_session(ctx) as session, session.begin():
        incident = await _find_incident(session, incident_id)
        before = getattr(incident, field)
        setattr(incident, field, value)
        if until is not None:
            incident.paused_until = _at(until)
        session.add(
            Change(
                incident_id=incident_id,
                field=field,
                before=before,
                after=value,
                changed_by=ctx.deps.user,
            )
        )


def _at(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%MZ}"
