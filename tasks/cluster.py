"""The Ray cluster that flows work on."""

from __future__ import annotations

from settings import settings


def connect() -> None:
    """Join the running Ray cluster; joining twice changes nothing."""
    import ray

    if not ray.is_initialized():
        # What this driver's workers print (the progress of training) is shown here.
        ray.init(address=settings().ray, namespace="perennial", log_to_driver=True, logging_level="warning")


def has_ray() -> bool:
    """Whether work can be given to Ray: inside a flow always, elsewhere where somebody has joined a cluster."""
    import ray
    from prefect.runtime import flow_run

    if flow_run.get_id() is not None:
        connect()
    return ray.is_initialized()
