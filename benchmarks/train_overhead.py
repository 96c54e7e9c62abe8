"""Seconds that Ray Train adds to a training: `tasks.finetune.train` against the same loop in two plain processes.

Both sides train the same rows with the same settings, in turn. Fixed: all that is not the loop's own clock (starting
workers, loading the model, reporting, ending), on Ray Train less what plain processes need for it. Ray itself runs
already, as it does in the product. Medians over the rounds.
"""

import time

from benchmarks.machine import home

AIM = "at most 25 s + 2%"
EXAMPLES, ROUNDS, WORKERS, SEED = 250, 3, 2, 0


def met(value: dict) -> bool:
    return value["fixed_s"] <= 25 and value["slower"] <= 0.02


def measure() -> dict:
    """`slower`: by what share the loop's own clock runs longer inside Ray Train."""
    with home() as folder:
        import numpy as np
        import ray

        from benchmarks import tuning
        from serving.engine.models import base_folder
        from tasks import finetune
        from tasks.training import Training

        training = Training(minutes=None, passes=1, seed=SEED)
        learned = tuning.some(tuning.questions(tuning.WIKI), EXAMPLES, SEED)
        trained = tuning.made(learned, 1, SEED)
        ray.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(folder / "ray"),
        )
        walls: dict[str, list[float]] = {"plain": [], "ray": []}
        loops: dict[str, list[float]] = {"plain": [], "ray": []}
        for number in range(ROUNDS):
            start = time.monotonic()
            done = tuning.train(folder / f"plain{number}", trained, None, training, WORKERS, yields=True)
            walls["plain"].append(time.monotonic() - start)
            loops["plain"].append(done["elapsed"])
            work = folder / f"ray{number}"
            start = time.monotonic()
            finetune.save(work, trained, None)
            finetune.train(work, training, WORKERS, f"overhead-{number}", str(base_folder()))
            walls["ray"].append(time.monotonic() - start)
            loops["ray"].append(tuning.figures(work)["elapsed"])
        ray.shutdown()
    wall = {side: float(np.median(seconds)) for side, seconds in walls.items()}
    loop = {side: float(np.median(seconds)) for side, seconds in loops.items()}
    around = {side: float(np.median(np.subtract(walls[side], loops[side]))) for side in walls}
    value = {
        "fixed_s": round(around["ray"] - around["plain"], 1),
        "slower": round(loop["ray"] / loop["plain"] - 1, 4),
        "wall_s": {side: round(seconds, 1) for side, seconds in wall.items()},
        "loop_s": {side: [round(one, 1) for one in seconds] for side, seconds in loops.items()},
        "around_s": {side: round(seconds, 1) for side, seconds in around.items()},
    }
    n = {"rounds": ROUNDS, "examples": len(learned), "tokens": done["tokens"]}
    return {"value": value, "n": n, "against": "the same loop in plain PyTorch processes", "limit": None}
