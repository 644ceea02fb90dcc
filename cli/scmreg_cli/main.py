"""The program ``scm``: its commands, and what it does with errors.

Only names that cost nothing are imported here, so that ``scm --help`` and completion answer at once; each command
imports what it needs when it is called.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from scmreg.errors import ScmError
from scmreg_cli import completion
from scmreg_cli.parameters import (
    Device,
    Guidance,
    Json,
    NoPlugins,
    Plugin,
    RecipeSource,
    RunFolder,
    RunName,
    RunsFolder,
    SamplerSteps,
    SamplerTimes,
    Set,
    Weights,
    selector,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="scm",
    help="Train and sample few-step generative models, composed of named, checked, swappable components.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class New(enum.StrEnum):
    """What ``scm new`` writes."""

    plugin = "plugin"


@app.command(
    epilog="Examples:\n\n"
    "scm run --process trigflow --objective scd\n\n"
    "scm run --objective diffusion --data swissroll --steps 1000\n\n"
    "scm run --network dit --set network.width=64 --set objective.normalization=rms --dry-run\n\n"
    "scm run --resume runs/trigflow-scd-digits-s0"
)
def run(
    process: Annotated[str | None, selector("process", "How data turn into noise.")] = None,
    parameterization: Annotated[str | None, selector("parameterization", "What the network output means.")] = None,
    network: Annotated[str | None, selector("network", "What is trained.")] = None,
    objective: Annotated[str | None, selector("objective", "What is minimised.")] = None,
    weighting: Annotated[str | None, selector("weighting", "Weight of each time in the objective.")] = None,
    proposal: Annotated[str | None, selector("proposal", "Distribution of training times.")] = None,
    data: Annotated[str | None, selector("data", "What is modelled.")] = None,
    sampler: Annotated[str | None, selector("sampler", "How samples are drawn.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Run directory of the diffusion model to distil, or exact for data that know their own law; trained,"
            " or found again, if not given.",
            metavar="RUN|exact",
            autocompletion=completion.runs,
        ),
    ] = None,
    recipe: RecipeSource = None,
    settings: Set = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that training draws.", min=0)] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of the model.", min=1)] = None,
    name: RunName = None,
    out: RunsFolder = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with a run that was stopped.", metavar="RUN", autocompletion=completion.runs),
    ] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="Precision of matrix products: float32 or bfloat16.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe as YAML and stop.")] = False,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Train a model, sample from it and judge it.

    Without options: sCD on handwritten digits. Defaults < recipe file < options.
    """
    from scmreg_cli import running

    selected = {
        "process": process,
        "parameterization": parameterization,
        "network": network,
        "objective": objective,
        "objective.weighting": weighting,
        "objective.proposal": proposal,
        "data": data,
        "sampler": sampler,
        "teacher.source": teacher,
        "seed": seed,
        "trainer.steps": steps,
        "trainer.device": device,
        "trainer.precision": precision,
    }
    chosen = {path: value for path, value in selected.items() if value is not None}
    running.run(
        chosen,
        settings or [],
        recipe=recipe,
        name=name,
        out=out,
        resume=resume,
        dry_run=dry_run,
        as_json=json,
    )


@app.command("list", epilog="Examples:\n\nscm list\n\nscm list process --json\n\nscm list --matrix")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="One kind only.", autocompletion=completion.kinds, show_default=False),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Print which components fit together, and why others do not.")
    ] = False,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """List the components that are installed, or what fits with what."""
    from scmreg_cli import showing

    if matrix:
        showing.show_matrix(kind, as_json=json)
    else:
        showing.list_components(kind, as_json=json)


