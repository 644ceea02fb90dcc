"""One of the processes that `test_distributed` starts: `python distributed_worker.py RANK FOLDER`.

Every row trains a small transformer for half a step (forward, backward) on this process's half of a batch, and compares
value, tangent and gradients with those of one process on the whole batch. Results are lines of JSON, from rank 0.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad as fwad
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import scmreg
from scmreg.tangent import Motion, evaluate_with_jvp, motion, unit_velocity
from scmreg.types import Conditions

WORLD, BATCH = 2, 4
PASSES = ("value", "joint", "separate")
"""No tangent at all, and the two ways of `evaluate_with_jvp`."""
WRAPPERS = ("ddp", "fsdp2", "ddp-loss", "fsdp2-loss")
"""Around the model whose JVP is taken, or around the module that takes it."""
DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
SYNCHRONISE = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"
"""What torch 2.13 calls the one, releases before it call the other."""
NEVER_SILENTLY_WRONG = ("ddp-static", "ddp-buffers", "fsdp2-forward-ad")
"""What torch 2.13 refuses, and may one day do: DDP with a static graph or with buffers to broadcast under `func.jvp`,
blocks that are sharded under `forward_ad`."""


def build(backend: str) -> scmreg.Denoiser:
    """Return a small transformer, the same in every process, whose last layer is not zero."""
    torch.manual_seed(0)
    network = scmreg.networks.create("dit", width=16, depth=1, heads=2, patch=2, attention=backend)
    module = network.build((1, 4, 4), 3)
    with torch.no_grad():
        module.leave.weight.normal_()
    process = scmreg.processes.create("trigflow")
    return scmreg.Denoiser(module, process, scmreg.parameterizations.create("unit-variance"), 3)


def draw(denoiser: scmreg.Denoiser) -> tuple[Motion, Conditions]:
    """Return where the samples of the whole batch are, and their labels."""
    rng = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, BATCH, 1, 4, 4, generator=rng)
    t = 0.2 + torch.rand(BATCH, generator=rng)
    at = motion(denoiser, denoiser.process.perturb(x0, noise, t), t, x0, noise)
    return at, Conditions(label=torch.arange(BATCH) % 3)


class Loss(nn.Module):
    """A loss as that of a consistency model, which takes the JVP of the model that it holds."""

    def __init__(self, denoiser: scmreg.Denoiser, how: str) -> None:
        super().__init__()
        self.denoiser, self.how = denoiser, how

    def forward(self, at: Motion, cond: Conditions) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, value and tangent."""
        total, *rest = loss(self.denoiser, self.denoiser, at, cond, self.how)
        value, tangent = (x.clone() for x in rest)  # FSDP2 hangs hooks on what it returns, and warns of views
        return total, value, tangent


def loss(net: Any, denoiser: scmreg.Denoiser, at: Motion, cond: Conditions, how: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return a loss whose gradient depends on value and tangent, and both of them."""
    if how == "value":
        value = unit_velocity(net, denoiser, at.x, at.t, cond)
        tangent = torch.zeros_like(value)
    elif how == "forward-ad":
        with fwad.dual_level():
            x, t = fwad.make_dual(at.x, at.x_rate), fwad.make_dual(at.t, at.t_rate)
            value, tangent = fwad.unpack_dual(unit_velocity(net, denoiser, x, t, cond))
        tangent = tangent.detach()
    else:
        value, tangent = evaluate_with_jvp(net, denoiser, at, cond, how)  # type: ignore[arg-type]
    assert not tangent.requires_grad
    return (value.square() + value * tangent).mean(), value, tangent


def gradients(module: nn.Module) -> list[Tensor]:
    """Return the whole gradient of every parameter."""
    found = []
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        grad: Any = parameter.grad
        found.append(grad.full_tensor() if hasattr(grad, "full_tensor") else grad)
    return found


def shard(denoiser: scmreg.Denoiser, mesh: DeviceMesh) -> None:
    """Shard a transformer as its users do: block by block, and what is left."""
    for block in denoiser.network.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)


def wrapped(wrapper: str, denoiser: scmreg.Denoiser, how: str, mesh: DeviceMesh) -> Callable[..., Any]:
    """Return the loss of a model that is wrapped, a function of motion and conditions."""
    if wrapper == "ddp-loss":
        return DistributedDataParallel(Loss(denoiser, how))
    if wrapper.startswith("ddp"):
        options: dict[str, bool] = {"static_graph": wrapper == "ddp-static"}
        if wrapper != "ddp-buffers":
            # Buffers are synchronised in place, which `func.jvp` forbids. They never change: there is nothing to do.
            options[SYNCHRONISE] = False
        net: Any = DistributedDataParallel(denoiser, **options)
    else:
        shard(denoiser, mesh)
        if wrapper == "fsdp2-loss":
            return fully_shard(Loss(denoiser, how), mesh=mesh)
        net = fully_shard(denoiser, mesh=mesh)
        how = "forward-ad" if wrapper == "fsdp2-forward-ad" else how
    return lambda at, cond: loss(net, denoiser, at, cond, how)


@functools.cache
def alone(backend: str, how: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return value and tangent, and the gradients, of one process on the whole batch."""
    model = build(backend)
    total, *whole = loss(model, model, *draw(model), how)
    total.backward()
    return [x.detach() for x in whole], gradients(model)


def row(backend: str, wrapper: str, how: str, mesh: DeviceMesh) -> None:
    """Check one row."""
    whole, exact = alone(backend, how)
    model = build(backend)
    at, cond = draw(model)
    rank = dist.get_rank()
    mine = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    part = Motion(**{name: x[mine] for name, x in vars(at).items()})
    try:
        step = wrapped(wrapper, model, how, mesh)  # DDP must live until the gradients are exchanged
        total, *got = step(part, cond.slice(mine.start, mine.stop))
        total.backward()
    except (RuntimeError, NotImplementedError):
        if wrapper in NEVER_SILENTLY_WRONG:
            return
        raise
    for ours, want in zip(got, whole, strict=True):
        torch.testing.assert_close(ours, want[mine], rtol=1e-4, atol=1e-5)
    for (name, _), ours, want in zip(model.named_parameters(), gradients(model), exact, strict=True):
        assert bool(want.any()), f"the gradient of {name} is zero: this would test nothing"
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def rows(backends: list[str]) -> list[tuple[str, str, str]]:
    """Return every row: backend, wrapper, tangent pass."""
    known = itertools.product(backends, WRAPPERS, PASSES)
    return [*known, *itertools.product(backends, NEVER_SILENTLY_WRONG, ("joint",))]


def main() -> None:
    """Run all rows in this process."""
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/meeting", patience, WORLD, rank)
    mesh = init_device_mesh("cpu", (WORLD,))
    for backend, wrapper, how in rows(
        [name for name in scmreg.attentions if scmreg.attentions[name].unavailable() is None]
    ):
        wrong = [""] * WORLD
        try:
            row(backend, wrapper, how, mesh)
        except Exception:
            wrong[rank] = traceback.format_exc()
        dist.all_gather_object(wrong, wrong[rank])
        if rank == 0:
            print(json.dumps([f"{backend}-{wrapper}-{how}", "\n".join(filter(None, wrong))]), flush=True)
    dist.barrier()
    os._exit(0)  # threads of gloo may outlive the interpreter, which then aborts


if __name__ == "__main__":
    main()
