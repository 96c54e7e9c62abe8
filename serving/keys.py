"""Keys of the endpoint: who asks, for which tenant, with which labels, within which limits.

`python -m serving.keys create --owner ann --tenant acme --scopes ask,feedback` shows a key once; the ledger holds its
sha256 alone. A secret of 256 random bits needs no slow hash, and looking up a hash tells nothing by its time.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
import time
from dataclasses import asdict, dataclass, fields

import sqlalchemy as sa

from data.ledger import Ledger, migrate
from data.records import Filter, Record
from data.requests import TOTALLED, RequestLog
from data.tables import keys
from settings import Settings, settings

SCOPES = ("ask", "feedback", "review", "metrics", "admin")
PREFIX = "sk-perennial-"
"""data/credentials knows it, so a key that strays into a question is redacted like any other secret."""


@dataclass(frozen=True)
class Key(Record):
    """What a key's holder may do. `owner` is one voice among those that give feedback, None: nobody in particular.

    `tenant` and `labels` decide which documents are seen, as in Filter. Limits: 0 is none; `cost_per_day` in the
    currency of the settings' prices; days are those of UTC.
    """

    id: str
    owner: str | None
    tenant: str = ""
    scopes: tuple[str, ...] = ("ask", "feedback")
    labels: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    cost_per_day: float = 0.0

    def may(self, scope: str) -> bool:
        """Whether it has the scope. A tenant's key never reviews: the queue holds the texts of every tenant."""
        return (scope in self.scopes or "admin" in self.scopes) and not (self.tenant and scope == "review")

    @property
    def sees(self) -> Filter:
        """The documents that its holder may read."""
        return Filter(self.tenant, self.labels)


ANYONE = Key("", None, scopes=SCOPES)
"""Who asks without a key, where none is needed: on this machine alone."""
NOBODY = Key("", None, scopes=())
"""Who has not shown a key yet: reads a page without data, and may do nothing."""
ADMIN = Key("settings", "api_key", scopes=SCOPES)
"""The one key of the settings (PERENNIAL_API_KEY), which our own processes use too."""


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def create(ledger: Ledger, key: Key) -> str:
    """Store `key` and return its secret, which nothing keeps.

    Raises ValueError for a scope that does not exist, or that a tenant's key can not have.
    """
    if unknown := set(key.scopes) - set(SCOPES):
        raise ValueError(f"no scope {sorted(unknown)[0]!r}; there are {', '.join(SCOPES)}")
    if key.tenant and "review" in key.scopes:
        raise ValueError("the review queue holds every tenant's texts; make a key without a tenant for scope 'review'")
    secret = PREFIX + secrets.token_urlsafe(32)
    row = asdict(key) | {"scopes": list(key.scopes), "labels": list(key.labels)}
    with ledger.write() as c:
        c.execute(keys.insert().values(**row, hash=digest(secret), at=time.time()))
    return secret


def revoke(ledger: Ledger, name: str) -> None:
    """From now on the key with this id opens nothing; within a second the endpoint knows. KeyError: no such key."""
    with ledger.write() as c:
        ended = keys.update().where(keys.c.id == name, keys.c.revoked_at.is_(None)).values(revoked_at=time.time())
        if not c.execute(ended).rowcount:
            raise KeyError(f"no key {name!r} that is in use; python -m serving.keys list shows them")


def valid(ledger: Ledger) -> dict[str, Key]:
    """The keys that open something, by the sha256 of their secrets."""
    names = [field.name for field in fields(Key)]
    rows = ledger.rows(sa.select(keys).where(keys.c.revoked_at.is_(None)).order_by(keys.c.at))
    return {row["hash"]: Key.of({name: row[name] for name in names}) for row in rows}


# --- the command ------------------------------------------------------------------------------


def main(words: list[str] | None = None, chosen: Settings | None = None) -> int:
    asked, chosen = _parser().parse_args(words), chosen or settings()
    if asked.verb == "usage":
        return _show(RequestLog(chosen.requests).totals(asked.by, time.time() - 86_400 * asked.days))
    migrate(chosen.ledger)
    ledger = Ledger(chosen.ledger)
    try:
        if asked.verb == "create":
            made = {field.name: getattr(asked, field.name) for field in fields(Key) if field.name != "id"}
            key = Key(f"key-{secrets.token_hex(4)}", **made)
            print(f"{create(ledger, key)}\nIts id is {key.id}. It is shown this once.")
        elif asked.verb == "revoke":
            revoke(ledger, asked.id)
            print(f"{asked.id} opens nothing any more")
        else:
            _show([asdict(key) for key in valid(ledger).values()])
    except (ValueError, KeyError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.keys", description="Keys of the endpoint, and their use")
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("create", help="make a key and show it once")
    made.add_argument("--owner", required=True, help="person or service; one voice among those that give feedback")
    made.add_argument("--tenant", default="", help="sees this tenant's documents beside those of all")
    made.add_argument("--scopes", type=_names, default=Key.scopes, help=f"of {','.join(SCOPES)}; default ask,feedback")
    made.add_argument("--labels", type=_names, default=(), help="access labels of the documents it may read")
    made.add_argument("--requests-per-minute", type=int, default=0, help="0 for no limit")
    made.add_argument("--tokens-per-day", type=int, default=0, help="prompt and completion tokens; 0 for no limit")
    made.add_argument("--cost-per-day", type=float, default=0.0, help="by the settings' prices; 0 for no limit")
    verbs.add_parser("list", help="keys in use, without their secrets")
    verbs.add_parser("revoke", help="end a key").add_argument("id")
    used = verbs.add_parser("usage", help="requests, tokens, seconds and cost")
    used.add_argument("--by", choices=TOTALLED, default="key")
    used.add_argument("--days", type=float, default=1.0)
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _show(rows: list[dict]) -> int:
    for row in rows:
        print("  ".join(f"{name}={','.join(v) if isinstance(v, tuple) else v}" for name, v in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
