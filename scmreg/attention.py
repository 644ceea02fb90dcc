"""Attention that carries its tangent: one function `attend`, with backends as plugins.

Forward-mode differentiation of ``torch``'s fused attention is not defined, so every network of ours calls `attend`.
It unpacks dual numbers itself and hands primals and tangents to a backend as plain tensors; a backend is so a
function of six tensors and never meets an AD level. A tangent that is absent stays absent.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad as fwad

from scmreg.component import Component
from scmreg.errors import UnavailableError, UnknownComponentError, WrongResultError

__all__ = ["Attention", "AttentionOptions", "Operation", "attend", "attend_jvp", "choose"]


@dataclass(frozen=True)
class AttentionOptions:
    """What is attended to, and how sharply."""

    scale: float
    """Factor of the logits."""
    causal: bool = False
    """Whether query ``i`` sees only keys up to ``i + S - L`` (aligned bottom-right)."""
    key_lengths: Tensor | None = None
    """Number of keys that each batch entry sees, shape ``(B,)``; a row that sees none gives zeros."""


def takes_all(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> str | None:
    """Refuse nothing."""
    return None


Refuses = Callable[[Tensor, Tensor, Tensor, AttentionOptions], str | None]


class Operation(NamedTuple):
    """What a backend computes with. Plain functions: the compiler does not trace methods of a frozen record.

    Shapes: ``q (B, H, L, D)``, ``k`` and ``v (B, Hk, S, D)`` with ``H`` a multiple of ``Hk``; tangents have the shape
    of their primals and are ``None`` where there is none.
    """

    forward: Callable[[Tensor, Tensor, Tensor, AttentionOptions], Tensor]
    """``(q, k, v, options) -> O``, differentiable in reverse mode with respect to q, k and v."""
    forward_jvp: Callable[..., tuple[Tensor, Tensor]]
    """``(q, k, v, tq, tk, tv, options) -> (O, tO)``: ``O`` as above, ``tO`` without gradient, given one tangent at
    least. Derivatives that are not defined raise."""
    refuses: Refuses = takes_all
    """Says why such tensors, or such options, cannot be taken; ``None`` if they can. It must not look at values."""


class Attention(Component, kind="attention"):
    """A way to compute ``O = softmax(scale Q Kᵀ) V`` and its directional derivative."""

    @abstractmethod
    def build(self) -> Operation:
        """Return the functions that compute it."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``softmax(scale Q Kᵀ) V``, with a tangent where the inputs have one.

    Works under ``torch.func.jvp``, ``vmap`` and ``grad`` in any order, ``torch.autograd.forward_ad``, checkpointing and
    ``torch.compile``. The gradient flows through the value; the tangent is without gradient.

    Args:
        q: queries, ``(B, H, L, D)``.
        k: keys, ``(B, Hk, S, D)``; every group of ``H / Hk`` query heads shares one.
        v: values, the shape of ``k``.
        scale: factor of the logits, ``1/sqrt(D)`` if not given.
        causal: see :class:`AttentionOptions`.
        key_lengths: see :class:`AttentionOptions`.
        backend: name of an attention component, or ``auto``.

    Raises:
        ValueError: if shapes, types or devices do not fit together, or a key length is not between 0 and ``S`` (looked
            at on the CPU only; elsewhere it is cut).
        UnavailableError: if the backend cannot take the input; the message names one that can.
    """
    if not torch.compiler.is_compiling() and _is_mapped(q, k, v, key_lengths):
        out: Tensor = _Mapped.apply(q, k, v, key_lengths, scale, causal, backend)  # type: ignore[no-untyped-call]
        return out
    options = _options(q, k, v, scale, causal, key_lengths)
    operation = _operation(backend, q, k, v, options)
    # Autocast, which would round what a backend accumulates, does not reach into it.
    with _without_autocast(q):
        if not is_dual(q, k, v):
            return operation.forward(q, k, v, options)
        (pq, tq), (pk, tk), (pv, tv) = (fwad.unpack_dual(x) for x in (q, k, v))
        out, tangent = operation.forward_jvp(pq, pk, pv, tq, tk, tv, options)
        dual: Tensor = fwad.make_dual(out, stopped(tangent))
        return dual


def attend_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return ``(O, tO)`` for explicit tangents; ``None`` is a tangent of zero. Otherwise as `attend`."""
    for name, x, tx in (("tq", q, tq), ("tk", k, tk), ("tv", v, tv)):
        if tx is not None and (tx.shape != x.shape or tx.dtype != x.dtype or tx.device != x.device):
            given, wanted = (f"shape {tuple(y.shape)}, {y.dtype} on {y.device}" for y in (tx, x))
            raise ValueError(f"{name} has {given}; its primal has {wanted}: they must agree")
    options = _options(q, k, v, scale, causal, key_lengths)
    operation = _operation(backend, q, k, v, options)
    with _without_autocast(q):
        if tq is None and tk is None and tv is None:
            out = operation.forward(q, k, v, options)
            return out, torch.zeros_like(out)
        out, tangent = operation.forward_jvp(q, k, v, tq, tk, tv, options)
        return out, stopped(tangent)


