"""Fine-tune: a LoRA adapter on the base model in Ray Train, merged and exported to the file that is served.

The adapter learns to answer from passages as they are served: prompts by serving.rag.build_prompt, passages by the
release's own retrieval, loss on the completions alone. Rows are explained in tasks/contexts.py, the loop is in
tasks/training.py.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data.records import IndexVersion, Model, Prompt, Retrieval, Snapshot, as_json, digest, file_sha256
from settings import settings
from tasks.cluster import connect
from tasks.contexts import Rows, bind, contexts, rows
from tasks.training import COMPLETE, Training, train_loop_per_worker

CODE = "1"  # raise when this module, contexts.py or training.py changes what is trained
TOKENS_PER_S = 700  # about twice what one CPU worker trains: bounds how many rows are prepared for a time budget
GGUF_NAME = "model.Q8_0.gguf"


def finetune(
    snapshot: Snapshot,
    index: IndexVersion,
    prompt: Prompt = Prompt(),
    retrieval: Retrieval = Retrieval(),
    training: Training = Training(),
    base: str | None = None,
) -> Model:
    """The tuned model for these inputs, under settings().models/tuned/<key>; a second call reads its record.

    `base`: as in serving.engine.bases.find, None for the embedded one; the prompt has to be in its chat format. Needs
    Ray: initialised, or reachable at settings().ray. Interrupted training goes on from its last complete checkpoint.
    Raises ValueError when there is nothing to train on, or training diverged or changed nothing.
    """
    import ray

    from serving.engine.bases import find

    of = find(base)
    workers = training.workers or settings().training_workers
    key = digest("finetune", CODE, snapshot.id, index.checksum, prompt, retrieval, training, workers, of.model.sha256)[
        :24
    ]
    target = settings().models / "tuned" / key
    if (target / COMPLETE).exists():
        return read(target)
    work = target.with_name(f".{key}.work")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "rows.npz").exists():
        training_rows(snapshot, index, prompt, retrieval, training, workers, of.folder).save(work / "partial.npz")
        os.replace(work / "partial.npz", work / "rows.npz")
    connect()
    if not (work / "adapter" / COMPLETE).exists():
        train(work, training, workers, f"{snapshot.assistant}-{key}", of.folder)
    # In a process of its own: merging holds the base in float32 twice, which would stay with the flow to its end
    publishing = ray.remote(num_cpus=0, max_calls=1)(publish)
    made = ray.get(publishing.remote(work / "adapter", Path(of.folder), of.model, target, work / "training.json"))
    shutil.rmtree(work)
    return made


def training_rows(
    snapshot: Snapshot,
    index: IndexVersion,
    prompt: Prompt,
    retrieval: Retrieval,
    training: Training,
    workers: int,
    base: str,
) -> Rows:
    """The rows for a run, in tokens of the model in the folder `base`: as many as could be trained on in the budget."""
    from tokenizers import Tokenizer

    from data.embedding import load
    from data.snapshots import examples
    from data.store import open_index
    from serving.chat import chat_format
    from serving.engine.models import embedder_folder
    from serving.rag import build_prompt, retrieve_many

    searched, embedder = open_index(index), load(embedder_folder())
    encoder = Tokenizer.from_file(str(Path(base) / "tokenizer.json"))
    # By section, so that the examples of a chosen section come together and share their context
    chosen = sorted(examples(snapshot), key=lambda e: (digest(e.document, e.section, training.seed), e.question))
    mixture, seed = training.mixture, training.seed

    def search(questions):
        return [[hit.chunk for hit in hits] for hits in retrieve_many(questions, searched, embedder, retrieval)]

    bound, lost = bind(chosen[: training.most_examples], searched.chunks(), search)
    made = rows(
        contexts(bound, search, retrieval.top_k, mixture, training.passes, seed),
        build=lambda question, chunks: build_prompt(prompt, question, chunks),
        encode=lambda text: encoder.encode(text, add_special_tokens=False).ids,
        abstain=prompt.abstain,
        mixture=mixture,
        chat=chat_format(prompt.chat),
        tokens=1 << 40 if settings().training_gpu else int(training.minutes * 60 * TOKENS_PER_S * workers),
    )
    left = f"; {lost} left out, no passage holds their answers" if lost else ""
    print(f"finetune: {len(bound)} examples, {len(made.lengths)} contexts of {made.lengths.mean():.0f} tokens{left}")
    return made


def train(work: Path, training: Training, workers: int, name: str, base: str) -> None:
    """Run `train_loop_per_worker` on `workers` Ray Train workers; leaves `work`/adapter and `work`/training.json."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = settings().training_gpu
    config = {"work": str(work), "base": base, "training": asdict(training)}
    config |= {"gpu": gpu, "yields": not gpu}
    TorchTrainer(
        train_loop_per_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            # Ray Train silently resumes a run whose name it knows: names are new, resuming is by our own checkpoints
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(settings().home / "training"),
            failure_config=FailureConfig(max_failures=2),
        ),
    ).fit()


