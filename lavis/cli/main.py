"""The command's entry point: global options, and errors as one line with an exit code.

Exit codes: 0 done; 1 done, but some inputs could not be used; 2 bad input, nothing done; 128 + n where signal n
ended it: 130 after Ctrl-C, and for a training, which saves before, 143 after SIGTERM and 138 after SIGUSR1.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lavis import __version__
from lavis.cli import (
    benchmark,
    browse,
    common,
    compare,
    completion,
    converting,
    data,
    demo,
    explaining,
    finding,
    info,
    predict,
    runs,
    talking,
    vectors,
)
from lavis.common.registry import registry

# The order and headings of `lavis --help`; a command that is in none of them comes last.
GROUPS = {
    "Use a model on pictures": ("caption", "ask", "dialogue", "match", "classify", "explain"),
    "Vectors and search": ("features", "index", "search"),
    "Train and evaluate": ("train", "evaluate", "benchmark"),
    "Data sets": ("datasets", "card", "download", "data"),
    "Models": ("models", "convert"),
    "In a browser": ("demo", "browse"),
}


# Commands that processes of torchrun share; of others the first process does all.
SHARED = ("caption", "ask", "match", "classify", "features", "train", "evaluate", "benchmark")


class _Grouped(typer.core.TyperGroup):
    """Lists its commands under headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        placed = {name for names in GROUPS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in placed)
        limit = formatter.width - 6 - max(map(len, self.list_commands(ctx)))
        for heading, names in {**GROUPS, "More": others}.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            rows = [
                (name, c.get_short_help_str(limit)) for name, c in found if c is not None and not c.hidden
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


app = typer.Typer(
    name="lavis",
    cls=_Grouped,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _module in (
    predict, compare, finding, vectors, explaining, talking, converting, runs, benchmark, data, info, completion, demo,
    browse,
):  # fmt: skip
    _module.register(app)

# typer brings its own copy of click in newer versions; its exceptions are found by what it re-exports
_UsageProblem: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lavis {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Import a Python module first, so that what it registers is known. May be repeated.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Language-vision models: caption, search, classify and ask about pictures, train, evaluate.

    \b
    Examples:
      lavis caption photos/
      lavis ask photo.jpg "what colour is the car?"
      lavis index photos/ --to photos.index
      lavis search photos.index "a dog on a beach" --html found.html
      lavis train my_recipe.yaml --options run.max_iters=500
      lavis train --task captioning --data train.jsonl --images photos/
      lavis models
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand not in SHARED
    if alone and os.environ.get("RANK", "0") != "0":
        raise typer.Exit
    if imports:
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 (sys.path holds strings)
        for module in imports:
            registry.import_module(module)


# in the words of CUDA, of torch's allocator on a CPU (Linux, Windows), and of the system
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def _normalized(arguments: Sequence[str]) -> list[str]:
    """Global options moved to the front, and `--options a=1 b=2` written as one option per value."""
    front: list[str] = []
    rest: list[str] = []
    in_options = False
    items = iter(arguments)
    for item in items:
        if item == "--":
            rest += [item, *items]
        elif item == "--debug":
            front.append(item)
        elif item == "--import":
            front += [item, *(value for value in [next(items, None)] if value is not None)]
        elif item == "--options":
            in_options = True
        elif in_options and not item.startswith("--"):
            rest += ["--option", item]
        else:
            in_options = False
            rest.append(item)
    return front + rest


def _say(message: object) -> None:
    text = " ".join(_without_traceback(str(message)).split())
    print(f"lavis: {text}", file=sys.stderr, flush=True)


def _without_traceback(text: str) -> str:
    """The message alone of an error to which torch added the traceback of a loader's worker."""
    start = re.search(r"^Caught \w+ in .*\nOriginal Traceback", text)
    name = re.search(r"^Caught (\w+)", text)
    if start is None or name is None:
        return text
    return re.split(rf"^(?:[\w.]+\.)?{name[1]}: ", text, flags=re.MULTILINE)[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None takes `sys.argv`.

    Returns:
        The exit code.
    """
    args = _normalized(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    command = typer.main.get_command(app)
    if completion.is_asked():
        return completion.answer(command)
    registry.register(
        "command", True
    )  # no script whose top level would run again in processes that it starts
    try:
        # not command.main(): it has exit codes of its own for interrupts and broken pipes
        with command.make_context("lavis", args) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as e:
        sys.stdout.flush()
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort) as e:
        common.note(str(e) or "interrupted")
        return 130
    except SystemExit as e:  # of a training that a signal ended; it has said so
        return e.code if isinstance(e.code, int) else 2
    except BrokenPipeError:
        # the reader of our output has gone (`lavis … | head`); keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _UsageProblem as e:
        message = e.format_message() if hasattr(e, "format_message") else str(e)
        if type(e).__name__ == "NoArgsIsHelpError":  # the message is the help
            print(message, file=sys.stderr)
            return 2
        asked = getattr(e, "ctx", None)
        where = "lavis" if asked is None else asked.command_path
        _say(f"{message.rstrip('.')}. See: {where} --help")
        return 2
    except (ValueError, OSError, ImportError, RecursionError) as e:
        if debug:
            traceback.print_exc()
        _say(e if str(e) else type(e).__name__)
        return 2
    except (RuntimeError, MemoryError) as e:
        message = _explained(e)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        _say(message)
        return 2


def _explained(error: BaseException) -> str | None:
    """What an error of the machine means, None for errors that are the program's."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        reason = f" ({error})" if text else ""
        return f"out of memory; try a smaller --batch-size or run.batch_size_train, or --device cpu{reason}"
    if "dataloader worker" in text:
        return (
            "a process that prepares samples was ended from outside, most often for lack of memory; "
            f"set run.num_workers lower, or to 0 ({error})"
        )
    if "can't reach the others" in text:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
