"""Dates as people say them, and as arguments have them.

A date that was said without its year is `--05-20`, as in ISO 8601.
"""

from __future__ import annotations

import datetime
import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMS = {
    "iso": "%Y-%m-%d",
    "month": "%m/%d/%Y",
    "day": "%d/%m/%Y",
    "dots": "%d.%m.%Y",
    "plain": "%Y%m%d",
}
"""How arguments may have dates, by the names that sources have for them."""
NAME, DIGIT, SLASH = 1, 2, 4
"""Hints: the name of a month, a digit, a date with slashes."""
_MONTHS = [
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
]
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,? +(\d{4}))?(?!\w)"
_MONTH_FIRST = re.compile(rf"\b{_MONTH}\.? +(?:the )?{_DAY}{_YEAR}", re.IGNORECASE)
_DAY_FIRST = re.compile(rf"\b{_DAY} +(?:of )?{_MONTH}\b\.?{_YEAR}", re.IGNORECASE)
_NAMED = re.compile(rf"\b{_MONTH}\.?$|^{_MONTH}\b", re.IGNORECASE)
"""A token with a month's name where one stands in a date."""
_SLASHED = re.compile(r"(?<![\w/])(\d{1,2})/(\d{1,2})/(\d{4})(?![\w/])")
_CHARACTERS = re.compile(
    r"(?:(\d{4})\s*[年년]\s*)?(\d{1,2})\s*[月월]\s*(\d{1,2})\s*[日일号號]"
)
_DIGIT = re.compile(r"\d")
_ISO = re.compile(r"(?:\d{4}-|--)\d\d-\d\d")


def hint_at_date(token: str) -> int:
    """What in a token may be a part of a date: a sum of `NAME`, `DIGIT` and `SLASH`."""
    hints = DIGIT if _DIGIT.search(token) else 0
    if hints and "/" in token and _SLASHED.search(token):
        hints += SLASH
    return hints + NAME if _NAMED.search(token) else hints


def find_dates(
    text: str, *, named: bool = True, slashed: bool = True
) -> Iterator[tuple[int, int, str]]:
    """The dates of a text that are not in ISO form: begin, end, and the date.

    A date with slashes that could be read in two ways begins with the month.

    Args:
        text: The text.
        named: Whether to look for names of months.
        slashed: Whether to look for dates with slashes.
    """
    if named:
        for match in _MONTH_FIRST.finditer(text):
            yield from _date(match, match[3], _number_of(match[1]), match[2])
        for match in _DAY_FIRST.finditer(text):
            yield from _date(match, match[3], _number_of(match[2]), match[1])
    if slashed:
        for match in _SLASHED.finditer(text):
            first, second = match[1], match[2]
            month, day = (second, first) if int(first) > 12 else (first, second)
            yield from _date(match, match[3], month, day)
    if "\u6708" in text or "\uc6d4" in text:
        for match in _CHARACTERS.finditer(text):
            yield from _date(match, match[1], match[2], match[3])


def _number_of(month: str) -> int:
    return _MONTHS.index(month[:3].casefold()) + 1


def _date(
    match: re.Match[str], year: str | None, month: str | int, day: str
) -> Iterator[tuple[int, int, str]]:
    try:  # a leap year has every day
        found = datetime.date(int(year or 2000), int(month), int(day)).isoformat()
    except ValueError:
        return
    yield match.start(), match.end(), found if year else f"-{found[4:]}"


@functools.lru_cache(maxsize=2_048)
def read_date(text: str) -> tuple[str, str] | None:
    """A date in one of the forms: in ISO form, and the form's name."""
    if not 8 <= len(text) <= 10 or not text[0].isdecimal():
        return None
    for form, pattern in FORMS.items():
        try:
            found = datetime.datetime.strptime(text, pattern)  # noqa: DTZ007
        except ValueError:
            continue
        if found.strftime(pattern) == text and 1900 <= found.year < 2200:
            return found.date().isoformat(), form
    return None


def write_date(text: str, form: str, year: str) -> str:
    """A date in a form, with this year if it has none.

    Raises:
        ValueError: It is no date.
    """
    if not _ISO.fullmatch(text):
        raise ValueError(text)
    found = datetime.date.fromisoformat(f"{year}{text[1:]}" if text[0] == "-" else text)
    return found.strftime(FORMS[form])
