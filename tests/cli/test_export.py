"""`scm export`: a folder that loads where scmreg cannot be imported, and draws the samples of the run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import diffusers_page
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

import scmreg
from scmreg import registry
from scmreg.denoiser import convert
from scmreg.errors import CompositionError
from scmreg.export import export, readme
from scmreg.export.pretrained import fitting, saved_by_itself
from scmreg.export.program import trace
from scmreg.export.standalone import sample
from scmreg.sample import Run
from scmreg.sampler import Noise
from scmreg.types import Conditions

# A stranger's Python: scmreg cannot be imported. torchvision may have been built for another torch (as in
# scmreg_networks.timm_layers); diffusers imports it, and calls none of its operators.
STRANGER = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("scmreg"):
            raise ModuleNotFoundError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
assert not any(name.startswith("scmreg") for name in sys.modules)
import torch
torch.set_num_threads(1)
try:
    import torchvision
except (RuntimeError, ImportError):
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
SAMPLE = "import runpy; sys.argv[0] = 'sample.py'; runpy.run_path('sample.py', run_name='__main__')"
ROUNDING = 2e-5
"""A few operations in float32, in units of the data."""


def stranger(folder: Path, code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", STRANGER + code, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(folder: Path, *arguments: object) -> Tensor:
    """What the folder's own sample.py draws."""
    target = folder.parent / f"{folder.name}.npz"
    stranger(folder, SAMPLE, "--out", target, *arguments)
    with np.load(target, allow_pickle=False) as archive:
        return torch.from_numpy(archive["x"])


def blocks(folder: Path) -> list[str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Replay(Noise):
    """The noise that a loop of a stranger draws after ``torch.manual_seed(0)``."""

    def __init__(self, count: int, shape: tuple[int, ...], draws: int) -> None:
        super().__init__(range(count), shape)
        rng = torch.Generator().manual_seed(0)
        self.draws = [torch.randn(count, *shape, generator=rng) for _ in range(draws)]

    def draw(self, index: int = 0) -> Tensor:
        return self.draws[index]


def ours(run: Run, count: int = 16) -> Tensor:
    """Samples of a run from the noise of a stranger's loop, as scaled by the process."""
    cond = Conditions(label=torch.arange(count) % len(run.spec.classes)) if run.spec.classes else Conditions()
    with torch.no_grad():
        return run.recipe.sampler.sample(run.denoiser(), Replay(count, run.spec.shape, 4), cond)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory, scm):
    to = tmp_path_factory.mktemp("exported") / "digits"
    result = scm("export", trained[0], "--to", to)
    assert result.code == 0, result.err
    assert result.out.strip() == str(to)
    assert "no pipeline of diffusers loads it" in result.err
    return to


def test_the_folder_draws_the_samples_of_the_run(exported, trained):
    run = scmreg.load_run(trained[0])
    x = drawn(exported, "--count", 12, "--seed", 5, "--labels", 3, 1)
    torch.testing.assert_close(x, run.sample(12, seed=5, labels=[3, 1] * 6), rtol=0, atol=ROUNDING)
    one = scmreg.samplers.create("consistency", steps=1)
    times = json.loads((exported / "sampling.json").read_text())["times"]
    x = sample(exported, range(3), [7, 7, 7], times[:1])
    torch.testing.assert_close(x, run.sample(3, labels=[7, 7, 7], sampler=one), rtol=0, atol=ROUNDING)


def test_the_page_of_the_folder_is_true(exported, trained):
    """Its Python, with the scheduler of diffusers, where there is no scmreg."""
    code = "\n".join(["torch.manual_seed(0)", *blocks(exported), "import numpy; numpy.save('../x.npy', x.numpy())"])
    stranger(exported, code)
    x = torch.from_numpy(np.load(exported.parent / "x.npy", allow_pickle=False))
    run = scmreg.load_run(trained[0])
    torch.testing.assert_close(x, ours(run), rtol=0, atol=ROUNDING)
    page = (exported / "README.md").read_text()
    scale, mean = re.findall(r"`x \* (\d+\.\d+) \+ mean`.* mean = (\d+\.\d+)", page)[0]
    rendered = run.spec.render(x, run.recipe.process.sigma_data)
    torch.testing.assert_close(x * float(scale) + float(mean), rendered, rtol=0, atol=1e-6)


