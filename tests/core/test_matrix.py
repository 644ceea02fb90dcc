"""What fits with what: all that the table allows is trained, all that it forbids is refused for the stated reason."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import scmreg
from scmreg import checkpoint
from scmreg.data import Dataset
from scmreg.errors import CompositionError, OptionError
from scmreg.matrix import INNER, SHAPES, Verdict, compositions, pairs, shapes
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.sampler import Noise
from scmreg.train import build_denoiser, train
from scmreg.types import Conditions

QUICK = {"steps": 2, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "device": "cpu"}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "depth": 1},
    "dit": {"width": 16, "depth": 1, "heads": 2, "patch": 4},
}
"""Options that make the networks small; new ones are trained as they are."""
DATA: dict[str, Any] = {"name": "gaussians", "count": 24, "labelled": True}
COMPOSITIONS, PAIRS = compositions(), pairs()


def name_of(verdict: Verdict) -> str:
    return "-".join(verdict.names.values())


def fitting(verdicts: list[Verdict]) -> Any:
    return pytest.mark.parametrize("verdict", [v for v in verdicts if v.reason is None], ids=name_of)


def forbidden(verdicts: list[Verdict]) -> Any:
    return pytest.mark.parametrize("verdict", [v for v in verdicts if v.reason is not None], ids=name_of)


def tree_of(names: dict[str, str], **sections: Any) -> dict[str, Any]:
    """Return the tree of a recipe in which some components are named."""
    tree: dict[str, Any] = {"objective": {"name": names["objective"]}, **sections}
    for kind, name in names.items():
        if kind in INNER:
            tree["objective"][kind] = {"name": name}
        elif kind != "objective":
            tree[kind] = {**tree.get(kind, {}), "name": name}
    return tree


@cache
def loaded(name: str) -> Dataset:
    data = Recipe.from_tree({"data": DATA if name == "points" else {"name": "digits"}}).data
    return data.load()


def two_steps(names: dict[str, str], folder: Path) -> tuple[Recipe, Any]:
    """Train for two steps, from a fresh teacher where there must be one, and return the recipe and the model."""
    network = names.get("network", "mlp")
    images = scmreg.networks.create(network, **SMALL.get(network, {})).accepts((2,)) is not None
    dataset = loaded("images" if images else "points")
    made = Recipe.from_tree(
        tree_of(names, network={"name": network, **SMALL.get(network, {})}, trainer=QUICK)
        | {"data": {"name": "digits"} if images else DATA}
    )
    made.check(dataset.spec)
    fresh = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes), seed=1)
    with torch.no_grad():  # a network whose output is 0 may be consistent with itself: nothing would be left to learn
        for parameter in fresh.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    place = train(made, dataset, folder, Progress(), teacher=fresh if made.objective.needs_teacher else None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in lines)
    model = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes))
    start = fresh if made.starts_from_teacher else model
    before = {key: value.clone() for key, value in start.state_dict().items()}
    checkpoint.load_into(model, checkpoint.load(place).tensors("model"), str(place))
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items()), "nothing was learned"
    return made, model.eval()


def test_every_component_is_asked_about() -> None:
    asked = {(kind, name) for verdict in COMPOSITIONS + PAIRS for kind, name in verdict.names.items()}
    kinds = ("process", "parameterization", "objective", "network", *INNER, "sampler")
    assert asked == {(kind, name) for kind in kinds for name in scmreg.registry.registry(kind)}
    triples = len(scmreg.processes) * len(scmreg.parameterizations) * len(scmreg.objectives)
    assert len({name_of(verdict) for verdict in COMPOSITIONS}) == len(COMPOSITIONS) == triples
    assert len({tuple(verdict.names.items()) for verdict in PAIRS}) == len(PAIRS)


@fitting(COMPOSITIONS)
def test_what_fits_is_trained(tmp_path: Path, verdict: Verdict) -> None:
    two_steps(verdict.names, tmp_path)


@fitting(PAIRS)
def test_pairs_that_fit_are_trained_and_sampled(tmp_path: Path, verdict: Verdict) -> None:
    made, model = two_steps(verdict.names, tmp_path)
    shape = (2,) if made.data.name == "gaussians" else (1, 8, 8)
    with torch.no_grad():
        x = made.sampler.with_steps(2).sample(model, Noise([0, 1], shape), Conditions(label=torch.tensor([0, 1])))
    assert x.shape == (2, *shape)
    assert bool(torch.isfinite(x).all())


@forbidden(COMPOSITIONS + PAIRS)
def test_what_does_not_fit_is_refused_for_the_reason_that_is_given(verdict: Verdict) -> None:
    with pytest.raises((CompositionError, OptionError)) as error:
        Recipe.from_tree(tree_of(verdict.names)).check()
    assert error.value.what == verdict.reason
    assert isinstance(error.value, CompositionError) or "is required" in error.value.what


def test_reasons_name_what_does_not_fit() -> None:
    for verdict in COMPOSITIONS:
        if verdict.reason is not None:
            for kind, name in verdict.names.items():
                assert f"{kind} '{name}'" in verdict.reason
    for verdict in PAIRS:
        if verdict.reason is not None:
            assert any(f"'{name}'" in verdict.reason for name in verdict.names.values())


def test_diffusion_fits_everything_and_consistency_is_choosy() -> None:
    """The table is neither empty nor full: of the pairs of process and parameterization some have no f(x, t)."""
    reasons = {name_of(verdict): verdict.reason for verdict in COMPOSITIONS}
    assert all(reason is None for name, reason in reasons.items() if name.endswith("-diffusion"))
    for objective in set(scmreg.objectives) - {"diffusion"}:
        for process in scmreg.processes:
            assert reasons[f"{process}-unit-variance-{objective}"] is None
            assert reasons[f"{process}-velocity-{objective}"] is None
            assert "f(x, 0) = x" in (reasons[f"{process}-data-{objective}"] or "")
        for process in ("trigflow", "flow", "cosine"):
            assert "a pole at pure noise" in (reasons[f"{process}-noise-{objective}"] or "")
            assert "a pole at pure noise" in (reasons[f"{process}-score-{objective}"] or "")
        for process in ("edm", "vp"):
            assert reasons[f"{process}-noise-{objective}"] is None


@pytest.mark.parametrize("verdict", shapes(), ids=name_of)
def test_shapes_of_samples(verdict: Verdict) -> None:
    """What a network accepts it evaluates; what it does not is refused with the reason when a recipe meets its data."""
    shape = SHAPES[verdict.names["samples"]]
    network = scmreg.networks.create(verdict.names["network"])
    if verdict.reason is None:
        x = torch.randn(2, *shape)
        with torch.no_grad():
            assert network.build(shape)(x, torch.ones(2), Conditions()).shape == x.shape
        return
    assert verdict.reason == network.accepts(shape)
    assert f"'{network.name}'" in verdict.reason
    spec = scmreg.DataSpec("anything", shape, "points" if len(shape) == 1 else "image")
    with pytest.raises(CompositionError) as error:
        Recipe.from_tree({"network": network.name}).check(spec)
    assert verdict.reason in (error.value.what, *error.value.hints)
