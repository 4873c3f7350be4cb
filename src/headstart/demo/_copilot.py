"""The incident copilot: its instructions, its rules, and a conversation with it."""

from __future__ import annotations

from headstart._policy import LimitPolicy
from headstart.predictors import RulePredictor, rule

from ._tools import TOOLS

INSTRUCTIONS = """\
You are the incident copilot of an online shop. You talk to the engineer on call.
Use the tools for everything you say about incidents and services. Look up an incident's \
service health and the runbook of its alert before you describe it. Change something only \
when you are told to, not when you are asked whether you should. Answer in two to four \
sentences, without lists.
What severities mean:
sev1: customers cannot buy; everybody is called at any time.
sev2: customers notice; whoever is on call works on it at any time.
sev3: customers may notice; it is worked on during the day and nobody is woken up.
sev4: only we notice; it goes on the backlog."""

USER_MESSAGES = (
    "I just came on call. What is the worst open incident, and what do I do about it?",
    "Pause incident 204 until 18:00.",
    'Lower incident 204 to sev3 and post an update: "The pool is at 200 now."',
    "Should we pause incident 207 until 20:00 as well?",
    "Thanks! What does sev3 mean for the people on call tonight?",
)
"""In order: plain hits; a write whose result is known early; two parallel calls; a guess
that proves wrong; and a message that needs no tool."""

_INCIDENT = r"incident (?P<incident_id>\d+)"

RULES = (
    rule("open incident", "list_open_incidents"),
    rule(
        None,
        "get_incident",
        after="list_open_incidents",
        incident_id="{result[0].id}",
    ),
    rule(rf"(?i)\b(?:what|how|why|should)\b.*\b{_INCIDENT}", "get_incident"),
    rule(
        None,
        "get_service_health",
        after="get_incident",
        service="{result.service}",
    ),
    # Asked for two steps later, if at all, and worth having by then.
    rule(
        None,
        "search_runbooks",
        after="get_incident",
        query="{result.alert}",
        probability=0.3,
    ),
    rule(
        None,
        "search_runbooks",
        after="get_service_health",
        query="{results.get_incident.alert}",
    ),
    rule(rf"(?i)\bpause {_INCIDENT} until (?P<until>\d\d:\d\d)", "pause_incident"),
    rule(rf"(?i)\b{_INCIDENT} to (?P<severity>sev[1-4])\b", "set_severity"),
    rule(rf'(?i)\b{_INCIDENT}\b.*\bupdate: "(?P<text>[^"]+)"', "post_update"),
    rule(r"(?i)\bon call for (?P<service>[\w-]+)", "get_on_call"),
)
"""Written as somebody would who knows the copilot's traffic, a line a habit of it."""


POLICY = LimitPolicy(max_depth=3, min_beside_probability=0.5)
"""Everything on: this copilot's tokens cost less than the waiting of whoever is on call."""


def make_predictor() -> RulePredictor:
    """A predictor of these rules, checked against the tools."""
    return RulePredictor(RULES, tools=TOOLS)
