"""Tokens a second of the product's loop on one GPU, against plain PEFT training in bf16, and the limit of the GPU.

Needs nothing but the repository: PERENNIAL_BASE names the folder of a causal LM of Hugging Face; without it one of the
sizes of SmolLM2-135M is made from a config, whose weights are random, since they have no part in speed. So are the
tokens: paragraphs with five questions each, of lengths as in SQuADShifts. A token counts as often as it is in a
sequence for each question, however few times a side reads it.
"""

import os
import tempfile
from pathlib import Path

AIM = "more tokens/s than plain PEFT in bf16, wherever a GPU is"
DEVICE = "cuda"
PARAGRAPHS, QUESTIONS = 1000, 5
PARAGRAPH, QUESTION, ANSWER = (130, 400), (14, 34), (2, 12)
STEPS = {"default": (512, 4), "long": (2048, 1)}  # row_tokens and rows_per_step: as many tokens a step
SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


def met(value: dict) -> bool:
    return "ratio" in value and value["ratio"] > 1


def measure() -> dict:
    """The loop with its default stretches and with longer ones, and the Trainer; ratio: the faster loop to Trainer."""
    import torch

    against = "PEFT + Transformers Trainer, bf16, grouped by length, padded batches of 8"
    if DEVICE == "cuda" and not torch.cuda.is_available():
        return {"value": {"gpu": "none found"}, "n": 0, "against": against, "limit": None}
    from benchmarks import trainer
    from benchmarks.train_efficiency import flop, gemm, shapes
    from tasks.training import Training

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = Path(os.environ.get("PERENNIAL_BASE") or model(folder / "base"))
        packed, single = drawn(QUESTIONS), drawn(1)
        sizes, tokens = shapes(base), int(single.lengths.sum())
        ours = {}
        for name, (row_tokens, each) in STEPS.items():
            training = Training(minutes=None, passes=1, row_tokens=row_tokens, rows_per_step=each)
            ours[name] = loop(folder / name, packed, base, training)
        theirs = trainer.train(folder / "theirs", base, single, Training(), True, device=DEVICE)
        limit = gemm(sizes["layer"], torch.bfloat16, DEVICE, rows=STEPS["long"][0])
        needed = sum(flop(packed, sizes, Training().rank).values())
    per_s = {name: round(tokens / run["elapsed"]) for name, run in ours.items()}
    per_s["theirs"] = round(tokens / theirs["seconds"])
    best = min(ours.values(), key=lambda run: run["elapsed"])
    value = {
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "ratio": round(theirs["seconds"] / best["elapsed"], 2),
        "tokens_per_s": per_s,
        "read_per_s": round(best["tokens_per_s"]),
        "efficiency": round(needed / best["elapsed"] / limit, 3),
        "gemm_tflop_per_s": round(limit / 1e12, 2),
        "memory_mb": {name: run["memory_mb"] for name, run in ours.items()},
        "dtype": {name: run["dtype"] for name, run in (*ours.items(), ("theirs", theirs))},
    }
    n = {"questions": len(single.lengths), "paragraphs": len(packed.lengths), "tokens": tokens}
    return {"value": value, "n": n, "against": against, "limit": "1.0 of the GPU's matrix products"}


def loop(work: Path, packed, base: Path, training) -> dict:
    """What the product's loop leaves after one pass in this process."""
    from dataclasses import asdict

    import torch

    from benchmarks.tuning import figures
    from tasks.training import train_loop_per_worker

    work.mkdir()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    packed.save(work / "rows.npz")
    config = {"work": str(work), "base": str(base), "training": asdict(training), "gpu": DEVICE == "cuda"}
    train_loop_per_worker(config)
    return figures(work)


def drawn(together: int):
    """Rows of random tokens: PARAGRAPHS x QUESTIONS questions, `together` of a paragraph in a row."""
    import random

    from tasks.contexts import joined, row

    rng, parts = random.Random(0), []
    for _ in range(PARAGRAPHS):

        def some(length: tuple[int, int]) -> list[int]:
            return [rng.randrange(100, 40_000) for _ in range(rng.randint(*length))]

        paragraph = some(PARAGRAPH)
        asked = [(paragraph + some(QUESTION), some(ANSWER)) for _ in range(QUESTIONS)]
        parts += [row(*zip(*asked[at : at + together], strict=True)) for at in range(0, QUESTIONS, together)]
    return joined(parts)


def model(folder: Path) -> Path:
    """A Llama of SIZES with random weights and a tokenizer of single words, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
    return folder
