"""Options that several commands have, each with its help and its completion."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from scmreg import restriction
from scmreg_cli import completion

__all__ = [
    "Device",
    "Guidance",
    "Json",
    "NoPlugins",
    "Plugin",
    "RecipeSource",
    "RunFolder",
    "RunName",
    "RunsFolder",
    "SamplerSteps",
    "SamplerTimes",
    "Set",
    "Weights",
    "selector",
]


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from scmreg import registry

        for path in paths:
            registry.load_file(path)
    return paths


def _without_plugins(asked: bool) -> bool:
    if asked:
        # Where processes that this one starts find it too.
        os.environ[restriction.VARIABLE] = ""
    return asked


def selector(kind: str, what: str) -> Any:
    """Return the option that chooses a component of a kind, with its names for completion."""
    return typer.Option(
        f"--{kind}",
        help=what,
        metavar="NAME",
        autocompletion=completion.names(kind),
        rich_help_panel="Components",
    )


Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        help="Load a plugin from a Python file.",
        metavar="FILE.py",
        callback=_load_plugins,
    ),
]
NoPlugins = Annotated[
    bool,
    typer.Option(
        "--no-plugins",
        help="Load no plugin of others: built-ins, and what [cyan]--plugin[/] names.",
        callback=_without_plugins,
        is_eager=True,  # before --plugin, which loads
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Set any option of the recipe, at any depth: [cyan]objective.proposal.p_mean=-1[/].",
        metavar="PATH=VALUE",
        autocompletion=completion.settings,
    ),
]
Device = Annotated[str | None, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
RunFolder = Annotated[
    Path,
    typer.Argument(help="A run directory.", metavar="RUN", autocompletion=completion.runs, show_default=False),
]
RecipeSource = Annotated[
    str | None,
    typer.Option(
        help="Start from a recipe: a packaged one by name, a YAML file, or a run.",
        metavar="NAME|FILE",
        autocompletion=completion.recipes,
    ),
]
RunName = Annotated[str | None, typer.Option(help="Name of the run directory.")]
RunsFolder = Annotated[Path | None, typer.Option(help="Where run directories are kept; ./runs if not given.")]
SamplerSteps = Annotated[int | None, typer.Option(help="Steps of the sampler.", min=1)]
SamplerTimes = Annotated[
    str | None,
    typer.Option(
        help="Falling TrigFlow times: of the steps after the first for consistency (1.1 or 1.3,0.8), of all steps"
        " for a solver.",
        metavar="T,T,...",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance: of a solver, where 1 is none, or distilled.", min=0),
]
Weights = Annotated[str, typer.Option(help="ema (averaged) or raw.")]
