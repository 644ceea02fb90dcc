"""The benchmark of attention: our backends against what others offer, in time, memory and error."""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import MinLen
from torch import Tensor

from scmreg.attention import AttentionOptions, choose
from scmreg.bench.base import Benchmark, Row, Untried, clock, machine, ratio, take_turns
from scmreg.bench.case import Case, Judge, Shape
from scmreg.bench.contenders import PEERS, Attend, Backend, Contender
from scmreg.errors import OptionError, ScmError, UnavailableError, did_you_mean
from scmreg.progress import Progress
from scmreg.registry import registry
from scmreg.tangent import jvp
from scmreg.train import resolve_device
from scmreg.types import Count

__all__ = ["AttentionBenchmark", "Timing"]

Pass = Literal["jvp", "training"]
Result = tuple[Tensor, Tensor | None]
"""Value and tangent."""

TOKENS = 2**18
"""Batch times heads times length of the shapes that a GPU is measured on."""


@dataclass(frozen=True)
class Timing(Row):
    """What one implementation took for one shape, and how exact it was."""

    shape: str
    what: Pass
    attention: str
    detail: str
    """Which of its kernels ran, or that it is what ``auto`` picks."""
    tangent: bool
    """Whether it computed the tangent: the yardstick does not."""
    seconds: float
    """Median of one call."""
    flops: float
    """Floating-point operations of a call, multiplication and addition counted apart."""
    over: dict[str, float | None]
    """Median over the rounds of its time over that of each peer; ``None`` over one that cannot compute the shape."""
    extra_bytes: int | None
    """Most memory at a time beside what the inputs hold; ``None`` where the device does not count."""
    error: float
    """Relative error of the value in the Frobenius norm."""
    tangent_error: float | None
    """Relative error of the tangent in the Frobenius norm."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values: times in seconds, memory in bytes."""
        return {
            "shape": self.shape,
            "pass": self.what,
            "attention": self.attention,
            "detail": self.detail or None,
            "tangent": self.tangent,
            "seconds": self.seconds,
            "tflops": self.flops / self.seconds / 1e12,
            "over": {name: value and round(value, 4) for name, value in self.over.items()},
            "extra_bytes": self.extra_bytes,
            "error": self.error,
            "tangent_error": self.tangent_error,
        }

    def cells(self) -> dict[str, str]:
        """Return the text under each heading."""
        cells = {
            "shape": self.shape,
            "pass": self.what,
            "attention": f"{self.attention} ({self.detail})" if self.detail else self.attention,
            "ms": _digits(self.seconds * 1e3),
            "TFLOP/s": _digits(self.flops / self.seconds / 1e12),
        }
        cells |= {f"over {name}": "–" if value is None else f"{value:.2f}" for name, value in self.over.items()}
        if self.extra_bytes is not None:
            cells["extra MiB"] = f"{self.extra_bytes / 2**20:.1f}"
        cells["error of o"] = f"{self.error:.1e}"
        cells["of its tangent"] = "–" if self.tangent_error is None else f"{self.tangent_error:.1e}"
        return cells


