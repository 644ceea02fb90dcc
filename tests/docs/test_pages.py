"""The pages are true: their Python runs, their commands are commands, their recipes are recipes."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from scmreg import discovery, recipe, registry, restriction
from scmreg.options import options_of
from scmreg.progress import Progress
from scmreg.proofs import PROOFS
from scmreg.run import execute as execute_run
from scmreg.run import open_folder, prepare
from scmreg.settings import apply_settings, set_path
from scmreg_cli import main, studying
from scmreg_cli.benching import made_of
from scmreg_cli.checking import named

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md"]
GROUP: Any = typer.main.get_command(main.app)

FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "bash", "console", "yaml", "toml", "json", "text"}
OF_RUNS = {"--resume", "--teacher"}
"""Options whose value is a run directory, which the pages only speak of."""
RUNS: dict[str, dict[str, Any]] = {
    "trigflow-scd-digits-s0": {},
    "trigflow-scd-digits-s1": {"seed": 1},
    "trigflow-scd-mixture-s0": {"data": {"name": "mixture"}, "teacher": {"source": "exact"}},
    "flow-diffusion-digits-s0": {"process": "flow", "objective": "diffusion"},
    "shapes": {"seed": 2},
    "guided": {"objective": {"name": "diffusion", "label_dropout": 0.1}},
}
"""Runs that pages sample from and judge, by name, and what their recipes say."""


class Block(NamedTuple):
    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["title"], found["text"], text.count("\n", 0, found.start("text")))
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a block of shell, continued lines joined, prompts and output left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    parts = [part for line in lines for part in re.split(r"\s&&\s", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@contextlib.contextmanager
def fresh_registry() -> Iterator[None]:
    """Let a command discover plugins as a new process would, and leave registries and environment as they were."""
    before, said = registry._state, os.environ.get(restriction.VARIABLE)
    registry._state = None
    try:
        yield
    finally:
        registry._state = before
        if said is None:
            os.environ.pop(restriction.VARIABLE, None)


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path) -> Iterator[None]:
    with fresh_registry():
        yield
    for name, module in list(sys.modules.items()):
        if name.startswith("scmreg_plugin_") or (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs that the pages speak of, trained for two steps."""
    folder = tmp_path_factory.mktemp("trained")
    for run, said in RUNS.items():
        small = {
            "network": {"name": "mlp", "width": 16, "depth": 1},
            "trainer": {"steps": 2, "threads": 1},
            "evaluation": {"steps": [1], "count": 20, "metrics": ["memorization", "trajectory-error"]},
        }
        teacher = {"trainer": {"steps": 2}} | said.get("teacher", {})
        made = recipe.Recipe.from_tree({**small, **said, "teacher": teacher})
        dataset = prepare(made)
        execute_run(made, open_folder(made, folder, name=run), dataset, Progress())
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_is_understood(page: Path) -> None:
    marks = re.findall(r"^\s*```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = blocks(page)
    assert len(marks) == 2 * len(found), "a fence is indented, unclosed, or has a header that this test cannot read"
    assert {block.language for block in found} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_is_true(
    page: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything on a page happens in the order of the page, in one directory and one namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # a page imports its own files, as Python does where it is started
    put(trained, tmp_path)
    follow(page, lambda words: check_command(words, monkeypatch, capsys))


def follow(page: Path, carry_out: Callable[[list[str]], None]) -> None:
    """Do what a page says in the present directory: write its files, run its Python, hand its commands on."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "python" and not block.title:
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        elif block.language == "python" and "scmreg_components" in block.text:
            with fresh_registry():
                assert registry.load_file(str(block.title)).components
        elif block.language == "python":
            compile(block.text, str(block.title), "exec")  # a program: a command of the page runs it
            assert re.search(
                rf"^python .*{re.escape(str(block.title))}", page.read_text(encoding="utf-8"), re.MULTILINE
            )
        elif block.language in ("bash", "console"):
            for words in commands(block):
                carry_out(words)
        elif block.language == "yaml":
            recipe.Recipe.from_tree(yaml.safe_load(block.text)).check()
        elif block.language == "toml":
            check_project(tomllib.loads(block.text))


def put(trained: Path, folder: Path) -> None:
    """Put the trained runs where the commands of a page expect them."""
    (folder / "runs").mkdir()
    for run in RUNS:
        (folder / "runs" / run).symlink_to(trained / run)


def check_project(project: dict[str, Any]) -> None:
    entries = project["project"]["entry-points"]
    assert list(entries) == [discovery.GROUP]
    for module in entries[discovery.GROUP].values():
        assert Path(f"{module}.py").is_file(), "the page has no module of this name"


def install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce a package as an editable installation would, in a folder of the page's own."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = Path("site-packages").absolute()
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    said = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(said, encoding="utf-8")
    entries = project["entry-points"][discovery.GROUP]
    lines = [f"[{discovery.GROUP}]", *(f"{name} = {module}" for name, module in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    for module in entries.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
    for path in (package.resolve(), site):
        monkeypatch.syspath_prepend(str(path))
    registry._state = None  # found anew


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if words[:2] == ["pip", "install"]:
        for package in (folder for word in words[2:] for folder in (Path(word), ROOT / word)):
            if (package / "pyproject.toml").is_file() and package.resolve() != ROOT:
                install(package, monkeypatch)
                break
        return
    if words[:3] == ["python", "-m", "torch.distributed.run"]:
        assert Path(words[-1]).is_file()
        return
    if words == ["pytest", "-n", "2"]:
        return
    if words[0] == "pytest" and len(words) == 2:
        assert list(Path(words[1]).glob("tests/test_*.py"))
        return
    assert words[0] == "scm", f"not a command of this project: {shlex.join(words)}"
    arguments = words[1:]
    if arguments[0] == "run" and "--help" not in arguments:
        of_a_run = OF_RUNS & set(arguments) or any(word.startswith("runs/") for word in arguments)
        if of_a_run:
            parse(arguments)
        else:
            check_run(arguments, monkeypatch, capsys)
    elif arguments[0] in ("list", "show", "plugins", "doctor", "new") or "--help" in arguments or of_trained(arguments):
        assert execute(arguments, monkeypatch, capsys)
    else:
        parse(arguments)


def of_trained(arguments: list[str]) -> bool:
    """Whether a command is about a run, or weights, that are here."""
    commands = ("sample", "eval", "report", "compare", "cite", "export", "import")
    return arguments[0] in commands and Path(arguments[1]).is_dir()


def check_run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The composition is right, and fits the data where they are here."""
    dry = arguments if "--dry-run" in arguments else [*arguments, "--dry-run"]
    tree = yaml.safe_load(execute(dry, monkeypatch, capsys))
    if "--plugin" in arguments:
        return
    made = recipe.Recipe.from_tree(tree)
    path = getattr(made.data, "path", None)
    if path is None or path.exists():
        prepare(made)


def execute(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the program, which must end well, and return its stdout."""
    status, printed, said = invoke(arguments, monkeypatch, capsys)
    assert not status, f"scm {shlex.join(arguments)}\n{said}"
    return printed


def invoke(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str, str]:
    """Run the program as its entry point does, and return its status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["scm", *arguments])
    capsys.readouterr()
    status: object = 0
    with fresh_registry():
        try:
            main.main()
        except SystemExit as end:
            status = end.code or 0
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def parse(arguments: list[str]) -> None:
    """Check names and types of the options of a command that needs a trained run, and what it sets."""
    command = GROUP.commands[arguments[0]]
    with fresh_registry():
        parent = GROUP.make_context("scm", [arguments[0]], resilient_parsing=True)
        context = command.make_context(arguments[0], arguments[1:], parent=parent)
        check_names(arguments[0], context.params, context.args)


def check_names(command: str, given: dict[str, Any], further: list[str]) -> None:
    if command == "check":
        assert given["name"] is None or named(given["name"])
        return
    if command == "bench":
        assert given["name"] is None or made_of(given["name"], given["settings"] or (), further)
        return
    if command == "study":
        assert given["name"] is None or studying.made_of(given["name"], given["settings"] or ())
        return
    assert {*(given.get("names") or ())} <= {*PROOFS}
    tree = recipe.Recipe().to_tree()
    for kind in registry.KINDS:
        if given.get(kind):
            assert given[kind] in registry.registry(kind)
            set_path(tree, kind, given[kind])
    apply_settings(tree, given.get("settings") or ())
    recipe.Recipe.from_tree(tree)


@pytest.mark.parametrize("command", sorted(GROUP.commands))
def test_examples_of_the_help_are_true(
    command: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put(trained, tmp_path)
    examples = [line for line in (GROUP.commands[command].epilog or "").splitlines() if line.startswith("scm ")]
    assert examples, f"scm {command} --help has no example"
    for line in examples:
        check_command(shlex.split(line), monkeypatch, capsys)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_text_exist(page: Path) -> None:
    for command in re.findall(r"`scm ([a-z][\w-]*)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        assert command in GROUP.commands


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_in_the_text_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    sections = "|".join(option.name for option in options_of(recipe.Recipe) if option.section)
    for path in re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", text):
        tree = recipe.Recipe().to_tree()
        if not path.startswith("teacher.source"):
            set_path(tree, path, None)
    for kind, option in re.findall(rf"`({'|'.join(registry.KINDS)})\.([a-z_]+)(?:=[^`]*)?`", text):
        known = {each.name for cls in registry.registry(kind).values() for each in options_of(cls)}
        assert option in known


def test_there_is_something_to_test() -> None:
    found = [block for page in DOCS for block in blocks(page)]
    lines = [words for block in found if block.language in ("bash", "console") for words in commands(block)]
    assert len(DOCS) >= 9
    assert sum(block.language == "python" for block in found) >= 12
    assert sum(words[0] == "scm" for words in lines) >= 40
    assert {words[1] for words in lines if words[0] == "scm"} >= set(GROUP.commands)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("scm run --proces trigflow", "--proces"),
        ("scm run --process trigfow", "trigfow"),
        ("scm run --set network.widht=3", "widht"),
        ("scm run --network dit --data gaussians", "shape"),
        ("scm sample runs/x --stps 2", "--stps"),
        ("scm sample runs/x --sampler hoin", "hoin"),
        ("scm eval runs/x --set evaluation.stps=[1]", "stps"),
        ("scm show process/nothing", "nothing"),
        ("scm verify round-tripp", "round-tripp"),
        ("scm check process/trigfow", "trigfow"),
        ("scm bench sampling --set batchsize=3", "batchsize"),
        ("scm bench attention --shap 2x8x64x64", "shap"),
        ("scm bench attention --shape 2x8", "2x8"),
        ("scm study segmnts", "segmnts"),
        ("scm study segments --set seads=1", "seads"),
        ("scm train", "train"),
        ("rm -r runs", "rm -r runs"),
    ],
)
def test_a_wrong_command_is_noticed(
    line: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=wrong):
        check_command(shlex.split(line), monkeypatch, capsys)
