"""Golden sets by content hash: which questions each decision of the gate was taken on."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "golden_sets",
        sa.Column("assistant", sa.String, primary_key=True),
        sa.Column("sha", sa.String, primary_key=True),
        sa.Column("questions", sa.JSON),
        sa.Column("synthetic", sa.Integer),
        sa.Column("at", sa.Float),
    )


def downgrade() -> None:
    op.drop_table("golden_sets")
