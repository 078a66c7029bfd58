"""Entry point: which configuration applies, what an error looks like, which exit code it gives."""

from __future__ import annotations

import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from cyclopts import App, CycloptsError
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Toml

from neuralfuse.cli import commands
from neuralfuse.cli.blackbox import choose, tune
from neuralfuse.cli.chip import chip_app
from neuralfuse.cli.compare import compare
from neuralfuse.cli.energy import energy
from neuralfuse.cli.export import apply, export, pull, push
from neuralfuse.cli.plan import plan
from neuralfuse.cli.report import portrait, report
from neuralfuse.cli.reproduce import reproduce
from neuralfuse.cli.serve import serve
from neuralfuse.config import base_recipe
from neuralfuse.errors import ConfigError, NeuralFuseError, UnfinishedError, unknown_name
from neuralfuse.runs import given_command

DONE, OUR_FAILURE, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130
COMMANDS: dict[str, Callable[..., None] | App] = {
    "demo": commands.demo,
    "models": commands.models,
    "train-base": commands.train_base,
    "pretrain": commands.pretrain,
    "train": commands.train,
    "evaluate": commands.evaluate,
    "energy": energy,
    "plan": plan,
    "reproduce": reproduce,
    "compare": compare,
    "apply": apply,
    "export": export,
    "push": push,
    "pull": pull,
    "portrait": portrait,
    "report": report,
    "choose": choose,
    "tune": tune,
    "serve": serve,
    "chip": chip_app,
}


@cache
def make_app() -> App:
    """Return the command-line application."""
    app = App(
        name="neuralfuse",
        help="Make neural networks survive low-voltage memory. Start with: neuralfuse demo",
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
    )
    for name, command in COMMANDS.items():
        app.command(command, name=name)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 our failure, 130 Ctrl-C."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    tokens = list(arguments)
    app = make_app()
    try:
        _check_processes(tokens)
        app.config = (_from_file, _from_recipe)
        with given_command(tokens):
            app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (NeuralFuseError, CycloptsError) as error:
        code = OUR_FAILURE if isinstance(error, UnfinishedError) else USERS_MISTAKE
        return _fail(" ".join(str(error).split()), code, "--debug" in tokens)
    except KeyboardInterrupt:
        return _fail(f"interrupted.{_how_to_go_on(tokens)}", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return OUR_FAILURE
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
        return _fail(text, OUR_FAILURE, "--debug" in tokens)
    return DONE


def _how_to_go_on(tokens: Sequence[str]) -> str:
    command = tokens[0] if tokens else ""
    if command in {"reproduce", "compare"} or (command == "tune" and "--cache" in " ".join(tokens)):
        return " The same command goes on from what it kept."
    if (command in {"train-base", "train", "evaluate", "plan"} and "--out" in " ".join(tokens)) or command == "apply":
        return " The same command with --resume goes on from what it kept."
    return ""


def _fail(message: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"neuralfuse: {message}", file=sys.stderr)
    return code


def _check_processes(tokens: Sequence[str]) -> None:
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and tokens[:1] != ["train"]:
        raise ConfigError(f"torchrun must start neuralfuse train: got {' '.join(tokens[:1])!r}. Run that without it.")


def _from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take the options that the command line leaves open from the file that `--config` names."""
    path = _given(arguments, "--config")
    if path is not None:
        _check_tables(path)
        Toml(path, must_exist=True)(app, commands, arguments)


def _from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take the options that are still open from the recipe that `--recipe` names."""
    recipe = _given(arguments, "--recipe")
    if recipe is not None:
        options = {name.replace("_", "-"): value for name, value in asdict(base_recipe(recipe)).items()}
        Dict(options, source=f"recipe {recipe}", use_commands_as_keys=False)(app, commands, arguments)


def _check_tables(path: str) -> None:
    """Check that a file has one table a command, and nothing else."""
    if not Path(path).is_file():
        raise ConfigError(f"--config must name a TOML file: {path} is none.")
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {path} must be TOML: {error}.") from error
    for name, value in tables.items():
        if name not in COMMANDS:
            raise unknown_name(f"table in {path}", name, COMMANDS)
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {name} must be a table, [{name}]: got {value!r}.")


def _given(arguments: ArgumentCollection, option: str) -> str | None:
    """Return what an option was given so far."""
    found = next((one for one in arguments if option in one.names), None)
    return found.tokens[0].value if found is not None and found.tokens else None
