"""The Triton backend without a GPU: its arithmetic in the interpreter, its compilation for chips that are not here.

Whatever imports Triton runs in a process of its own (`triton_worker`), a group of cases in each.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton_properties
from interpreter import work

import scmreg
from scmreg.attention import AttentionOptions, attend, choose
from scmreg.composable import composable
from scmreg.errors import UnavailableError
from scmreg_attention import fused, launch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

# Relative Frobenius norms of the errors of value and tangent; rounding the results to 16 bits alone makes 2/3 of them.
BOUNDS = {"float32": 1e-6, "float16": 4e-4, "bfloat16": 2.5e-3}
LENGTHS = (1, 17, 33, 64, 77, 100, 127, 128, 500, 1024)
DIMS = (16, 32, 40, 64, 72, 80, 96, 128, 256)
SUBSETS = list(itertools.product((1, 0), repeat=3))
GRID: dict[str, Any] = {
    "l": LENGTHS,
    "s": LENGTHS,
    "d": DIMS,
    "tangents": SUBSETS,
    "layout": ("bhsd", "bshd", "packed", "expanded", "bhds"),
    "layout_t": ("bhsd", "bshd", "packed", "expanded"),
    "dtype": tuple(BOUNDS),
    "groups": (1, 2, 4),
    "causal": (False, True),
    "lengths": (False, True),
    "front": (False, True),
}
# Fewer lengths, of every kind: alone, below a tile, of whole tiles, beyond one, of many.
QUICK = GRID | {"l": (1, 17, 64, 100, 127, 300), "s": (1, 33, 77, 128, 500)}


def pairwise(grid: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return cases in which every two values of every two factors meet, found greedily; large with large but once."""
    rng = random.Random(seed)
    names = list(grid)
    left = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in range(len(grid[a]))
        for y in range(len(grid[b]))
    }

    def news(row: dict[str, int]) -> int:
        return sum(pair in left for pair in itertools.combinations(row.items(), 2))

    def cost(row: dict[str, int]) -> int:
        return math.prod(grid[name][row[name]] for name in ("l", "s", "groups"))

    cases = []
    while left:
        start = dict(min(left))
        rows = [{name: start.get(name, rng.randrange(len(grid[name]))) for name in names} for _ in range(30)]
        best = max(rows, key=lambda row: (news(row), -cost(row)))
        left.difference_update(itertools.combinations(best.items(), 2))
        cases.append({name: grid[name][i] for name, i in best.items()})
    return cases


def full(seed: int) -> list[dict[str, Any]]:
    """Return all lengths with all head dimensions, the other factors drawn."""
    rng = random.Random(seed)
    rest = {name: values for name, values in GRID.items() if name not in ("l", "s", "d")}
    return [
        {"l": l, "s": s, "d": d} | {name: rng.choice(values) for name, values in rest.items()}
        for l, s, d in itertools.product(LENGTHS, LENGTHS, DIMS)  # noqa: E741
    ]


