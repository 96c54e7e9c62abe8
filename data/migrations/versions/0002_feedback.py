"""Feedback as data: whose it is, what it was about, who reviewed it, what was withdrawn, which models it trained."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
ADDED = {
    "feedback": (
        sa.Column("owner", sa.String),
        sa.Column("question", sa.Text),
        sa.Column("answer", sa.Text),
        sa.Column("chunks", sa.JSON),
    ),
    "reviews": (
        sa.Column("verdict", sa.String),
        sa.Column("reviewer", sa.String),
        sa.Column("answer", sa.Text),
        sa.Column("settled_at", sa.Float),
    ),
}


def upgrade() -> None:
    for table, columns in ADDED.items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "withdrawals",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("feedback", sa.JSON),
        sa.Column("reason", sa.Text),
        sa.Column("by", sa.String),
        sa.Column("at", sa.Float),
    )
    op.create_table(
        "trainings",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("model", sa.String, index=True),
        sa.Column("snapshot", sa.String),
        sa.Column("feedback", sa.JSON),
        sa.Column("at", sa.Float),
    )


def downgrade() -> None:
    for table in ("trainings", "withdrawals"):
        op.drop_table(table)
    for table, columns in ADDED.items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column.name)
