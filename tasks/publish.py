"""Publish: an adapter merged into its base, exported to the file that is served, and proved to be what it claims.

The published folder holds the served file, the adapter, the record of the training, its loss as a picture and a model
card, and appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.records import Model, as_json, file_sha256
from settings import settings
from tasks import runs
from tasks.checkpoints import COMPLETE
from tasks.contexts import Rows

GGUF_NAME = "model.Q8_0.gguf"
PROMPTS = 20
WRITTEN = 24  # tokens of each answer that are compared
AGREEMENT = 0.9


def publish(
    adapter: Path, base_weights: Path, base: Model, target: Path, work: Path, template: Path | None = None
) -> Model:
    """Merge `adapter` into the float32 base, export, prove that the file is what it claims, and write its record.

    `work` holds rows.npz and record.json of the training. `target` appears whole or not at all, with the model card and
    the loss as a picture; `template` as in export_gguf. Raises ValueError when the adapter changed nothing, is not
    finite, or the file that would be served does not answer as base and adapter do.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from serving.engine.export import export_gguf

    record = json.loads((work / "record.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(base_weights, dtype=torch.float32, use_safetensors=True)
    adapted = PeftModel.from_pretrained(loaded, adapter)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name and not (torch.isfinite(weight).all() and weight.any()):
            raise ValueError(f"{name} is zero or not finite: training changed nothing or diverged; look at {work}")
    prompts = shortest_prompts(Rows.load(work / "rows.npz"), PROMPTS)
    moved = change(adapted.eval(), prompts[:4])
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        merged = adapted.merge_and_unload()
        served = export_gguf(merged, staging / GGUF_NAME, template)
        if (same := unchanged(served, Path(base.uri))) > 0.1:
            raise ValueError(f"{same:.0%} of the exported matrices equal the base's: the adapter was not merged")
        weights = shutil.copytree(adapter, staging / "adapter") / "adapter_model.safetensors"
        made = Model(file_sha256(served), GGUF_NAME, "openvino", base.base, file_sha256(weights), "adapter")
        encoder = AutoTokenizer.from_pretrained(base_weights)
        agreed = agreement(merged, replace(made, uri=str(served)), encoder, prompts)
        if agreed < AGREEMENT:
            raise ValueError(
                f"of what the exported file writes, {agreed:.0%} is what base and adapter write: do not serve"
            )
        record["proof"] = {"prompts": len(prompts), "moved": moved, "agreement": agreed, "tolerance": AGREEMENT}
        (staging / "training.json").write_text(json.dumps(record))
        runs.plot(record, staging / "loss.png")
        (staging / "README.md").write_text(runs.card(record, made, prices()))
        (staging / "model.json").write_text(json.dumps(as_json(made)))
        (staging / COMPLETE).write_text(made.sha256)
        staging.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read(target)


def prices() -> str:
    """The prices that costs are computed with, in words."""
    return f"{settings().price_cpu_hour} a CPU hour and {settings().price_gpu_hour} a GPU hour"


def shortest_prompts(data: Rows, number: int) -> list[list[int]]:
    """Token ids of the first prompt of the shortest rows."""
    chosen = np.argsort(data.lengths, kind="stable")[:number]
    parts = [data.row(int(at)) for at in chosen]
    return [ids[(branches <= 1) & (learn == 0)].tolist() for ids, _, branches, learn in parts]


def change(adapted, prompts: list[list[int]]) -> float:
    """How far the adapter moves the scores of the next token: root mean square, in standard deviations of the base's.

    Raises ValueError when it moves none.
    """
    import torch

    moved = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            with adapted.disable_adapter():
                before = adapted(ids).logits[0, -1]
            moved.append(((adapted(ids).logits[0, -1] - before).square().mean().sqrt() / before.std()).item())
    if not min(moved) > 1e-4:
        raise ValueError("the adapter leaves the base's answers as they are: training changed nothing")
    return float(np.mean(moved))


def agreement(merged, served: Model, encoder, prompts: list[list[int]]) -> float:
    """Share (0 to 1) of the tokens the served file writes that `merged` writes after the same tokens, greedily."""
    import torch

    from data.records import Decoding
    from serving.engine import open_engine

    engine = open_engine(served)
    texts = [encoder.decode(prompt) for prompt in prompts]
    answers = engine.generate(texts, Decoding(max_new_tokens=WRITTEN))
    engine.close()
    same, counted = 0, 0
    with torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            written = encoder(answer.text, add_special_tokens=False).input_ids
            ids = torch.tensor([prompt + written])
            predicted = merged(ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
            same += int((predicted == ids[0, len(prompt) :]).sum())
            counted += len(written)
    return same / max(counted, 1)


def read(folder: Path) -> Model:
    """The Model record of a published folder, with its files' places as they are now."""
    made = json.loads((folder / "model.json").read_text())
    places = {"uri": str(folder / GGUF_NAME), "adapter_uri": str(folder / "adapter" / "adapter_model.safetensors")}
    return Model.of(made | places)


def unchanged(path: Path, other: Path) -> float:
    """Share of the layer matrices (not norms or embeddings) that are byte for byte equal in two GGUF files."""
    from gguf import GGUFReader

    others = {tensor.name: tensor.data for tensor in GGUFReader(other).tensors}
    matrices = [t for t in GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return float(np.mean([np.array_equal(tensor.data, others[tensor.name]) for tensor in matrices]))
