"""Whose documents an answer was given from, beside what was said about it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("feedback", sa.Column("tenant", sa.String))


def downgrade() -> None:
    with op.batch_alter_table("feedback") as batch:
        batch.drop_column("tenant")