def test_wrong_use_of_the_folder_is_told(exported):
    for arguments, words in [
        ({"labels": [3, 10]}, "among the 10 classes"),
        ({"labels": [-1, 0]}, "among the 10 classes"),
        ({"times": [1.1, 1.2]}, "must fall"),
        ({"times": [2.0]}, "must fall"),
    ]:
        with pytest.raises(ValueError, match=words):
            sample(exported, range(2), **arguments)


def test_nothing_in_the_program_is_code_or_of_this_machine(exported):
    with zipfile.ZipFile(exported / "velocity.pt2") as archive:
        pickled = [name for name in archive.namelist() if archive.read(name).startswith((b"PK", b"\x80"))]
        foreign = [name for name in archive.namelist() if Path(name).suffix in (".py", ".so", ".pkl")]
        inputs = [len(archive.read(name)) for name in archive.namelist() if Path(name).suffix == ".pt"]
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".json")).decode()
    assert not pickled
    assert not foreign
    assert not any(inputs), "torch would pickle the inputs that the program was traced with"
    assert '"use_pickle": true' not in text
    assert str(Path(scmreg.__file__).parents[1]) not in text
    assert "import scmreg" not in (exported / "sample.py").read_text()
    assert "from scmreg" not in (exported / "sample.py").read_text()


