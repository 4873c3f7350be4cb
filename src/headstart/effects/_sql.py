"""What an SQL statement may do, judged by its text: in doubt, anything.

Rules of this file:

1. A statement only reads, or is only undone by a rollback, if every word of it was
   looked at and is known. What is not known is `OTHER`: it is held before it runs.
2. Where databases read a text differently, the text is in doubt: a backslash in quotes,
   a comment that some of them run, a bracket that quotes in some of them.
3. A function that is not in the list may do anything. So may what no text shows: views,
   triggers, defaults, casts and operators of one's own. Those are not judged here.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import NamedTuple


class Kind(enum.Enum):
    """What a statement may do."""

    READS = "reads"
    """Changes nothing that outlives its transaction, and nobody's rows in it."""
    WRITES = "writes"
    """Changes rows, or locks them, and a rollback undoes it."""
    OTHER = "other"
    """Anything else, or not understood: it may end a transaction or bypass it."""


_WORDS = r"[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*"
_TOKEN = re.compile(
    rf"""
      (?P<space>[ \t\r\n\f\v]+ | --[^\r\n]*)
    | (?P<comment>/\*.*?\*/)
    | (?P<dollar>\$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?)\$
          .*?\$(?P=tag)\$)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*" | `(?:[^`]|``)*`)
    | (?P<word>{_WORDS})
    | (?P<number>(?:0[xX][0-9A-Fa-f]+ | [0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?)
          (?![A-Za-z0-9_$\x80-\U0010ffff]))
    | (?P<sign>::|:=|[-+*/<>=~!@#%^&|?(),.;:$\[\]{{}}])
    """,
    re.VERBOSE | re.DOTALL,
)

