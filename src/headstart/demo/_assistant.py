"""The mind of the demo's model: what to call or say, from the conversation alone.

It is a few skills, each a plain function from what is known to a reply. A skill asks for
results as it goes; where one is not in the conversation yet, the answer is the calls
that would bring it. So another result leads to other calls or to another reply, and an
equal conversation always to an equal answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Call: TypeAlias = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model decided: calls, or else a text."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def answer(messages: Sequence[Mapping[str, Any]], *, tools: Collection[str]) -> Answer:
    """Decide from a conversation in chat form, with the names of the tools on offer."""
    known = _Known(messages)
    for pattern, skill in _SKILLS:
        match = pattern.search(known.user_text)
        if match is None:
            continue
        try:
            return Answer(text=skill(known, match))
        except _NeededError as needed:
            if all(name in tools for name, _ in needed.calls):
                return Answer(calls=needed.calls)
            return Answer(text="I would need a tool for that which I was not given.")
        except _FailedError as failed:
            return Answer(text=f"I could not do that. The reason given was: {failed}")
    return Answer(
        text="I can look into incidents and services, find runbooks and who is on call, "
        "pause an incident, change its severity, and post updates. Which one is it?"
    )


class _NeededError(Exception):
    def __init__(self, calls: tuple[Call, ...]) -> None:
        self.calls = calls


class _FailedError(Exception):
    pass


def _key(name: str, arguments: object) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True)}"


class _Known:
    """What the conversation holds: who asks what, and the results since then."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self.user_text = ""
        self.instructions = ""
        self._results: dict[str, str] = {}
        asked: dict[str, str] = {}
        for message in messages:
            role, content = message.get("role"), message.get("content") or ""
            if role in ("system", "developer"):
                self.instructions = content
            elif role == "user":
                self.user_text = content
                self._results.clear()
            elif role == "tool":
                self._results[asked[message["tool_call_id"]]] = content
            for call in message.get("tool_calls") or ():
                function = call["function"]
                arguments = json.loads(function["arguments"] or "{}")
                asked[call["id"]] = _key(function["name"], arguments)

    def need(self, *calls: Call) -> list[Any]:
        """The calls' results, or what is asked for to have them."""
        missing = tuple(call for call in calls if _key(*call) not in self._results)
        if missing:
            raise _NeededError(missing)
        return [_read(self._results[_key(*call)]) for call in calls]


