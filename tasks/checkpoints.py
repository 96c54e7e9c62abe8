"""What training has reached, on disk: whole or not at all, verified before it is used."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from data.records import file_sha256

COMPLETE = "COMPLETE"
KEPT = 2


@dataclass
class Progress:
    """How far training is. `losses`: of every step; `held_out`: [step, loss] of every check; `best`: the lowest of
    those, `stale`: how many checks since then; `checks`: for how many tenths of the budget, `check_s`: in how long.
    """

    step: int = 0
    elapsed: float = 0.0
    cpu_s: float = 0.0
    tokens: int = 0
    best: float | None = None
    stale: int = 0
    checks: int = 0
    check_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out: list[list[float]] = field(default_factory=list)

    def stepped(self, loss: float, tokens: int, elapsed: float, cpu_s: float) -> None:
        """Count one step: its mean loss, the tokens it read, the run's time so far, processor time of all workers."""
        self.step, self.tokens, self.elapsed, self.cpu_s = (
            self.step + 1,
            self.tokens + tokens,
            elapsed,
            self.cpu_s + cpu_s,
        )
        self.losses.append(round(loss, 4))

    def checked(self, loss: float, seconds: float, tenth: int) -> bool:
        """Count one check on held-out examples; whether it is the best so far."""
        self.checks, self.check_s = tenth, self.check_s + seconds
        self.held_out.append([self.step, round(loss, 4)])
        better = self.best is None or loss < self.best
        self.best, self.stale = (loss, 0) if better else (self.best, self.stale + 1)
        return better


def checkpoint(folder: Path, progress: Progress, tensors: dict) -> bool:
    """Write the tensors, then COMPLETE with their sha256 and the progress; keep this one and the one before.

    False, with a line that says so, when the disk is full: training goes on, and from an earlier checkpoint if it is
    cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    place = folder / f"{progress.step:08d}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, place / "state.safetensors")
        marker = {"sha256": file_sha256(place / "state.safetensors"), "progress": vars(progress)}
        (place / "COMPLETE.partial").write_text(json.dumps(marker))
        os.replace(place / "COMPLETE.partial", place / COMPLETE)
    except (OSError, SafetensorError) as error:  # safetensors says what the system said in its text alone
        if not full(error):
            raise
        shutil.rmtree(place, ignore_errors=True)
        print(f"finetune: no room for a checkpoint at {folder}, going on without; free some space", flush=True)
        return False
    whole = sorted(other.name for other in folder.iterdir() if (other / COMPLETE).exists())
    for older in folder.iterdir():
        if older.name < whole[-KEPT:][0]:
            shutil.rmtree(older, ignore_errors=True)
    return True


def full(error: Exception) -> bool:
    """Whether an error says that a disk or a quota is full."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in known or any(os.strerror(number) in str(error) for number in known)


def restore(folder: Path, device: str) -> tuple[Progress, dict]:
    """Progress and tensors of the newest whole checkpoint; of none, a fresh Progress and nothing."""
    from safetensors.torch import load_file

    for place in sorted(folder.glob("*"), reverse=True):
        if not (place / COMPLETE).exists():
            continue
        marker = json.loads((place / COMPLETE).read_text())
        if file_sha256(place / "state.safetensors") != marker["sha256"]:
            print(f"finetune: {place} does not match its hash, going back to an earlier checkpoint", flush=True)
            continue
        return Progress(**marker["progress"]), load_file(place / "state.safetensors", device=device)
    return Progress(), {}
