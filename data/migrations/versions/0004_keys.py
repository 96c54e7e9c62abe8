"""Keys of the endpoint, by the sha256 of their secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "keys",
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


def downgrade() -> None:
    op.drop_table("keys")
