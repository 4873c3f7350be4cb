"""Which statements are known to read, or to be undone by a rollback: few, and surely."""

import pytest
from hypothesis import example, given, strategies as st

from headstart.effects._sql import Kind, classify

READS, WRITES, OTHER = Kind

POSTGRESQL = [
    # Reading
    ("SELECT 1", READS),
    ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) TABLE n", READS),
    ("WITH n(i) AS (SELECT f(1)) SELECT i FROM n", OTHER),
    ("WITH n(i) AS (SELECT 1), m(i) AS (SELECT 2) SELECT i FROM n", OTHER),
    ("SELECT * FROM n, f(1) AS (i int)", OTHER),
    ("select * from accounts where id = $1::INTEGER", READS),
    ("SELECT accounts.id FROM accounts WHERE accounts.id IN ($1, $2) LIMIT $3", READS),
    ("  (SELECT 1) UNION ALL (SELECT 2)  ; ", READS),
    ("SELECT count(*), coalesce(max(id), 0) FROM accounts", READS),
    ("SELECT a.x, row_number() OVER (PARTITION BY a.y ORDER BY a.z) FROM a", READS),
    ("WITH t AS (SELECT 1) SELECT * FROM t", READS),
    ("WITH t AS MATERIALIZED (SELECT 1) SELECT * FROM t", READS),
    ("VALUES (1), (2)", READS),
    ("TABLE accounts", READS),
    ("SHOW server_version", READS),
    ("SELECT 'DELETE FROM accounts; COMMIT'", READS),
    ("SELECT 'it''s; COMMIT' -- ; DELETE\n, 2", READS),
    ("/* a comment; DELETE */ SELECT 1", READS),
    ("SELECT $$a; DELETE FROM b$$, $tag$ $$; $tag$", READS),
    ('SELECT "update", "a;b" FROM "INSERT"', READS),
    ("SELECT CAST(x AS VARCHAR(30)), y::numeric(10, 2) FROM t", READS),
    ("SELECT * FROM (VALUES (1, 2)) AS t (a, b)", READS),
    ("SELECT pg_catalog.lower(x), data #>> '{a,b}', tags[1] FROM t", READS),
    ("EXPLAIN SELECT 1", READS),
    ("SAVEPOINT sa_savepoint_1", READS),
    ("ROLLBACK TO SAVEPOINT sa_savepoint_1", READS),
    ("RELEASE SAVEPOINT sa_savepoint_1", READS),
    # Writing, with a rollback as the remedy
    ("INSERT INTO t (a, b) VALUES ($1, lower($2)) RETURNING t.id", WRITES),
    ("INSERT INTO s.t (a) SELECT p0::VARCHAR FROM (VALUES ($1)) AS imp(p0)", WRITES),
    ("INSERT INTO t (id) VALUES (nextval('t_id_seq'))", WRITES),
    (
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = excluded.a",
        WRITES,
    ),
    ("UPDATE t SET a = a + 1 WHERE b = 'x'", WRITES),
    ("delete from t", WRITES),
    ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DO NOTHING", WRITES),
    ("WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone", WRITES),
    ("SELECT * FROM t FOR UPDATE", WRITES),
    ("SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED", WRITES),
    ("SELECT nextval('t_id_seq')", WRITES),
    # Anything else
    ("", OTHER),
    ("-- nothing", OTHER),
    ("COMMIT", OTHER),
    ("/* */ cOmMiT", OTHER),
    ("END", OTHER),
    ("ROLLBACK", OTHER),
    ("ABORT", OTHER),
    ("BEGIN", OTHER),
    ("PREPARE TRANSACTION 'x'", OTHER),
    ("COMMIT PREPARED 'x'", OTHER),
    ("SAVEPOINT a; COMMIT", OTHER),
    ("SELECT 1; COMMIT", OTHER),
    ("SELECT 1;; DELETE FROM t", OTHER),
    ("INSERT INTO t VALUES (1); COMMIT", OTHER),
    ("SELECT pg_terminate_backend(1)", OTHER),
    ("SELECT dblink_exec('...', 'DELETE FROM t')", OTHER),
    ("SELECT my_function (1)", OTHER),
    ("SELECT my_function/* */(1)", OTHER),
    ('SELECT "lower"(x) FROM t', OTHER),
    ("SELECT mine.lower(x) FROM t", OTHER),
    ("SELECT mine . lower (x) FROM t", OTHER),
    ("SELECT a.pg_catalog.lower(x) FROM t", OTHER),
    ("SELECT \u017fum(x) FROM t", OTHER),
    ("SELECT * FROM my_function(1) AS (a int)", OTHER),
    ("INSERT INTO t VALUES (my_function())", OTHER),
    ("SELECT set_config('a.b', 'c', false)", OTHER),
    ("SELECT * INTO u FROM t", OTHER),
    ("SELECT 'a' INTO u", OTHER),
    ("EXPLAIN ANALYZE SELECT 1", OTHER),
    ("EXPLAIN (ANALYZE) INSERT INTO t VALUES (1)", OTHER),
    ("EXPLAIN INSERT INTO t VALUES (1)", OTHER),
    ("COPY t TO PROGRAM 'x'", OTHER),
    ("CALL p()", OTHER),
    ("DO $$ BEGIN COMMIT; END $$", OTHER),
    ("SET search_path = x", OTHER),
    ("LISTEN a", OTHER),
    ("NOTIFY a", OTHER),
    ("LOCK TABLE t", OTHER),
    ("CREATE TABLE t (a int)", OTHER),
    ("TRUNCATE t", OTHER),
    ("VACUUM", OTHER),
    ("EXECUTE a", OTHER),
    ("PREPARE a AS DELETE FROM t", OTHER),
    # Texts to get lost in
    (r"SELECT E'\'; DELETE FROM t; --'", OTHER),
    (r"SELECT '\'; DELETE FROM t; --'", OTHER),
    (r'SELECT U&"\006cower"(1)', OTHER),
    ("SELECT /* /* */ 1; DELETE FROM t --*/", OTHER),
    ("SELECT /*! 1; */ 2", OTHER),
    ("SELECT $a$b$ $a$; DELETE FROM t; --$a$b$", OTHER),
    ("SELECT a$b$c FROM t; COMMIT; SELECT a$b$c", OTHER),
    ("SELECT 1 -- a\r'\n; DELETE FROM t --'", OTHER),
    ("SELECT 'a", OTHER),
    ("SELECT \0 1", OTHER),
    ("SELECT `a`", OTHER),
    ("SELECT 1lower(1)", OTHER),
]
SQLITE = [
    ("SELECT lower(a) FROM t WHERE b = ? AND c = :c", READS),
    ("SELECT julianday('now'), json_extract(a, '$.b') FROM t", READS),
    ("INSERT OR REPLACE INTO t (a) VALUES (?)", WRITES),
    ("REPLACE INTO t (a) VALUES (replace(?, 'a', 'b'))", WRITES),
    ("SELECT replace(a, 'b', 'c') FROM t", READS),
    ("WITH u AS (SELECT 1) INSERT INTO t SELECT * FROM u", OTHER),
    ("PRAGMA journal_mode = wal", OTHER),
    ("PRAGMA table_info(t)", OTHER),
    ("ATTACH 'x' AS y", OTHER),
    ("RELEASE SAVEPOINT a", OTHER),
    ("SAVEPOINT a", READS),
    ("SELECT [it's] FROM t; DELETE FROM t --'", OTHER),
    ("SELECT load_extension('x')", OTHER),
    ("SELECT $a$; DELETE FROM t; --$a$", OTHER),
    ("CREATE TABLE t (a)", OTHER),
]
MYSQL = [
    ("SELECT `a`.`b` FROM `a` WHERE c = %s", READS),
    ("SELECT * FROM t LOCK IN SHARE MODE", WRITES),
    ("INSERT INTO `t` (a) VALUES (%s)", WRITES),
    ("SELECT a FROM t INTO OUTFILE '/tmp/x'", OTHER),
    ("SELECT 1 # '\n INTO OUTFILE 'x' -- '", OTHER),
    ("SELECT 1 --1 INTO OUTFILE 'x'", OTHER),
    ("SELECT @a := 1", OTHER),
    ("SELECT get_lock('a', 1)", OTHER),
    ("TRUNCATE t", OTHER),
    ("SELECT IF(a, 1, 2), NOW(), DATE_FORMAT(a, '%%Y') FROM t", READS),
    ("SELECT last_insert_id(4)", OTHER),
    ("SELECT NEXT VALUE FOR s", WRITES),
    ("START TRANSACTION", OTHER),
    ("SET autocommit = 1", OTHER),
    ("DO release_lock('a')", OTHER),
]
ELSEWHERE = [("SELECT 1", OTHER), ("SELECT 1 KILL 53", OTHER), ("COMMIT", OTHER)]
TABLE = [
    (dialect, *row)
    for dialect, rows in {
        "postgresql": POSTGRESQL,
        "sqlite": SQLITE,
        "mysql": MYSQL,
        "mssql": ELSEWHERE,
    }.items()
    for row in rows
]