@app.command(epilog="Examples:\n\nscm show process/trigflow\n\nscm show objective/scd --json")
def show(
    component: Annotated[
        str, typer.Argument(help="KIND/NAME.", autocompletion=completion.components, show_default=False)
    ],
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Show a component: formula, options with defaults and bounds, reference."""
    from scmreg_cli import showing

    showing.show_component(component, as_json=json)


@app.command(
    epilog="Examples:\n\n"
    "scm sample runs/trigflow-scd-digits-s0 --steps 2 --count 20\n\n"
    "scm sample runs/trigflow-scd-digits-s0 --times 1.3,0.8 --labels 3,1,4 --out digits.npz\n\n"
    "scm sample runs/flow-diffusion-digits-s0 --as edm --sampler dpm-solver++-2m --steps 12"
)
def sample(
    run: RunFolder,
    count: Annotated[
        int | None,
        typer.Option(help="Number of samples; as many as labels, or 10 a class, if not given.", min=1),
    ] = None,
    steps: SamplerSteps = None,
    times: SamplerTimes = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Classes by index, repeated to the count: 7 or 3,1,4.", metavar="L,L,..."),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option("--seed", "--seeds", help="Seed of the first sample, or of each: 7 or 3,1,4.", metavar="S,S,..."),
    ] = "0",
    sampler: Annotated[str | None, selector("sampler", "How samples are drawn.")] = None,
    guidance: Guidance = None,
    process: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Sample under another process, to which the model is converted exactly.",
            metavar="PROCESS",
            autocompletion=completion.names("process"),
        ),
    ] = None,
    weights: Weights = "ema",
    out: Annotated[
        Path | None,
        typer.Option(help="A .png or .npz file; RUN/samples/sample.png if not given.", metavar="FILE"),
    ] = None,
    device: Device = None,
    settings: Set = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Draw samples from a trained run, as a picture or as arrays."""
    from scmreg_cli import running

    running.sample(
        run,
        count=count,
        steps=steps,
        times=times,
        labels=labels,
        seeds=seeds,
        sampler=sampler,
        guidance=guidance,
        process=process,
        weights=weights,
        out=out,
        device=device,
        settings=settings or [],
        as_json=json,
    )


@app.command(
    "eval",
    epilog="Examples:\n\nscm eval runs/trigflow-scd-digits-s0\n\n"
    "scm eval runs/trigflow-scd-digits-s0 --set evaluation.steps=[1,2,4,8] --json",
)
def eval_(
    run: RunFolder,
    settings: Set = None,
    device: Device = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Judge a trained run again, with other samplers, metrics or counts."""
    from scmreg_cli import running

    running.evaluate(run, settings or [], device=device, as_json=json)


@app.command(
    epilog="Examples:\n\nscm report runs/trigflow-scd-digits-s0\n\n"
    "scm report runs/trigflow-scd-digits-s0 --output digits.html --json"
)
def report(
    run: RunFolder,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write; RUN/report.html if not given.", metavar="FILE"),
    ] = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Write one page that shows a run: results, samples, curves, maps over time, recipe, machine.

    The page needs no network and no script. Runs that are not finished, and teachers, have one too.
    """
    from scmreg_cli import reporting

    reporting.report(run, output=output, as_json=json)


@app.command(
    epilog="Examples:\n\nscm compare runs/trigflow-scd-digits-s0 runs/trigflow-scd-digits-s1\n\n"
    "scm compare runs/trigflow-scd-digits-s0 runs/flow-diffusion-digits-s0 --png both.png --json"
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Two run directories or more.",
            metavar="RUN RUN...",
            autocompletion=completion.runs,
            show_default=False,
        ),
    ],
    png: Annotated[
        Path | None,
        typer.Option(help="Also draw figures and samples of the runs into a new PNG file.", metavar="FILE"),
    ] = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Put runs side by side: where their recipes differ, and their figures where those can be compared."""
    from scmreg_cli import reporting

    reporting.compare(runs, png=png, as_json=json)


@app.command(
    "import",
    epilog="Examples:\n\nscm import weights.safetensors --network mlp --process edm --data digits --name mine\n\n"
    "scm import weights.safetensors --recipe digits-best --json",
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A file of safetensors, or a folder with one.",
            metavar="FILE|FOLDER",
            show_default=False,
        ),
    ],
    process: Annotated[str | None, selector("process", "How data turn into noise.")] = None,
    parameterization: Annotated[str | None, selector("parameterization", "What the network output means.")] = None,
    network: Annotated[str | None, selector("network", "What was trained.")] = None,
    objective: Annotated[str | None, selector("objective", "What was minimised; diffusion if not given.")] = None,
    data: Annotated[str | None, selector("data", "What was modelled.")] = None,
    recipe: RecipeSource = None,
    settings: Set = None,
    name: RunName = None,
    out: RunsFolder = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Keep weights that were trained elsewhere as a run: to sample, to judge, to distil by --teacher.

    Options say what the weights were trained for. How well they then predict the data is printed.
    """
    from scmreg_cli import exporting

    selected = {
        "process": process,
        "parameterization": parameterization,
        "network": network,
        "objective": objective,
        "data": data,
    }
    chosen = {path: value for path, value in selected.items() if value is not None}
    exporting.import_(source, chosen, settings or [], recipe=recipe, name=name, out=out, as_json=json)


@app.command(
    epilog="Examples:\n\nscm export runs/trigflow-scd-digits-s0 --to digits\n\n"
    "scm export runs/flow-diffusion-digits-s0 --sampler heun --steps 12 --to flow --json"
)
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="The folder to make.", metavar="FOLDER", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="program: a program of torch, of any run. diffusers: a model of diffusers, if the network is one.",
        ),
    ] = "program",
    sampler: Annotated[str | None, selector("sampler", "How the folder samples.")] = None,
    steps: SamplerSteps = None,
    times: SamplerTimes = None,
    guidance: Guidance = None,
    weights: Weights = "ema",
    settings: Set = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Write a finished run as a folder that loads without scmreg.

    Its README.md says how to use it, and what it cannot do.
    """
    from scmreg_cli import exporting

    exporting.export(
        run,
        to,
        form=form,
        sampler=sampler,
        steps=steps,
        times=times,
        guidance=guidance,
        weights=weights,
        settings=settings or [],
        as_json=json,
    )


@app.command(
    epilog="Examples:\n\nscm cite runs/trigflow-scd-digits-s0\n\nscm cite runs/trigflow-scd-digits-s0 --json",
)
def cite(run: RunFolder, json: Json = False, plugin: Plugin = None, no_plugins: NoPlugins = False) -> None:
    """Print the BibTeX of what a run used: of its components, of its teacher, and of this library."""
    from scmreg_cli import exporting

    exporting.cite(run, as_json=json)


@app.command(epilog="Examples:\n\nscm verify\n\nscm verify --full --json\n\nscm verify round-trip heun-is-edms-sampler")
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Proofs by name; all if not given.", metavar="[NAME]...", show_default=False),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every proof, on ten times as many cases.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0)] = 0,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Prove on this machine, in about a minute, what the library claims of its mathematics.

    Every statement is tried on random processes, networks, shapes and times in float64; a search looks for the
    largest error. The status is 1 if one does not hold.
    """
    from scmreg_cli import verifying

    verifying.verify(names or [], full=full, seed=seed, as_json=json)


