"""Arguments that are put together out of values and of what is always the same."""

from __future__ import annotations

import json

import pytest

from headstart import Effect, tool
from headstart.predictors import PatternPredictor
from headstart.predictors._patterns._moment import Moment
from headstart.predictors._patterns._sources import is_own, read_source
from headstart.predictors._patterns._templates import find_templates

from .scene import Run, expected, now, teach


@tool(effect=Effect.READ)
def find_user(name: str) -> str:
    return name


@tool(effect=Effect.READ)
def get_page(url: str) -> str:
    return url


@tool(effect=Effect.READ)
def run_query(sql: str) -> str:
    return sql


@tool(effect=Effect.READ)
def list_files(folder: str) -> str:
    return folder


@tool(effect=Effect.READ)
def read_file(path: str) -> str:
    return path


@tool(effect=Effect.READ, egress=True)
def post(text: str) -> str:
    return text


TOOLS = {
    each.name: each
    for each in (find_user, get_page, run_query, list_files, read_file, post)
}
TOWNS = (("Lund", "SE"), ("Metz", "FR"), ("Oslo", "NO"), ("Pisa", "IT"))


class Visit:
    """Somebody who is looked up, and whose files are read."""

    def __init__(self, number: int) -> None:
        self.name = ("Ada", "Bo", "Cleo", "Dan", "Eve")[number % 5]
        self.id = f"u{number * 7919 % 10**6:06}"
        self.town, self.country = TOWNS[number % 4]
        self.folder = f"/srv/{self.id[3:]}"
        self.files = [f"{part}{number}.txt" for part in ("log", "note")]
        self.said = f"I am {self.name}, and my files are in {self.folder} ({number})."
        self.record = {"id": self.id, "town": self.town, "country": self.country}
        self.url = f"https://shop.test/users/{self.id}|orders"
        self.sql = f"SELECT * FROM visits WHERE place = '{self.town}, {self.country}'"
        self.path = f"{self.folder}/{self.files[0]}"

    def run(self, until: str = "") -> Run:
        run = Run().user(self.said)
        run.asks(("find_user", {"name": self.name})).gets(self.record)
        steps = (
            ("get_page", {"url": self.url}, []),
            ("run_query", {"sql": self.sql}, []),
            ("list_files", {"folder": self.folder}, {"files": self.files}),
            ("read_file", {"path": self.path}, "text"),
            ("post", {"text": f"Read for {self.id}"}, "ok"),
        )
        for name, arguments, result in steps:
            if name == until:
                return run
            run.asks((name, arguments)).gets(result)
        return run.says("Done.")


def taught(runs: int = 20) -> PatternPredictor:
    patterns = PatternPredictor()
    for number in range(runs):
        teach(patterns, Visit(number).run(), tools=TOOLS)
    return patterns


NEW = Visit(4_711)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("get_page", "url", NEW.url),
        ("run_query", "sql", NEW.sql),
        ("read_file", "path", NEW.path),
    ],
)
def test_an_argument_is_put_together(name: str, argument: str, value: str):
    patterns = taught()
    copy = PatternPredictor.from_dict(json.loads(json.dumps(patterns.to_dict())))
    for each in (patterns, copy):
        calls = expected(each, NEW.run(until=name), tools=TOOLS)
        assert calls[0] == (name, {argument: value})


def test_the_origin_names_no_text_of_a_template():
    patterns = taught()
    found = patterns.propose(now(NEW.run(until="get_page"), tools=TOOLS))
    assert found[0].origin == "patterns:find_user/find_user>.id|+"


def test_what_is_put_together_is_remembered_once_several_runs_had_it():
    patterns = taught(2)
    assert "shop.test" not in str(patterns.to_dict())
    teach(patterns, Visit(2).run(), tools=TOOLS)
    assert "shop.test" in str(patterns.to_dict())


def test_nothing_that_others_said_is_put_together_for_what_leaves():
    patterns = taught()
    calls = expected(patterns, NEW.run(until="post"), tools=TOOLS)
    assert not [call for call in calls if call[0] == "post"]


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ('look<id|+["a/",null]', True),
        ('look<id|+[{"from":"find<id"},null]', True),
        ('look<id|+[{"from":"find>id"},null]', False),
        ('user~A|+[{"from":"find<id"},null]', False),
    ],
)
def test_a_template_is_own_where_all_of_its_values_are(source: str, own: bool):
    assert is_own(source) is own


@pytest.mark.parametrize(
    "change",
    [
        "+",
        "+[",
        "+[]",
        "+[null,null]",
        '+["a"]',
        "+7",
        "+[7,null]",
        '+[{"from":7},null]',
    ],
)
def test_a_template_that_cannot_be_read_is_the_name_of_a_place(change: str):
    assert read_source(f"look>id|{change}").change == ""


def moment_of(*texts: str) -> Moment:
    patterns = PatternPredictor()
    run = Run()
    for text in texts:
        run.user(text)
    return patterns._moment(now(run, tools=TOOLS))


def test_a_literal_may_hold_what_parts_a_source_from_its_change():
    (template, *_) = find_templates("a|b/W123456", moment_of("It is W123456."))
    assert read_source(template).change == '+["a\\u007cb/",null]'


def test_of_a_text_of_many_known_values_few_templates_are_looked_at():
    moment = moment_of(" ".join(f"W{number:06}" for number in range(3_000)))
    text = " ".join(f"W{number:06}" for number in range(30))
    assert len(find_templates(text[:300], moment)) <= 6
    assert find_templates("x" * 5_000, moment) == []
    assert find_templates("İ" * 40 + " W000001", moment) == []
