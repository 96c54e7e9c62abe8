"""The first schema of the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
TABLES = ("assistants", "releases", "decisions", "reports", "outbox", "signals", "feedback", "reviews", "tombstones")


def upgrade() -> None:
    op.create_table(
        "assistants",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("sources", sa.JSON),
        sa.Column("snapshot", sa.JSON),
        sa.Column("live_release", sa.String),
        sa.Column("live_seq", sa.Integer, nullable=False, server_default="0"),
        sa.Column("live_since", sa.Float),
        sa.Column("canary_release", sa.String),
        sa.Column("canary_share", sa.Float, nullable=False, server_default="0"),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "releases",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("kind", sa.String),
        sa.Column("parent", sa.String),
        sa.Column("snapshot", sa.JSON),
        sa.Column("body", sa.JSON),
        sa.Column("at", sa.Float),
    )
    op.create_table(
        "decisions",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("kind", sa.String),
        sa.Column("release", sa.String, index=True),
        sa.Column("verdict", sa.String),
        sa.Column("reason", sa.Text),
        sa.Column("body", sa.JSON),
        sa.Column("at", sa.Float),
    )
    op.create_table(
        "reports",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("release", sa.String, index=True),
        sa.Column("kind", sa.String),
        sa.Column("body", sa.JSON),
        sa.Column("at", sa.Float),
    )
    op.create_table(
        "outbox",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("kind", sa.String),
        sa.Column("cause", sa.String),
        sa.Column("body", sa.JSON),
        sa.Column("state", sa.String, index=True),
        sa.Column("claimed_by", sa.String),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("note", sa.Text),
        sa.Column("at", sa.Float),
        sa.Column("settled_at", sa.Float),
    )
    op.create_table(
        "signals",
        sa.Column("assistant", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("state", sa.JSON),
    )
    op.create_table(
        "feedback",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("release", sa.String),
        sa.Column("response", sa.String),
        sa.Column("rating", sa.Integer),
        sa.Column("edit", sa.Text),
        sa.Column("comment", sa.Text),
        sa.Column("user", sa.String),
        sa.Column("at", sa.Float),
    )
    op.create_table(
        "reviews",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("kind", sa.String),
        sa.Column("subject", sa.String),
        sa.Column("body", sa.JSON),
        sa.Column("state", sa.String),
        sa.Column("at", sa.Float),
        sa.UniqueConstraint("assistant", "kind", "subject"),
    )
    op.create_table(
        "tombstones",
        sa.Column("assistant", sa.String, primary_key=True),
        sa.Column("chunk", sa.String, primary_key=True),
    )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
