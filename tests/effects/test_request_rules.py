"""Which requests only read: in doubt, none."""

from types import SimpleNamespace

import pytest

from headstart import UsageError
from headstart.effects._request_rules import RequestRules, what_is

API = "https://api.example.com"


def request_of(method, url=API + "/orders", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(method=method, url=url, headers=names)


def only_reads(method, url=API + "/orders", *, unsafe=(), safe=(), **headers):
    rules = RequestRules(unsafe=unsafe, safe=safe)
    return rules.only_reads(request_of(method, url, **headers))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_a_method_that_only_reads_is_believed(method):
    assert only_reads(method)


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "QUERY", "PROPFIND", "get"]
)
def test_any_other_method_is_not(method):
    assert not only_reads(method)


@pytest.mark.parametrize(
    "headers",
    [
        {"upgrade": "websocket"},
        {"x_http_method_override": "DELETE"},
        {"x_http_method": "PUT"},
        {"x_method_override": "POST"},
    ],
)
def test_a_method_is_not_believed_where_a_header_makes_it_another(headers):
    assert not only_reads("GET", **headers)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (API + "/orders", API + "/orders"),
        (API + "/orders", API + "/orders?id=7#part"),
        (API + "/orders", API + "/orders/"),
        (API + "/orders", API + "//orders"),
        (API + "/orders", API + "/a/../orders"),
        (API + "/orders", API + "/a/%2e%2e/orders"),
        (API + "/orders", API + "/%6frders"),
        (API + "/orders", API + "/ORDERS"),
        (API + "/orders", "https://API.example.com./orders"),
        (API + "/orders", API + ":8443/orders"),
        (API + "/%6Frders", API + "/orders"),
        (API + "/*", API),
        ("*://*/logout*", "http://[::1]:80/logout;now"),
        ("https://*.example.com/*", API + "/orders"),
        ("http://[::1]/*", "http://[::1]:8000/a"),
    ],
)
def test_an_unsafe_pattern_holds_what_it_may_mean(pattern, url):
    assert not only_reads("GET", url, unsafe=[pattern])
    assert not only_reads("POST", url, unsafe=[pattern], safe=["*://*:*/*"])


@pytest.mark.parametrize(
    "url", ["https://other.example.com/orders", "http://api.example.com/orders"]
)
def test_an_unsafe_pattern_holds_nothing_else(url):
    assert only_reads("GET", url, unsafe=[API + "/orders"])


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (API + "/search", API + "/search?q=a"),
        (API + "/search", API + ":443/search"),
        (API + "/search/*", API + "/search/orders/all"),
        (API + ":8443/search", API + ":8443/search"),
        ("http://localhost:*/search", "http://localhost:8000/search"),
        (API + "/search%20all", API + "/search%20all"),
    ],
)
def test_a_safe_pattern_lets_a_post_pass_that_it_means(pattern, url):
    assert only_reads("POST", url, safe=[pattern])
    assert not only_reads("DELETE", url, safe=[pattern])


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (API + "/search", API + "/search/"),
        (API + "/search", API + "/SEARCH"),
        (API + "/search", API + ":8443/search"),
        (API + "/search", "http://api.example.com/search"),
        (API + "/search/*", API + "/search/../pay"),
        (API + "/search/*", API + "/search/%2e%2e/pay"),
        (API + "/search/*", API + "/search/.."),
        (API + "/search/*", API + "/search//pay"),
        (API + "/search/*", API + "/search/..%2fpay"),
        (API + "/search/*", API + "/search/..\\pay"),
        ("https://*.example.com/*", "https://evil.com/a.example.com/"),
        ("https://*.example.com/*", "https://a.example.com@evil.com/"),
        ("https://*.example.com/*", "https://evil.com?.example.com/"),
    ],
)
def test_a_safe_pattern_lets_nothing_pass_that_may_mean_something_else(pattern, url):
    assert not only_reads("POST", url, safe=[pattern])


def test_a_rule_may_be_a_function_of_the_request():
    def queries(request):
        return request.method == "PUT"

    assert only_reads("PUT", safe=[queries])
    assert not only_reads("POST", safe=[queries])
    assert not only_reads("GET", unsafe=[lambda request: "orders" in request.url])


def test_a_rule_that_fails_decides_for_holding(caplog):
    def broken(request):
        raise LookupError(request)

    assert not only_reads("POST", safe=[broken])
    assert not only_reads("GET", unsafe=[broken])
    assert [record.message for record in caplog.records] == (
        ["A rule for HTTP requests failed."] * 2
    )


async def answer_later(_):
    return False


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "/search",
        "api.example.com/search",
        API,
        API + "/search?q=*",
        API + "/search#a",
        "https://user@api.example.com/",
        "https:///search",
        "https://api.example.com:port/",
        7,
        None,
        answer_later,
    ],
)
@pytest.mark.parametrize("option", ["unsafe", "safe"])
def test_a_rule_that_could_never_work_is_refused_at_once(option, rule):
    with pytest.raises(UsageError):
        RequestRules(**{"unsafe": (), "safe": (), option: [rule]})


@pytest.mark.parametrize("rules", [API + "/search", bool])
def test_one_rule_instead_of_a_list_is_refused(rules):
    with pytest.raises(UsageError, match="is a list"):
        RequestRules(unsafe=rules, safe=())


def test_what_an_error_says_of_a_request_has_no_path():
    url = "https://user:secret@api.example.com/token/secret?key=secret"
    assert what_is(request_of("POST", url)) == "a POST to api.example.com"