def test_export_of_points_and_of_a_diffusion_model(scm, trained_points, tiny_diffusion, workplace):
    """Without classes; and a solver, under a process that is not TrigFlow, guided."""
    assert scm("export", trained_points[0], "--to", "points", "--weights", "raw", "--times", "1.2,0.7").code == 0
    few = scmreg.samplers.create("consistency").with_times((1.2, 0.7))
    run = scmreg.load_run(trained_points[0])
    expected = run.sample(20, seed=3, sampler=few, weights="raw")
    torch.testing.assert_close(sample(Path("points"), range(3, 23)), expected, rtol=0, atol=1e-4)

    diffusion = ("--objective", "diffusion", "--process", "edm", "--set", "objective.label_dropout=0.2")
    assert scm("run", *tiny_diffusion[:2], *tiny_diffusion[4:10], *diffusion, "--out", ".", "--name", "edm").code == 0
    for sampler, guidance in (("heun", 2.0), ("ddim", 1.0)):
        folder = f"by-{sampler}"
        result = scm(
            "export", "edm", "--to", folder, "--sampler", sampler, "--steps", 5, "--guidance", guidance, "--json"
        )
        assert result.code == 0, result.err
        assert result.json["files"] == ["README.md", "sample.py", "sampling.json", "velocity.pt2"]
        assert "no scheduler of diffusers" in result.json["notes"][0]
        solver = scmreg.samplers.create(sampler, steps=5, guidance=guidance)
        expected = scmreg.load_run("edm").sample(6, sampler=solver)
        torch.testing.assert_close(sample(Path(folder), range(6), batch_size=4), expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_told_its_guidance(trained, workplace, scm, tiny):
    guided = ("--set", "network.guidance=true", "--set", "objective.guidance=[1,2]", "--set", "sampler.guidance=1.5")
    dropout = ("--set", "teacher.objective.label_dropout=0.2")
    result = scm("run", *tiny, *guided, *dropout, "--out", ".", "--name", "guided")
    assert result.code == 0, result.err
    made = export("guided", "exported")
    assert json.loads((made.folder / "sampling.json").read_text())["inputs"] == ["x", "t", "label", "guidance"]
    expected = scmreg.load_run("guided").sample(5)
    torch.testing.assert_close(sample(made.folder, range(5)), expected, rtol=0, atol=ROUNDING)


@pytest.mark.slow
def test_a_model_of_diffusers(scm, registries, workplace):
    """A run of the network on the page about diffusers becomes a pipeline of diffusers, on images of mean 0.5."""
    images = np.random.default_rng(0).uniform(0, 1, (60, 1, 8, 8)).astype(np.float32)
    images = np.concatenate([images, 1 - images])
    np.savez("images.npz", x=images, labels=np.arange(120) % 3)
    std = scmreg.datasets.create("array", path=Path("images.npz"), held_out=0.0).load().spec.std
    registry.load_file(diffusers_page.write(workplace))
    said = [
        *("--network", "unet", "--set", "network.width=8", "--process", "edm", "--objective", "ect"),
        *("--set", f"process.sigma_data={2 * std}", "--set", "parameterization.c_noise=edm"),
        *("--data", "array", "--set", "data.path=images.npz", "--set", "data.held_out=0"),
        *(
            "--set",
            "evaluation.metrics=[]",
            "--steps",
            2,
            "--set",
            "trainer.batch_size=8",
            "--set",
            "trainer.learning_rate=0.01",
        ),
        *("--set", "teacher.trainer.steps=2", "--set", "teacher.trainer.batch_size=8", "--out", "."),
    ]
    result = scm("run", *said, "--name", "unet")
    assert result.code == 0, result.err
    run = scmreg.load_run("unet")
    result = scm("export", "unet", "--to", "program")
    assert result.code == 2
    assert "for any size of the batch" in result.err, "the UNet asks whether there are 64 samples"
    assert "Traceback" not in result.err

    result = scm("export", "unet", "--to", "exported", "--format", "diffusers", "--json")
    assert result.code == 0, result.err
    files = ["README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    assert result.json["files"] == [*files, "unet/diffusion_pytorch_model.safetensors"]
    assert result.json["notes"] == []
    loop, pipeline = blocks(workplace / "exported")
    seed = "torch.manual_seed(0)\n"
    save = "import numpy\nnumpy.savez('../x.npz', x=x.numpy(), images=numpy.stack([numpy.asarray(i) for i in images]))"
    stranger(workplace / "exported", "\n".join([seed, loop, seed, pipeline, save]))
    with np.load("x.npz", allow_pickle=False) as archive:
        x, pictures = (torch.from_numpy(archive[name]) for name in ("x", "images"))
    expected = ours(run)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    rendered = 255 * run.spec.render(expected, run.recipe.process.sigma_data).clamp(0, 1)
    assert float((pictures.reshape(rendered.shape) - rendered).abs().max()) < 1.6, "half a grey level, and the rest"

    one = scm("export", "unet", "--to", "another", "--format", "diffusers", "--set", "sampler.steps=1", "--json")
    assert "timesteps=[0]" in (Path("another") / "README.md").read_text(), one.err


def small_denoiser(page, process="trigflow", c_noise="identity", **options):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=4,
    )  # fmt: skip
    meaning = scmreg.parameterizations.create("unit-variance", c_noise=c_noise)
    made = scmreg.Denoiser(
        page.Wrapped(model, 3, **options), scmreg.processes.create(process, sigma_data=0.6), meaning, classes=3
    )
    return convert(made.eval().requires_grad_(False), scmreg.processes.create("trigflow", sigma_data=0.6))


SPEC = scmreg.DataSpec(name="x", shape=(1, 8, 8), modality="image", classes=("a", "b", "c"), mean=(0.4,), std=0.2)


def test_a_model_of_trigflow_has_another_scheduler(workplace, monkeypatch):
    page = diffusers_page.load(workplace)
    denoiser = small_denoiser(page)
    sampler = scmreg.samplers.create("consistency", steps=3)
    times = [1.5, *sampler.intermediate()]
    made = fitting(denoiser, SPEC, times, "unet")
    assert (made.scheduler["_class_name"], made.pipeline) == ("SCMScheduler", None)
    made.save(Path("exported"))
    said = {"run": "x", "scmreg": "0", "sigma_data": 0.6, "shape": SPEC.shape, "classes": SPEC.classes}
    (loop,) = re.findall(
        r"^```python\n(.*?)^```$", readme.of_pretrained(made, said | {"mean": [0.4], "std": 0.2}, ()), re.M | re.S
    )
    monkeypatch.chdir("exported")
    torch.manual_seed(0)
    namespace = {}
    exec(loop, namespace)
    cond = Conditions(label=torch.arange(16) % 3)
    with torch.no_grad():
        noise = Replay(16, SPEC.shape, 4)
        x = denoiser.consistency(0.6 * noise.draw(0), torch.full((16,), 1.5), cond=cond)
        for index, t in enumerate(times[1:], 1):
            at = torch.full((16,), t)
            x = denoiser.consistency(denoiser.process.perturb(x, noise.draw(index), at), at, cond=cond)
    torch.testing.assert_close(namespace["x"], x, rtol=1e-4, atol=1e-4)


def test_what_diffusers_would_ask_otherwise_is_refused(workplace):
    page = diffusers_page.load(workplace)
    right = {"process": "edm", "c_noise": "edm", "time_scale": 1000.0, "sign": -1.0}
    made = fitting(small_denoiser(page, **right), SPEC, [1.5], "unet")
    assert made.scheduler["_class_name"] == "CMStochasticIterativeScheduler"
    assert made.pipeline is None, "the mean of the data is not 0.5"
    wrong = [{"time_scale": 1.0}, {"sign": 1.0}, {"c_noise": "log-sigma"}, {"c_noise": "identity"}]
    for change in wrong:
        with pytest.raises(CompositionError, match="no scheduler of diffusers"):
            fitting(small_denoiser(page, **right | change), SPEC, [1.5], "unet")
    denoiser = small_denoiser(page)
    denoiser.network.further = nn.Linear(2, 2)
    assert saved_by_itself(denoiser.network) is None
    with pytest.raises(CompositionError, match="no other parameters"):
        fitting(denoiser, SPEC, [1.5], "unet")


@pytest.mark.parametrize(("attention", "size"), [("auto", 48), ("chunked", 48)])
def test_attention_becomes_operators_of_torch(attention, size):
    """48 x 48 pixels are 576 tokens, more than a block of the chunked backend, whose operator nobody else has."""
    network = scmreg.networks.create("dit", width=16, depth=1, heads=2, patch=2, attention=attention)
    module = network.build((1, size, size))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    process = scmreg.processes.create("trigflow")
    denoiser = scmreg.Denoiser(module, process, scmreg.parameterizations.create("unit-variance"))
    made = trace(denoiser.eval().requires_grad_(False), (1, size, size), guidance=False, name="dit")
    assert made.inputs == ("x", "t")
    assert made.difference < 1e-5
    inputs = {"x": torch.empty(4, 1, size, size, device="meta"), "t": torch.empty(4, device="meta").double()}
    moved = move_to_device_pass(made.exported, "meta").module()(**inputs)
    assert moved.device.type == "meta", "nothing in it stays where it was traced"


class Plain(nn.Module):
    """A network, as the test says."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, cond):
        return self.function(self.factor * x)


@torch.library.custom_op("scmregtests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator that nobody else has."""
    return 2 * x


twice.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: twice(x), "scmregtests.twice"),
        (lambda x: x * 2 if x.sum() > 0 else x, "cannot be exported"),
        (lambda x: x * len(x.tolist()), "cannot be exported"),
    ],
    ids=["operator", "branch", "list"],
)
def test_a_network_that_cannot_be_exported_is_refused(function, reason):
    process = scmreg.processes.create("trigflow")
    denoiser = scmreg.Denoiser(Plain(function), process, scmreg.parameterizations.create("unit-variance"))
    with pytest.raises(CompositionError, match=reason):
        trace(denoiser.eval().requires_grad_(False), (2,), guidance=False, name="plain")


