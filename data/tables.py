"""The tables of the ledger, as SQLAlchemy sees them; `data/migrations` makes them."""

import sqlalchemy as sa

metadata = sa.MetaData()
assistants = sa.Table(
    "assistants",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("sources", sa.JSON),
    sa.Column("snapshot", sa.JSON),
    sa.Column("live_release", sa.String),
    sa.Column("live_seq", sa.Integer, nullable=False, default=0),
    sa.Column("live_since", sa.Float),
    sa.Column("canary_release", sa.String),
    sa.Column("canary_share", sa.Float, nullable=False, default=0.0),
    sa.Column("paused", sa.Boolean, nullable=False, default=False),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("kind", sa.String),
    sa.Column("parent", sa.String),
    sa.Column("snapshot", sa.JSON),
    sa.Column("body", sa.JSON),
    sa.Column("at", sa.Float),
)
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("kind", sa.String),
    sa.Column("release", sa.String, index=True),
    sa.Column("verdict", sa.String),
    sa.Column("reason", sa.Text),
    sa.Column("body", sa.JSON),
    sa.Column("at", sa.Float),
)
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("release", sa.String, index=True),
    sa.Column("kind", sa.String),
    sa.Column("body", sa.JSON),
    sa.Column("at", sa.Float),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("kind", sa.String),
    sa.Column("cause", sa.String),
    sa.Column("body", sa.JSON),
    sa.Column("state", sa.String, index=True),
    sa.Column("claimed_by", sa.String),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("note", sa.Text),
    sa.Column("at", sa.Float),
    sa.Column("settled_at", sa.Float),
)
signals = sa.Table(
    "signals",
    metadata,
    sa.Column("assistant", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("state", sa.JSON),
)
feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("release", sa.String),
    sa.Column("response", sa.String),
    sa.Column("rating", sa.Integer),
    sa.Column("edit", sa.Text),
    sa.Column("comment", sa.Text),
    sa.Column("user", sa.String),
    sa.Column("at", sa.Float),
    sa.Column("owner", sa.String),
    sa.Column("question", sa.Text),
    sa.Column("answer", sa.Text),
    sa.Column("chunks", sa.JSON),
    sa.Column("tenant", sa.String),
)
reviews = sa.Table(
    "reviews",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("kind", sa.String),
    sa.Column("subject", sa.String),
    sa.Column("body", sa.JSON),
    sa.Column("state", sa.String),
    sa.Column("at", sa.Float),
    sa.Column("verdict", sa.String),
    sa.Column("reviewer", sa.String),
    sa.Column("answer", sa.Text),
    sa.Column("settled_at", sa.Float),
    sa.UniqueConstraint("assistant", "kind", "subject"),
)
golden_sets = sa.Table(
    "golden_sets",
    metadata,
    sa.Column("assistant", sa.String, primary_key=True),
    sa.Column("sha", sa.String, primary_key=True),
    sa.Column("questions", sa.JSON),
    sa.Column("synthetic", sa.Integer),
    sa.Column("at", sa.Float),
)
withdrawals = sa.Table(
    "withdrawals",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("feedback", sa.JSON),
    sa.Column("reason", sa.Text),
    sa.Column("by", sa.String),
    sa.Column("at", sa.Float),
)
trainings = sa.Table(
    "trainings",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("model", sa.String, index=True),
    sa.Column("snapshot", sa.String),
    sa.Column("feedback", sa.JSON),
    sa.Column("at", sa.Float),
)
tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("assistant", sa.String, primary_key=True),
    sa.Column("chunk", sa.String, primary_key=True),
)
keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("hash", sa.String, unique=True, nullable=False),
    sa.Column("owner", sa.String),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("scopes", sa.JSON),
    sa.Column("labels", sa.JSON),
    sa.Column("requests_per_minute", sa.Integer, nullable=False),
    sa.Column("tokens_per_day", sa.Integer, nullable=False),
    sa.Column("cost_per_day", sa.Float, nullable=False),
    sa.Column("at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)
