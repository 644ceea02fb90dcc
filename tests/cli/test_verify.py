"""`scm verify`: what it prints, and what it says of wrong input."""

from __future__ import annotations

import pytest
import torch

from scmreg.proofs import PROOFS


def test_a_proof_by_name(scm):
    result = scm("verify", "round-trip", "trigflow-form")
    assert result.code == 0, result.err
    assert "A point and its time go to any other process and back unchanged" in result.out
    assert "sCM Eqs. 23-24" in result.out
    assert "2 of 2 hold" in result.out


def test_as_json(scm):
    result = scm("verify", "round-trip", "--json")
    assert result.code == 0, result.err
    (entry,) = result.json
    assert entry["holds"] is True
    assert entry["worst"] <= entry["bound"] == PROOFS["round-trip"].bound
    assert entry["cases"] == PROOFS["round-trip"].examples
    assert scm("verify", "round-trip", "--json", "--seed", "5").json[0]["worst"] != entry["worst"]


def test_full_tries_more(scm):
    (entry,) = scm("verify", "refusal-of-pure-noise", "--full", "--json").json
    assert entry["cases"] == 10 * PROOFS["refusal-of-pure-noise"].examples


def test_what_does_not_hold_is_told(scm, monkeypatch):
    import scmreg

    flow = scmreg.processes["flow"]
    right = flow.time_of
    monkeypatch.setattr(flow, "time_of", lambda self, ratio: right(self, ratio) * 1.001)
    threads = torch.get_num_threads()
    result = scm("verify", "round-trip", "trigflow-form")
    assert result.code == 1
    assert "1 of 2 hold" in result.out
    assert "round-trip: seed 0" in result.out
    assert "process flow" in result.out
    assert torch.get_num_threads() == threads
    (entry, other) = scm("verify", "round-trip", "trigflow-form", "--json").json
    assert not entry["holds"]
    assert "process flow" in entry["counterexample"]
    assert other["holds"]


def test_a_proof_that_is_not_there(scm):
    result = scm("verify", "round-tripp")
    assert result.code == 2
    assert "no proof called 'round-tripp', did you mean 'round-trip'?" in result.err


@pytest.mark.slow
def test_the_whole(scm):
    result = scm("verify", "--json")
    assert result.code == 0, result.out
    assert [entry["name"] for entry in result.json] == [name for name, proof in PROOFS.items() if not proof.full]
