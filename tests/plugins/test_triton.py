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
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton_properties
from interpreter import work

import scmreg
import scmreg_attention
from scmreg.attention import AttentionOptions, attend, choose
from scmreg.composable import composable
from scmreg.errors import UnavailableError
from scmreg_attention import fused, launch, stock, tune
from scmreg_attention.tune import Blocks

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

SHARED = {"blackwell": 227 * 1024, "hopper": 227 * 1024, "ampere": 99 * 1024, "cdna": 64 * 1024}


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
        if case["chip"] == "blackwell":
            # What exceeds the memory of the tensor cores compiles to next to nothing.
            fails |= found["tcmma"] + found["hmma"] == 0
            fails |= case["dtype"] != "float32" and (found["tcmma"] == 0 or found["spilled"] > 8)
        if case["chip"] == "ampere":
            fails |= found["hmma"] == 0
        if fails:
            bad.append((found, case))
    return bad


def compilations(
    chip: str, dtype: str, *dims: int, subset: Any = (1, 1, 1), masks: bool = False, candidate: int = 0
) -> list[Any]:
    case = {"chip": chip, "dtype": dtype, "tangents": subset, "causal": masks, "lengths": masks, "candidate": candidate}
    return [case | {"d": d} for d in dims]


def alternatives(chip: str, dim: int, dtype: str, subsets: Any, masks: Any) -> list[Any]:
    """Return the compilations of all candidates but the first."""
    itemsize = 4 if dtype == "float32" else 2
    return [
        case
        for subset, mask in itertools.product(subsets, masks)
        for i in range(1, len(launch.candidates(dim, itemsize, chip, any(subset))))
        for case in compilations(chip, dtype, dim, subset=subset, masks=mask, candidate=i)
    ]


def test_compiles_for_every_chip() -> None:
    hopper = compilations("hopper", "bfloat16", 64, 72, 128)
    assert not gate([*hopper, *compilations("ampere", "bfloat16", 64), *compilations("cdna", "bfloat16", 64)])


def test_other_candidates_compile_for_hopper() -> None:
    cases = alternatives("hopper", 64, "bfloat16", [(1, 1, 1)], [True])[:1]
    assert not gate(cases + alternatives("hopper", 128, "bfloat16", [(1, 1, 1), (0, 0, 0)], [False])[1:3])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("dim", [*DIMS, 160, 192])
def test_compiles_for_hopper_with_any_tangents(dim: int, dtype: str) -> None:
    subsets = SUBSETS if dtype == "bfloat16" else [(1, 1, 1), (1, 1, 0), (0, 0, 0)]
    masks = (False, True)
    assert not gate([c for t in subsets for m in masks for c in compilations("hopper", dtype, dim, subset=t, masks=m)])


