"""The command line reference, from the commands themselves."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _generate.markdown import escaped, term

INTRODUCTION = """
# Command line

Everything is one command, `lavis`. `lavis --help` and `lavis COMMAND --help` print what stands here.

Results go to standard output, everything else to standard error, so `lavis caption photos/ > captions.jsonl` writes
results only. Exit codes: 0 done; 1 done, but some inputs could not be used; 2 bad input, nothing done; 130
interrupted by Ctrl-C. A training that was ended by SIGTERM or SIGUSR1, and saved, exits with 143 or 138. An error
is one line; `--debug` anywhere on the line adds the traceback, `--import MODULE` imports a module of yours first,
so that what it registers is known.

"""


def commands() -> dict[str, Any]:
    """Every command by the words that call it, "data check" for instance."""
    import typer

    from lavis.cli.main import app

    return dict(_walk(typer.main.get_command(app), ""))


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        if inner.hidden:
            continue
        words = f"{path} {name}".strip()
        if getattr(inner, "commands", None):
            yield from _walk(inner, words)
        else:
            yield words, inner


def pages() -> dict[str, str]:
    found = commands()
    parts = [INTRODUCTION, "| command | |\n| --- | --- |\n"]
    for words, command in found.items():
        headline = escaped(_texts(command)[0].split(".")[0] + ".")
        parts.append(f"| [`lavis {words}`](#cli-{words.replace(' ', '-')}) | {headline} |\n")
    parts.append("\n")
    parts += [_section(words, command) for words, command in found.items()]
    return {"reference/cli": "".join(parts)}


def _texts(command: Any) -> tuple[str, str]:
    """What a command's help says, and its examples."""
    text = inspect.cleandoc(command.help or "")
    prose, _, examples = text.partition("\b")
    return prose.strip(), examples.strip("\n")


def _section(words: str, command: Any) -> str:
    prose, examples = _texts(command)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join(["lavis", words, *(["[OPTIONS]"] if options else []), *map(_shown, arguments)])
    out = [f"(cli-{words.replace(' ', '-')})=\n## lavis {words}\n\n"]
    out.append("\n\n".join(escaped(" ".join(p.split())) for p in prose.split("\n\n")) + "\n\n")
    out.append(f"```text\n{usage}\n```\n\n")
    if examples:
        lines = examples.splitlines()
        lines = lines[1:] if re.match(r"\s*Examples?:", lines[0]) else lines
        out.append("```bash\n" + "\n".join(line.strip() for line in lines if line.strip()) + "\n```\n\n")
    hints = typing.get_type_hints(command.callback)
    for parameter in (*arguments, *options):
        out.append(term(_title(parameter, hints), _meaning(parameter)) + "\n")
    return "".join(out)


def _shown(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _title(parameter: Any, hints: Mapping[str, Any]) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_shown(parameter)}`"
    names = sorted(parameter.opts, key=len, reverse=True)
    flag = getattr(parameter, "is_flag", False)
    kind = "" if flag else f" {parameter.metavar or _kind(hints.get(parameter.name))}"
    return ", ".join(f"`{n}{kind}`" for n in names) + "".join(f" / `{n}`" for n in parameter.secondary_opts)


def _kind(hint: Any) -> str:
    """What a value is called, by the annotation of the command's argument."""
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    while inner:
        hint = inner[0]
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
    return {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(hint, "TEXT")


def _meaning(parameter: Any) -> str:
    text = escaped(parameter.help or "")
    default = parameter.default
    if callable(default) or default in (None, False, (), [], "") or "default" in text.lower():
        return text or "."
    return f"{text} Default: `{default}`."
