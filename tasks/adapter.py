"""A LoRA adapter: put on a base model, kept as one flat vector while it trains, and written as a PEFT folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from data.records import file_sha256
from tasks.checkpoints import COMPLETE
from tasks.losses import attend


def adapted_model(base: str, training, device: str, dtype, start: str | None = None):
    """The frozen base with a LoRA adapter on each linear layer but the output, and the adapter's parameters.

    A new adapter of `training`'s rank, alpha and seed, or the weights in the folder `start`.
    """
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register("branches", attend)
    torch.manual_seed(training.seed)  # every worker starts from the same adapter
    loaded = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation="branches", use_safetensors=True, trust_remote_code=False
    )
    lora = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded, lora, autocast_adapter_dtype=False).to(device)
    if start:
        set_peft_model_state_dict(model, load_file(Path(start) / "adapter_model.safetensors"))
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def spread(master, adapted) -> None:
    """Copy the flat float32 parameters into the model's own."""
    at = 0
    for parameter in adapted:
        parameter.data.copy_(master.data[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()


def gather(adapted, flat) -> None:
    """Move the gradients of the adapter into `flat` (float32)."""
    at = 0
    for parameter in adapted:
        if parameter.grad is not None:
            flat[at : at + parameter.numel()] += parameter.grad.reshape(-1)
            parameter.grad = None
        at += parameter.numel()


def save_adapter(model, adapted, master, folder: Path) -> None:
    """The adapter in float32 as a PEFT folder; COMPLETE last."""
    shutil.rmtree(folder, ignore_errors=True)
    for parameter in adapted:
        parameter.data = parameter.data.float()
    spread(master, adapted)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / COMPLETE).write_text(file_sha256(folder / "adapter_model.safetensors"))
