"""The command ``hardtrain``: check, plan, run, status, merge. Also ``python -m hardtrain``."""

import argparse
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from hardtrain._version import __version__
from hardtrain.errors import HardtrainError, ParameterError, StoreError, unknown_name

try:
    import yaml

    from hardtrain.data.images import DATASETS, load_dataset
    from hardtrain.data.npz import SPLITS
    from hardtrain.data.quality import summary
    from hardtrain.files import project_root, user_path
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


def _check(options: argparse.Namespace) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = [load_dataset(options.data, split, download=False) for split in SPLITS]
    first, *others = summary(*splits)
    changed = dict.fromkeys(f"changed: {warning.message}" for warning in caught)
    print(first, *changed, *others, sep="\n")
    return 0


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
    from hardtrain.report.execute import answers, execute, last_words  # slow to import

    parameters = _parameters(options)
    folder = user_path("--out", options.out or project_root() / "build" / "notebooks")
    os.environ.setdefault("HARDTRAIN_PROGRESS", "terminal")
    lines, failed = [], 0
    for path in options.notebooks:
        began, target = time.perf_counter(), folder / path.name
        try:
            execute(path, target, parameters)
            ended = "\n".join([f"complete  {last_words(target)}; {target}", *answers(target)])
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
        codes = [process.wait() for process in processes]
        return max(128 - code if code < 0 else code for code in codes)  # < 0: killed, by a signal
    finally:
        for process in processes:
            process.terminate()


def _status(options: argparse.Namespace) -> int:
    store = RunStore(options.store)
    if not store.path.is_dir() and (options.store or store.path.exists()):
        raise StoreError(f"{store.path} is no folder, and so no store")
    print(report(store))
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
        for name, value in given.items():
            for item in value if isinstance(value, list) else [value]:
                plain = type(item) in (bool, int, float, str, type(None))
                if not plain or (type(item) is float and not math.isfinite(item)):
                    raise ParameterError(f"{name} = {item!r} is no number and no text")
        parameters |= given
    if isinstance(parameters.get("datasets"), list):
        parameters["datasets"] = [_from_here(name) for name in parameters["datasets"]]
    parameters |= {
        name: str(user_path(name, parameters[name]))
        for name in ("data_root", "out_dir")
        if isinstance(parameters.get(name), str)
    }
    return parameters | ({"engine": options.engine} if options.engine else {})


def _from_here(data: object) -> object:
    """A data set as a notebook finds it, which runs in its own folder: a path is made absolute,
    a name is left alone."""
    if not isinstance(data, str) or data in DATASETS:
        return data
    path = user_path("datasets", data)
    is_there = path.exists() or Path(f"{path}_train.npz").exists()
    return str(path) if is_there else data


def _notebook(text: str) -> Path:
    """The notebook in a file, or of that name in the repository."""
    own = project_root() / "notebooks" / f"{Path(text).stem}.ipynb"
    for path in (Path(text).absolute(), own):
        if path.is_file():
            return path
    known = [path.stem for path in own.parent.glob("*.ipynb")]
    raise argparse.ArgumentTypeError(str(unknown_name("notebook", text, sorted(known))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hardtrain", description="Papers on hard samples, as runs.")
    parser.add_argument("--version", action="version", version=f"hardtrain {__version__}")
    commands = parser.add_subparsers(required=True, metavar="check | plan | run | status | merge")

    checking = commands.add_parser("check", help="read an image set, and say what is odd about it")
    checking.set_defaults(command=_check)
    checking.add_argument("data", metavar="PATH", help="a file, prefix, folder or name")

    planning = commands.add_parser("plan", help="which runs are missing, and their hours here")
    running = commands.add_parser("run", help="execute notebooks whole")
    for command, function in ((planning, _plan), (running, _run)):
        command.set_defaults(command=function)
        command.add_argument("notebooks", nargs="+", type=_notebook, metavar="NOTEBOOK")
        shown = 'parameters, as in -y "{profile: paper}"'
        command.add_argument("-y", action="append", default=[], dest="yaml", help=shown)
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
