"""The command that checks: verify."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from rich.markup import escape

from scmreg.errors import OptionError, did_you_mean
from scmreg.proofs import PROOFS, Proof
from scmreg.verify import Outcome, prove
from scmreg_cli import progress
from scmreg_cli.showing import console, plain, table

__all__ = ["verify"]


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