def unfinished(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder)
    (meta,) = sorted((folder / "checkpoints").glob("*/meta.json"))[-1:]
    told = json.loads(meta.read_text())
    told["recipe"]["trainer"]["steps"] = 10
    meta.write_text(json.dumps(told))
    return folder


def test_bad_input_is_refused_and_leaves_nothing(scm, trained, workplace):
    (workplace / "there").mkdir()
    (workplace / "file").write_text("")
    unfinished(trained[0], workplace / "unfinished")
    before = sorted(workplace.iterdir())
    run = trained[0]
    for arguments, words in [
        ((run, "--to", "there"), "there exists already"),
        ((run, "--to", "file/x"), "file/x cannot be written"),
        (("nowhere", "--to", "x"), "no run directory nowhere"),
        (("there", "--to", "x"), "there has no complete checkpoint"),
        (("unfinished", "--to", "x"), "is not finished: it has taken 3 of 10 steps"),
        ((run, "--to", "x", "--format", "onnx"), "there is no format 'onnx'"),
        ((run, "--to", "x", "--weights", "best"), "--weights best"),
        ((run, "--to", "x", "--sampler", "dpm-solver-2"), "is not among those"),
        ((run, "--to", "x", "--sampler", "nothing"), "no sampler called 'nothing'"),
        ((run, "--to", "x", "--set", "network.width=3"), "only options of the sampler"),
        ((run, "--to", "x", "--format", "diffusers"), "network 'mlp' is not a model of diffusers"),
        ((run, "--to", "x", "--format", "diffusers", "--sampler", "heun"), "for consistency sampling"),
        ((run,), "Missing option '--to'"),
    ]:
        result = scm("export", *arguments)
        assert (result.code, result.out) == (2, ""), result
        assert words in result.err
        assert sorted(workplace.iterdir()) == before