def choose(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions | None = None) -> tuple[str, str]:
    """Return the backend that ``auto`` takes for such tensors and options, and why."""
    if not q.is_cuda:
        return "chunked", f"on the {q.device.type}: memory linear in the length, blocks that fit the cache"
    reason = _obstacle("triton", q, k, v, options or AttentionOptions(1.0))
    if reason is None:
        return "triton", "on a GPU: one kernel for the value and its tangent"
    return "chunked", f"memory linear in the length; not triton: {reason}"


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What can be attended to."""
AUTO = ("chunked", "triton")
"""Backends that ``auto`` chooses from."""


def prepare(backend: str) -> None:
    """Look up a backend; for ``auto`` all that it may choose.

    Networks do so when they are built, so that a backend that cannot run is refused then, and tried outside of any
    compiled code.

    Raises:
        UnknownComponentError: if there is none of that name.
        UnavailableError: if it cannot run on this machine.
    """
    if backend != "auto":
        operation_of(backend)
        return
    for name in AUTO:
        _find(name)


def _prepared(backend: str) -> bool:
    """Call `prepare` and return a constant: the compiler then takes the outcome and does not look in."""
    prepare(backend)
    return True


# What `torch.compiler.assume_constant_result` sets; to call it would import the compiler here.
_prepared._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _find(name: str) -> str | None:
    """Look up an operation; return why it cannot run on this machine, ``None`` if it can."""
    if name in _operations:
        return None
    if name not in _obstacles:
        try:
            operation_of(name)
        except WrongResultError as error:
            warnings.warn(f"{error}\n  auto takes another", RuntimeWarning, stacklevel=2)
            _obstacles[name] = str(error)
        except (UnavailableError, UnknownComponentError) as error:
            _obstacles[name] = str(error)
    return _obstacles.get(name)


def _obstacle(name: str, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> str | None:
    return _find(name) or _operations[name].refuses(q, k, v, options)


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    device = x.device.type
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def stopped(tangent: Tensor) -> Tensor:
    """Return the tangent without a graph; `detach` would take away its own tangent too, where modes are nested."""
    if not tangent.requires_grad:
        return tangent
    with torch.no_grad():
        return tangent.clone()


class _Mapped(torch.autograd.Function):
    """`attend` under ``func.vmap``: the mapped dimension joins the batch, a level further out.

    Further out may be ``func.jvp``: the tangents of a mapped tensor can be seen there alone.
    """

    @staticmethod
    def forward(*inputs: Any) -> NoReturn:
        raise AssertionError("called with mapped tensors alone, which never come here")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        def outer(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, *others: Any) -> tuple[Tensor]:
            scale, causal, backend = others
            return (attend(q, k, v, scale=scale, causal=causal, key_lengths=key_lengths, backend=backend),)

        (out,), _ = over_batches(outer, info.batch_size, in_dims, inputs)
        return out, 0


def over_batches(
    function: Callable[..., Any], size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Call a function whose tensors all begin with the batch; a mapped dimension of ``size`` joins the batch."""

    def apart(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

    mapped = [apart(x, dim) for x, dim in zip(inputs, in_dims, strict=True)]
    batch = next(x.shape[1] for x in mapped if isinstance(x, Tensor))
    results = function(*(x.flatten(0, 1) if isinstance(x, Tensor) else x for x in mapped))
    # What was not asked for is empty and has no batch.
    parted = tuple(x.unflatten(0, (size, batch)) if x.ndim > 1 else x.expand(size, 0) for x in results)
    return parted, (0,) * len(parted)


def _is_mapped(*tensors: Tensor | None) -> bool:
    """Whether the innermost level is that of ``func.vmap``, and one of the tensors is mapped there."""
    stack = torch._C._functorch.peek_interpreter_stack()
    if stack is None or stack.key() != torch._C._functorch.TransformType.Vmap:
        return False
    functorch = torch._C._functorch
    given = (x for x in tensors if x is not None)
    return any(functorch.is_batchedtensor(x) and functorch.maybe_get_level(x) == stack.level() for x in given)


def is_dual(*tensors: Tensor) -> bool:
    """Whether any of the tensors carries a tangent at the present level of forward-mode differentiation."""
    level: int = fwad._current_level
    return level >= 0 and any(fwad.unpack_dual(x).tangent is not None for x in tensors)


def operation_of(name: str) -> Operation:
    """Return the operation of a backend, which stays the same from then on; see :mod:`scmreg.selftest`.

    Raises:
        UnknownComponentError: if there is none.
        UnavailableError: if it cannot run on this machine.
        WrongResultError: if it runs, and its results are wrong.
    """
    if name not in _operations:
        from scmreg.registry import registry

        made: Attention = registry("attention").create(name)
        if reason := made.unavailable():
            raise UnavailableError(f"attention '{name}' cannot run here: {reason}", "backend='auto' takes one that can")
        _operations[name] = made.build()
        if name != "math":
            _examine(name, type(made))
    return _operations[name]


def _examine(name: str, component: type[Attention]) -> None:
    from scmreg.selftest import examination

    found = examination(name, component)
    if found.failure:
        del _operations[name]
        raise WrongResultError(
            f"attention '{name}' fails its trial against math, on {found.device}: {found.failure}",
            "backend='math' is slow and right",
        )


_operations: dict[str, Operation] = {}
_obstacles: dict[str, str] = {}


def _operation(backend: str, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Operation:
    if torch.compiler.is_exporting():
        backend = "math"  # An exported program runs where nobody has defined our operators.
    if torch.compiler.is_compiling():
        _prepared(backend)
    name = choose(q, k, v, options)[0] if backend == "auto" else backend
    operation = _operations[name] if name in _operations else operation_of(name)
    if reason := operation.refuses(q, k, v, options):
        _refuse(name, reason, q, k, v, options)
    return operation


def _refuse(name: str, reason: str, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> NoReturn:
    from scmreg.registry import registry

    attentions = registry("attention")
    others = (other for other in attentions if other != name and attentions[other].unavailable() is None)
    able = [other for other in others if operation_of(other).refuses(q, k, v, options) is None]
    raise UnavailableError(f"attention '{name}' cannot take this input: {reason}", f"can: {', '.join(able) or 'none'}")


def _options(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, key_lengths: Tensor | None
) -> AttentionOptions:
    def shapes() -> str:
        return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"

    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"attend takes (batch, heads, length, dim) tensors, not {shapes()}")
    if 0 in (q.shape[1], q.shape[3], k.shape[1]):
        raise ValueError(f"there must be heads, and a dimension: {shapes()}")
    if q.dtype not in DTYPES:
        raise ValueError(f"attend takes floating-point numbers of 16 to 64 bits, not {q.dtype}")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"batch and dim must agree, and k and v in shape: {shapes()}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads: {shapes()}")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(f"dtypes and devices differ: {[(str(x.dtype), str(x.device)) for x in (q, k, v)]}")
    if key_lengths is not None:
        key_lengths = _whole_lengths(key_lengths, q, k)
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}: the factor of the logits must be a finite number")
    return AttentionOptions(q.shape[3] ** -0.5 if scale is None else scale, causal, key_lengths)


