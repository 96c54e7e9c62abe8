"""The other side of the figures of fine-tuning: PEFT and the Trainer of Transformers, as its users run them.

A sequence for each question, labels of -100 on the prompt, batches of 8 padded to their longest; all else is the
Trainer's default, but rank, alpha, targets, learning rate, warm-up and decay, which are the product's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tasks.contexts import Rows

CHECKS = 10


def train(work: Path, base: Path, single: Rows, training, tuned: bool, threads: int = 2, device: str = "cpu") -> dict:
    """One pass over rows of one question each, in a process of its own; what it left in `work`/trained.json.

    `dtype`; `seconds` of training; `checks`: for each tenth of the pass the seconds trained before it (the writing of
    earlier ones left out) and the folder of the adapter as it was then. `tuned`: batches grouped by length, and
    bfloat16, for the frozen base too, on a GPU and on a processor that computes it faster.
    """
    import torch

    work.mkdir(parents=True)
    single.save(work / "rows.npz")
    torch.multiprocessing.spawn(_train, (work, base, training, tuned, threads, device))
    return json.loads((work / "trained.json").read_text())


def sequences(single: Rows) -> list[dict[str, list[int]]]:
    """What the Trainer reads: a prompt and its answer, learned from the answer alone."""
    found = []
    for number in range(len(single.lengths)):
        ids, _, _, learn = single.row(number)
        labels = [int(token) if learned else -100 for token, learned in zip(ids, learn, strict=True)]
        found.append({"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": labels})
    return found


def _train(_, work: Path, base: Path, training, tuned: bool, threads: int, device: str) -> None:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would take every GPU there is

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from tasks.training import WARM_UP, fastest

    dtype = torch.float32
    if device == "cpu":
        torch.set_num_threads(threads)
        dtype = fastest(device) if tuned else dtype
    elif tuned:
        dtype = torch.bfloat16
    torch.manual_seed(training.seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
    lora = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    checks: list[tuple[float, str]] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.begun = time.monotonic()

        def on_step_end(self, _, state, __, **___):
            if state.global_step * CHECKS >= (len(checks) + 1) * state.max_steps:
                if device == "cuda":
                    torch.cuda.synchronize()
                start = time.monotonic()
                model.save_pretrained(work / str(state.global_step))
                checks.append((start - self.begun, str(work / str(state.global_step))))
                self.begun += time.monotonic() - start

    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = 0  # any will do: what is padded is masked
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work / "trainer"),
            num_train_epochs=1,
            learning_rate=training.learning_rate,
            warmup_steps=WARM_UP,
            bf16=dtype == torch.bfloat16,
            train_sampling_strategy="group_by_length" if tuned else "random",
            use_cpu=device == "cpu",
            seed=training.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=sequences(Rows.load(work / "rows.npz")),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Clock()],
    )
    trainer.train()
    done = {"dtype": str(dtype).removeprefix("torch."), "seconds": checks[-1][0], "checks": checks}
    (work / "trained.json").write_text(json.dumps(done))