_READ_BY = frozenset({"SELECT", "WITH", "VALUES", "TABLE", "SHOW"})
_WRITTEN_BY = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})
_LOCKING = frozenset({"FOR", "LOCK"})
# Words that make more of a SELECT than a row set, or have effects without parentheses.
_NEVER = frozenset(
    [
        "ALTER",
        "ANALYSE",
        "ANALYZE",
        "ATTACH",
        "BEGIN",
        "CALL",
        "COMMIT",
        "COPY",
        "CREATE",
        "DECLARE",
        "DETACH",
        "DROP",
        "DUMPFILE",
        "EXEC",
        "EXECUTE",
        "GO",
        "GRANT",
        "NEXTVAL",
        "OPENQUERY",
        "OPENROWSET",
        "OUTFILE",
        "PRAGMA",
        "PROCEDURE",
        "RELEASE",
        "REVOKE",
        "ROLLBACK",
        "SAVEPOINT",
        "TRUNCATE",
        "UESCAPE",
        "VACUUM",
    ]
)
_BEFORE_PARENTHESES = frozenset(
    [
        "ALL",
        "AND",
        "ANY",
        "ARRAY",
        "AS",
        "BETWEEN",
        "BY",
        "CASE",
        "CONFLICT",
        "CROSS",
        "CUBE",
        "DISTINCT",
        "ELSE",
        "ESCAPE",
        "EXCEPT",
        "EXISTS",
        "FETCH",
        "FILTER",
        "FROM",
        "FULL",
        "GROUP",
        "GROUPING",
        "HAVING",
        "ILIKE",
        "IN",
        "INNER",
        "INTERSECT",
        "IS",
        "JOIN",
        "LATERAL",
        "LEFT",
        "LIKE",
        "LIMIT",
        "MATERIALIZED",
        "NOT",
        "OFFSET",
        "ON",
        "ONLY",
        "OR",
        "OVER",
        "OVERLAPS",
        "PARTITION",
        "RETURNING",
        "RIGHT",
        "ROLLUP",
        "ROW",
        "SELECT",
        "SET",
        "SETS",
        "SIMILAR",
        "SOME",
        "THEN",
        "TO",
        "UNION",
        "USING",
        "VALUES",
        "VARYING",
        "WHEN",
        "WHERE",
        "WINDOW",
        "WITHIN",
    ]
)
_FUNCTIONS = frozenset(
    [
        "ABS",
        "AGE",
        "ANY_VALUE",
        "ARRAY_AGG",
        "ARRAY_LENGTH",
        "ARRAY_POSITION",
        "ARRAY_TO_STRING",
        "AVG",
        "BIT_AND",
        "BIT_OR",
        "BOOL_AND",
        "BOOL_OR",
        "BTRIM",
        "CARDINALITY",
        "CAST",
        "CEIL",
        "CEILING",
        "CHAR_LENGTH",
        "CHARACTER_LENGTH",
        "COALESCE",
        "CONCAT",
        "CONCAT_WS",
        "COUNT",
        "CUME_DIST",
        "CURRENT_DATABASE",
        "CURRENT_SCHEMA",
        "CURRENT_USER",
        "DATE",
        "DATETIME",
        "DATE_PART",
        "DATE_TRUNC",
        "DENSE_RANK",
        "EVERY",
        "EXP",
        "EXTRACT",
        "FIRST_VALUE",
        "FLOOR",
        "FORMAT_TYPE",
        "GEN_RANDOM_UUID",
        "GENERATE_SERIES",
        "GREATEST",
        "GROUP_CONCAT",
        "HEX",
        "IFNULL",
        "IIF",
        "INITCAP",
        "INSTR",
        "JSON_AGG",
        "JSON_ARRAY",
        "JSON_ARRAY_ELEMENTS",
        "JSON_ARRAY_ELEMENTS_TEXT",
        "JSON_ARRAY_LENGTH",
        "JSON_BUILD_ARRAY",
        "JSON_BUILD_OBJECT",
        "JSON_EACH",
        "JSON_EXTRACT",
        "JSON_EXTRACT_PATH",
        "JSON_EXTRACT_PATH_TEXT",
        "JSON_GROUP_ARRAY",
        "JSON_GROUP_OBJECT",
        "JSON_OBJECT",
        "JSON_OBJECT_AGG",
        "JSON_TYPE",
        "JSON_VALID",
        "JSONB_AGG",
        "JSONB_ARRAY_ELEMENTS",
        "JSONB_ARRAY_ELEMENTS_TEXT",
        "JSONB_ARRAY_LENGTH",
        "JSONB_BUILD_ARRAY",
        "JSONB_BUILD_OBJECT",
        "JSONB_EACH",
        "JSONB_EXTRACT_PATH",
        "JSONB_EXTRACT_PATH_TEXT",
        "JSONB_OBJECT_AGG",
        "JULIANDAY",
        "LAG",
        "LAST_VALUE",
        "LEAD",
        "LEAST",
        "LEFT",
        "LENGTH",
        "LN",
        "LOG",
        "LOWER",
        "LPAD",
        "LTRIM",
        "MAKE_DATE",
        "MAKE_INTERVAL",
        "MAX",
        "MD5",
        "MIN",
        "MOD",
        "NOW",
        "NTH_VALUE",
        "NTILE",
        "NULLIF",
        "OCTET_LENGTH",
        "PERCENTILE_CONT",
        "PERCENTILE_DISC",
        "PERCENT_RANK",
        "PG_GET_EXPR",
        "PG_TABLE_IS_VISIBLE",
        "PLAINTO_TSQUERY",
        "POSITION",
        "POW",
        "POWER",
        "PRINTF",
        "QUOTE",
        "RANDOM",
        "RANK",
        "REGEXP_MATCH",
        "REGEXP_REPLACE",
        "REPEAT",
        "REPLACE",
        "REVERSE",
        "RIGHT",
        "ROUND",
        "ROW_NUMBER",
        "ROW_TO_JSON",
        "RPAD",
        "RTRIM",
        "SIGN",
        "SPLIT_PART",
        "SQRT",
        "STRFTIME",
        "STRING_AGG",
        "STRING_TO_ARRAY",
        "STRPOS",
        "SUBSTR",
        "SUBSTRING",
        "SUM",
        "TIME",
        "TO_CHAR",
        "TO_DATE",
        "TO_JSON",
        "TO_JSONB",
        "TO_NUMBER",
        "TO_TIMESTAMP",
        "TO_TSQUERY",
        "TO_TSVECTOR",
        "TOTAL",
        "TRANSLATE",
        "TRIM",
        "TRUNC",
        "TS_RANK",
        "TYPEOF",
        "UNNEST",
        "UPPER",
        "VERSION",
        "WEBSEARCH_TO_TSQUERY",
    ]
)
_FUNCTIONS_OF_MYSQL = frozenset(
    [
        "ADDDATE",
        "ADDTIME",
        "ASCII",
        "CHAR",
        "CONVERT",
        "CRC32",
        "CURDATE",
        "CURRENT_DATE",
        "CURRENT_TIME",
        "CURRENT_TIMESTAMP",
        "CURTIME",
        "DATABASE",
        "DATEDIFF",
        "DATE_ADD",
        "DATE_FORMAT",
        "DATE_SUB",
        "DAY",
        "DAYNAME",
        "DAYOFMONTH",
        "DAYOFWEEK",
        "DAYOFYEAR",
        "ELT",
        "FIELD",
        "FIND_IN_SET",
        "FORMAT",
        "FOUND_ROWS",
        "FROM_DAYS",
        "FROM_UNIXTIME",
        "HOUR",
        "IF",
        "ISNULL",
        "JSON_ARRAYAGG",
        "JSON_CONTAINS",
        "JSON_CONTAINS_PATH",
        "JSON_KEYS",
        "JSON_LENGTH",
        "JSON_OBJECTAGG",
        "JSON_QUOTE",
        "JSON_SEARCH",
        "JSON_UNQUOTE",
        "JSON_VALUE",
        "LAST_DAY",
        "LCASE",
        "LOCALTIME",
        "LOCALTIMESTAMP",
        "LOCATE",
        "MAKEDATE",
        "MAKETIME",
        "MICROSECOND",
        "MINUTE",
        "MONTH",
        "MONTHNAME",
        "PERIOD_ADD",
        "PERIOD_DIFF",
        "QUARTER",
        "RAND",
        "REGEXP_INSTR",
        "REGEXP_SUBSTR",
        "ROW_COUNT",
        "SCHEMA",
        "SECOND",
        "SEC_TO_TIME",
        "SHA1",
        "SHA2",
        "SOUNDEX",
        "SPACE",
        "STRCMP",
        "STR_TO_DATE",
        "SUBDATE",
        "SUBSTRING_INDEX",
        "SUBTIME",
        "SYSDATE",
        "TIMEDIFF",
        "TIMESTAMP",
        "TIMESTAMPADD",
        "TIMESTAMPDIFF",
        "TIME_FORMAT",
        "TIME_TO_SEC",
        "TO_DAYS",
        "UCASE",
        "UNHEX",
        "UNIX_TIMESTAMP",
        "UTC_DATE",
        "UTC_TIME",
        "UTC_TIMESTAMP",
        "UUID",
        "WEEK",
        "WEEKDAY",
        "WEEKOFYEAR",
        "YEAR",
        "YEARWEEK",
    ]
)
_SEQUENCES = frozenset({"NEXTVAL"})  # as every INSERT of a serial key does

