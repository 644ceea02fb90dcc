"""The kinds of component: a new kind is one line here and one interface module of its name."""

from __future__ import annotations

__all__ = ["KINDS"]

KINDS: dict[str, str] = {
    "process": "Process",
    "parameterization": "Parameterization",
    "network": "Network",
    "objective": "Objective",
    "weighting": "Weighting",
    "proposal": "Proposal",
    "schedule": "Schedule",
    "distance": "Distance",
    "attention": "Attention",
    "sampler": "Sampler",
    "data": "Data",
    "metric": "Metric",
    "study": "Study",
}
"""Every kind and its interface; the interface of kind ``k`` lives in the module ``scmreg.k``."""
