"""Flows. Prefect reads its addresses when it is imported, so they are in the environment before that."""

from settings import apply_environment

apply_environment()