_DOUBTFUL = {  # signs that do not mean the same everywhere, by the databases we know
    "postgresql": frozenset({":=", "{", "}"}),
    "sqlite": frozenset({"#", "[", "]", "{", "}", ":="}),
    "mysql": frozenset({"#", "@", "$", "[", "]", "{", "}", ":="}),
}
_DOUBTFUL["mariadb"] = _DOUBTFUL["mysql"]
_BACKTICKS = frozenset({"mysql", "mariadb"})

_SAVEPOINT = re.compile(
    r"\s*(?:SAVEPOINT|ROLLBACK\s+TO(?:\s+SAVEPOINT)?)\s+(?:\w+|\"\w+\")\s*;?\s*",
    re.IGNORECASE | re.ASCII,
)
_RELEASE = re.compile(
    r"\s*RELEASE(?:\s+SAVEPOINT)?\s+(?:\w+|\"\w+\")\s*;?\s*",
    re.IGNORECASE | re.ASCII,
)
_RELEASES_ONLY = frozenset({"postgresql", "mysql", "mariadb"})  # SQLite's may commit


class _Token(NamedTuple):
    kind: str
    value: str


class _DoubtError(Exception):
    """The text is not understood by all databases alike, or not by us."""


def classify(
    statement: str, dialect: str, functions: frozenset[str] = frozenset()
) -> Kind:
    """What a statement may do.

    Args:
        statement: Its text, with parameters kept out of it.
        dialect: As SQLAlchemy names it: `"postgresql"`, `"sqlite"`, `"mysql"` and
            `"mariadb"` are understood. Of others every statement is `OTHER`.
        functions: Further functions that only read, in capitals.
    """
    if len(statement) > _LONG:
        return _classify.__wrapped__(statement, dialect, functions)
    return _classify(statement, dialect, functions)


_LONG = 10_000  # characters: what is longer is not kept


@lru_cache(maxsize=1024)
def _classify(statement: str, dialect: str, functions: frozenset[str]) -> Kind:
    if dialect not in _DOUBTFUL:
        return Kind.OTHER
    if _SAVEPOINT.fullmatch(statement):
        return Kind.READS
    if _RELEASE.fullmatch(statement):
        return Kind.READS if dialect in _RELEASES_ONLY else Kind.OTHER
    if "--" in statement and "\r" in statement.replace("\r\n", "\n"):
        return Kind.OTHER  # such a comment ends there, or goes on
    try:
        tokens = _tokens(statement, dialect)
        kind = _judge(
            tokens,
            functions | _FUNCTIONS_OF_MYSQL if dialect in _BACKTICKS else functions,
        )
    except _DoubtError:
        return Kind.OTHER
    if dialect == "sqlite" and _first_word(tokens) in _READ_BY and kind is Kind.WRITES:
        return Kind.OTHER  # its driver begins a transaction by the first word
    return kind


