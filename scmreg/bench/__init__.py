"""Benchmarks: all sides in one process, in turns; what is told is medians, of times and of ratios."""

from __future__ import annotations

from scmreg.bench.attention import AttentionBenchmark
from scmreg.bench.base import Benchmark, Comparison, Row, Untried, in_turns, take_turns
from scmreg.bench.sampling import Sampling
from scmreg.bench.step import Step

__all__ = [
    "BENCHMARKS",
    "AttentionBenchmark",
    "Benchmark",
    "Comparison",
    "Row",
    "Sampling",
    "Step",
    "Untried",
    "in_turns",
    "take_turns",
]

BENCHMARKS: dict[str, type[Benchmark]] = {cls.name: cls for cls in (Sampling, AttentionBenchmark, Step)}
"""Benchmarks by name."""