@app.command(
    epilog="Examples:\n\nscm check process/vp\n\nscm check dit --examples 2\n\n"
    "scm check data/images --set path=photos --json"
)
def check(
    name: Annotated[
        str | None,
        typer.Argument(
            help="KIND/NAME, a NAME that only one kind has, or a plugin, to check all that it brings; what --plugin"
            " brings if not given.",
            autocompletion=completion.checkable,
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="An option that is not drawn, such as a path that has no default: [cyan]path=photos[/].",
            metavar="OPTION=VALUE",
        ),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Cases of each check; as many as it says if not given.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0)] = 0,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Check that components keep what their kind promises.

    Options and inputs are drawn at random from what a component declares; a case that fails is made as simple as it
    can be, and told in words that say what to fix. The status is 1 if a check fails.
    """
    from scmreg_cli import checking

    checking.check(name, plugin or [], settings or [], examples=examples, seed=seed, as_json=json)


@app.command(
    # Every benchmark has options of its own, which are read when it is known: `--batch-size 16` is `batch_size=16`.
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Examples:\n\nscm bench\n\nscm bench attention --help\n\n"
    "scm bench attention --shape 2x8x1024x64 --against sdpa,sdpa-math\n\n"
    "scm bench step --network.depth 8 --objectives sct --json\n\n"
    "scm bench sampling --set batch_size=16 --json",
)
def bench(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A benchmark; they are listed if none is given.",
            autocompletion=completion.benchmarks,
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Set an option of the benchmark: [cyan]network.width=256[/] is [cyan]--network.width 256[/].",
            metavar="OPTION=VALUE",
            autocompletion=completion.benchmark_settings,
        ),
    ] = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
    help_: Annotated[
        bool, typer.Option("--help", "-h", help="Show this message, and the options of the benchmark.")
    ] = False,
) -> None:
    """Measure in this process, all sides in turns, and print medians of times and of their ratios.

    Every option of a benchmark is given by its name, and listed by --help after the name of the benchmark.
    """
    if help_:
        typer.echo(context.get_help())
        if name is None:
            return
    from scmreg_cli import benching

    if help_ and name is not None:
        benching.show_benchmark(name)
    elif name is None:
        benching.list_benchmarks(as_json=json)
    else:
        benching.bench(name, settings or [], context.args, as_json=json)


@app.command(
    "new",
    epilog="Examples:\n\nscm new plugin logistic --kind proposal\n\nscm new plugin ring --kind data --out somewhere",
)
def new(
    what: Annotated[New, typer.Argument(help="What to write.", metavar="plugin", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name of the plugin and of its component.", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            "-k",
            help="What it adds, one of the kinds of scm list.",
            metavar="KIND",
            autocompletion=completion.kinds,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where its folder is made; here if not given.", metavar="FOLDER")
    ] = None,
) -> None:
    """Write a package with a working component, to be changed into one's own.

    It is one module, what makes it installable, and a test of what such a component promises.
    """
    from scmreg_cli import scaffolding

    typer.echo("\n".join(scaffolding.new_plugin(name, kind, out or Path())))


@app.command(
    epilog="Examples:\n\nscm study\n\nscm study segments\n\n"
    "scm study discretisation --set seeds=1 --out studies/quick --json"
)
def study(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A study; they are listed if none is given.",
            autocompletion=completion.names("study"),
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Set an option of the study: [cyan]seeds=1[/].", metavar="OPTION=VALUE"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where its runs and findings are kept; ./studies/NAME if not given.", metavar="FOLDER"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Trainings at a time; one for each core if not given.", min=1)
    ] = None,
    json: Json = False,
    plugin: Plugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Try what a paper claims, at the scale of a desk: train every condition, draw the figure, say whether it held.

    Each training is a run like any other. A study that was stopped goes on with the same command.
    """
    from scmreg_cli import studying

    if name is None:
        studying.list_studies(as_json=json)
    else:
        studying.study(name, settings or [], out=out, workers=workers, as_json=json)


