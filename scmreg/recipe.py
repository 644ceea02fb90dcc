"""Recipes: a run as a tree of components and options, from YAML, flags or Python, resolved and checked.

Precedence is defaults < recipe file < flags. A resolved recipe says everything; it is written beside the checkpoints
and builds the same run again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Ge

from scmreg import options
from scmreg.component import Component, Options
from scmreg.data import Data, DataSpec
from scmreg.errors import CompositionError, RecipeError, ScmError, did_you_mean
from scmreg.metric import Metric
from scmreg.network import Network
from scmreg.objective import Objective
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.registry import registry
from scmreg.sampler import Sampler
from scmreg.tangent import TangentPass
from scmreg.types import Count, NonNegative, NonNegativeInt, Positive, Probability

__all__ = ["RECIPE_VERSION", "Evaluation", "Recipe", "Teacher", "Trainer", "packaged", "read"]

RECIPE_VERSION = 1
DEFAULT_OBJECTIVE, DEFAULT_NETWORK = "scd", "mlp"


class Trainer(Options):
    """How the parameters move: optimizer, its schedule, averaging, precision, machine."""

    steps: Count = 2000
    """Optimizer steps."""
    batch_size: Count = 256
    """Samples in a step, over all accumulated parts."""
    optimizer: str = "RAdam"
    """Any optimizer of torch.optim by name."""
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    """Options of the optimizer beside the learning rate, such as {betas: [0.9, 0.99], weight_decay: 0.01}."""
    learning_rate: Positive = 1e-3
    """Highest learning rate."""
    schedule: Literal["constant", "cosine", "inverse-sqrt", "trapezoid"] = "cosine"
    """Decay of the learning rate: none, half a cosine to 0 at the last step, 1/sqrt(max(step/decay_from, 1)), or
    constant and then linear to 0 over the last decay_share of the steps."""
    rampup: NonNegativeInt = 0
    """Steps over which the learning rate grows linearly from 0."""
    decay_from: Count = 1000
    """Reference step of the inverse-sqrt schedule."""
    decay_share: Probability = 0.6
    """Share of the steps over which the trapezoid schedule falls."""
    clip: Positive | None = None
    """Largest norm of the gradient; longer ones are shortened to it."""
    accumulation: Count = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    ema_half_life: NonNegative = 200.0
    """Half-life of the exponential average of the weights, in steps; 0 for no average. It is at most a tenth of the
    steps taken so far, so that the start is forgotten early."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products; times, losses and parameters stay float32."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    threads: NonNegativeInt = 0
    """CPU threads; 0 takes one for a small network, whose operations are too short to share, else torch's choice."""
    compile: bool = False
    """Whether the network is compiled by torch.compile."""
    workers: NonNegativeInt = 0
    """Processes that read data ahead."""
    tangent_pass: TangentPass = "joint"
    """Whether value and JVP come from one pass or from two (see scmreg.tangent)."""
    log_every: Count = 50
    """Steps between lines of metrics.jsonl and bins.jsonl."""
    log_bins: Count = 32
    """Equal bins of TrigFlow time from 0 to pi/2 that the figures of bins.jsonl are averaged in."""
    tensorboard: bool = False
    """Whether the lines also go to TensorBoard."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Checkpoints that are kept."""
    previews: NonNegativeInt | None = None
    """Samples of fixed seeds in the picture that is drawn at every checkpoint; 20 images or 1000 points if not given,
    0 for no picture."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "device",
            "threads",
            "compile",
            "workers",
            "tangent_pass",
            "log_every",
            "log_bins",
            "tensorboard",
            "checkpoint_every",
            "keep",
            "previews",
        }
    )
    """Options that leave the result alone, but for rounding: they are not part of the key of a cached teacher."""


def _convert_objective(section: Teacher | Recipe) -> None:
    """Turn an objective that is given by name or as a mapping into a component: other defaults depend on it."""
    given: Any = section.objective
    if not isinstance(given, Objective):
        tree = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
        made = registry("objective").create(str(tree.pop("name", given)), **tree)
        object.__setattr__(section, "objective", made)


class Teacher(Options):
    """The diffusion model that is distilled, or started from."""

    source: str = "auto"
    """auto: find the teacher of this very recipe, or train it; exact: the solution, for data that know their own law;
    otherwise the folder of a run."""
    objective: Objective = Objective.default("diffusion")
    """What the teacher is trained by."""
    trainer: Trainer = None  # type: ignore[assignment]
    """How the teacher is trained."""

    def __post_init__(self) -> None:
        _convert_objective(self)
        if self.trainer is None:
            object.__setattr__(self, "trainer", options.build(Trainer, self.objective.trainer))
        super().__post_init__()


class Evaluation(Options):
    """How the result is judged."""

    steps: tuple[Count, ...] = (1, 2, 4)
    """Numbers of steps that a few-step model is judged with."""
    teacher_sampler: Sampler = Sampler.default("heun")
    """Sampler of the diffusion model that a few-step model is compared with."""
    metrics: tuple[Metric, ...] = Metric.defaults(
        "frechet", "precision-recall", "accuracy", "memorization", "sliced-wasserstein", "trajectory-error"
    )
    """What is measured, where it applies to the data."""
    count: Annotated[int, Ge(2)] | None = None
    """Samples; as many as there are real data, at most 10000, if not given."""
    batch_size: Count = 500
    """Samples at a time."""
    seed: NonNegativeInt = 0
    """Seed of the sampling noise, the same for every model that is compared."""


class Recipe(Options):
    """A whole run. The defaults are the main job: sCD on handwritten digits under TrigFlow."""

    version: int = RECIPE_VERSION
    """Version of the format."""
    seed: NonNegativeInt = 0
    """Seed of everything that training draws."""
    process: Process = Process.default("trigflow")
    """How data turn into noise."""
    parameterization: Parameterization = Parameterization.default("unit-variance")
    """What the network output means."""
    network: Network = Network.default(DEFAULT_NETWORK)
    """What is trained."""
    objective: Objective = Objective.default(DEFAULT_OBJECTIVE)
    """What is minimised."""
    data: Data = Data.default("digits")
    """What is modelled."""
    sampler: Sampler = None  # type: ignore[assignment]
    """How samples are drawn; by default the objective's own choice."""
    trainer: Trainer = None  # type: ignore[assignment]
    """How the model is trained. A section of a recipe states what differs from the objective's own preference; a
    `Trainer` that is built in Python is taken whole."""
    teacher: Teacher = None  # type: ignore[assignment]
    """The diffusion model that is distilled or started from; unused where the objective needs none."""
    evaluation: Evaluation = None  # type: ignore[assignment]
    """How the result is judged."""

    def __post_init__(self) -> None:
        _convert_objective(self)
        choices: dict[str, Callable[[], Any]] = {
            "sampler": lambda: self.objective.suited_sampler(self.process),
            "trainer": lambda: options.build(Trainer, self.objective.trainer),
            "teacher": Teacher,
            "evaluation": Evaluation,
        }
        for name, make in choices.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, make())
        super().__post_init__()

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values.

        Raises:
            OptionError: naming every unknown option and every refused value of the whole tree.
            RecipeError: if the recipe is of a newer version.
        """
        if not isinstance(tree, Mapping):
            raise RecipeError(f"a recipe is a mapping of sections, not {tree!r}")
        tree = dict(tree)
        version = tree.get("version", RECIPE_VERSION)
        if type(version) is not int or version < 1:
            raise RecipeError(
                f"the recipe has version {version!r}, which is none", f"this scmreg writes {RECIPE_VERSION}"
            )
        if version > RECIPE_VERSION:
            raise RecipeError(
                f"the recipe has version {version}, this scmreg reads versions up to {RECIPE_VERSION}",
                "it was written by a newer scmreg: upgrade with `pip install --upgrade scmreg`",
            )
        # The objective's own trainer options stand between the trainer's defaults and what the tree says.
        tree["trainer"] = _overlay(tree.get("objective", DEFAULT_OBJECTIVE), tree.get("trainer"), DEFAULT_OBJECTIVE)
        teacher = tree.get("teacher")
        if isinstance(teacher, Mapping):
            trainer = _overlay(teacher.get("objective", "diffusion"), teacher.get("trainer"), "diffusion")
            tree["teacher"] = {**teacher, "trainer": trainer}
        tree["network"] = _telling(tree.get("objective", DEFAULT_OBJECTIVE), tree.get("network") or DEFAULT_NETWORK)
        return options.build(cls, {key: value for key, value in tree.items() if value is not None}, "recipe")

    def to_tree(self) -> dict[str, Any]:
        """Return plain values that `from_tree` turns back into an equal recipe."""
        return options.to_tree(self)

    def to_yaml(self) -> str:
        """Return the recipe as YAML."""
        return yaml.safe_dump(self.to_tree(), sort_keys=False, allow_unicode=True)

    @property
    def trains_with_teacher(self) -> bool:
        """Whether the teacher is a trained model, not the solution itself, nor none."""
        return self.objective.needs_teacher and self.teacher.source != "exact"

    @property
    def starts_from_teacher(self) -> bool:
        """Whether training starts from the weights of the teacher, which an exact one has not."""
        return self.objective.starts_from_teacher and self.trains_with_teacher

    @property
    def guided(self) -> tuple[Objective | Sampler, ...]:
        """What guides to a class: the distillation, the sampling of the model, or that of its teacher."""
        objectives = (self.objective,) if "guidance" in self.objective.gives else ()
        samplers = (self.sampler, self.evaluation.teacher_sampler)
        return (*objectives, *(each for each in samplers if getattr(each, "guidance", None) not in (None, 1)))

    def components(self) -> tuple[Component, ...]:
        """Return every component of the tree that this run uses, outermost first."""
        used: list[Options] = [self]
        found: list[Component] = []
        while used:
            current = used.pop(0)
            if isinstance(current, Component):
                found.append(current)
            for option in options.options_of(type(current)):
                if isinstance(current, Recipe) and option.name == "teacher" and not self.trains_with_teacher:
                    continue
                value = getattr(current, option.name)
                used += [
                    item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Options)
                ]
        return tuple(found)

    def check(self, spec: DataSpec | None = None) -> None:
        """Refuse a composition that cannot work, before any work.

        Args:
            spec: shape and classes of the data, once they are known.

        Raises:
            CompositionError: with the reason of every component that does not fit.
        """
        reasons = []
        if spec is not None and not spec.classes:
            reasons = [reason for part in self.guided if (reason := part.accepts(spec))]
        if reasons:  # what guidance needs beside classes is of no use to anyone who has none
            raise CompositionError(reasons[0])
        for component in self.components():
            if reason := component.unavailable():
                reasons.append(f"{component.kind} '{component.name}' cannot run here: {reason}")
            elif reason := component.fits(self):
                reasons.append(reason)
        if reason := self.objective.drawn_by(self.sampler, self.process):
            reasons.append(reason)
        if spec is not None and (reason := self.network.accepts(spec.shape)):
            reasons.append(reason)
        if spec is not None and (reason := self.objective.accepts(spec)):
            reasons.append(reason)
        if spec is not None:
            samplers = (self.sampler, self.evaluation.teacher_sampler)
            reasons += [reason for sampler in samplers if (reason := sampler.accepts(spec))]
        if self.objective.needs_teacher and self.teacher.source == "exact" and self.data.law() is None:
            reasons.append(
                f"an exact teacher needs data that know their own law, unlike '{self.data.name}': {self.data.lawless}"
            )
        taught = self.teacher.objective
        if self.trains_with_teacher and (taught.few_step or taught.needs_teacher):
            reasons.append(f"teacher.objective is '{taught.name}': a teacher is a diffusion model without a teacher")
        if self.trains_with_teacher and self.teacher.source == "auto":
            told = None if spec is None else taught.accepts(spec)
            reasons += [reason for reason in (self.objective.taught_by(taught), told) if reason]
        if reasons := list(dict.fromkeys(reasons)):
            raise CompositionError(reasons[0], *reasons[1:])

    def teacher_recipe(self) -> Recipe:
        """Return the recipe of the run that trains the teacher, on the machine that the run itself is given."""
        return Recipe(
            seed=self.seed,
            process=self.process,
            parameterization=self.parameterization,
            network=self.network,
            objective=self.teacher.objective,
            data=self.data,
            trainer=replace(
                self.teacher.trainer,
                device=self.trainer.device,
                threads=self.trainer.threads,
                workers=self.trainer.workers,
                compile=self.trainer.compile,
            ),
            evaluation=self.evaluation,
        )

    def training_key(self, *extra: str) -> str:
        """Return a digest of all that the trained weights depend on, with further strings added to it."""
        tree = self.to_tree()
        for section in ("sampler", "evaluation", "teacher"):
            tree.pop(section)
        tree["trainer"] = {k: v for k, v in tree["trainer"].items() if k not in Trainer.operational}
        tree["data"].pop("path", None)  # the digest of the content stands for it
        text = json.dumps([tree, *extra], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def objective_of(chosen: Any, default: str = DEFAULT_OBJECTIVE) -> Objective:
    """Build the objective that a tree gives by name or as a mapping."""
    if isinstance(chosen, Objective):
        return chosen
    tree = {"name": default, **chosen} if isinstance(chosen, Mapping) else {"name": str(chosen)}
    made: Objective = registry("objective").create(str(tree.pop("name")), **tree)
    return made


def _overlay(objective: Any, trainer: Any, default: str) -> Any:
    """Put what a tree says of the trainer over what its objective prefers."""
    try:
        own = dict(objective_of(objective, default).trainer)
    except ScmError:  # said when the objective itself is built, with all else that is wrong
        return trainer
    if not (trainer is None or isinstance(trainer, Mapping)):
        return trainer
    said = dict(trainer or {})
    if str(said.get("optimizer", own.get("optimizer"))).lower() != str(own.get("optimizer")).lower():
        own.pop("optimizer_options", None)  # they are those of the optimizer that is not taken
    elif isinstance(said.get("optimizer_options"), Mapping):
        said["optimizer_options"] = {**own.get("optimizer_options", {}), **said["optimizer_options"]}
    return {**own, **said}


def _telling(objective: Any, network: Any) -> Any:
    """Let a network be told the conditions that an objective gives, where it can be and a tree leaves that open."""
    if not isinstance(network, str | Mapping):
        return network
    tree = {"name": network} if isinstance(network, str) else {"name": DEFAULT_NETWORK, **network}
    try:
        given = objective_of(objective).gives
        known = options.options_of(registry("network")[str(tree["name"])])
    except ScmError:  # said when the component itself is built, with all else that is wrong
        return network
    return {**{option.name: True for option in known if option.name in given}, **tree}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but with the numbers of YAML 1.2: ``1e-4`` is a number, not a text."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """Read plain values from YAML; nothing else than plain values is ever built."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def packaged() -> dict[str, str]:
    """Return the recipes that come with the package: name and text."""
    folder = resources.files("scmreg") / "recipes"
    found = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def read(source: str | Path) -> dict[str, Any]:
    """Read the tree of a recipe: a packaged one by name, a YAML file, or the folder of a run.

    Raises:
        RecipeError: if it does not exist or is no mapping.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"{source} is no run directory: it has no recipe.yaml", "runs are kept under runs/")
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {source} cannot be read: {error}") from None
    elif str(source) in (known := packaged()):
        text = known[str(source)]
    else:
        raise RecipeError(
            f"no recipe '{source}'{did_you_mean(str(source), known)}",
            f"packaged: {', '.join(known)}",
            "otherwise give the path of a YAML file, or of a run",
        )
    try:
        tree = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"recipe {source} is no YAML{at}: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {source} is no mapping of sections", "see `scm run --dry-run` for a whole one")
    return tree
