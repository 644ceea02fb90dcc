"""A registry of checked, swappable components for few-step generative models.

>>> import scmreg
>>> process = scmreg.processes.create("trigflow", sigma_data=0.5)
>>> x_t = process.perturb(x0, noise, t)

Names are loaded when they are first used, so ``import scmreg`` is quick and needs no terminal library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

API_VERSION = (1, 0)
"""Version of the interface that plugins are written for: what breaks plugins changes the first number, what they may
need to be there changes the second. A plugin says ``scmreg_api = (1, 0)``."""

_HOME = {
    "Attention": "attention",
    "Batch": "types",
    "Component": "component",
    "Conditions": "types",
    "Data": "data",
    "DataSpec": "data",
    "Dataset": "data",
    "Denoiser": "denoiser",
    "Distance": "distance",
    "Metric": "metric",
    "Network": "network",
    "Objective": "objective",
    "Options": "component",
    "Parameterization": "parameterization",
    "Process": "process",
    "Proposal": "proposal",
    "Recipe": "recipe",
    "Sampler": "sampler",
    "Schedule": "schedule",
    "ScmError": "errors",
    "Study": "study",
    "Weighting": "weighting",
    "attend": "attention",
    "attend_jvp": "attention",
    "convert": "denoiser",
    "hookimpl": "hookspecs",
    "load_run": "sample",
}
_REGISTRIES = {
    "attentions": "attention",
    "datasets": "data",
    "distances": "distance",
    "metrics": "metric",
    "networks": "network",
    "objectives": "objective",
    "parameterizations": "parameterization",
    "processes": "process",
    "proposals": "proposal",
    "samplers": "sampler",
    "schedules": "schedule",
    "studies": "study",
    "weightings": "weighting",
}

__all__ = [
    "API_VERSION",
    "Attention",
    "Batch",
    "Component",
    "Conditions",
    "Data",
    "DataSpec",
    "Dataset",
    "Denoiser",
    "Distance",
    "Metric",
    "Network",
    "Objective",
    "Options",
    "Parameterization",
    "Process",
    "Proposal",
    "Recipe",
    "Sampler",
    "Schedule",
    "ScmError",
    "Study",
    "Weighting",
    "__version__",
    "attend",
    "attend_jvp",
    "attentions",
    "convert",
    "datasets",
    "distances",
    "hookimpl",
    "load_run",
    "metrics",
    "networks",
    "objectives",
    "parameterizations",
    "processes",
    "proposals",
    "samplers",
    "schedules",
    "studies",
    "weightings",
]

if TYPE_CHECKING:
    from scmreg.attention import Attention, attend, attend_jvp
    from scmreg.component import Component, Options
    from scmreg.data import Data, Dataset, DataSpec
    from scmreg.denoiser import Denoiser, convert
    from scmreg.distance import Distance
    from scmreg.errors import ScmError
    from scmreg.hookspecs import hookimpl
    from scmreg.metric import Metric
    from scmreg.network import Network
    from scmreg.objective import Objective
    from scmreg.parameterization import Parameterization
    from scmreg.process import Process
    from scmreg.proposal import Proposal
    from scmreg.recipe import Recipe
    from scmreg.registry import Registry
    from scmreg.sample import load_run
    from scmreg.sampler import Sampler
    from scmreg.schedule import Schedule
    from scmreg.study import Study
    from scmreg.types import Batch, Conditions
    from scmreg.weighting import Weighting

    attentions: Registry[Attention]
    datasets: Registry[Data]
    distances: Registry[Distance]
    metrics: Registry[Metric]
    networks: Registry[Network]
    objectives: Registry[Objective]
    parameterizations: Registry[Parameterization]
    processes: Registry[Process]
    proposals: Registry[Proposal]
    samplers: Registry[Sampler]
    schedules: Registry[Schedule]
    studies: Registry[Study]
    weightings: Registry[Weighting]


def __getattr__(name: str) -> Any:
    if name in _REGISTRIES:
        value: Any = importlib.import_module("scmreg.registry").registry(_REGISTRIES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(f"scmreg.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'scmreg' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