@app.command(epilog="Example:\n\nscm plugins --json")
def plugins(json: Json = False, plugin: Plugin = None, no_plugins: NoPlugins = False) -> None:
    """List the plugins that were found, loaded or not, and why not."""
    from scmreg_cli import showing

    showing.list_plugins(as_json=json)


@app.command(epilog="Example:\n\nscm doctor --json")
def doctor(json: Json = False, plugin: Plugin = None, no_plugins: NoPlugins = False) -> None:
    """Examine the installation: versions, devices, plugins, components that cannot run here."""
    from scmreg_cli import showing

    showing.doctor(as_json=json)


def _version(asked: bool) -> None:
    if asked:
        from scmreg import __version__

        typer.echo(f"scmreg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    no_plugins: NoPlugins = False,
) -> None:
    pass


def main() -> None:
    """Run the program. A mistake of the user is one message and status 2; a bug keeps its traceback."""
    try:
        app()
    except ScmError as error:
        lines = [f"error: {error.what}", *(f"  {hint}" for hint in error.hints)]
        typer.echo("\n".join(lines), err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if "scmreg.registry" in sys.modules:  # else no plugin has been loaded
            from scmreg import registry

            if said := registry.blame(error):
                error.add_note(said)
        raise


if __name__ == "__main__":
    main()
