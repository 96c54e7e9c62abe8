import re
import sqlite3
import time

import pytest

from data.ledger import Ledger
from data.redaction import redact
from data.requests import Logged, RequestLog
from serving import keys
from settings import Settings
from tests.ledgers import new_ledger


@pytest.fixture
def chosen(tmp_path):
    return Settings(home=tmp_path, api_key=None)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(chosen, capsys, tmp_path):
    made = ["create", "--owner", "ann", "--tenant", "acme", "--labels", "hr, law", "--scopes", "ask,metrics"]
    assert keys.main([*made, "--requests-per-minute", "60"], chosen) == 0
    secret, name = re.search(r"(sk-perennial-[\w-]{43})\nIts id is (key-[0-9a-f]{8})", capsys.readouterr().out).groups()
    known = keys.valid(Ledger(chosen.ledger))
    assert known == {keys.digest(secret): keys.Key(name, "ann", "acme", ("ask", "metrics"), ("hr", "law"), 60)}
    keys.main(["list"], chosen)
    assert name in (listed := capsys.readouterr().out) and "owner=ann" in listed
    everything = "\n".join(sqlite3.connect(tmp_path / "ledger.db").iterdump())
    assert name in everything and secret not in everything + listed
    assert redact(f"my key is {secret}, ok?").text == "my key is [secret], ok?"


def test_a_revoked_key_opens_nothing_and_is_revoked_once(tmp_path):
    ledger = new_ledger(tmp_path)
    secret = keys.create(ledger, keys.Key("key-1", "ann"))
    assert keys.digest(secret) in keys.valid(ledger)
    keys.revoke(ledger, "key-1")
    assert keys.valid(ledger) == {}
    with pytest.raises(KeyError, match="list shows them"):
        keys.revoke(ledger, "key-1")


def test_a_scope_that_does_not_exist_makes_no_key(chosen, capsys):
    assert keys.main(["create", "--owner", "ann", "--scopes", "everything"], chosen) == 2
    assert "no scope 'everything'; there are ask, feedback, review, metrics, admin" in capsys.readouterr().err
    assert keys.valid(Ledger(chosen.ledger)) == {}


def test_a_tenants_key_is_never_made_to_review(chosen, capsys):
    assert keys.main(["create", "--owner", "ann", "--tenant", "acme", "--scopes", "ask,review"], chosen) == 2
    assert "make a key without a tenant" in capsys.readouterr().err
    assert keys.valid(Ledger(chosen.ledger)) == {}
    assert not keys.Key("a", "bob", "acme", scopes=("admin",)).may("review")


def test_admin_may_do_everything_and_others_what_they_were_given():
    reader, admin = keys.Key("r", "ann", scopes=("ask",)), keys.Key("a", "bob", scopes=("admin",))
    assert [reader.may(scope) for scope in keys.SCOPES] == [True, False, False, False, False]
    assert all(map(admin.may, keys.SCOPES))


def test_usage_adds_up_by_key_user_tenant_assistant_or_release(chosen, capsys):
    log, now = RequestLog(chosen.requests), time.time()
    for n, (key, user) in enumerate((("k1", "ann"), ("k1", "bob"), ("k2", "ann"))):
        row = Logged(f"r{n}", now, "wiki", "rel-1", "live", user=user, prompt_tokens=100, completion_tokens=10)
        row.key, row.tenant, row.cost = key, "acme", 0.5
        log.write(row)
    log.write(Logged("old", now - 10 * 86_400, "wiki", "rel-0", "live", prompt_tokens=1))
    log.close()
    keys.main(["usage", "--by", "key"], chosen)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:4] for line in lines] == [
        ["key=k1", "requests=2", "prompt_tokens=200", "completion_tokens=20"],
        ["key=k2", "requests=1", "prompt_tokens=100", "completion_tokens=10"],
    ]
    assert lines[0].endswith("cost=1.0")
    keys.main(["usage", "--by", "release", "--days", "30"], chosen)
    assert "release=rel-0  requests=1" in capsys.readouterr().out
