"""Which weights of a SAM a run trains, LoRA inside it, and its weights as those of the stock network again."""

from __future__ import annotations

from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

Mode = Literal["full", "lora", "none"]

# Parts of SAM 2 and SAM 3 that can have LoRA, and its layers in them: those of attention.
LORA_TARGETS = {
    "image_encoder": r"image_encoder\.trunk\.blocks\.\d+\.attn\.(qkv|proj)",
    "vision_encoder": r"vision_encoder\.backbone\.layers\.\d+\.attention\.(q|k|v|o)_proj",
    "memory_attention": r"memory_attention\.layers\.\d+\.(self_attn|cross_attn_image)\.(q|k|v|o|out)_proj",
    "sam_mask_decoder": r"sam_mask_decoder\.transformer\..*\.(q|k|v|out)_proj",
    "mask_decoder": r"mask_decoder\.transformer\..*\.(q|k|v|o)_proj",
}


def make_trainable(
    network: nn.Module,
    modes: dict[str, Mode],
    others: bool,
    *,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    unread: tuple[str, ...] = (),
) -> None:
    """Freeze what is not trained, and put LoRA where it is asked for, in place.

    modes: of every part of this network in `LORA_TARGETS`. others: whether everything else is trained (prompt and
    memory encoder, and the embeddings beside them). unread: modules that stay frozen, since nothing reads what they
    compute. Raises ValueError when nothing is left to train.
    """
    wanted = [LORA_TARGETS[part] for part, mode in modes.items() if mode == "lora"]
    if wanted:
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="|".join(wanted))
        inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        mode = modes.get(name.split(".")[0], "full" if others else "none")
        parameter.requires_grad_(mode == "full" or (mode == "lora" and is_lora(name)))
    for name in unread:
        network.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("nothing is trained: set one of the `train_...` arguments")


def is_lora(name: str) -> bool:
    return ".lora_" in name


def has_lora(network: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in network.modules())


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the stock network that computes the same: LoRA added to the weights it belongs to."""
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in network.state_dict().items() if not is_lora(name)
    }
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.active_adapters
            state[f"{name}.weight"] = module.get_base_layer().weight + module.get_delta_weight(adapter)
    return state
