"""Alembic environment of the ledger: one engine from the configured URL."""

import sqlalchemy as sa
from alembic import context

from data.tables import metadata

url = context.config.get_main_option("sqlalchemy.url")
with sa.create_engine(url).connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
