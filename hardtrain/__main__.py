"""The command ``hardtrain``: plan, run, status, merge. Also ``python -m hardtrain``."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardtrain.errors import HardtrainError, ParameterError

try:
    import yaml

    from hardtrain.files import project_root
    from hardtrain.runs.engines import ended_by_sigterm
    from hardtrain.runs.merge import merge
    from hardtrain.runs.status import report, spoken
    from hardtrain.runs.store import RunStore
except ModuleNotFoundError as error:
    sys.exit(f"hardtrain: this command needs {error.name}: pip install 'hardtrain[notebooks]'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is well, 1 something failed, 2 it was asked for wrongly."""
    options = _parser().parse_args(arguments)
    try:
        with ended_by_sigterm():
            return options.command(options)
    except ParameterError as error:
        print(f"hardtrain: {error}", file=sys.stderr)
        return 2
    except HardtrainError as error:
        print(f"hardtrain: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hardtrain: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _plan(options: argparse.Namespace) -> int:
    from hardtrain.report.plan import plan  # slow to import

    parameters, code = _parameters(options), 0
    for path in options.notebooks:
        try:
            print(plan(path, parameters).describe(path.stem, RunStore()), flush=True)
        except ParameterError as error:  # other notebooks may have the parameter, or the profile
            print(f"{path.stem}: {error}", file=sys.stderr)
            code = 2
    return code


def _run(options: argparse.Namespace) -> int:
    """Execute notebooks, and say of each how it ended."""
    if options.together:
        return _together(options)
    from hardtrain.report.execute import execute, last_words  # slow to import

    parameters = _parameters(options)
    folder = (options.out or project_root() / "build" / "notebooks").absolute()
    os.environ.setdefault("HARDTRAIN_PROGRESS", "terminal")
    lines, failed = [], 0
    for path in options.notebooks:
        began, target = time.perf_counter(), folder / path.name
        try:
            execute(path, target, parameters)
            ended = f"complete  {last_words(target)}; {target}"
        except RuntimeError as error:
            print(error, file=sys.stderr)
            ended, failed = "FAILED, see above", failed + 1
        lines.append(f"{path.stem:28}{spoken(time.perf_counter() - began):>8}  {ended}")
    print(*lines, sep="\n")
    return 1 if failed else 0


def _together(options: argparse.Namespace) -> int:
    """Each notebook in a process of its own; they share the store, and wait for each other's
    runs rather than train them twice."""
    command = [sys.executable, "-m", "hardtrain", "run"]
    for name, values in (("-y", options.yaml), ("--out", [options.out] if options.out else [])):
        command += [word for value in values for word in (name, str(value))]
    command += ["--engine", options.engine] if options.engine else []
    processes = [subprocess.Popen([*command, str(path)]) for path in options.notebooks]
    try:
        return max([process.wait() for process in processes])
    finally:
        for process in processes:
            process.terminate()


def _status(options: argparse.Namespace) -> int:
    print(report(RunStore(options.store)))
    return 0


def _merge(options: argparse.Namespace) -> int:
    counts, said = merge([RunStore(path) for path in options.stores], RunStore(options.into))
    print(*said, sep="\n", end="\n" if said else "")
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    return 1 if counts["damaged"] else 0


def _parameters(options: argparse.Namespace) -> dict:
    """What ``-y`` and ``--engine`` say; later ones win."""
    parameters: dict = {}
    for text in options.yaml:
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ParameterError(f"-y {text!r} is no YAML: {error}") from error
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise ParameterError(f'-y {text!r} is no mapping; write -y "{{profile: paper}}"')
        parameters |= given
    return parameters | ({"engine": options.engine} if options.engine else {})


def _notebook(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no notebook {text}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hardtrain", description="Papers on hard samples, as runs.")
    commands = parser.add_subparsers(required=True, metavar="plan | run | status | merge")

    planning = commands.add_parser("plan", help="which runs are missing, and their hours here")
    running = commands.add_parser("run", help="execute notebooks whole")
    for command, function in ((planning, _plan), (running, _run)):
        command.set_defaults(command=function)
        command.add_argument("notebooks", nargs="+", type=_notebook, metavar="NOTEBOOK")
        given: dict[str, Any] = {
            "action": "append",
            "default": [],
            "metavar": "YAML",
            "dest": "yaml",
        }
        command.add_argument("-y", **given, help='parameters, as in -y "{profile: paper}"')
        command.add_argument("--engine", help="local or ray; short for -y '{engine: ...}'")
    running.add_argument("--together", action="store_true", help="all at the same time")
    running.add_argument("--out", type=Path, help="folder of the results (build/notebooks)")

    looking = commands.add_parser("status", help="what is finished, running and waiting")
    looking.set_defaults(command=_status)
    looking.add_argument("store", nargs="?", help="a store; default as for training")

    merging = commands.add_parser("merge", help="copy the records of stores into one")
    merging.set_defaults(command=_merge)
    merging.add_argument("stores", nargs="+", metavar="STORE")
    merging.add_argument("into", metavar="INTO")
    return parser


if __name__ == "__main__":
    sys.exit(main())
