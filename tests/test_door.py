"""The door with real keys, around the app with fakes."""

import pytest
from sqlalchemy.exc import OperationalError

from data.records import Filter
from serving import keys
from serving.door import SCOPE_OF
from tests.ledgers import new_ledger
from tests.test_app import Stack


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path)


@pytest.fixture
def stack(tmp_path, ledger):
    stack = Stack(tmp_path, api_key="the admin's")
    yield stack
    stack.log.close()


def give(stack, ledger, **about) -> dict:
    """Headers with a new key, which the router of `stack` then knows."""
    secret = keys.create(ledger, keys.Key(f"key-{len(stack.router.keys)}", **{"owner": "ann"} | about))
    stack.router.keys = keys.valid(ledger)
    return {"authorization": f"Bearer {secret}"}


def test_a_keys_tenant_and_labels_decide_what_is_searched_and_the_request_only_narrows_it(stack, ledger):
    acme = give(stack, ledger, tenant="acme", labels=("hr",))
    stack.chat(headers=acme, documents=["a.md"], user="someone")
    assert stack.allowed == Filter("acme", ("hr",), ("a.md",))
    stack.get("/v1/sections/c1?model=helpdesk", acme)
    assert stack.allowed == Filter("acme", ("hr",))
    stack.chat(headers={"authorization": "Bearer the admin's"})
    assert stack.allowed == Filter()
    assert [(row["key"], row["tenant"]) for row in stack.rows()] == [("key-0", "acme"), ("settings", "")]


def test_the_owner_of_the_key_votes_and_only_on_answers_of_its_tenant(stack, ledger):
    acme, other = give(stack, ledger, tenant="acme"), give(stack, ledger, owner="eve", tenant="other")
    response = stack.chat(headers=acme).json()["id"]
    assert stack.call("/v1/feedback", other, response_id=response, rating=-1).status_code == 404
    assert stack.call("/v1/feedback", acme, response_id=response, rating=1, user="bob").status_code == 200
    assert [(said[6], said[7], said[-1]) for said in stack.feedback] == [("bob", "ann", "acme")]


def test_the_review_queue_which_holds_every_tenants_texts_is_closed_to_a_tenants_key(stack, ledger):
    assert stack.get("/review/items", give(stack, ledger, scopes=("review",))).status_code != 403
    tenants = give(stack, ledger, tenant="acme", scopes=("admin",))
    assert (
        stack.get("/review/items", tenants).status_code == 403 and stack.get("/v1/models", tenants).status_code == 200
    )


def test_a_scope_opens_its_routes_and_no_others(stack, ledger):
    asks = give(stack, ledger, scopes=("ask",))
    assert stack.chat(headers=asks).status_code == 200
    for path in SCOPE_OF:
        for below in ("", "/x"):
            reply = stack.call(path + below, asks, "POST", response_id="r", rating=1)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "insufficient_scope"), path
    rates = give(stack, ledger, scopes=("feedback",))
    assert stack.chat(headers=rates).status_code == 403
    for scope in ("admin", "metrics"):
        assert stack.get("/metrics", give(stack, ledger, scopes=(scope,))).status_code == 200


def test_a_revoked_or_altered_key_is_refused_also_where_none_is_needed(stack, ledger, tmp_path):
    ann = give(stack, ledger)
    keys.revoke(ledger, "key-0")
    stack.router.keys = keys.valid(ledger)
    open_to_all = Stack(tmp_path)
    for one in (stack, open_to_all):
        assert one.chat(headers=ann).json()["error"]["code"] == "invalid_api_key"
    assert open_to_all.chat(headers={"authorization": "Bearer none"}).status_code == 200


@pytest.mark.parametrize("said", ["", "Bearer ", "Bearer '; DROP TABLE keys; --", "Basic x", "Bearer the admin", "é"])
def test_what_is_no_key_is_a_401(stack, said):
    assert stack.get("/v1/models", {"authorization": said.encode()}).status_code == 401


def test_who_shows_no_key_is_asked_for_one_however_often_and_counts_as_no_guess(stack):
    assert {stack.get("/v1/models").status_code for _ in range(30)} == {401}
    assert stack.get("/v1/models", {"authorization": "Bearer wrong"}).status_code == 401


def test_requests_beyond_the_keys_rate_are_told_when_to_come_back_in_openais_headers(stack, ledger):
    ann = give(stack, ledger, requests_per_minute=2)
    first = stack.get("/v1/models", ann).headers
    assert first["x-ratelimit-limit-requests"] == "2" and first["x-ratelimit-remaining-requests"] == "1"
    assert first["x-ratelimit-reset-requests"] == "30s"
    replies = [stack.get("/v1/models", ann) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 429, 429]
    assert replies[1].headers["retry-after"] == "30" and replies[1].json()["error"]["code"] == "rate_limit_exceeded"
    assert stack.get("/v1/models", give(stack, ledger)).status_code == 200, "another key is unharmed"


def test_a_days_tokens_once_spent_are_refused_and_give_the_place_back(tmp_path, ledger):
    stack = Stack(tmp_path, api_key="a", max_queued=1)
    ann = give(stack, ledger, tokens_per_day=60)
    first = stack.chat(headers=ann)
    assert first.headers["x-ratelimit-limit-tokens"] == "60" and stack.chat(headers=ann).status_code == 200
    replies = [stack.chat(headers=ann) for _ in range(2)]
    assert {reply.json()["error"]["code"] for reply in replies} == {"insufficient_quota"}
    assert all(int(reply.headers["retry-after"]) > 0 for reply in replies)
    assert stack.chat(headers=give(stack, ledger)).status_code == 200
    again = Stack(tmp_path, api_key="a")
    stack.log.flush()
    again.router.keys = stack.router.keys
    assert again.chat(headers=ann).status_code == 429, "an endpoint that starts again knows what was spent"


def test_with_a_request_log_that_cannot_be_read_a_budgeted_key_waits_keeps_no_place_and_reads_the_rest(
    tmp_path, ledger, monkeypatch
):
    stack = Stack(tmp_path, api_key="a", max_queued=1)
    ann = give(stack, ledger, tokens_per_day=60)

    def locked(by, since):
        raise OperationalError("SELECT", {}, Exception("locked"))

    with monkeypatch.context() as patch:
        patch.setattr(stack.log, "totals", locked)
        replies = [stack.chat(headers=ann) for _ in range(2)]
        assert [(r.status_code, r.json()["error"]["code"]) for r in replies] == [(503, "log_unavailable")] * 2
        assert stack.get("/v1/models", ann).status_code == 200
        assert stack.chat(headers=give(stack, ledger)).status_code == 200, "whose key has no budget is not held up"
    assert stack.chat(headers=ann).status_code == 200


def test_an_address_has_a_rate_of_its_own_which_the_admins_key_is_free_of(tmp_path):
    stack = Stack(tmp_path, address_requests_per_minute=2)
    assert [stack.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
    guarded = Stack(tmp_path, api_key="a", address_requests_per_minute=1)
    admin = {"authorization": "Bearer a"}
    assert [guarded.get("/v1/models", admin).status_code for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "rebound.example:8000"}, 403),
        ({"host": "[broken"}, 403),
        ({"host": "localhost", "origin": "https://elsewhere.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
    ],
)
def test_without_keys_no_page_from_elsewhere_may_use_the_browser_of_this_machine(tmp_path, headers, status):
    assert Stack(tmp_path).get("/v1/models", headers).status_code == status


def test_with_keys_any_host_name_will_do(stack):
    named = {"host": "assistant.example", "authorization": "Bearer the admin's"}
    assert stack.get("/v1/models", named).status_code == 200