def _whole_lengths(key_lengths: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return the lengths as int64, looked over."""
    if not isinstance(key_lengths, Tensor):
        raise TypeError(f"key_lengths is a {type(key_lengths).__name__}: give a tensor of shape ({q.shape[0]},)")
    if key_lengths.shape != (q.shape[0],):
        raise ValueError(f"key_lengths has shape {tuple(key_lengths.shape)}, expected ({q.shape[0]},)")
    if key_lengths.is_floating_point() or key_lengths.dtype == torch.bool or key_lengths.device != q.device:
        raise ValueError(
            f"key_lengths is {key_lengths.dtype} on {key_lengths.device}, expected whole numbers on {q.device}"
        )
    key_lengths = key_lengths.to(torch.int64)
    # A look at the values would make a GPU wait, and cannot be had of what is mapped or compiled: there, a length is
    # cut to the number of keys.
    hidden = torch.compiler.is_compiling() or type(key_lengths) is not Tensor
    if hidden or key_lengths.device.type != "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(key_lengths):
        return key_lengths
    wrong = ((key_lengths < 0) | (key_lengths > k.shape[2])).nonzero().flatten()
    if len(wrong):
        entry = int(wrong[0])
        raise ValueError(
            f"key_lengths[{entry}] is {int(key_lengths[entry])}; there are {k.shape[2]} keys: give 0 to {k.shape[2]}"
        )
    return key_lengths


def visible(options: AttentionOptions, rows: int, keys: Tensor, total: int) -> Tensor | None:
    """Return which of the keys with the given indices each query sees; ``None`` if all do.

    Args:
        options: masks.
        rows: number of queries.
        keys: indices of keys, shape ``(s,)``.
        total: number of keys in all.

    Returns:
        Boolean, broadcastable to ``(B, H, L, s)``.
    """
    mask: Tensor | None = None
    if options.causal:
        query = torch.arange(rows, device=keys.device)[:, None] + total - rows
        mask = (keys[None, :] <= query)[None, None]
    if options.key_lengths is not None:
        seen = (keys[None, :] < options.key_lengths[:, None])[:, None, None, :]
        mask = seen if mask is None else mask & seen
    return mask
