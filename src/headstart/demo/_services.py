"""What the incident copilot works on: a database, and services behind HTTP."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from sqlalchemy import ForeignKey, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ._http import HTTPRequest, HTTPResponse, open_http_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from ._latencies import Latencies


class Table(DeclarativeBase):
    """Base of the database's tables."""

    def as_dict(self) -> dict[str, Any]:
        """The row, column by column."""
        return {column.key: getattr(self, column.key) for column in _columns(self)}


def _columns(row: Table) -> Any:
    return inspect(type(row)).column_attrs


class Incident(Table):
    """An incident."""

    __tablename__ = "incidents"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    service: Mapped[str]
    severity: Mapped[str]
    status: Mapped[str]
    alert: Mapped[str]
    summary: Mapped[str]
    channel: Mapped[str]
    merged_into: Mapped[int | None] = mapped_column(default=None)
    paused_until: Mapped[str | None] = mapped_column(default=None)


class Person(Table):
    """Somebody who can be on call, and what they may do."""

    __tablename__ = "people"
    login: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    may_pause: Mapped[bool] = mapped_column(default=False)


class OnCall(Table):
    """Who is on call for a service."""

    __tablename__ = "on_call"
    service: Mapped[str] = mapped_column(primary_key=True)
    login: Mapped[str] = mapped_column(ForeignKey("people.login"))
    until: Mapped[str]


class Runbook(Table):
    """What to do about an alert."""

    __tablename__ = "runbooks"
    id: Mapped[int] = mapped_column(primary_key=True)
    alert: Mapped[str]
    title: Mapped[str]
    first_step: Mapped[str]


class Change(Table):
    """What was changed on an incident, in order, and by whom."""

    __tablename__ = "changes"
    id: Mapped[int] = mapped_column(primary_key=True)
    incident_id: Mapped[int] = mapped_column(ForeignKey("incidents.id"))
    field: Mapped[str]
    before: Mapped[str]
    after: Mapped[str]
    changed_by: Mapped[str]


_TABLES: tuple[type[Table], ...] = (Incident, Person, OnCall, Runbook, Change)


def _seed() -> list[Table]:
    return [
        Person(login="dana", name="Dana Okafor", may_pause=True),
        Person(login="luis", name="Luis Ferrer", may_pause=True),
        Person(login="mei", name="Mei Tanaka"),
        OnCall(service="payments-api", login="luis", until="22:00"),
        OnCall(service="search-api", login="mei", until="20:00"),
        OnCall(service="checkout", login="dana", until="23:00"),
        Incident(
            id=204,
            title="Payments time out at checkout",
            service="payments-api",
            severity="sev2",
            status="open",
            alert="DbConnectionsSaturated",
            summary="Card payments fail for some customers since 13:40.",
            channel="inc-204",
        ),
        Incident(
            id=207,
            title="Search results are stale",
            service="search-api",
            severity="sev3",
            status="open",
            alert="IndexLagHigh",
            summary="New products appear late in search.",
            channel="inc-207",
        ),
        Incident(
            id=198,
            title="Slow product search",
            service="search-api",
            severity="sev3",
            status="merged",
            alert="SearchLatencyHigh",
            summary="The same fault as another incident.",
            channel="inc-198",
            merged_into=207,
        ),
        Runbook(
            id=1,
            alert="DbConnectionsSaturated",
            title="Database connections are saturated",
            first_step="raise the connection pool to 200 and restart one replica",
        ),
        Runbook(
            id=2,
            alert="IndexLagHigh",
            title="The search index lags behind",
            first_step="check the consumer's offset and add a worker",
        ),
        Runbook(
            id=3,
            alert="SearchLatencyHigh",
            title="Search is slow",
            first_step="drop the query cache of the slowest shard",
        ),
    ]


_HEALTH: dict[str, dict[str, Any]] = {
    "payments-api": {"status": "degraded", "error_percent": 4.2, "p95_ms": 1850},
    "search-api": {"status": "degraded", "error_percent": 0.3, "p95_ms": 940},
    "checkout": {"status": "healthy", "error_percent": 0.1, "p95_ms": 210},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """What a request of the copilot may use: who asks, and what they work on.

    Attributes:
        user: Login of the person who is talking.
        now: The time of day that the person lives in.
        database: Opens sessions of the incident database.
        http: A client of the chat and metrics services.
        latencies: How long each tool takes.
    """

    user: str
    now: datetime
    database: async_sessionmaker[AsyncSession]
    http: httpx2.AsyncClient
    latencies: Latencies


class ChatService:
    """The chat that updates are posted to, and the metrics of the services.

    `posted` holds every message that was received, in order.
    """

    def __init__(self, latencies: Latencies) -> None:
        self.posted: list[dict[str, str]] = []
        self._latencies = latencies.tools

    async def answer(self, request: HTTPRequest) -> HTTPResponse:
        """Serve one request."""
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["channels", channel, "messages"]:
                message = json.loads(request.body)
                self.posted.append({"channel": channel, **message})
                await anyio.sleep(self._latencies["post_update"].effect_s)
                return HTTPResponse.from_json({"ok": True}, status=201)
            case "GET", ["services", name, "health"]:
                await anyio.sleep(self._latencies["get_service_health"].preparation_s)
                if name not in _HEALTH:
                    missing = {"error": f"no service {name!r}"}
                    return HTTPResponse.from_json(missing, status=404)
                return HTTPResponse.from_json({"service": name, **_HEALTH[name]})
            case _:
                return HTTPResponse.from_json({"error": "no such thing"}, status=404)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the copilot works on, while it is open."""

    deps: Deps
    chat: ChatService

    async def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table."""
        async with self.deps.database() as session:
            return {
                table.__tablename__: [
                    row.as_dict()
                    for row in await session.scalars(
                        select(table).order_by(*inspect(table).primary_key)
                    )
                ]
                for table in _TABLES
            }


@asynccontextmanager
async def open_services(
    directory: Path, *, latencies: Latencies
) -> AsyncGenerator[Services]:
    """Start fresh services, with a database file in `directory`."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{directory / 'incidents.db'}")
    chat = ChatService(latencies)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Table.metadata.create_all)
        database = async_sessionmaker(engine, expire_on_commit=False)
        async with database.begin() as session:
            session.add_all(_seed())
        async with (
            open_http_server(chat.answer) as url,
            httpx2.AsyncClient(base_url=url, trust_env=False) as http,
        ):
            deps = Deps(
                user="dana",
                now=datetime(2026, 3, 2, 14, 5, tzinfo=UTC),
                database=database,
                http=http,
                latencies=latencies,
            )
            yield Services(deps=deps, chat=chat)
    finally:
        with anyio.CancelScope(shield=True):
            await engine.dispose()
