"""Low-rank adapters for transformers, through peft: trained beside frozen weights, then merged.

Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import EnvironmentLacks, UserError, to_install
from vcompress.export.modes import evaluating

from .. import quantization
from ..models.head import heads


@dataclass(frozen=True)
class Adapted:
    """A network with adapters in it."""

    tuner: Any
    """peft's `LoraModel` around the network."""
    layers: tuple[str, ...]
    trained: int
    """Parameters that learn: those of the adapters and the head."""

    def merge(self, example: Tensor) -> float:
        """Add the adapters to the weights and take them out: the network is a plain one again.

        Args:
            example: inputs `[N, C, H, W]`.

        Returns:
            The largest difference of the outputs before and after, over the largest output.

        Raises:
            UserError: it computes something else than before.
        """
        model = self.tuner.model
        model.eval()
        with torch.no_grad():
            before = model(example)
            self.tuner.merge_and_unload(safe_merge=True)
            after = model(example)
        error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-9))
        if not error < 1e-4:
            raise UserError(
                f"--lora: the merged network differs by {error:.2g} from the adapted one. "
                f"Fine-tune without --lora."
            )
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return error


def adapt(model: nn.Module, rank: int, example: Tensor, classes: int) -> Adapted:
    """Put adapters of `rank` beside every linear and attention layer but the head, in place; only
    they and the head will learn.

    Args:
        example: one input, `[1, C, H, W]`: layers that it does not pass are left alone.

    Raises:
        EnvironmentLacks: peft is not installed.
        UserError: a quantised network, or one without such layers.
    """
    try:
        import peft
    except ImportError:
        raise EnvironmentLacks(f"--lora needs peft: {to_install('lora')}.") from None
    if quantization.is_quantized(model):
        raise UserError("--lora is for float networks; this one is quantised.")
    last = heads(model, classes, example)
    layers = [name for name in _called(model, example) if name not in last]
    if not layers:
        raise UserError(
            "--lora adapts linear and attention layers, and this network has none beside its head. "
            "Use it for a ViT; for others there are --layer-decay and --freeze."
        )
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, bias="none")
    tuner = peft.LoraModel(model, {"default": config}, "default")
    for parameter in (p for path in last for p in model.get_submodule(path).parameters()):
        parameter.requires_grad_(True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Adapted(tuner, tuple(layers), trained)


def _called(model: nn.Module, example: Tensor) -> list[str]:
    """Linear and attention layers whose `forward` runs. Some networks take a layer's weight and
    call a function: an adapter beside such a layer would never be asked."""
    found: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: found.append(name))
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.MultiheadAttention)
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    attention = tuple(
        f"{name}." for name in found if isinstance(model.get_submodule(name), nn.MultiheadAttention)
    )
    # peft adapts an attention layer whole.
    return [name for name in dict.fromkeys(found) if not name.startswith(attention)]