def _digits(value: float) -> str:
    """Write three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class _Trial(NamedTuple):
    """An implementation that ran once on a case."""

    detail: str
    call: Callable[[], Any]
    extra_bytes: int | None
    errors: tuple[float, float | None]


class AttentionBenchmark(Benchmark):
    """Attention with its tangent: our backends against other implementations, in time, memory and error."""

    name = "attention"

    shape: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Shapes BxHxLxD: batch, heads, length, head dimension; H/Hk for fewer heads of keys, L/S for another number of
    keys. Not given: lengths up to 2048 on a CPU; on a GPU lengths 1024 to 16384 at constant B·H·L, dimensions 64, 72,
    128."""
    backend: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Backends of ours; all that can run here, if not given."""
    against: tuple[str, ...] | None = None
    """Peers: sdpa (torch's, the value alone), sdpa-math (torch's, differentiated), jvp_flash_attention (the package of
    this name); all that can run here, if not given."""
    passes: Annotated[tuple[Pass, ...], MinLen(1)] = ("jvp",)
    """What is computed: value and tangent (jvp), or the gradient of the value as well (training)."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    """Precision of the inputs; bfloat16 on a GPU, else float32, if not given."""
    causal: bool = False
    """Whether a query sees only the keys up to its own place."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    threads: Count = 1
    """CPU threads. On a busy machine several wait for each other, each implementation differently."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems: list[str] = []
        hints: list[str] = []
        for text in self.shape or ():
            try:
                Shape.parse(text)
            except OptionError as error:
                problems += error.problems
                hints += error.advice
        for what, names, known in (("attention", self.backend, registry("attention")), ("peer", self.against, PEERS)):
            unknown = [name for name in names or () if name not in known]
            problems += [f"no {what} called '{name}'{did_you_mean(name, known)}" for name in unknown]
            hints += [f"{what}s: {', '.join(known)}"] if unknown else []
        if problems:
            raise OptionError(problems, *hints)

    def run(self, progress: Progress) -> Sequence[Row]:
        """Measure every shape and pass.

        Raises:
            UnavailableError: if what was asked for by name cannot run here.
        """
        sides = self._contenders()
        self._refuse(sides)
        able = [side for side in sides if side.obstacle(self._device) is None]
        rows: list[Row] = []
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            for case in self._cases():
                for what in self.passes:
                    rows += self._measure(case, what, able, progress)
        finally:
            torch.set_num_threads(before)
        hindered = ((side, side.obstacle(self._device)) for side in sides)
        return rows + [Untried({"attention": side.name}, reason) for side, reason in hindered if reason]

    def describe(self) -> str:
        """Say on what is measured."""
        dtype = str(self._dtype).removeprefix("torch.")
        memory = "" if self._device.type == "cuda" else "; extra memory is counted on CUDA devices only"
        mask = "causal" if self.causal else "every key is seen"
        return f"{dtype}, {mask}; {machine(self._device, self.threads)}{memory}"

    @property
    def _device(self) -> torch.device:
        return resolve_device(self.device)

    @property
    def _dtype(self) -> torch.dtype:
        chosen = self.dtype or ("bfloat16" if self._device.type == "cuda" else "float32")
        dtype: torch.dtype = getattr(torch, chosen)
        return dtype

    def _contenders(self) -> list[Contender]:
        """Return our backends and the peers."""
        ours = self.backend if self.backend is not None else tuple(registry("attention"))
        others = self.against if self.against is not None else tuple(PEERS)
        return [*map(Backend, dict.fromkeys(ours)), *(PEERS[name] for name in dict.fromkeys(others))]

    def _refuse(self, sides: Sequence[Contender]) -> None:
        """Refuse what was asked for by name and cannot run here, before any work."""
        for side in sides:
            if side.name not in ((self.against if side.foreign else self.backend) or ()):
                continue
            if reason := side.obstacle(self._device):
                like = PEERS.values() if side.foreign else [Backend(name) for name in registry("attention")]
                can = ", ".join(each.name for each in like if each.obstacle(self._device) is None)
                raise UnavailableError(f"'{side.name}' cannot run here: {reason}", f"can run here: {can}")
            cases = self._cases()
            reasons = [side.refuses(case) for case in cases]
            if all(reasons):
                shape = "any of the shapes" if len(cases) > 1 else f"shape {cases[0].shape}"
                raise UnavailableError(
                    f"'{side.name}' cannot compute {shape}: {reasons[0]}", "leave it out, or choose another --shape"
                )

    def _cases(self) -> list[Case]:
        device, texts = self._device, self.shape
        if texts is None and device.type == "cuda":
            lengths = [2**power for power in range(10, 15)]
            texts = tuple(f"{TOKENS // 16 // length}x16x{length}x{dim}" for dim in (64, 72, 128) for length in lengths)
        elif texts is None:
            texts = tuple(f"1x4x{length}x64" for length in (256, 512, 1024, 2048))
        cases = [Case(Shape.parse(text), self._dtype, self.causal, device) for text in texts]
        for case in cases:
            case.check_inputs()
        return cases

    def _measure(self, case: Case, what: Pass, able: Sequence[Contender], progress: Progress) -> list[Row]:
        """Time all that can compute a case against each other."""
        inputs = case.inputs()
        judge = Judge(case, inputs)
        trials: dict[str, _Trial] = {}
        untried: list[Row] = []
        for side in able:
            tried = side.refuses(case) or self._try(side, case, what, inputs, judge)
            if isinstance(tried, str):
                untried.append(Untried({"attention": side.name, "shape": str(case.shape), "pass": what}, tried))
            else:
                trials[side.name] = tried
        if not trials:
            return untried
        calls = {name: trial.call for name, trial in trials.items()}
        seconds = take_turns(f"{case.shape} {what}", calls, self.rounds, progress, case.device)
        picked = choose(*case.blank(), AttentionOptions(1.0, case.causal))[0]
        peers = [side.name for side in able if side.foreign]
        rows: list[Row] = []
        for side in able:
            if side.name not in trials:
                continue
            trial, own = trials[side.name], seconds[side.name]
            rows.append(
                Timing(
                    shape=str(case.shape),
                    what=what,
                    attention=side.name,
                    detail=trial.detail or ("auto" if side.name == picked and not side.foreign else ""),
                    tangent=side.tangent,
                    seconds=statistics.median(own),
                    flops=_flops(case, what, tangent=side.tangent),
                    over={peer: ratio(own, seconds[peer]) if peer in seconds else None for peer in peers},
                    extra_bytes=trial.extra_bytes,
                    error=trial.errors[0],
                    tangent_error=trial.errors[1],
                )
            )
        return rows + untried

    def _try(self, side: Contender, case: Case, what: Pass, inputs: tuple[Tensor, ...], judge: Judge) -> _Trial | str:
        """Run a contender once by each of its ways, and return the quickest, or why there is none."""
        quickest: tuple[float, _Trial] | None = None
        reason = ""
        ways = side.ways(case)
        for detail, attention in ways.items():
            call = functools.partial(_compute, attention, inputs, what, side.tangent)
            try:
                with warnings.catch_warnings():
                    if side.foreign:
                        warnings.simplefilter("ignore")  # of kernels that say why they do not serve
                    result, extra = _with_memory(call, case.device)
                    trial = _Trial(detail, call, extra, judge.errors(*result))
                    del result
                    took = clock(call, 3, case.device) if len(ways) > 1 else 0.0
            except torch.OutOfMemoryError:
                reason = "out of memory"
            except Exception as error:
                # What is not ours may fail in any way, and is no reason to lose the other figures.
                if not side.foreign or isinstance(error, ScmError):
                    raise
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            else:
                if quickest is None or took < quickest[0]:
                    quickest = took, trial
        return reason if quickest is None else quickest[1]


def _compute(attention: Attend, inputs: tuple[Tensor, ...], what: Pass, tangent: bool) -> Result:
    """Compute value and tangent, and in training the gradient of the value."""
    q, k, v, tq, tk, tv, gradient = inputs
    training = what == "training"
    primals = tuple(x.detach().requires_grad_(training) for x in (q, k, v))
    rate: Tensor | None = None
    if tangent:
        value, rate = jvp(attention, primals, (tq, tk, tv))
    else:
        value = attention(*primals)
    if training:
        torch.autograd.grad(value, primals, gradient)
    return value, rate


def _flops(case: Case, what: Pass, *, tangent: bool) -> float:
    """Count the operations of the matrix products: two of the value, six with its tangent, and five of the gradient,
    which computes the logits again."""
    products = (6 if tangent else 2) + (5 if what == "training" else 0)
    return 2.0 * products * case.pairs * case.shape.dim


def _with_memory(call: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """Call once, and return the most memory that was held beside what was held before."""
    if device.type != "cuda":
        return call(), None
    call()  # what a first call allocates once is not the call's
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before
