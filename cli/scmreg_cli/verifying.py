"""The commands that check: verify, bench."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from scmreg import options
from scmreg.bench import BENCHMARKS
from scmreg.errors import OptionError, did_you_mean
from scmreg.proofs import PROOFS, Proof
from scmreg.recipe import load_yaml
from scmreg.verify import Outcome, prove
from scmreg_cli import progress
from scmreg_cli.showing import console, plain, table

__all__ = ["bench", "verify"]


def verify(names: Sequence[str], *, full: bool, seed: int, as_json: bool) -> None:
    """Run proofs and print a row for each; leave with status 1 if one does not hold."""
    for name in names:
        if name not in PROOFS:
            raise OptionError([f"no proof called '{name}'{did_you_mean(name, PROOFS)}"], f"proofs: {', '.join(PROOFS)}")
    every = [proof for proof in PROOFS.values() if full or not proof.full]
    chosen = [PROOFS[name] for name in dict.fromkeys(names)] or every
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the cases are small: threads would only wait for each other
    outcomes: list[Outcome] = []
    untried = [proof for proof in chosen if proof.missing()]
    chosen = [proof for proof in chosen if proof not in untried]
    try:
        with progress.make().task("prove", len(chosen)) as task:
            for proof in chosen:
                outcomes.append(prove(proof, cases=proof.examples * (10 if full else 1), seed=seed))
                task.update(len(outcomes))
    finally:
        torch.set_num_threads(threads)
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if as_json:
        skipped = [{"name": proof.name, "statement": proof.statement, "untried": proof.missing()} for proof in untried]
        print(json.dumps([outcome.to_json() for outcome in outcomes] + skipped))
    else:
        _print(outcomes, untried)
    if failed:
        sys.exit(1)


def _print(outcomes: Sequence[Outcome], untried: Sequence[Proof]) -> None:
    out = console()
    made = table("", "statement", "equation", "worst error", "bound", "cases")
    for outcome in outcomes:
        proof = outcome.proof
        made.add_row(
            "[green]✓[/]" if outcome.holds else "[red]✗[/]",
            plain(proof.statement),
            escape(proof.equation),
            f"{outcome.worst:.1e}",
            f"{proof.bound:.0e}",
            str(outcome.cases),
        )
    for proof in untried:
        made.add_row("[yellow]?[/]", plain(proof.statement), escape(proof.equation), "not tried", "", "")
    out.print(made)
    for proof in untried:
        out.print(f"[yellow]?[/] {proof.name} {escape(proof.missing() or '')}", soft_wrap=True)
    for outcome in outcomes:
        if outcome.counterexample is not None:
            out.print(f"[red]✗[/] {outcome.proof.name}: {escape(outcome.counterexample)}", soft_wrap=True)
    held = sum(outcome.holds for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    out.print(f"{held} of {len(outcomes)} hold; {seconds:.0f} seconds", highlight=False)


def bench(name: str, settings: Sequence[str], *, as_json: bool) -> None:
    """Run a benchmark and print both sides and their ratio."""
    if name not in BENCHMARKS:
        raise OptionError(
            [f"no benchmark called '{name}'{did_you_mean(name, BENCHMARKS)}"], f"benchmarks: {', '.join(BENCHMARKS)}"
        )
    values: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals:
            raise OptionError([f"--set {setting}: write OPTION=VALUE"])
        _put(values, option.strip().split("."), load_yaml(text))
    benchmark = options.build(BENCHMARKS[name], values, name)
    shown = progress.make()
    comparisons = benchmark.run(shown)
    if as_json:
        print(json.dumps([comparison.to_json() for comparison in comparisons]))
        return
    out = Console(width=None if sys.stdout.isatty() else 120)
    made = table("", "ours, ms", "against", "theirs, ms", "ratio")
    for comparison in comparisons:
        made.add_row(
            f"[bold]{escape(comparison.title)}[/]",
            f"{comparison.ours * 1e3:.2f}",
            escape(comparison.against),
            f"{comparison.theirs * 1e3:.2f}",
            f"{comparison.ratio:.3f}",
        )
    out.print(made)
    out.print(f"{benchmark.describe()}; medians of {benchmark.rounds} rounds in turns", highlight=False)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value at a path; a component on the way that is written as a bare name becomes a mapping."""
    for part in path[:-1]:
        inner = values.get(part, {})
        values[part] = {"name": inner} if isinstance(inner, str) else dict(inner)
        values = values[part]
    values[path[-1]] = value
