"""`lavis completion`: the script with which a shell completes the command's words."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from lavis.cli import common

_VARIABLE = "_LAVIS_COMPLETE"  # set by the script when the shell asks
_SHELLS = ("bash", "zsh", "fish")


def register(app: typer.Typer) -> None:
    app.command("completion")(completion)


def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=common.one_of(*_SHELLS)),
    ],
) -> None:
    """Print the script that makes a shell complete commands and options. Nothing is installed.

    \b
    Examples:
      source <(lavis completion bash)        # in ~/.bashrc
      source <(lavis completion zsh)         # in ~/.zshrc, after compinit
      lavis completion fish > ~/.config/fish/completions/lavis.fish
    """
    from typer.completion import get_completion_script

    if shell not in _SHELLS:
        raise ValueError(f"there is no completion for {shell!r}; there is for {', '.join(_SHELLS)}")
    print(get_completion_script(prog_name="lavis", complete_var=_VARIABLE, shell=shell))


def is_asked() -> bool:
    """Whether a shell asks for completions rather than running a command."""
    return _VARIABLE in os.environ


def answer(command: Any) -> int:
    """Print the completions that the shell asks for; the exit code."""
    from typer.completion import completion_init, shell_complete

    completion_init()
    return shell_complete(command, {}, "lavis", _VARIABLE, os.environ[_VARIABLE])
