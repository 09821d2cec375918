"""Which weights of SAM 2 a run trains, LoRA inside it, and its weights as stock SAM 2 again."""

from __future__ import annotations

from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

Mode = Literal["full", "lora", "none"]

# Parts that can have LoRA, and its layers in them: those of attention.
LORA_TARGETS = {
    "image_encoder": r"image_encoder\.trunk\.blocks\.\d+\.attn\.(qkv|proj)",
    "memory_attention": r"memory_attention\.layers\.\d+\.(self_attn|cross_attn_image)\.(q|k|v|out)_proj",
    "sam_mask_decoder": r"sam_mask_decoder\.transformer\..*\.(q|k|v|out)_proj",
}


def make_trainable(
    sam2: SAM2Base, modes: dict[str, Mode], others: bool, *, rank: int = 16, alpha: int = 32, dropout: float = 0.0
) -> None:
    """Freeze what is not trained, and put LoRA where it is asked for, in place.

    modes: of every part in `LORA_TARGETS`. others: whether everything else is trained (prompt and memory encoder, and
    the embeddings beside them). Raises ValueError when nothing is left to train.
    """
    wanted = [LORA_TARGETS[part] for part, mode in modes.items() if mode == "lora"]
    if wanted:
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="|".join(wanted))
        inject_adapter_in_model(config, sam2)
    for name, parameter in sam2.named_parameters():
        mode = modes.get(name.split(".")[0], "full" if others else "none")
        parameter.requires_grad_(mode == "full" or (mode == "lora" and is_lora(name)))
    if not any(parameter.requires_grad for parameter in sam2.parameters()):
        raise ValueError("nothing is trained: set one of the `train_...` arguments")


def is_lora(name: str) -> bool:
    return ".lora_" in name


def has_lora(sam2: SAM2Base) -> bool:
    return any(isinstance(module, LoraLayer) for module in sam2.modules())


@torch.no_grad()
def merged_state(sam2: SAM2Base) -> dict[str, Tensor]:
    """The state dict of the stock SAM 2 that computes the same: LoRA added to the weights it belongs to."""
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in sam2.state_dict().items() if not is_lora(name)
    }
    for name, module in sam2.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.active_adapters
            state[f"{name}.weight"] = module.get_base_layer().weight + module.get_delta_weight(adapter)
    return state