def _tokens(statement: str, dialect: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(statement):
        match = _TOKEN.match(statement, position)
        if match is None:
            raise _DoubtError
        kind, text = match.lastgroup or "", match[0]
        if match["dollar"] is not None:
            kind = "dollar"
        position = match.end()
        _check(kind, text, dialect)
        if kind == "word" and text.isascii():
            tokens.append(_Token(kind, text.upper()))
        elif kind not in ("space", "comment"):
            tokens.append(_Token(kind, text))
    while tokens and tokens[-1].value == ";":
        tokens.pop()
    return tokens


def _check(kind: str, text: str, dialect: str) -> None:
    """Raise where databases do not agree on what a piece of text is."""
    if kind == "comment":
        doubt = text.startswith(("/*!", "/*M!")) or "/*" in text[2:]
    elif kind == "space" and text.startswith("--"):
        doubt = dialect in _BACKTICKS and text[2:3] not in ("", " ", "\t")
    elif kind in ("text", "quoted"):
        backticks = text.startswith("`") and dialect not in _BACKTICKS
        doubt = backticks or "\\" in text or "\0" in text
    elif kind == "dollar":
        doubt = dialect != "postgresql"
    else:
        doubt = kind == "sign" and text in _DOUBTFUL[dialect]
    if doubt:
        raise _DoubtError


def _judge(tokens: list[_Token], functions: frozenset[str]) -> Kind:
    first = _first_word(tokens)
    if first == "EXPLAIN":
        kind = _judge(tokens[tokens.index(_Token("word", "EXPLAIN")) + 1 :], functions)
        return kind if kind is Kind.READS else Kind.OTHER
    kind = Kind.READS
    if first in _WRITTEN_BY:
        kind = Kind.WRITES
    elif first not in _READ_BY:
        return Kind.OTHER
    for index, token in enumerate(tokens):
        if token.value == ";" and token.kind == "sign":
            return Kind.OTHER  # several statements
        if token.kind == "word":
            if (
                token.value in _WRITTEN_BY and not _called(tokens, index)
            ) or token.value in _LOCKING:
                kind = Kind.WRITES
            elif (token.value == "INTO" and not _is_target(tokens, index)) or (
                token.value in _NEVER
                and not (token.value in _SEQUENCES and _called(tokens, index))
            ):
                return Kind.OTHER
        if _called(tokens, index):
            called = _judge_call(tokens, index, functions)
            if called is Kind.OTHER:
                return Kind.OTHER
            if called is Kind.WRITES:
                kind = Kind.WRITES
    return kind


def _first_word(tokens: list[_Token]) -> str:
    for token in tokens:
        if token.value != "(":
            return token.value if token.kind == "word" else ""
    return ""


def _called(tokens: list[_Token], index: int) -> bool:
    return (
        tokens[index].kind in ("word", "quoted")
        and index + 1 < len(tokens)
        and tokens[index + 1].value == "("
    )


def _is_target(tokens: list[_Token], index: int) -> bool:
    """Whether an INTO is that of an INSERT, a REPLACE or a MERGE."""
    before = {token.value for token in tokens[max(0, index - 3) : index]}
    return bool(before & {"INSERT", "REPLACE", "MERGE"})


def _judge_call(tokens: list[_Token], index: int, functions: frozenset[str]) -> Kind:
    """What a name before parentheses stands for."""
    token = tokens[index]
    start = index  # of the whole name, with its schema
    while start >= 2 and tokens[start - 1].value == ".":
        start -= 2
    before = tokens[start - 1].value if start else ""
    if before in ("AS", "::", "INTO", "WITH", "RECURSIVE"):
        return Kind.READS  # an alias, a type or a table, with its columns
    qualified = start != index and tokens[start].value != "PG_CATALOG"
    if token.kind != "word" or qualified or index - start > 2:
        return Kind.OTHER
    if start == index and token.value in _BEFORE_PARENTHESES:
        return Kind.READS
    if token.value in _FUNCTIONS or token.value in functions:
        return Kind.READS
    return Kind.WRITES if token.value in _SEQUENCES else Kind.OTHER