@pytest.mark.slow
@pytest.mark.parametrize("dim", [*DIMS, 160, 192])
def test_other_candidates_compile_for_hopper_with_any_tangents(dim: int) -> None:
    most = [(1, 1, 1), (1, 1, 0), (0, 0, 0)]
    cases = alternatives("hopper", dim, "bfloat16", most, [False])
    cases += alternatives("hopper", dim, "bfloat16", SUBSETS, [True])
    cases += alternatives("hopper", dim, "float16", most, [True])
    assert not gate(cases + alternatives("hopper", dim, "float32", most[:2], [True]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", ["blackwell", "ampere", "cdna"])
def test_compiles_for_other_chips(chip: str, dtype: str) -> None:
    assert not gate(compilations(chip, dtype, *DIMS, masks=True))
    assert not gate([case for dim in DIMS for case in alternatives(chip, dim, dtype, [(1, 1, 1)], [True])])


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["hopper", "ampere", "cdna"])
def test_means_compile(chip: str) -> None:
    cases = [case | {"means": True} for case in compilations(chip, "bfloat16", 40, 128, 256, masks=True)]
    assert all(found["spilled"] == 0 for found in work("compile", cases, interpret=False))


@pytest.mark.parametrize("architecture", ["hopper", "blackwell", "ampere", "cdna", "interpreter"])
def test_sizes_suffice_for_any_head_dimension(architecture: str) -> None:
    for dim, itemsize, dual in itertools.product(range(1, 257), (2, 4), (False, True)):
        sizes = launch.candidates(dim, itemsize, architecture, dual)
        assert all(size.queries % 16 == size.keys % 16 == 0 for size in sizes)
        assert len(set(sizes)) == len(sizes) == (1 if architecture == "interpreter" else len(sizes)) <= 4
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


# -- torch's own kernels, on tensors that only pretend to be on a GPU -------------------------------------------------


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Yield ``q``, ``k`` and ``v`` of which there are types and shapes alone."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(stock, "even", lambda x: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with FakeTensorMode():
        q = torch.empty(2, 33, 4, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        k = torch.empty(2, 2, 50, 64, device="cuda", dtype=torch.bfloat16)
        yield {"q": q, "k": k, "v": k}


def test_torch_backward_takes_our_arguments_on_a_gpu(pretended: dict[str, Any]) -> None:
    q, k, v = pretended.values()
    assert stock.on_the_gpu(q, k, AttentionOptions(0.1))
    dq, dk, dv = fused.gradients(q, q, k, v, q, torch.empty(2, 4, 33, device="cuda"), AttentionOptions(0.1))
    assert dq.shape == q.shape
    assert dk.shape == dv.shape == k.shape


@pytest.mark.parametrize(
    "change",
    [
        {"key_lengths": torch.tensor([1, 2])},
        {"causal": True},
        {"scale": -0.1},
        {"scale": 0.0},
        {"dtype": torch.float32},
        {"dim": 60},
        {"dim": 256},
        {"batch": 2**16},
        {"keys": 0},
        {"hip": "7.0"},
    ],
    ids=str,
)
def test_torch_is_not_asked_for_what_it_cannot_do_exactly(
    pretended: dict[str, Any], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(change: dict[str, Any]) -> bool:
        dim, dtype, keys = change.get("dim", 64), change.get("dtype", torch.bfloat16), change.get("keys", 50)
        monkeypatch.setattr(torch.version, "hip", change.get("hip"))
        batch = change.get("batch", 2)
        q = torch.empty((batch, 4, 33, dim), dtype=dtype, device="cuda")
        k = torch.empty((batch, 2, keys, dim), dtype=dtype, device="cuda")
        rest = {"scale": 0.1} | {name: x for name, x in change.items() if name in ("key_lengths", "causal", "scale")}
        return stock.forward(lambda *_: "ours", stock.on_the_gpu, q, k, k, AttentionOptions(**rest)) != "ours"

    assert asked({})
    assert not asked(change)


def test_torch_serves_causal_attention_of_equal_lengths(pretended: dict[str, Any]) -> None:
    q, options = pretended["q"], AttentionOptions(0.1, causal=True)
    assert stock.forward(lambda *_: None, stock.on_the_gpu, q, q, q, options).shape == q.shape


def test_torch_is_asked_for_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, launched = [], []

    def torch_own(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        asked.append(1)
        return q.clone()

    monkeypatch.setattr(stock, "on_the_gpu", lambda *_: True)
    monkeypatch.setattr(stock, "scaled_dot_product_attention", torch_own)
    monkeypatch.setattr(fused, "launch", lambda *x: launched.append(1))
    operation, x = scmreg.attentions.create("triton").build(), torch.randn(1, 1, 2, 16)
    operation.forward(x, x, x, AttentionOptions(1.0))
    assert (asked, launched) == ([1], [])
    operation.forward_jvp(x, x, x, None, x, None, AttentionOptions(1.0))
    assert (asked, launched) == ([1], [1])


def test_pieces_of_16_bytes() -> None:
    x = torch.zeros(2, 3, 4, 72, dtype=torch.bfloat16)
    assert all(stock.even(y) for y in (x, x[..., 8:], x[..., :60], x.transpose(1, 2), x[:, :, 1:]))
    uneven = (x[..., 1:], x[..., ::2], x[..., :60].contiguous(), x.mT, x[:1, :1].expand(2, 3, 4, 72))
    assert not any(stock.even(y) for y in uneven)


# -- the choice among block sizes, with a kernel and a clock that are not ---------------------------------------------


class Bench:
    """Stands for the kernels, a GPU of 100 multiprocessors and the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[Blocks] = []
        self.timed: list[Blocks] = []
        self.milliseconds: dict[Blocks, float] = {}
        self.failing: dict[Blocks, Exception] = {}
        self.name, self.capturing = "NVIDIA H200", False
        kernels = SimpleNamespace(attention=self, means=self)
        monkeypatch.setattr(scmreg_attention, "kernel", kernels, raising=False)
        monkeypatch.setattr(launch, "architecture", lambda device: "hopper")
        chip = lambda device: SimpleNamespace(name=self.name, multi_processor_count=100)  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", chip)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr("triton.testing.do_bench", self.time)
        monkeypatch.setattr(tune, "_choices", {})

    def __getitem__(self, grid: tuple[int]) -> Any:
        return self.run

    def run(self, **arguments: Any) -> None:
        if "MEAN" in arguments:
            return
        found = [arguments[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")]
        sizes = self.sizes(any(arguments[name] is not None for name in ("TQ", "TK", "TV")), arguments["D"])
        (blocks,) = [x for x in sizes if [x.queries, x.keys, x.warps, x.stages] == found]
        self.ran.append(blocks)
        if blocks in self.failing:
            raise self.failing[blocks]

    def time(self, run: Any, **_: Any) -> float:
        run()
        self.timed.append(self.ran[-1])
        return self.milliseconds.get(self.ran[-1], 1.0)

    @staticmethod
    def sizes(dual: bool = True, dim: int = 64) -> list[Blocks]:
        return launch.candidates(dim, 2, "hopper", dual)

    def launch(self, batch: int = 2, heads: int = 4, length: int = 300, keys: int = 300, **change: Any) -> Blocks:
        """Launch once; return what ran last."""
        dtype, dim = change.get("dtype", torch.bfloat16), change.get("dim", 64)
        q = torch.empty(batch, heads, length, dim, dtype=dtype)
        k = torch.empty(batch, heads, keys, dim, dtype=dtype)
        tangents = [x if given else None for x, given in zip((q, k, k), change.get("tangents", (1, 1, 1)), strict=True)]
        lengths = torch.ones(batch, dtype=torch.int64) if change.get("key_lengths") else None
        launch.launch(q, k, k, *tangents, lengths, (q, q, q[..., 0]), 0.1, change.get("causal", False))
        return self.ran[-1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_the_quickest_is_taken(bench: Bench) -> None:
    for quickest in range(len(bench.sizes())):
        tune._choices.clear()
        bench.timed.clear()
        bench.milliseconds = {bench.sizes()[quickest]: 0.5}
        assert bench.launch() == bench.sizes()[quickest]
        assert bench.timed == bench.sizes()


def test_lengths_share_a_choice_and_are_timed_once(bench: Bench) -> None:
    bench.milliseconds = {bench.sizes()[2]: 0.5}
    bench.launch()
    bench.milliseconds = {}
    for length, keys, batch in ((301, 299, 2), (1, 1, 1), (384, 1023, 2), (128, 17, 25)):
        assert bench.launch(batch=batch, length=length, keys=keys) == bench.sizes()[2]
    assert bench.timed == bench.sizes()


def test_any_length_falls_into_one_of_six_classes(bench: Bench) -> None:
    for length, keys in itertools.product((1, 64, 77, 100, 128, 500, 1024, 4096, 9999, 65_536), repeat=2):
        bench.launch(batch=1, heads=1 if length < 4096 else 8, length=length, keys=keys)
    assert 2 <= len(tune._choices) <= 6
    assert {(work.waves, work.keys) for work in tune._choices} == set(
        itertools.product(("one wave at most", "few waves", "many waves"), ("short", "long"))
    )


def test_what_a_choice_depends_on(bench: Bench) -> None:
    changes: list[dict[str, Any]] = [{"tangents": subset} for subset in SUBSETS]
    changes += [{"dtype": torch.float16}, {"dim": 40}, {"causal": True}, {"key_lengths": True}, {"keys": 1024}]
    changes += [{"batch": 25}, {"batch": 500}]
    for change in changes:
        bench.timed.clear()
        bench.launch(**change)
        dual = any(change.get("tangents", (1,)))
        assert bench.timed == bench.sizes(dual, change.get("dim", 64)), change
    bench.name = "NVIDIA H100 PCIe"
    bench.launch()
    assert len(tune._choices) == len(changes) + 1


def test_candidates_that_cannot_be_launched_are_left_out(bench: Bench) -> None:
    from triton.runtime.errors import OutOfResources, PTXASError

    first, second, third, *_ = bench.sizes()
    bench.failing = {first: OutOfResources(300_000, 200_000, "shared memory"), third: PTXASError("no")}
    bench.milliseconds = {first: 0.1, second: 0.5, third: 0.1}
    assert bench.launch() == second
    bench.failing = {blocks: OutOfResources(i, 200_000, "shared memory") for i, blocks in enumerate(bench.sizes())}
    with pytest.raises(OutOfResources, match="Required: 0,"):
        bench.launch(causal=True)
    assert len(tune._choices) == 1
    bench.failing = {second: ValueError("a mistake")}
    with pytest.raises(ValueError, match="a mistake"):
        bench.launch(causal=True)


def test_without_memory_for_timing_the_first_is_taken(bench: Bench) -> None:
    first, second, *_ = bench.sizes()
    bench.milliseconds, bench.failing = {first: 2.0}, {second: torch.OutOfMemoryError("full")}
    assert bench.launch() == bench.launch() == first
    assert bench.timed == [first]


def test_nothing_is_timed_during_a_capture(bench: Bench) -> None:
    first, second, *_ = bench.sizes()
    bench.milliseconds = {second: 0.5}
    bench.capturing = True
    assert bench.launch() == first
    assert not tune.choices()
    bench.capturing = False
    assert bench.launch() == second
    bench.capturing = True
    assert bench.launch() == second
    assert bench.timed == bench.sizes()


def test_nothing_is_timed_where_torch_is_to_be_deterministic(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = bench.sizes()
    bench.milliseconds = {second: 0.5}
    assert bench.launch() == second
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert bench.launch() == bench.launch(causal=True) == first
    assert bench.timed == bench.sizes()


def test_a_single_candidate_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    only = bench.sizes()[:1]
    monkeypatch.setattr(launch, "candidates", lambda *_: only)
    assert bench.launch() == only[0]
    assert not bench.timed


def test_choices_in_words(bench: Bench) -> None:
    bench.milliseconds = {bench.sizes()[1]: 0.5}
    bench.launch(causal=True, key_lengths=True, tangents=(1, 0, 1))
    assert tune.choices() == {
        "NVIDIA H200, bfloat16, head dimension 64, tangents of qv, causal, key lengths, one wave at most, short keys": (
            "64 queries x 64 keys, at most 96 columns, 4 warps, 3 stages"
        )
    }
