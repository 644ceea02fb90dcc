"""Every process with every objective, network and kind of data that fit it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from PIL import Image

import scmreg
from scmreg.matrix import compositions

PROCESSES = tuple(scmreg.processes)
OBJECTIVES = ("sct", "scd", "diffusion", "dscd", "dsct", "ect", "ict", "cd", "ct", "vsd", "scd+vsd")
ALONE = ("ct", "ict")
"""Objectives that need no diffusion model."""
NETWORKS = {"mlp": (), "dit": ("--set", "network.heads=2", "--set", "network.patch=4")}
DATA = ("swissroll", "checkerboard", "gaussians", "gaussian", "mixture", "images", "array")
POINTS = {"swissroll", "checkerboard", "gaussians", "gaussian", "mixture"}
LAWFUL = {"gaussians", "gaussian", "mixture"}
"""Points that know their law, so that every sample has an exact counterpart."""

WHOLE = [
    combination
    for combination in itertools.product(PROCESSES, OBJECTIVES, NETWORKS, DATA)
    if not (combination[2] == "dit" and combination[3] in POINTS)
]
# Every process with every objective, network and data, every objective with every network and data.
SOME = [
    combination
    for combination in WHOLE
    if (PROCESSES.index(combination[0]) + OBJECTIVES.index(combination[1]) + DATA.index(combination[3])) % 5 == 0
]


BOUNDED = [
    (verdict.names["process"], verdict.names["parameterization"])
    for verdict in compositions()
    if verdict.names["objective"] == "scd" and verdict.reason is None
]
"""Every pair of process and parameterization that a consistency model can be made of."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Options of each kind of data, as few of them as make sense."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    pixels = (rng.random((24, 8, 8)) * 255).astype(np.uint8)
    for index, image in enumerate(pixels):
        path = folder / "pictures" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(folder / "images.npz", x=pixels, labels=np.arange(24) % 3)
    return {
        **{name: ("--data", name, "--set", "data.count=60") for name in POINTS},
        "images": ("--data", "images", "--set", f"data.path={folder / 'pictures'}", "--set", "data.size=8"),
        "array": ("--data", "array", "--set", f"data.path={folder / 'images.npz'}"),
    }


def check(scm, tiny, tiny_diffusion, sources, process, objective, network, data):
    options = tiny if objective in ("sct", "scd", "dsct", "dscd") else tiny_diffusion
    result = scm(
        "run", "--process", process, "--objective", objective, "--network", network, *NETWORKS[network],
        *sources[data], *options, "--set", "evaluation.count=20", "--set", "trainer.batch_size=8",
        "--set", "teacher.trainer.batch_size=8", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    summary = result.json
    assert (summary["process"], summary["objective"]) == (process, objective)
    own = "sliced_wasserstein" if data in POINTS else "frechet_pixels"
    assert list(summary["floor"]) == [own]
    judged = [*([summary["teacher"]] if "teacher" in summary else []), *summary["student"]]
    few = {"diffusion": [], "vsd": [1]}.get(objective, [1, 2, 4])
    assert [entry["nfe"] for entry in judged] == ([] if objective in ALONE else [35]) + few
    for entry in judged:
        told = {"nfe", own, "precision", "recall", "memorization"}
        assert set(entry) == (told | {"trajectory_error"} if data in LAWFUL else told)
        assert all(math.isfinite(value) for value in entry.values())
    assert (scmreg.load_run(summary["run"]).recipe.network.name) == network
    return summary


@pytest.mark.parametrize(("process", "objective", "network", "data"), SOME)
def test_it_runs(scm, tiny, tiny_diffusion, sources, workplace, process, objective, network, data):
    check(scm, tiny, tiny_diffusion, sources, process, objective, network, data)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "objective", "network", "data"), [c for c in WHOLE if c not in SOME])
def test_all_the_rest_runs(scm, tiny, tiny_diffusion, sources, workplace, process, objective, network, data):
    check(scm, tiny, tiny_diffusion, sources, process, objective, network, data)


def test_the_choice_covers_every_pair():
    fitting = {pair for c in WHOLE for pair in itertools.combinations(enumerate(c), 2)}
    tried = {pair for c in SOME for pair in itertools.combinations(enumerate(c), 2)}
    assert tried == fitting
    assert {"sum" if "+" in name else name for name in OBJECTIVES} == set(scmreg.objectives)
    assert set(NETWORKS) == set(scmreg.networks) - {"exact"}, "the exact network has nothing to train"
    assert set(DATA) == set(scmreg.datasets) - {"digits"}, "digits are the data of all other tests"


@pytest.mark.parametrize("data", sorted(POINTS))
def test_a_transformer_refuses_points(scm, tiny, sources, workplace, data):
    result = scm("run", "--network", "dit", *sources[data], *tiny)
    assert result.code == 2
    assert "network 'dit' works on images" in result.err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [("network.patch=3", "patches of side 3"), ("network.heads=3", "heads"), ("network.width=30", "width 30")],
)
def test_a_transformer_that_does_not_fit_the_images(scm, tiny, workplace, setting, words):
    result = scm("run", "--network", "dit", *tiny, "--set", "network.heads=2", "--set", setting)
    assert result.code == 2
    assert words in result.err
    assert list(workplace.iterdir()) == []


def test_labelled_points_are_conditional(scm, tiny, workplace):
    result = scm("run", "--data", "gaussians", "--set", "data.labelled=true", "--set", "data.count=80", *tiny, "--json")
    assert result.code == 0, result.err
    assert len(scmreg.load_run(result.json["run"]).spec.classes) == 8
    meta = scm("sample", result.json["run"], "--labels", "7", "--count", 3, "--json").json
    assert meta["labels"] == [7, 7, 7]


@pytest.mark.parametrize(("process", "parameterization"), BOUNDED)
def test_parameterizations(scm, tiny, workplace, process, parameterization):
    quick = ["--set", "evaluation.metrics=[frechet]", "--set", "evaluation.count=16"]
    result = scm("run", "--process", process, "--parameterization", parameterization, *tiny, *quick, "--json")
    assert result.code == 0, result.err
    assert all(math.isfinite(entry["frechet"]) for entry in result.json["student"])


@pytest.mark.parametrize(
    "settings",
    [
        ("trainer.precision=bfloat16",),
        ("trainer.accumulation=3",),
        ("trainer.tangent_pass=separate",),
        ("trainer.ema_half_life=0",),
        ("trainer.clip=0.5", "trainer.schedule=inverse-sqrt", "trainer.rampup=2"),
        ("data.held_out=0",),
        ("data.shift=1", "data.flip=true"),
        ("objective.weighting=snr", "objective.proposal=uniform"),
        ("objective.normalization=rms", "objective.proposal=logit-normal"),
        ("sampler.steps=3", "sampler.times=[1.2, 0.4]"),
        ("evaluation.steps=[]",),
        ("evaluation.metrics=[]",),
        ("evaluation.count=2",),
        ("trainer.batch_size=2000",),
        ("network.embedding=fourier",),
        ("network.dropout=0.1",),
    ],
)
def test_options_of_a_run(scm, tiny, workplace, settings):
    quick = ["--set", "evaluation.count=16", "--set", "evaluation.steps=[1]", "--set", "evaluation.metrics=[frechet]"]
    result = scm("run", *tiny, *quick, *(part for setting in settings for part in ("--set", setting)), "--json")
    assert result.code == 0, result.err
    assert result.json["process"] == "trigflow"