def _read(content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise _FailedError(content) from None


def _look_into(known: _Known, match: re.Match[str]) -> str:
    return _report(known, int(match["number"]))


def _find_worst(known: _Known, _: re.Match[str]) -> str:
    [incidents] = known.need(("list_open_incidents", {}))
    if not incidents:
        return "Nothing is open at the moment, so there is nothing to do."
    return _report(known, incidents[0]["id"])


def _report(known: _Known, number: int) -> str:
    [incident] = known.need(("get_incident", {"incident_id": number}))
    merged = ""
    if incident["merged_into"]:
        merged = f"Incident {number} was merged, so this is about its successor. "
        number = incident["merged_into"]
        [incident] = known.need(("get_incident", {"incident_id": number}))
    [health] = known.need(("get_service_health", {"service": incident["service"]}))
    if health["status"] == "healthy":
        return (
            f"{merged}Incident {number} is {incident['status']} at "
            f"{incident['severity']}: {incident['title']}. {_describe_health(health)} "
            "It may be over."
        )
    [runbooks] = known.need(("search_runbooks", {"query": incident["alert"]}))
    advice = (
        f'The runbook "{runbooks[0]["title"]}" says to {runbooks[0]["first_step"]}.'
        if runbooks
        else "There is no runbook for its alert."
    )
    return (
        f"{merged}Incident {number} is {incident['status']} at {incident['severity']}: "
        f"{incident['title']}. {_describe_health(health)} {advice}"
    )


def _advise_pause(known: _Known, match: re.Match[str]) -> str:
    number, until = int(match["number"]), match["until"]
    [incident] = known.need(("get_incident", {"incident_id": number}))
    if incident["status"] != "open":
        return (
            f"Incident {number} is {incident['status']}, so there is nothing to pause."
        )
    [health] = known.need(("get_service_health", {"service": incident["service"]}))
    described = _describe_health(health)
    if health["status"] == "healthy":
        return (
            f"Yes, that looks safe. {described} Nobody would miss a page for incident "
            f"{number} before {until}. Shall I pause it?"
        )
    return (
        f"I would not. {described} As long as that goes on, a page about incident "
        f"{number} should reach somebody. I have changed nothing."
    )


def _pause(known: _Known, match: re.Match[str]) -> str:
    number, until = int(match["number"]), match["until"]
    [paused] = known.need(("pause_incident", {"incident_id": number, "until": until}))
    clock = paused["paused_until"].partition("T")[2].rstrip("Z")
    return (
        f"Done. Incident {paused['incident_id']} is {paused['status']} until {clock} UTC, "
        f"in the name of {paused['paused_by']}. It will page again after that if its "
        "alert is still firing."
    )


def _change_severity(known: _Known, match: re.Match[str]) -> str:
    number, severity = int(match["number"]), match["severity"].lower()
    calls: list[Call] = [
        ("set_severity", {"incident_id": number, "severity": severity})
    ]
    quoted = re.search(r'update[^"]*"([^"]+)"', known.user_text)
    if quoted:
        calls.append(("post_update", {"incident_id": number, "text": quoted[1]}))
    changed, *posted = known.need(*calls)
    before = changed["severity_before"]
    told = (
        f" The update is in {posted[0]['posted_to']}, word for word as you gave it."
        if posted
        else " I have not told anybody."
    )
    kept = (
        f"Incident {number} was {severity} before."
        if before == severity
        else f"Incident {number} went from {before} to {changed['severity']}."
    )
    return f"{kept}{told} Its paging follows the new severity from now on."


def _check_health(known: _Known, match: re.Match[str]) -> str:
    [health] = known.need(("get_service_health", {"service": match["service"]}))
    return _describe_health(health)


def _find_on_call(known: _Known, match: re.Match[str]) -> str:
    [shift] = known.need(("get_on_call", {"service": match["service"]}))
    return (
        f"{shift['name']} is on call for {shift['service']} until {shift['until']} UTC."
    )


def _list_open(known: _Known, _: re.Match[str]) -> str:
    [incidents] = known.need(("list_open_incidents", {}))
    listed = "; ".join(f"{i['id']} ({i['severity']}): {i['title']}" for i in incidents)
    return f"Open incidents: {listed or 'none'}."


def _explain_severity(known: _Known, match: re.Match[str]) -> str:
    severity = match["severity"].lower()
    meaning = re.search(rf"^{severity}: (.+)$", known.instructions, re.MULTILINE)
    if meaning is None:
        return f"I was not told what {severity} means here; please ask your lead."
    return (
        f"Here, {severity} means: {meaning[1]} If an incident no longer fits that, I can "
        "change its severity."
    )


def _describe_health(health: Mapping[str, Any]) -> str:
    return (
        f"{health['service']} is {health['status']}: {health['error_percent']} % of "
        f"requests fail, and the slowest twentieth takes over {health['p95_ms']} ms."
    )


_Skill: TypeAlias = Callable[[_Known, "re.Match[str]"], str]
_SKILLS: tuple[tuple[re.Pattern[str], _Skill], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), skill)
    for pattern, skill in (
        (
            r"\bshould\b.*\bpause incident (?P<number>\d+) until (?P<until>\d\d:\d\d)",
            _advise_pause,
        ),
        (r"\bpause incident (?P<number>\d+) until (?P<until>\d\d:\d\d)", _pause),
        (
            r"\bincident (?P<number>\d+) to (?P<severity>sev[1-4])\b",
            _change_severity,
        ),
        (r"\bwhat does (?P<severity>sev[1-4]) mean", _explain_severity),
        (r"\bincident (?P<number>\d+)", _look_into),
        (r"\bworst open incident\b", _find_worst),
        (r"\bon call for (?P<service>[\w-]+)", _find_on_call),
        (r"\b(?:is|how is) (?P<service>[\w-]+) (?:healthy|doing)", _check_health),
        (r"\bopen incidents\b", _list_open),
    )
)
