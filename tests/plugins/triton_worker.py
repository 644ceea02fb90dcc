"""What `test_triton` runs in processes of its own: `python triton_worker.py TASK`, arguments and results as JSON.

Triton decides when it is imported whether its kernels are interpreted, so the environment variable is set out there
alone. Inputs and results lie against a page that nobody may touch: an access out of bounds is a crash of the process.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scmreg.attention import AttentionOptions, operation_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def fenced(numel: int, dtype: torch.dtype, front: bool = False) -> Tensor:
    """Return memory for so many elements whose last byte (or first, at the ``front``) is the last that may be read."""
    size = numel * dtype.itemsize
    page = mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + (pages + 1) * page):
        assert libc.mprotect(fence, page, 0) == 0
    offset = page if front else page + pages * page - size
    return torch.frombuffer(memory, dtype=dtype, count=numel, offset=offset)


def fenced_like(x: Tensor, front: bool = False) -> Tensor:
    """Return a fenced tensor with the memory layout that ``torch.empty_like`` would give."""
    layout = torch.empty_like(x)
    return fenced(max(x.numel(), 1), x.dtype, front).as_strided(layout.shape, layout.stride())


def lay(x: Tensor, layout: str, dtype: torch.dtype, front: bool) -> Tensor:
    """Return ``(B, H, L, D)`` numbers in a fenced memory layout."""
    batch, heads, length, dim = x.shape
    if layout == "expanded":
        memory = fenced(length * dim, dtype, front).view(1, 1, length, dim)
        memory.copy_(x[:1, :1].to(dtype))
        return memory.expand(x.shape)
    if layout == "far":  # batches further apart than 32 bits count
        memory = torch.empty((batch - 1) * 2**31 + x[0].numel(), dtype=dtype)
        view = memory.as_strided(x.shape, (2**31, *x[0].stride()))
        view.copy_(x.to(dtype))
        return view
    if layout == "packed":  # one of three projections, (B, L, 3, H, D)
        memory = fenced(batch * length * 3 * heads * dim, dtype, front).view(batch, length, 3, heads, dim)
        view = memory[:, :, 0 if front else 2].transpose(1, 2)
        view.copy_(x.to(dtype))
        return view
    order = {"bhsd": (0, 1, 2, 3), "bshd": (0, 2, 1, 3), "bhds": (0, 1, 3, 2), "sbhd": (2, 0, 1, 3)}[layout]
    view = fenced(x.numel(), dtype, front).view([x.shape[i] for i in order]).permute(np.argsort(order).tolist())
    view.copy_(x.to(dtype))
    return view


def teach_bfloat16() -> None:
    """Make the interpreter compute with the numbers that bfloat16 stands for, not with its bit patterns."""
    import triton.language as tl
    from triton.runtime import interpreter

    from scmreg_attention import fused

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast = builder.create_dot, builder.cast_impl

    def widen(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.uint32) << 16).view(np.float32)

    def taught_cast(self: Any, x: Any, dtype: Any) -> Any:
        pair = x.dtype.scalar, dtype.scalar
        if pair == (tl.bfloat16, tl.float32):
            return handle(widen(x.data), tl.float32)
        if pair == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16)
            return handle(rounded.numpy().view(np.uint16), tl.bfloat16)
        assert tl.bfloat16 not in pair, f"no conversion for {pair}"
        return cast(self, x, dtype)

    def taught_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = (handle(widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, *wide, *rest)

    builder.create_dot, builder.cast_impl = taught_dot, taught_cast
    builder.create_fp_ext = builder.create_fp_trunc = taught_cast
    fused.DTYPES = (*fused.DTYPES, torch.bfloat16)


def exact(
    primals: list[Tensor], tangents: list[Tensor | None], options: AttentionOptions
) -> tuple[Tensor, Tensor | None]:
    """Return value and tangent of explicit softmax attention in float64, by autograd's own rules."""
    from attention_reference import reference

    keywords = {"scale": options.scale, "causal": options.causal, "key_lengths": options.key_lengths}
    attention = functools.partial(reference, **keywords)
    wide = [x.double() for x in primals]
    if all(tx is None for tx in tangents):
        return attention(*wide), None
    filled = [torch.zeros_like(x) if tx is None else tx.double() for x, tx in zip(wide, tangents, strict=True)]
    value, tangent = torch.func.jvp(attention, tuple(wide), tuple(filled))
    return value, tangent