def publish(
    adapter: Path, base_weights: Path, base: Model, target: Path, figures: Path, template: Path | None = None
) -> Model:
    """Write the Model record of `adapter`: merged and exported, or kept apart where the base is served by Transformers.

    `target` appears whole or not at all; `template` as in export_gguf, by default the base's own file. Raises
    ValueError when the adapter is not one of this base, changed nothing or is not finite.
    """
    import torch
    from peft import PeftModel

    from serving.engine import artifact_sha256
    from serving.engine.export import export_gguf, load
    from serving.engine.safety import check_adapter

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (staging / "adapter").mkdir()
        shutil.copy(adapter / "adapter_model.safetensors", staging / "adapter")
        described = json.loads((adapter / "adapter_config.json").read_text())
        described["base_model_name_or_path"] = f"sha256:{base.base}"
        (staging / "adapter" / "adapter_config.json").write_text(json.dumps(described))
        check_adapter(staging / "adapter", base_weights, base.base)
        adapted = PeftModel.from_pretrained(load(base_weights), staging / "adapter")
        for name, weight in adapted.named_parameters():
            if "lora_B" in name and not (torch.isfinite(weight).all() and weight.any()):
                raise ValueError(f"{name} is zero or not finite: training changed nothing or diverged; see {figures}")
        sha256 = file_sha256(staging / "adapter" / "adapter_model.safetensors")
        if base.engine == "transformers":
            made = Model(artifact_sha256(base.uri, sha256), base.uri, base.engine, base.base, sha256, "adapter")
        else:
            served = export_gguf(adapted.merge_and_unload(), staging / GGUF_NAME, template or Path(base.uri))
            if (same := unchanged(served, Path(base.uri))) > 0.1:
                raise ValueError(f"{same:.0%} of the exported matrices equal the base's: the adapter was not merged")
            made = Model(file_sha256(served), GGUF_NAME, base.engine, base.base, sha256, "adapter")
        shutil.copy(figures, staging / "training.json")
        (staging / "model.json").write_text(json.dumps(as_json(made)))
        (staging / COMPLETE).write_text(made.sha256)
        staging.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read(target)


def read(folder: Path) -> Model:
    """The Model record of a published folder, with its files' places as they are now."""
    made = json.loads((folder / "model.json").read_text())
    uri = made["uri"] if made["engine"] == "transformers" else str(folder / GGUF_NAME)
    places = {"uri": uri, "adapter_uri": str(folder / "adapter" / "adapter_model.safetensors")}
    return Model.of(made | places)


def unchanged(path: Path, other: Path) -> float:
    """Share of the layer matrices (not norms or embeddings) that are byte for byte equal in two GGUF files."""
    from gguf import GGUFReader

    others = {tensor.name: tensor.data for tensor in GGUFReader(other).tensors}
    matrices = [t for t in GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return float(np.mean([np.array_equal(tensor.data, others[tensor.name]) for tensor in matrices]))
