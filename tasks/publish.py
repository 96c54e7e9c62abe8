"""Publish: an adapter merged into its base, exported to the file that is served, and proved to be what it claims.

The published folder holds the served file, the adapter, the record of the training, its loss as a picture and a model
card, and appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.records import Model, as_json, file_sha256
from serving.engine.bases import agrees, regret
from serving.engine.models import written_whole
from settings import settings
from tasks import runs
from tasks.checkpoints import COMPLETE
from tasks.contexts import Rows

GGUF_NAME = "model.Q8_0.gguf"
PROMPTS = 20
WRITTEN = 24  # tokens of each answer that are compared


def publish(
    adapter: Path, base_weights: Path, base: Model, target: Path, work: Path, template: Path | None = None
) -> Model:
    """Write the Model record of `adapter`: merged and exported, or kept apart where the base is served by Transformers.

    `work` holds rows.npz and record.json of the training; `template` as in export_gguf, by default the base's own file.
    Raises ValueError when the adapter is not one of this base, changed nothing, is not finite, or what would be served
    does not answer as base and adapter do.
    """
    import torch
    from peft import PeftModel

    from serving.engine import artifact_sha256
    from serving.engine.export import export_gguf, load
    from serving.engine.safety import check_adapter

    record = json.loads((work / "record.json").read_text())
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as staging:
        weights = signed(adapter, base.base, staging / "adapter")
        check_adapter(staging / "adapter", base_weights, base.base)
        adapted = PeftModel.from_pretrained(load(base_weights), staging / "adapter").eval()
        for name, weight in adapted.named_parameters():
            if "lora_B" in name and not (torch.isfinite(weight).all() and weight.any()):
                raise ValueError(f"{name} is zero or not finite: training changed nothing or diverged; look at {work}")
        prompts = shortest_prompts(Rows.load(work / "rows.npz"), PROMPTS)
        moved, sha256 = change(adapted, prompts[:4]), file_sha256(weights)
        merged = adapted.merge_and_unload()
        if base.engine == "transformers":
            made = Model(artifact_sha256(base.uri, sha256), base.uri, base.engine, base.base, sha256, "adapter")
            served = replace(made, adapter_uri=str(weights))
        else:
            file = export_gguf(merged, staging / GGUF_NAME, template or Path(base.uri))
            if (same := unchanged(file, Path(base.uri))) > 0.1:
                raise ValueError(f"{same:.0%} of the exported matrices equal the base's: the adapter was not merged")
            made = Model(file_sha256(file), GGUF_NAME, base.engine, base.base, sha256, "adapter")
            served = replace(made, uri=str(file))
        found = differences(merged, served, base_weights, prompts)
        proof = {"prompts": len(prompts), "moved": moved, "agreement": float((found == 0).mean())}
        record["proof"] = proof | {"regret": float(found.mean()), "worst": float(found.max())}
        if not agrees(found):
            told = record["proof"]
            raise ValueError(f"what would be served writes other tokens than base and adapter: {told}; look at {work}")
        (staging / "training.json").write_text(json.dumps(record))
        runs.plot(record, staging / "loss.png")
        (staging / "README.md").write_text(runs.card(record, made, prices()))
        (staging / "model.json").write_text(json.dumps(as_json(made)))
        (staging / COMPLETE).write_text(made.sha256)
    return read(target)


def signed(adapter: Path, base_sha256: str, target: Path) -> Path:
    """Copy an adapter to `target`, its description naming the base by sha256; the place of the weights."""
    target.mkdir()
    described = json.loads((adapter / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = f"sha256:{base_sha256}"
    (target / "adapter_config.json").write_text(json.dumps(described))
    return Path(shutil.copy(adapter / "adapter_model.safetensors", target))


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


def differences(merged, served: Model, folder: Path, prompts: list[list[int]]) -> np.ndarray:
    """How far each token that `served` writes greedily is from what `merged` writes there (see bases.regret)."""
    from tokenizers import Tokenizer

    from serving.engine import open_engine

    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine = open_engine(served)
    try:
        texts = [encoder.decode(prompt, skip_special_tokens=False) for prompt in prompts]
        return regret(engine, merged, encoder, texts, WRITTEN)
    finally:
        engine.close()


def read(folder: Path) -> Model:
    """The Model record of a published folder, with its files' places as they are now."""
    made = json.loads((folder / "model.json").read_text())
    uri = made["uri"] if made["engine"] == "transformers" else str(folder / GGUF_NAME)
    places = {"uri": uri, "adapter_uri": str(folder / "adapter" / "adapter_model.safetensors")}
    return Model.of(made | places)


def card(model: Model) -> Path | None:
    """The folder with the record and the card of a tuned model's training: its own, or card/ in it where the model came
    in a bundle. None for a model that came without them, or that is not tuned."""
    if model.adapter_uri is None:
        return None
    folder = Path(model.adapter_uri).parent.parent
    return next((place for place in (folder, folder / "card") if (place / "training.json").is_file()), None)


def unchanged(path: Path, other: Path) -> float:
    """Share of the layer matrices (not norms or embeddings) that are byte for byte equal in two GGUF files."""
    from gguf import GGUFReader

    others = {tensor.name: tensor.data for tensor in GGUFReader(other).tensors}
    matrices = [t for t in GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return float(np.mean([np.array_equal(tensor.data, others[tensor.name]) for tensor in matrices]))
