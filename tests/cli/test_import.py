"""`scm import`: weights from elsewhere become a run, which is sampled, judged and distilled."""

from __future__ import annotations

import diffusers_page
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import scmreg
from scmreg import registry
from scmreg.importing import weights_in

SMALL = ("--network", "mlp", "--set", "network.width=32", "--set", "network.depth=1")
POINTS = ("--data", "gaussians", "--set", "data.count=500", *SMALL)


@pytest.fixture(scope="module")
def original(tmp_path_factory, scm):
    """A diffusion model of points that has learned something, and its averaged weights in a file."""
    folder = tmp_path_factory.mktemp("original")
    said = ("--objective", "diffusion", "--process", "edm", "--steps", 600, "--set", "evaluation.metrics=[]")
    said = (*said, "--set", "trainer.batch_size=64")
    result = scm("run", *POINTS, *said, "--out", folder, "--name", "run")
    assert result.code == 0, result.err
    run = scmreg.load_run(folder / "run")
    network = run.denoiser().network
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "w.safetensors")
    return run, folder / "w.safetensors"


def test_an_imported_run_is_the_original(scm, original, workplace):
    run, file = original
    result = scm("import", file, *POINTS, "--process", "edm", "--name", "mine", "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    assert result.json["run"] == "runs/mine"
    rows = result.json["errors"]
    assert [row["level"] for row in rows] == [0.1, 0.3, 1.0, 3.0, 10.0]
    assert rows[2]["linear"] == 0.5
    assert any(row["model"] < row["linear"] for row in rows)
    mine = scmreg.load_run("runs/mine")
    for weights in ("ema", "raw"):
        assert torch.equal(mine.sample(20, weights=weights), run.sample(20))
    assert mine.recipe.objective.name == "diffusion"
    assert mine.checkpoint.meta["imported"]["file"] == str(file)
    assert scm("sample", "runs/mine", "--count", 5, "--out", "x.npz").code == 0
    assert scm("eval", "runs/mine", "--set", "evaluation.metrics=[sliced-wasserstein]").code == 0


def test_it_teaches(scm, original, workplace):
    assert scm("import", original[1], *POINTS, "--process", "edm", "--name", "teacher").code == 0
    said = ("--process", "edm", "--objective", "scd", "--teacher", "runs/teacher", "--steps", 2)
    result = scm("run", *POINTS, *said, "--set", "evaluation.metrics=[]", "--name", "student")
    assert result.code == 0, result.err
    assert "teacher: " in result.err
    assert scmreg.load_run("runs/student").checkpoint.meta["teacher"]["run"] == "../teacher"


def test_weights_of_something_else_are_told(scm, original, workplace):
    """The same shapes under a process and a parameterization that they were not trained for."""
    other = ("--process", "vp", "--parameterization", "data")
    result = scm("import", original[1], *POINTS, *other, "--name", "wrong")
    assert result.code == 0
    assert "note: at no noise level does the model predict the data better" in result.err
    assert result.out.splitlines()[-1] == "runs/wrong"


def test_a_folder_of_diffusers(scm, registries, workplace):
    """The whole of a denoiser, a part of it, or a model that a network wraps: what the names lack in front is added."""
    registry.load_file(diffusers_page.write(workplace))
    network = scmreg.networks.create("unet", width=8).build((1, 8, 8), 10)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.model.save_pretrained("pretrained", safe_serialization=True)
    said = ("--network", "unet", "--set", "network.width=8", "--process", "edm", "--data", "digits")
    result = scm("import", "pretrained", *said, "--set", "parameterization.c_noise=edm", "--name", "unet")
    assert result.code == 0, result.err
    denoiser = scmreg.load_run("runs/unet").denoiser()
    ours, theirs = denoiser.network.state_dict(), network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_cannot_be_imported_is_refused_and_leaves_nothing(scm, original, workplace):
    _, file = original
    for folder, names in (("none", ()), ("two", ("a", "b"))):
        (workplace / folder).mkdir()
        for name in names:
            save_file({"x": torch.ones(1)}, workplace / folder / f"{name}.safetensors")
    (workplace / "model.bin").write_bytes(b"x")
    (workplace / "broken.safetensors").write_bytes(b"not at all")
    np.savez(workplace / "x.npz", x=np.zeros(3))
    before = sorted(workplace.iterdir())
    edm = (*POINTS, "--process", "edm")
    for arguments, words in [
        (("nowhere.safetensors", *edm), "there is no file nowhere.safetensors"),
        (("none", *edm), "has no files of safetensors"),
        (("two", *edm), "has 2 files"),
        (("model.bin", *edm), "is not a file of safetensors"),
        (("broken.safetensors", *edm), "cannot be read"),
        ((file, *edm, "--set", "network.depth=2"), "is of another network than 'mlp': it lacks"),
        ((file, *edm, "--set", "network.guidance=true"), "it lacks 'condition.guidance"),
        ((file, *edm, "--set", "network.width=16"), "has shape"),
        ((file, *edm, "--objective", "scd"), "needs a teacher"),
        ((file, *edm, "--process", "emd"), "did you mean 'edm'"),
        ((file, *edm, "--name", "a/b"), "is no name of a run"),
    ]:
        result = scm("import", *arguments)
        assert (result.code, result.out) == (2, ""), result
        assert words in result.err
        assert sorted(workplace.iterdir()) == before


def test_a_file_of_another_kind_has_more(scm, original, workplace):
    network = scmreg.networks.create("mlp", width=32, depth=2).build((2,), 0)
    save_file(network.state_dict(), "deep.safetensors")
    result = scm("import", "deep.safetensors", *POINTS, "--process", "edm")
    assert result.code == 2
    assert "which the network has not" in result.err
    assert weights_in(workplace).name == "deep.safetensors"