@pytest.mark.parametrize(("dialect", "statement", "kind"), TABLE)
def test_a_statement_is_known_or_held(dialect, statement, kind):
    assert classify(statement, dialect) is kind


def test_a_function_that_the_user_vouches_for_reads():
    text = "SELECT my_function(1), other(2)"
    assert classify(text, "postgresql", frozenset({"MY_FUNCTION"})) is OTHER
    both = frozenset({"MY_FUNCTION", "OTHER"})
    assert classify(text, "postgresql", both) is READS
    assert classify("SELECT mine.other(1)", "postgresql", both) is OTHER


def test_a_long_statement_is_judged_like_a_short_one():
    values = ", ".join("(?, lower(?))" for _ in range(2000))
    assert classify(f"INSERT INTO t (a, b) VALUES {values}", "sqlite") is WRITES
    assert classify(f"INSERT INTO t VALUES {values}; COMMIT", "sqlite") is OTHER


FRAGMENTS = st.sampled_from(  # of texts to get lost in
    [
        "SELECT",
        "'",
        '"',
        "$$",
        "$a$",
        "--",
        "/*",
        "*/",
        "\n",
        "\r",
        "\\",
        ";",
        "#",
        "`",
        "[",
        "]",
        "(",
        ")",
        "a",
        "1",
        " ",
        "E'",
        "$1",
        ",",
        "lower",
        "::",
        ":=",
    ]
)


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite", "mysql"])
@given(before=st.lists(FRAGMENTS, max_size=8), after=st.lists(FRAGMENTS, max_size=8))
@example(before=["SELECT", " ", "'"], after=["'"])
def test_a_text_that_leaves_its_quotes_at_the_end_is_never_known(
    dialect, before, after
):
    # What follows "; COMMIT" is read by some database, unless all agree it is quoted.
    text = "".join([*before, ";\nCOMMIT;\n", *after])
    if classify(text, dialect) is not OTHER:
        quoted = [*"'\"`", "/*", "$"]
        assert any(quote in "".join(before) for quote in quoted)
