"""The page that explains an exported folder to whoever finds it."""

from __future__ import annotations

from typing import Any

from scmreg.export.pretrained import Pretrained

__all__ = ["of_pretrained", "of_program"]

PROGRAM = """# {run}

A model that was trained with scmreg {scmreg} and exported as a program of torch {torch}. It needs no scmreg.

```bash
python sample.py --count 16 --out samples.npz
```

`velocity.pt2` computes the velocity `v(x, t)` of TrigFlow, where `x = cos(t) x_0 + sin(t) sigma_data noise` and
sigma_data is {sigma_data}. Its inputs are {inputs}; `x` has shape {shape} and is float32, `t` has shape (B,) and is
float64. The clean sample that it predicts is `cos(t) x - sin(t) v`; `sampling.json` has the scale of the data.

```python
import torch

velocity = torch.export.load("velocity.pt2").module()
```
"""

SCHEDULER = """
## With a scheduler of diffusers

```python
import json

import torch
from diffusers import SCMScheduler

said = json.load(open("sampling.json"))
velocity = torch.export.load("velocity.pt2").module()
scheduler = SCMScheduler.from_pretrained("scheduler")
times = [*said["times"], 0.0]
scheduler.set_timesteps(len(times) - 1, timesteps=times, max_timesteps=None, intermediate_timesteps=None)

count = 16
x = said["sigma_data"] * torch.randn(count, *said["shape"])
inputs = {}
if said["classes"]:
    inputs["label"] = torch.arange(count) % len(said["classes"])
if "guidance" in said["inputs"]:
    inputs["guidance"] = torch.full((count,), said["guidance"])
with torch.no_grad():
    for t in scheduler.timesteps[:-1]:
        v = velocity(x=x, t=t.double().expand(count), **inputs)
        x = scheduler.step(v, t, x).prev_sample
```

`x` is then scaled as the data of the model: {render}.
"""

PRETRAINED = """# {run}

A model that was trained with scmreg {scmreg}, saved as diffusers saves it. It needs no scmreg.

```python
import torch
from diffusers import {model}, {scheduler}

model = {model}.from_pretrained("{folder}").eval()
scheduler = {scheduler}.from_pretrained("scheduler")
{set_timesteps}

count = {count}
{start}
label = {label}
with torch.no_grad():
{loop}
```

`x` is then scaled as the data of the model: {render}.
"""

SCM_LOOP = """    for t in scheduler.timesteps[:-1]:
        v = {sigma_data} * model(x / {sigma_data}, t, class_labels=label).sample
        x = scheduler.step(v, t, x).prev_sample"""
CM_LOOP = """    for t in scheduler.timesteps:
        out = model(scheduler.scale_model_input(x, t), t, class_labels=label).sample
        x = scheduler.step(out, t, x).prev_sample"""

PIPELINE = """
The same as a pipeline, whose first noise is scaled by {sigma_max:g} instead:

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained(".")
images = pipeline(batch_size=count, class_labels=label, num_inference_steps=None, timesteps={times}).images
```
"""

NOTES = """
## What it cannot do

{notes}
"""


def _notes(notes: tuple[str, ...]) -> str:
    return NOTES.format(notes="\n".join(f"- {note}." for note in notes)) if notes else ""


def _render(said: dict[str, Any]) -> str:
    """Say how to get from samples to the units of the data."""
    mean = said["mean"][0] if len(said["mean"]) == 1 else said["mean"]
    channels = ", a number for each channel," if len(said["mean"]) > 1 and len(said["shape"]) == 3 else ""
    return f"`x * {said['std'] / said['sigma_data']} + mean` is in its units, with mean = {mean}{channels}"


def of_program(said: dict[str, Any], notes: tuple[str, ...]) -> str:
    """Return the page of a folder in the format ``program``."""
    inputs = ", ".join(f"`{name}`" for name in said["inputs"])
    shape = f"(B, {', '.join(map(str, said['shape']))})"
    text = PROGRAM.format(**{**said, "inputs": inputs, "shape": shape})
    if said["method"] == "consistency":
        # The code of the block has braces of its own.
        text += SCHEDULER.replace("{render}", _render(said))
    return text + _notes(notes)


def of_pretrained(made: Pretrained, said: dict[str, Any], notes: tuple[str, ...]) -> str:
    """Return the page of a folder in the format ``diffusers``."""
    scheduler, sigma_data, count = made.scheduler["_class_name"], said["sigma_data"], 16
    shape = ", ".join(map(str, said["shape"]))
    if scheduler == "SCMScheduler":
        asked = f"{len(made.times) - 1}, timesteps={made.times}, max_timesteps=None, intermediate_timesteps=None"
        start = f"x = {sigma_data} * torch.randn(count, {shape})"
        loop = SCM_LOOP.format(sigma_data=sigma_data)
    else:
        asked = f"timesteps={made.times}"
        std = (made.scheduler["sigma_max"] ** 2 + sigma_data**2) ** 0.5
        start = f"x = {std} * torch.randn(count, {shape})"
        loop = CM_LOOP
    text = PRETRAINED.format(
        run=said["run"],
        scmreg=said["scmreg"],
        model=type(made.model).__name__,
        scheduler=scheduler,
        folder=made.folder,
        set_timesteps=f"scheduler.set_timesteps({asked})",
        count=count,
        start=start,
        label=f"torch.arange(count) % {len(said['classes'])}" if said["classes"] else None,
        loop=loop,
        render=_render(said),
    )
    if made.pipeline:
        text += PIPELINE.format(pipeline=made.pipeline, times=made.times, sigma_max=made.scheduler["sigma_max"])
    return text + _notes(notes)
