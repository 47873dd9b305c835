"""Batch norm over the batches of all processes, on any device.

PyTorch's own `nn.SyncBatchNorm` takes no tensors on a CPU. This one does what it does through whatever connects the
processes, Gloo in particular.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn

# Of its own, so that these sums cannot meet those of a distributed wrapper, which run beside the backward pass.
_own_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that in training normalises by mean and variance of all processes' batches together.

    Each process must call it in training, and go backward through it, equally often. The batches may differ in size.
    Parameters, buffers and their names are those of `nn.BatchNorm2d`; in eval mode, and in a single process, it is one.
    Statistics are formed in float32 at least, whatever the input's type.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel.

        Args:
            input: This process's batch, (B, C, H, W); B may be 0.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: If all processes together have no more than one value per channel.
        """
        if not self.training or not _joined():
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        plain = x.as_subclass(Tensor)  # statistics have nothing of what a subclass says of its items
        here = plain.new_tensor([plain.numel() / plain.shape[1]])
        total = _sum_over_processes(torch.cat([plain.sum((0, 2, 3)), here]))
        count = float(total[-1].detach())
        if count <= 1:
            raise ValueError(
                f"batch norm needs more than one value per channel in training, not {count:g} in all processes "
                "together; take larger batches or larger images"
            )
        mean = total[:-1] / count
        # Sums of deviations from the common mean, since the mean of squares less the squared mean loses digits.
        deviation = x - mean.view(1, -1, 1, 1)
        squares = _sum_over_processes(deviation.as_subclass(Tensor).square().sum((0, 2, 3)))
        self._track(mean.detach(), squares.detach() / (count - 1))
        scale = torch.rsqrt(squares / count + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = deviation * scale.view(1, -1, 1, 1)
        if self.bias is not None:
            y = y + self.bias.view(1, -1, 1, 1)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Take mean and unbiased variance, (C,) each, into the running statistics."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        rate = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if rate is None:  # the mean of all batches so far
                rate = 1 / float(self.num_batches_tracked)
        rate = 0.0 if rate is None else rate
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(variance.to(self.running_var.dtype), rate)


def synchronise_batch_norms(network: nn.Module) -> nn.Module:
    """Turn every `nn.BatchNorm2d` of a network into a `SyncedBatchNorm2d`, in place.

    The layers stay the same objects with the same parameters, buffers, hooks and mode. Subclasses of `nn.BatchNorm2d`
    are left as they are, for they may do more than normalise. Where processes have met, all of them call this.

    Args:
        network: Any network, perhaps a single layer.

    Returns:
        The same network.
    """
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    if _joined():
        _own_group()
    return network


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _own_group() -> Any:
    """Return the group of all processes for these sums; all make it together, once each time that they meet."""
    world = distributed.group.WORLD
    if world not in _own_groups:
        _own_groups[world] = distributed.new_group()
    return _own_groups[world]


class _Sum(torch.autograd.Function):
    """Sum over the processes. Each one's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total, group=_own_group())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum_over_processes(gradient)


def _sum_over_processes(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total
