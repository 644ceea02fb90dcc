"""Benchmarks: fair turns, true errors and counts, and what cannot take part is told. Nothing asserts a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scmreg.attention import AttentionOptions, attend, visible
from scmreg.bench import AttentionBenchmark, Step, Untried, attention, base, take_turns
from scmreg.bench.attention import Timing, _flops, _with_memory
from scmreg.bench.case import LOGITS, Case, Judge, Shape
from scmreg.bench.contenders import PEERS, Backend, JVPFlashAttention, Stock
from scmreg.errors import OptionError, UnavailableError
from scmreg.progress import Progress

CPU = torch.device("cpu")


def case(text: str, dtype: torch.dtype = torch.float32, *, causal: bool = False, device: str = "cpu") -> Case:
    return Case(Shape.parse(text), dtype, causal, torch.device(device))


def timings(**options: Any) -> list[Timing]:
    options = {"shape": ("1x2x16x8",), "rounds": 1, "device": "cpu", **options}
    return [row for row in AttentionBenchmark(**options).run(Progress()) if isinstance(row, Timing)]


# Turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4])
def test_turns_are_fair(count: int) -> None:
    """After a warm-up, every side runs once a round, and each is as often the first as any other."""
    calls: list[int] = []
    sides = {str(number): lambda number=number: calls.append(number) for number in range(count)}
    rounds = 2 * count
    seconds = take_turns("", sides, rounds, Progress())
    assert list(seconds) == list(sides)
    assert all(len(each) == rounds and min(each) >= 0 for each in seconds.values())
    assert calls[:count] == list(range(count))
    turns = [calls[start : start + count] for start in range(count, len(calls), count)]
    assert len(turns) == rounds
    assert all(sorted(turn) == list(range(count)) for turn in turns)
    first = [turn[0] for turn in turns]
    assert all(first.count(number) == 2 for number in range(count))


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass on a clock that stands still otherwise."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_an_accelerator_is_waited_for_and_kept_busy(
    monkeypatch: pytest.MonkeyPatch, spend: Callable[[float], None]
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: waited.append(device.type))
    calls: list[str] = []
    quick, slow = base.FILLED / 7.5, base.FILLED * 1.5
    sides = {
        "quick": lambda: (calls.append("quick"), spend(quick)),
        "slow": lambda: (calls.append("slow"), spend(slow)),
    }
    seconds = take_turns("", sides, 2, Progress(), torch.device("cuda"))
    assert calls.count("slow") == 1 + 1 + 2, "a warm-up, one to see how long it takes, two rounds"
    assert calls.count("quick") == 1 + 1 + 2 * 8, "a short call is repeated, so that its launch does not count"
    assert seconds == {"quick": [pytest.approx(quick)] * 2, "slow": [pytest.approx(slow)] * 2}
    assert waited == ["cuda"] * 2 * (2 + 4), "before and after every measurement"
    calls.clear()
    waited.clear()
    assert take_turns("", sides, 2, Progress())["quick"] == [pytest.approx(quick)] * 2
    assert calls.count("quick") == calls.count("slow") == 3
    assert not waited


def test_ratios_are_medians_of_ratios(spend: Callable[[float], None]) -> None:
    ours, theirs = iter([0, 2, 3, 40]), iter([0, 1, 2, 2])  # the first is the warm-up
    made = base.in_turns("we", lambda: spend(next(ours)), "they", lambda: spend(next(theirs)), 3, Progress())
    assert made.to_json() == {"title": "we", "ours": 3, "against": "they", "theirs": 2, "ratio": 2}
    assert made.cells() == {
        "": "we",
        "ours, ms": "3000.00",
        "against": "they",
        "theirs, ms": "2000.00",
        "ratio": "2.000",
    }


# Cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2x8x1024x64", "1x1x1x1", "2x8/2x77x64", "2x8x77/1024x64", "3x4/1x5/6x72"])
def test_a_shape_reads_as_it_is_written(text: str) -> None:
    assert str(Shape.parse(text)) == text


def test_what_a_shape_means() -> None:
    assert Shape.parse("3x4/2x5/6x7") == Shape(batch=3, heads=4, key_heads=2, rows=5, keys=6, dim=7)
    assert Shape.parse("3x4x5x7") == Shape(3, 4, 4, 5, 5, 7)
    q, k, v, tq, tk, tv, gradient = case("3x4/2x5/6x7", torch.bfloat16).inputs()
    assert q.shape == tq.shape == gradient.shape == (3, 4, 5, 7)
    assert k.shape == v.shape == tk.shape == tv.shape == (3, 2, 6, 7)
    assert q.dtype == torch.bfloat16
    assert not torch.equal(k, v)
    assert [tuple(x.shape) for x in case("3x4/2x5/6x7").blank()] == [(3, 4, 5, 7), (3, 2, 6, 7), (3, 2, 6, 7)]


@pytest.mark.parametrize(
    "text", ["", "2x8", "2x8x16", "2x8x16x64x1", "2x8x-1x64", "axbxcxd", "2x8x1e3x64", "2,8,16,64"]
)
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(OptionError, match="is no shape of an attention\n  a shape is BxHxLxD"):
        Shape.parse(text)


@pytest.mark.parametrize("text", ["2x8x0x64", "0x8x16x64", "2x8/0x16x64", "2x8x16/0x64", "2x8x16x0"])
def test_a_shape_of_nothing(text: str) -> None:
    with pytest.raises(OptionError, match="has a size of 0"):
        Shape.parse(text)


@pytest.mark.parametrize("text", ["2x3x5x4", "1x2x7/5x4", "1x2x5/7x4", "1x1x1/9x4", "1x1x9/1x4"])
def test_work_is_counted_by_the_pairs_that_are_seen(text: str) -> None:
    shape = Shape.parse(text)
    mask = visible(AttentionOptions(1.0, causal=True), shape.rows, torch.arange(shape.keys), shape.keys)
    assert mask is not None
    assert case(text, causal=True).pairs == shape.batch * shape.heads * int(mask.sum())
    whole = case(text)
    assert whole.pairs == shape.batch * shape.heads * shape.rows * shape.keys
    assert _flops(whole, "jvp", tangent=True) == 12 * whole.pairs * shape.dim
    assert _flops(whole, "jvp", tangent=False) == 4 * whole.pairs * shape.dim
    assert _flops(whole, "training", tangent=True) == 22 * whole.pairs * shape.dim


def test_whole_matrices_must_fit_on_a_cpu() -> None:
    reason = case("1x8x1000000x64").too_large()
    assert reason is not None
    assert "need 119209 GiB of memory" in reason
    assert case("1x8x64x64").too_large() is None
    assert case("1x8x1000000x64", device="meta").too_large() is None
    for name in ("math", "sdpa-math"):
        side = PEERS.get(name) or Backend(name)
        assert side.refuses(case("1x8x1000000x64")) == reason
    assert Backend("chunked").refuses(case("1x8x1000000x64")) is None


# Judgement --------------------------------------------------------------------------------------------------------


def dual(made: Case, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    value, tangent = torch.func.jvp(
        lambda q, k, v: attend(q, k, v, causal=made.causal, backend="math"), inputs[:3], inputs[3:6]
    )
    return value, tangent


@pytest.mark.parametrize("text", ["2x3x5x4", "1x4/2x7/5x4", "3x4/1x5/7x4"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_judge_agrees_with_the_reference(text: str, causal: bool) -> None:
    made = case(text, torch.float64, causal=causal)
    inputs = made.inputs()
    value, tangent = dual(made, inputs)
    error, tangent_error = Judge(made, inputs).errors(value, tangent)
    assert error < 1e-14
    assert tangent_error is not None
    assert tangent_error < 1e-14


def test_the_judge_measures_relative_errors_of_each() -> None:
    made = case("2x3x5x4", torch.float64)
    inputs = made.inputs()
    value, tangent = dual(made, inputs)
    judge = Judge(made, inputs)
    assert judge.errors(value * 1.01, tangent) == (pytest.approx(0.01), pytest.approx(0, abs=1e-14))
    assert judge.errors(value, tangent * 0.9) == (pytest.approx(0, abs=1e-14), pytest.approx(0.1))
    assert judge.errors(value, None)[1] is None


def test_the_judge_rounds_the_inputs_first() -> None:
    made = case("1x2x32x8", torch.bfloat16)
    inputs = made.inputs()
    exact = dual(made, tuple(x.double() for x in inputs))
    assert max(Judge(made, inputs).errors(*exact)) < 1e-14  # type: ignore[type-var]


def test_the_judge_looks_at_a_part_of_what_is_long() -> None:
    made = case(f"2x3x64/{LOGITS // 8}x2", torch.float64)
    inputs = made.inputs()
    judge = Judge(made, inputs)
    assert judge.heads[0] == 0
    assert judge.heads[-1] == 5
    assert len(judge.heads) == 4
    assert len(judge.rows) == 8
    assert judge.rows[0] == 0
    assert judge.rows[-1] == 63
    assert judge.value.shape == (4, 8, 2)


# Contenders -------------------------------------------------------------------------------------------------------


def test_the_package_is_asked_for_what_it_can() -> None:
    peer = JVPFlashAttention()
    assert peer.obstacle(CPU) == "needs a CUDA device"
    assert peer.refuses(case("2x8x1024x64", torch.bfloat16)) is None
    for text, words in (
        ("2x8x1000x64", "multiples of 32"),
        ("2x8x1024x72", "head dimensions"),
        ("2x8x1024x16", "head dimensions"),
        ("2x8/2x1024x64", "as many heads"),
        ("2x8x64/128x64", "as many keys"),
    ):
        assert words in str(peer.refuses(case(text)))
    assert "float64" in str(peer.refuses(case("2x8x1024x64", torch.float64)))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install jvp_flash_attention" in str(JVPFlashAttention().obstacle(torch.device("cuda")))


def test_the_package_is_called_by_its_entry_for_jvp(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def fwd_dual(q: Any, k: Any, v: Any, causal: bool) -> Any:
        asked.append(causal)
        return attend(q, k, v, causal=causal, backend="math")

    package = SimpleNamespace(JVPAttn=SimpleNamespace(fwd_dual=fwd_dual))
    monkeypatch.setitem(sys.modules, "jvp_flash_attention", SimpleNamespace(jvp_attention=package))
    monkeypatch.setitem(sys.modules, "jvp_flash_attention.jvp_attention", package)
    monkeypatch.setattr(JVPFlashAttention, "obstacle", lambda self, device: None)
    rows = timings(shape=("1x2x32x32", "1x2x33x32"), causal=True, backend=("math",))
    assert set(asked) == {True}
    (row,) = (row for row in rows if row.attention == "jvp_flash_attention")
    assert row.shape == "1x2x32x32"
    assert row.error < 1e-6
    other = next(row for row in rows if row.shape == "1x2x33x32")
    assert other.over["jvp_flash_attention"] is None
    assert other.cells()["over jvp_flash_attention"] == "–"
    assert other.to_json()["over"]["jvp_flash_attention"] is None
    assert other.cells().keys() == row.cells().keys()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
def test_all_compute_the_same(dtype: Any, causal: bool) -> None:
    rows = timings(shape=("2x4/2x24x8", "1x2x17x4"), dtype=dtype, causal=causal, passes=("jvp", "training"))
    bound = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 2e-2}[dtype]
    assert [row.what for row in rows] == (["jvp"] * 4 + ["training"] * 4) * 2
    assert [row.attention for row in rows[:4]] == ["chunked", "math", "sdpa", "sdpa-math"]
    for row in rows:
        assert row.error < bound
        assert row.tangent == (row.attention != "sdpa")
        assert (row.tangent_error is None) == (row.attention == "sdpa")
        assert row.tangent_error is None or row.tangent_error < bound
        assert row.detail == ("auto" if row.attention == "chunked" else "")
        assert row.over.keys() == {"sdpa", "sdpa-math"}
        assert row.extra_bytes is None
        assert "extra MiB" not in row.cells()


def test_training_computes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[torch.Size, ...]] = []
    grad = torch.autograd.grad

    def watch(outputs: Any, inputs: Any, *more: Any) -> Any:
        found = grad(outputs, inputs, *more)
        computed.append(tuple(x.shape for x in found))
        return found

    monkeypatch.setattr(torch.autograd, "grad", watch)
    timings(backend=("math",), against=("sdpa",))
    assert not computed
    timings(backend=("math",), against=("sdpa",), passes=("training",))
    assert set(computed) == {((1, 2, 16, 8),) * 3}


def test_the_quickest_way_is_taken(monkeypatch: pytest.MonkeyPatch, spend: Callable[[float], None]) -> None:
    way = Stock().ways(case("1x2x16x8"))[""]

    def slow(*inputs: Any) -> Any:
        spend(1.0)
        return way(*inputs)

    def quick(*inputs: Any) -> Any:
        spend(0.5)
        return way(*inputs)

    def ours(*inputs: Any) -> Any:
        spend(2.0)
        return attend(*inputs, backend="math")

    def broken(*inputs: Any) -> Any:
        raise RuntimeError("no kernel\nand more words")

    monkeypatch.setattr(Stock, "ways", lambda self, case: {"slow": slow, "broken": broken, "quick": quick})
    monkeypatch.setattr(Backend, "ways", lambda self, case: {"": ours})
    math, row = timings(backend=("math",), against=("sdpa",))
    assert (math.seconds, row.seconds) == (2.0, 0.5)
    assert (math.over, row.over) == ({"sdpa": 4.0}, {"sdpa": 1.0})
    assert math.to_json()["tflops"] == math.flops / 2.0 / 1e12
    assert row.detail == "quick"
    assert row.cells()["attention"] == "sdpa (quick)"
    monkeypatch.setattr(Stock, "ways", lambda self, case: {"broken": broken})
    made = AttentionBenchmark(shape=("1x2x16x8",), rounds=1, backend=("math",), against=("sdpa",), device="cpu")
    untried = [row.to_json() for row in made.run(Progress()) if isinstance(row, Untried)]
    assert untried[0] == {
        "attention": "sdpa", "shape": "1x2x16x8", "pass": "jvp", "untried": "RuntimeError: no kernel",
    }  # fmt: skip


def test_memory_that_runs_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Backend, "ways", lambda self, case: {"": full})
    rows = AttentionBenchmark(shape=("1x2x16x8",), rounds=1, backend=("math",), against=(), device="cpu").run(
        Progress()
    )
    assert [row.to_json()["untried"] for row in rows] == ["out of memory"]


def test_a_fault_of_ours_is_not_told_but_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*inputs: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(Backend, "ways", lambda self, case: {"": broken})
    with pytest.raises(RuntimeError, match="ours"):
        timings()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can run here")
def test_what_is_asked_for_by_name_must_run() -> None:
    with pytest.raises(UnavailableError, match="needs a CUDA device\n  can run here: sdpa, sdpa-math"):
        timings(against=("jvp_flash_attention",))
    with pytest.raises(UnavailableError, match="'sdpa' cannot compute shape 1x2x8/16x8"):
        timings(shape=("1x2x8/16x8",), causal=True, against=("sdpa",))
    with pytest.raises(UnavailableError, match="'sdpa' cannot compute any of the shapes: its causal mask"):
        timings(shape=("1x2x8/16x8", "1x2x8/12x8"), causal=True, against=("sdpa",))
    some = timings(shape=("1x2x8/16x8", "1x2x8x8"), causal=True, against=("sdpa",), backend=("math",))
    assert [(row.shape, row.attention) for row in some] == [
        ("1x2x8/16x8", "math"),
        ("1x2x8x8", "math"),
        ("1x2x8x8", "sdpa"),
    ]
    assert {row.attention for row in timings(shape=("1x2x8/16x8",), causal=True)} == {"math", "chunked"}


def test_threads_are_set_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    way = Stock().ways(case("1x2x16x8"))[""]

    def watch(*inputs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return way(*inputs)

    monkeypatch.setattr(Stock, "ways", lambda self, case: {"": watch})
    before = torch.get_num_threads()
    timings(threads=2, backend=("math",))
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_extra_memory_is_the_peak_less_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held, order = {"now": 100, "peak": 0}, []

    def call() -> tuple[torch.Tensor, None]:
        held["peak"] = max(held["peak"], 350)
        order.append("call")
        return torch.ones(1), None

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    held["peak"] = 1000
    assert _with_memory(call, torch.device("cuda"))[1] == 250
    assert order == ["call", "wait", "call", "wait"]
    assert _with_memory(call, CPU)[1] is None


def test_what_is_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "resolve_device", lambda name: torch.device("cuda"))
    cases = AttentionBenchmark()._cases()
    assert {each.dtype for each in cases} == {torch.bfloat16}
    assert {each.shape.batch * each.shape.heads * each.shape.rows for each in cases} == {2**18}
    lengths = (1024, 2048, 4096, 8192, 16384)
    assert [(each.shape.dim, each.shape.rows) for each in cases] == [
        (d, rows) for d in (64, 72, 128) for rows in lengths
    ]
    assert list(Stock().ways(cases[0])) == ["cuDNN", "flash", "efficient"]
    assert list(Stock().ways(case("1x2x16x8", torch.float64, device="cuda"))) == [""]
    assert JVPFlashAttention().refuses(cases[5]) is not None, "the other shapes are measured none the less"
    assert JVPFlashAttention().refuses(cases[0]) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_counted_on_a_gpu() -> None:
    rows = timings(shape=("1x2x256x64",), backend=("math", "chunked"), against=("sdpa",), device="cuda")
    assert all(row.extra_bytes is not None and row.extra_bytes >= 2 * 256 * 64 * 2 for row in rows)
    assert "extra MiB" in rows[0].cells()


# Steps ------------------------------------------------------------------------------------------------------------


def test_steps_of_students_and_teacher_are_of_one_kind() -> None:
    step = Step(batch_size=4, rounds=1, shape=(3, 4, 4), classes=3, device="cpu", precision="bfloat16")
    for objective in (*step.objectives, step._recipe(step.objectives[0], "joint").teacher.objective):
        made = step._recipe(objective, "separate")
        assert (made.trainer.batch_size, made.trainer.precision, made.trainer.tangent_pass) == (
            4,
            "bfloat16",
            "separate",
        )
        assert made.network == step.network
        assert made.trainer.learning_rate == objective.trainer["learning_rate"]
    data = step._dataset()
    assert data.train.all().shape == (4, 3, 4, 4)
    assert data.train.labels is not None
    assert int(data.train.labels.max()) < 3


def test_steps_leave_the_random_state_alone() -> None:
    from scmreg import networks

    tiny = networks.create("mlp", width=8, depth=1)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    rows = Step(network=tiny, shape=(2,), classes=0, batch_size=4, rounds=1, device="cpu").run(Progress())
    assert torch.equal(torch.rand(1), expected)
    assert [row.title for row in rows] == ["sct, joint", "sct, separate", "scd, joint", "scd, separate"]
    assert {row.against for row in rows} == {"diffusion"}