def sized(case: dict[str, Any]) -> dict[str, Any]:
    """Take two key heads, and two batch entries under key lengths, where that costs little."""
    large = -(-case["l"] // 64) * (2 - -case["s"] // 64) > 12
    return case | {"batch": 1 if large or not case["lengths"] else 2, "kv": 1 if large or case["groups"] == 4 else 2}


def too_far(cases: list[dict[str, Any]], errors: list[tuple[float, float]]) -> list[tuple[Any, ...]]:
    """Return the cases whose errors exceed the bound, which is meant for many numbers: errors of few scatter."""
    bad = []
    for case, found in zip(cases, errors, strict=True):
        heads = 1 if case["layout"] == "expanded" else case["groups"] * case["kv"] * case.get("batch", 2)
        rows = min(case["l"], case["s"]) if case.get("causal") else case["l"]
        scatter = 4 / math.sqrt(heads * rows * min(case["s"], case["d"]))
        if max(found) > BOUNDS[case["dtype"]] * (1 + scatter):
            bad.append((*found, case))
    return bad


def grid(dtype: str) -> list[dict[str, Any]]:
    """Return the cases of one type in which every two values of every two factors meet."""
    return [sized(case) for case in pairwise(QUICK, 0) if case["dtype"] == dtype]


def large(dtype: str) -> list[dict[str, Any]]:
    """Common to all tokens: 30 times their own part. Logits: standard deviation 100."""
    base = {"groups": 1, "batch": 1, "kv": 1, "l": 200, "s": 300, "d": 64, "dtype": dtype, "layout": "bhsd"}
    base |= {"tangents": (1, 1, 1)}
    cases = [base | {"common": {name: 30.0}} for name in ("k", "v", "tq", "tk", "tv")]
    cases += [base | {"common": dict.fromkeys(("k", "v", "tk", "tv"), 30.0)}]
    cases += [base | {"common": {"v": 30.0, "tk": 30.0}, "tangents": (1, 1, 0)}]
    return [*cases, base | {"times": {"q": 10.0, "k": 10.0}}]


def between() -> list[dict[str, Any]]:
    """Return head dimensions that are no sum of two powers of two that the grid has."""
    base = {"groups": 2, "kv": 1, "l": 33, "s": 70, "dtype": "float32", "tangents": (1, 1, 1)}
    layouts = [{"layout": "bshd"}, {"layout": "packed", "front": True}]
    return [base | layout | {"d": d} for layout in layouts for d in (24, 56, 104, 136, 160, 200)]


CASES = {f"grid-{dtype}": grid(dtype) for dtype in BOUNDS}
CASES |= {f"large-{dtype}": large(dtype) for dtype in ("bfloat16", "float16")}
CASES |= {"dimensions-between": between()}


@pytest.fixture(scope="module")
def errors() -> dict[str, list[tuple[float, float]]]:
    """Return the errors of all cases, from one process."""
    found = iter(work("accuracy", list(itertools.chain.from_iterable(CASES.values()))))
    return {name: list(itertools.islice(found, len(cases))) for name, cases in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64(name: str, errors: dict[str, list[tuple[float, float]]]) -> None:
    assert not too_far(CASES[name], errors[name])


@pytest.mark.slow
@pytest.mark.parametrize("dim", DIMS)
def test_agrees_with_float64_everywhere(dim: int) -> None:
    cases = [sized(case) for case in full(1) if case["d"] == dim]
    assert not too_far(cases, work("accuracy", cases))


def test_an_access_out_of_bounds_is_a_crash() -> None:
    done = work("trespass", check=False)
    assert done.returncode == -11, done.stderr


@pytest.mark.slow
def test_strides_beyond_32_bits() -> None:
    """Batches 2³¹ elements apart: 8 GB of addresses, of which few are touched."""
    base = {"groups": 1, "kv": 1, "l": 20, "s": 20, "d": 16, "dtype": "float16", "tangents": (1, 1, 1)}
    cases = [base | {"layout": "far"}]
    assert not too_far(cases, work("accuracy", cases))


# -- what holds of it alone; the rest is in `test_attention` ---------------------------------------------------------


@pytest.mark.parametrize("name", triton_properties.CHECKS)
def test_property(name: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[name], interpreted[name]


# -- compilation -----------------------------------------------------------------------------------------------------

SHARED = {"hopper": 227 * 1024, "ampere": 99 * 1024, "cdna": 64 * 1024}


def gate(cases: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the cases that spill, serialise, take too much memory or make no use of the tensor cores."""
    bad = []
    for case, found in zip(cases, work("compile", cases, interpret=False), strict=True):
        fails = found["shared"] > SHARED[case["chip"]]
        if case["chip"] == "hopper":
            # No sizes were found for these that do without; they are made of bfloat16, which they cast to one by one.
            known = case["dtype"] == "float32" and case["d"] > 192
            fails |= (found["spilled"] > 0 or found["slow_casts"] > 0) and not known
            fails |= found["serialized"] or found["hgmma"] == 0
        if case["chip"] == "ampere":
            fails |= found["hmma"] == 0
        if fails:
            bad.append((found, case))
    return bad


def compilations(chip: str, dtype: str, *dims: int, subset: Any = (1, 1, 1), masks: bool = False) -> list[Any]:
    return [{"chip": chip, "d": d, "dtype": dtype, "tangents": subset, "causal": masks, "lengths": masks} for d in dims]


def test_compiles_for_every_chip() -> None:
    hopper = compilations("hopper", "bfloat16", 64, 72, 128)
    assert not gate([*hopper, *compilations("ampere", "bfloat16", 64), *compilations("cdna", "bfloat16", 64)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("dim", [*DIMS, 160, 192])
def test_compiles_for_hopper_with_any_tangents(dim: int, dtype: str) -> None:
    subsets = SUBSETS if dtype == "bfloat16" else [(1, 1, 1), (1, 1, 0), (0, 0, 0)]
    masks = (False, True)
    assert not gate([c for t in subsets for m in masks for c in compilations("hopper", dtype, dim, subset=t, masks=m)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", ["ampere", "cdna"])
def test_compiles_for_other_chips(chip: str, dtype: str) -> None:
    assert not gate(compilations(chip, dtype, *DIMS, masks=True))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["hopper", "ampere", "cdna"])
def test_means_compile(chip: str) -> None:
    cases = [case | {"means": True} for case in compilations(chip, "bfloat16", 40, 128, 256, masks=True)]
    assert all(found["spilled"] == 0 for found in work("compile", cases, interpret=False))


@pytest.mark.parametrize("architecture", ["hopper", "blackwell", "ampere", "cdna", "interpreter"])
def test_sizes_suffice_for_any_head_dimension(architecture: str) -> None:
    for dim, itemsize, dual in itertools.product(range(1, 257), (2, 4), (False, True)):
        size = launch.blocks(dim, itemsize, architecture, dual)
        assert size.queries % 16 == size.keys % 16 == 0
        first, second = launch.tiles(dim)
        assert first >= second
        assert first + second >= dim
        assert first + second <= max(16, 1 << (dim - 1).bit_length())
    assert [launch.tiles(d) for d in (40, 72, 80, 96, 128)] == [(32, 16), (64, 16), (64, 16), (64, 32), (128, 0)]


# -- without Triton, without a GPU -----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert scmreg.attentions["triton"].unavailable() == "needs triton and a CUDA device"
    x = torch.zeros(1, 1, 2, 16)
    with pytest.raises(UnavailableError, match="needs triton and a CUDA device"):
        attend(x, x, x, backend="triton")


def test_refusals_in_words() -> None:
    x = torch.zeros(1, 1, 2, 16)
    assert fused.refuses(x, x, x, AttentionOptions(1.0)) == "it takes tensors on a CUDA device, not on cpu"
    assert "not in float64" in (fused.refuses(x.double(), x, x, AttentionOptions(1.0)) or "")
    wide = torch.zeros(1, 1, 2, 320)
    assert fused.refuses(wide, wide, wide, AttentionOptions(1.0)) == "head dimension 320 is larger than 256"


def test_the_plugin_loads_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import scmreg
print(scmreg.attentions["triton"].unavailable())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "needs triton and a CUDA device", done.stderr


class OnGpu:
    """Stands for a tensor on a GPU."""

    is_cuda, dtype, shape = True, torch.float32, (1, 1, 600, 16)
    device = torch.device("cuda")


def test_auto_takes_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x: Any = OnGpu()
    operation = composable(fused.KERNEL)
    monkeypatch.setitem(scmreg.attention._operations, "triton", operation)
    assert choose(x, x, x)[0] == "triton"
    monkeypatch.setitem(
        scmreg.attention._operations, "triton", operation._replace(refuses=lambda q, k, v, options: "no")
    )
    assert choose(x, x, x) == ("chunked", "memory linear in the length; not triton: no")


def test_torch_backward_takes_our_arguments_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types and shapes alone, on tensors that only pretend to be on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(fused, "_regular", lambda x: x)
    with FakeTensorMode():
        q = torch.empty(2, 4, 33, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.empty(2, 2, 50, 64, device="cuda", dtype=torch.bfloat16)
        options = AttentionOptions(0.1)
        assert fused._flash_serves(q, k, options)
        dq, dk, dv = fused.gradients(q, q, k, k, q, torch.empty(2, 4, 33, device="cuda"), options)
    assert dq.shape == q.shape
    assert dk.shape == dv.shape == k.shape
