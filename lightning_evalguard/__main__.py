"""``lightning-evalguard``: show records, compare them, and guard a script in CI."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import lightning_evalguard
from lightning_evalguard.hints import did_you_mean
from lightning_evalguard.record import run as record

_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<choices>.*)\)")
_COMMANDS = ("show", "html", "run")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    listed = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _command(listed)
        given = _parser().parse_args(listed)
        return int(given.act(given))
    except (ValueError, OSError) as error:
        print(f"lightning-evalguard: {_line(error)}", file=sys.stderr)  # noqa: T201
        return 2


def _line(error: Exception) -> str:
    from lightning_evalguard.views.terminal import printable

    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return printable(text)


class _Parser(argparse.ArgumentParser):
    """Names the option that a misspelt one may stand for."""

    options: ClassVar[set[str]] = set()

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add one, and remember how it is written."""
        action = super().add_argument(*names, **settings)
        self.options.update(action.option_strings)
        return action

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        choice = _CHOICE.search(message)
        given = message.rpartition(" ")[2]
        names = sorted(self.options)
        if choice is not None:
            given = choice["given"]
            names = re.findall(r"\w+", choice["choices"])
        super().error(message + did_you_mean(given, names))


def _command(given: Sequence[str]) -> None:
    """Name the command that a misspelt one may stand for; argparse lists them all.

    Raises:
        ValueError: If the first argument is neither an option nor a command.
    """
    name = ""
    if given:
        name = given[0]
    if name and not name.startswith("-") and name not in _COMMANDS:
        listed = ", ".join(_COMMANDS)
        hint = did_you_mean(name, _COMMANDS)
        if Path(name).suffix == ".py":
            hint = f". Did you mean: run {name}"
        raise ValueError(f"{name!r} is no command, expected one of {listed}{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("lightning-evalguard", description=__doc__)
    version = f"%(prog)s {lightning_evalguard.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="print a record, or several side by side")
    show.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="an evalguard.json, or a folder to look in",
    )
    show.set_defaults(act=_show)

    html = commands.add_parser("html", help="write a record as one self-contained page")
    html.add_argument(
        "path", type=Path, metavar="PATH", help="an evalguard.json, or its folder"
    )
    html.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: beside PATH"
    )
    html.set_defaults(act=_html)

    run = commands.add_parser(
        "run",
        help="guard a script that knows nothing of it; status 1 if anything is found",
        usage="%(prog)s [options] [-m] train.py ARGS...",
    )
    run.add_argument(
        "--strict", action="store_true", help="suspicions and warnings count too"
    )
    run.add_argument("--sarif", type=Path, metavar="FILE", help="write SARIF 2.1.0")
    run.add_argument(
        "--json", type=Path, metavar="FILE", help="write findings and runs"
    )
    run.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="a file that --json wrote: what stands in it does not count",
    )
    run.add_argument(
        "--format",
        default="text",
        choices=("text", "json", "sarif", "github"),
        help="also print findings on standard output in this form; github: as "
        "annotations of a pull request",
    )
    run.add_argument(
        "-m", dest="module", action="store_true", help="run a module, as python -m"
    )
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="train.py ARGS...")
    run.set_defaults(act=_run)
    return parser


def _found(paths: Sequence[Path]) -> list[Path]:
    found = [path for given in paths for path in record.found_at(given)]
    if not found:
        raise ValueError(f"no evalguard.json in {', '.join(map(str, paths))}")
    return found


def _viewed(found: Sequence[tuple[Path, Any]], view: Callable[[], str]) -> str:
    """What `view` makes of records of the right shape.

    Raises:
        ValueError: Where their content contradicts itself, as no record of ours does.
    """
    try:
        return view()
    except Exception as error:
        paths = ", ".join(str(path) for path, _ in found)
        raise ValueError(
            f"{paths} cannot be shown: {type(error).__name__}: {error}"
        ) from error


def _show(given: argparse.Namespace) -> int:
    from lightning_evalguard.views.terminal import beside, one

    found = [(path, record.read(path)) for path in _found(given.paths)]
    out = sys.stdout
    text = _viewed(
        found, lambda: one(*found[0], out) if len(found) == 1 else beside(found, out)
    )
    print(text)  # noqa: T201
    return 0


def _html(given: argparse.Namespace) -> int:
    from lightning_evalguard.record import files as _files
    from lightning_evalguard.views.page import page

    path, *others = _found([given.path])
    if others:
        raise ValueError(
            f"{given.path} holds {1 + len(others)} records, expected one: name it"
        )
    target = given.output or path.with_suffix(".html")
    content = record.read(path)
    _files.write_over(
        target, _viewed([(path, content)], lambda: page(content, str(path)))
    )
    print(target)  # noqa: T201
    return 0


def _run(given: argparse.Namespace) -> int:
    from lightning_evalguard.ci import run

    if not given.command:
        raise ValueError("run: expected a script, or -m and a module")
    return run(
        ["-m", *given.command] if given.module else given.command,
        strict=given.strict,
        sarif_path=given.sarif,
        json_path=given.json,
        baseline=given.baseline,
        form=given.format,
    )


if __name__ == "__main__":
    sys.exit(main())
