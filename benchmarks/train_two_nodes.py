"""The loss curve of two workers on two Ray nodes against one worker's, beside what another seed changes.

Two nodes of one CPU each on this machine, so a worker goes to each. The same rows, the same seed, the same steps; one
worker also runs with two more seeds: the mean and the largest difference between any two of its curves is the noise.
Compared at every step, and on the questions of held-out articles, where the order of the rows plays no part.
"""

from itertools import combinations

from benchmarks.machine import home

AIM = "same loss curve within noise"
EXAMPLES, CHECKED, HELD_ARTICLES, SEEDS = 240, 30, 16, (0, 1, 2)
ROW_TOKENS, ROWS_PER_STEP = 256, 2  # small steps: a curve of many points in little time


def met(value: dict) -> bool:
    return value["nodes"] == 2 and all(value[curve]["mean"] <= value[curve]["noise_mean"] for curve in ("step", "held"))


def measure() -> dict:
    """Differences of loss (cross-entropy per answer token); `ratio`: mean difference over the mean between seeds."""
    with home() as folder:
        import ray
        from ray.cluster_utils import Cluster

        from benchmarks import tuning
        from serving.engine.models import base_folder
        from tasks import finetune
        from tasks.training import Training

        others, test = tuning.apart(tuning.questions(tuning.WIKI), HELD_ARTICLES)
        learned, checked = tuning.some(others, EXAMPLES), tuning.some(test, CHECKED)
        trained, held = tuning.made(learned), tuning.made(checked)

        def training(seed: int) -> Training:
            return Training(
                minutes=None, passes=1, row_tokens=ROW_TOKENS, rows_per_step=ROWS_PER_STEP, patience=99, seed=seed
            )

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            nodes = sum(one["Alive"] and one["Resources"].get("CPU") == 1 for one in ray.nodes())
            finetune.save(folder / "two", trained, held)
            finetune.train(folder / "two", training(SEEDS[0]), 2, "two-nodes", str(base_folder()))
        finally:
            ray.shutdown()
            cluster.shutdown()
        two = tuning.figures(folder / "two")
        alone = [tuning.train(folder / f"one{seed}", trained, held, training(seed), 1) for seed in SEEDS]
    value = {"nodes": nodes, "workers": two["workers"], "dtype": sorted({run["dtype"] for run in (two, *alone)})}
    for curve in ("step", "held"):
        between = [gap(one, other, curve) for one, other in combinations(alone, 2)]
        found = gap(two, alone[0], curve)
        noise = {"mean": sum(mean for mean, _ in between) / len(between), "max": max(most for _, most in between)}
        value[curve] = {
            "mean": round(found[0], 4),
            "max": round(found[1], 4),
            "noise_mean": round(noise["mean"], 4),
            "noise_max": round(noise["max"], 4),
            "ratio": round(found[0] / noise["mean"], 3),
        }
    n = {"steps": two["steps"], "checks": len(two["held_out"]), "seeds": len(SEEDS), "examples": len(learned)}
    return {"value": value, "n": n, "against": "one worker, and its spread between seeds", "limit": None}


def gap(one: dict, other: dict, curve: str) -> tuple[float, float]:
    """Mean and largest difference of two runs' losses, of every step or of every check."""
    sides = [run["losses"] if curve == "step" else [loss for _, loss in run["held_out"]] for run in (one, other)]
    apart = [abs(a - b) for a, b in zip(*sides, strict=True)]
    return sum(apart) / len(apart), max(apart)