def error(ours: Tensor, reference: Tensor) -> float:
    """Return the relative error in the Frobenius norm; of what should be zero, the norm."""
    assert ours.shape == reference.shape
    norm = reference.norm().item()
    return (ours.double() - reference).norm().item() / (norm or 1.0)


def draw(case: dict[str, Any]) -> tuple[list[Tensor], list[Tensor | None], AttentionOptions]:
    """Return the inputs of a case, rounded and laid out as it says."""
    rng = torch.Generator().manual_seed(case.get("seed", 0))
    batch, heads, kv = case.get("batch", 2), case["groups"] * case.get("kv", 2), case.get("kv", 2)
    shapes = [(batch, heads, case["l"], case["d"]), *[(batch, kv, case["s"], case["d"])] * 2] * 2
    drawn = [torch.randn(shape, generator=rng) for shape in shapes]
    for name, factor in case.get("times", {}).items():
        drawn[NAMES.index(name)] *= factor
    for name, size in case.get("common", {}).items():
        drawn[NAMES.index(name)] += size * torch.randn((1, 1, 1, case["d"]), generator=rng)
    dtype, front = DTYPES[case["dtype"]], case.get("front", False)
    # Tangents may lie in memory otherwise than their primals.
    layouts = [case["layout"]] * 3 + [case.get("layout_t", case["layout"])] * 3
    laid = [lay(x, layout, dtype, front) for x, layout in zip(drawn, layouts, strict=True)]
    tangents = [tx if given else None for tx, given in zip(laid[3:], case["tangents"], strict=True)]
    lengths = None
    if case.get("lengths"):
        lengths = torch.tensor([case["s"] * 2 // 3 + 1, 0, case["s"] + 5][:batch])
    options = AttentionOptions(case.get("scale", case["d"] ** -0.5), case.get("causal", False), lengths)
    return laid[:3], tangents, options


NAMES = ("q", "k", "v", "tq", "tk", "tv")


def accuracy(cases: list[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    """Yield the relative errors of value and tangent of each case, and check that no input was copied."""
    from scmreg.composable import Kernel
    from scmreg_attention import launch

    operation = operation_of("triton")

    if any(case["dtype"] == "bfloat16" for case in cases):
        teach_bfloat16()
    seen: dict[str, Any] = {}
    original = launch.arguments

    def recording(inputs: dict[str, Any], *args: Any, **keywords: Any) -> Any:
        seen.update(inputs)
        return original(inputs, *args, **keywords)

    launch.arguments = recording
    front = [False]
    Kernel.results = fence_results(Kernel.results, front)  # type: ignore[method-assign]
    for case in cases:
        front[0] = case.get("front", False)
        primals, tangents, options = draw(case)
        if any(tx is not None for tx in tangents):
            out, tangent = operation.forward_jvp(*primals, *tangents, options)
        else:
            out, tangent = operation.forward(*primals, options), None
        for name, x in zip(NAMES, (*primals, *tangents), strict=True):
            assert (x is None) == (seen[name] is None)
            assert x is None or options.scale < 0 or x.data_ptr() == seen[name].data_ptr(), f"{name} was copied"
        assert out.stride() == torch.empty_like(primals[0]).stride()
        value, reference = exact(primals, tangents, options)
        yield error(out, value), 0.0 if tangent is None or reference is None else error(tangent, reference)


def fence_results(original: Callable[..., tuple[Tensor, ...]], front: list[bool]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the allocation of results, with fences."""

    def allocate(*args: Any) -> tuple[Tensor, ...]:
        return tuple(fenced_like(x, front[0]) for x in original(*args))

    return allocate


def trespass() -> None:
    """Read one row too many, to show that the fence is seen."""
    from scmreg_attention import launch

    operation_of("triton")  # is tried, and right so far
    original = launch.arguments

    def longer(*args: Any, **keywords: Any) -> Any:
        programs, arguments = original(*args, **keywords)
        return programs, arguments | {"S": arguments["S"] + 1}

    launch.arguments = longer
    list(
        accuracy(
            [{"groups": 1, "l": 64, "s": 64, "d": 64, "dtype": "float32", "layout": "bhsd", "tangents": [1, 1, 1]}]
        )
    )


TARGETS = {
    "blackwell": ("cuda", 100, 32),
    "hopper": ("cuda", 90, 32),
    "ampere": ("cuda", 80, 32),
    "cdna": ("hip", "gfx942", 64),
}


def compile_offline(case: dict[str, Any]) -> dict[str, Any]:
    """Compile what a launch would compile for a chip that is not here; return the figures that can be read."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.compiler import compile as compile_source
    from triton.runtime.jit import create_function_from_signature

    from scmreg_attention import kernel, launch

    chip, dim = case["chip"], case["d"]
    target = GPUTarget(*TARGETS[chip])
    x = torch.empty(2, 4, 32, dim, dtype=DTYPES[case["dtype"]])
    tangents = [x if given else None for given in case["tangents"]]
    mean = torch.empty(2, 4, dim)
    inputs = dict(zip(NAMES, (x, x, x, *tangents), strict=True))
    inputs |= {"mean_k": mean if case["tangents"][0] else None, "mean_tk": mean if case["tangents"][1] else None}
    inputs["lengths"] = torch.empty(2, dtype=torch.int64) if case.get("lengths") else None
    results = (x, x, torch.empty(2, 4, 32))
    if case.get("means"):
        _, arguments = launch.arguments_of_means(x, inputs["lengths"], mean)
        function = kernel.means
    else:
        causal = bool(case.get("causal"))
        sizes = launch.candidates(dim, x.element_size(), chip, any(case["tangents"]))
        size = sizes[case.get("candidate", 0)]
        _, arguments = launch.arguments(inputs, results, size, scale=0.1, causal=causal, architecture=chip)
        function = kernel.attention
    backend = make_backend(target)
    settings = {name: arguments.pop(name) for name in ("num_warps", "num_stages") if name in arguments}
    binder = create_function_from_signature(function.signature, function.params, backend)
    bound, specialization, _ = binder(**arguments, **settings)
    options, signature, constants, attributes = function._pack_args(backend, settings, bound, specialization, None)
    source = ASTSource(function, signature, constants, attributes)
    compiled = compile_source(source, target=target, options=options.__dict__)
    figures: dict[str, Any] = {"shared": compiled.metadata.shared}
    return figures | (read_ptx(compiled.asm["ptx"], knobs) if chip != "cdna" else read_amd(compiled.asm["amdgcn"]))


def read_ptx(ptx: str, knobs: Any) -> dict[str, Any]:
    """Assemble as Triton does; return what the assembler says, and the number of warp-group products."""
    import re
    import subprocess
    import tempfile
    from pathlib import Path

    arch = re.findall(r"^\.target (\w+)", ptx, re.M)[0]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "x.ptx", Path(folder) / "x.cubin"
        source.write_text(ptx)
        assembler = knobs.nvidia.ptxas_blackwell if arch.startswith("sm_10") else knobs.nvidia.ptxas
        command = [assembler.path, "-v", "--regAllocOptLevel=2", f"--gpu-name={arch}", source, "-o", binary]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        dump = [knobs.nvidia.cuobjdump.path, "-sass", binary]
        sass = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    return {
        "registers": int(re.findall(r"Used (\d+) registers", log)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        "serialized": "serialized" in log,
        "hgmma": sass.count("HGMMA"),
        "hmma": sass.count(" HMMA"),
        "tcmma": sass.count("UTCHMMA"),
        # Conversions of one number at a time, at an eighth of the rate of two.
        "slow_casts": sass.count("F2F."),
    }


def read_amd(assembly: str) -> dict[str, Any]:
    """Return what the assembly says of itself."""
    import re

    return {"spilled": sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", assembly)))}


def properties(names: list[str]) -> Iterator[tuple[str, str]]:
    """Run checks by their names; yield each name with its traceback, empty if it held."""
    import attention_composition
    import attention_properties
    import attention_reference
    import triton_properties

    both = attention_properties.CHECKS | attention_composition.CHECKS
    known = {name: functools.partial(check, "triton") for name, check in both.items()} | triton_properties.CHECKS
    return attention_reference.run({name: known[name] for name in names})


def main() -> None:
    """Run a task and print what it yields, a line of JSON each."""
    torch.set_num_threads(1)
    task, arguments = sys.argv[1], json.loads(sys.stdin.read() or "null")
    results: Any
    if task == "accuracy":
        results = accuracy(arguments)
    elif task == "compile":
        results = map(compile_offline, arguments)
    elif task == "trespass":
        results = [trespass()]
    else:
        results = properties(arguments)
    for result in results:
        assert not (isinstance(result, float) and math.isnan(result))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    main()
