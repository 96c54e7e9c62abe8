"""Split tests: two accepted releases, the share of users that asks the second, and what came of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "splits",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("assistant", sa.String, index=True),
        sa.Column("a", sa.String),
        sa.Column("b", sa.String),
        sa.Column("share", sa.Float),
        sa.Column("plan", sa.JSON),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("verdict", sa.String),
        sa.Column("reason", sa.Text),
    )


def downgrade() -> None:
    op.drop_table("splits")
