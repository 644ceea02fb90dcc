"""Help costs nothing and shows examples."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

COMMANDS = (
    *("run", "list", "show", "sample", "eval", "report", "compare", "import", "export", "cite"),
    *("study", "check", "bench", "new", "plugins", "doctor"),
)

# Runs the program as the console script does, then tells which modules it imported.
RUNNER = """
import sys
sys.argv = ["scm", *sys.argv[1:]]
from scmreg_cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("\\nIMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def imported(*arguments: str) -> tuple[str, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    text, _, modules = done.stdout.rpartition("\nIMPORTED")
    return text, set(modules.split())


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("sample", "-h"), ("bench", "--help"), ("--version",)]
)
def test_help_imports_nothing_heavy(arguments):
    text, modules = imported(*arguments)
    assert "typer" in modules, "the runner did not run the program"
    assert text.strip()
    assert not modules & {"torch", "numpy", "sklearn", "scipy", "matplotlib", "PIL", "timm", "scmreg_networks"}
    if arguments[0].startswith("-"):  # where a command has bounds on its options, Typer itself needs pydantic
        assert "pydantic" not in modules


def test_the_runner_would_notice_torch():
    _, modules = imported("list", "process")
    assert {"torch", "pydantic"} <= modules


def test_help_lists_every_command(scm):
    result = scm("--help")
    assert result.code == 0
    assert result.err == ""
    for command in COMMANDS:
        assert f" {command} " in result.out


def test_the_commands_are_these():
    from scmreg_cli.main import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names >= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(scm, command):
    result = scm(command, "--help")
    assert result.code == 0
    assert re.search(rf"Usage: .*\bscm {command}\b", result.out)
    _, word, examples = result.out.partition("Example")
    assert word, "no examples"
    assert f"scm {command}" in examples


def test_every_command_of_the_program_is_tried_here():
    from scmreg_cli.main import app

    for command in app.registered_commands:
        assert command.epilog, f"{command.name or command.callback} shows no examples"
        assert "scm " in command.epilog


def test_no_arguments_show_help(scm):
    result = scm()
    assert re.search(r"Usage: .*\bscm \[OPTIONS\] COMMAND", result.out + result.err)
    assert "run" in result.out + result.err


def test_version(scm):
    import scmreg

    assert scm("--version").out.strip() == f"scmreg {scmreg.__version__}"


def test_unknown_command_and_option(scm):
    for arguments in (("frobnicate",), ("run", "--nonsense"), ("run", "--steps", "0"), ("run", "--seed", "-1")):
        result = scm(*arguments)
        assert result.code == 2
        assert result.out == ""
        assert arguments[-1].strip("-") in result.err or arguments[-2] in result.err


@pytest.mark.parametrize("module", ["scmreg", "scmreg.errors"])
def test_importing_the_package_is_light(module):
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "pydantic", "typer", "rich"} & set(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_loads_plugins_can_leave_them_out(scm, command):
    shown = scm(command, "--help").out
    assert ("--plugin " in shown) == ("--no-plugins" in shown)
    assert "--no-plugins" in shown or command == "new"
