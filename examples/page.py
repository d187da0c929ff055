"""What notebook 09 shows of the examples: their lines, their loops, and what they trained to."""

import contextlib
import gc
import importlib.util
import io
import re
import tempfile
import warnings
from pathlib import Path

import small
import torch
from IPython.display import Markdown
from lines import FOLDER, STRATEGIES, added, source
from torch.nn.functional import cross_entropy

NEEDS = {"lightning": "lightning", "timm": "timm", "accelerate": "accelerate",
         "trainer": "transformers"}  # fmt: skip

TITLES = {"pytorch": "bare PyTorch", "lightning": "Lightning", "ddp": "DDP"}


def overview(first: str, *others: str) -> Markdown:
    """A table of strategies: the lines in one framework, and those that differ in others."""
    heads = [f"{TITLES[framework]}, where it differs" for framework in others]
    rows = [["strategy", TITLES[first], *heads], ["---"] * (2 + len(others))]
    for strategy, title in STRATEGIES.items():
        lines = added(first, strategy)
        rows.append([f"{title} (`{strategy}`)", _code(lines)])
        for framework in others:
            same = [_bare(line) for line in lines]
            own = [line for line in added(framework, strategy) if _bare(line) not in same]
            rows[-1].append(_code(own) or "the same")
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in rows))


def differences(framework: str) -> Markdown:
    """The strategies whose lines are not quite those of bare PyTorch."""
    rows = ["| strategy | in place of PyTorch's |", "| --- | --- |"]
    for strategy, title in STRATEGIES.items():
        known = [_bare(line) for line in added("pytorch", strategy)]
        own = [line for line in added(framework, strategy) if _bare(line) not in known]
        rows += [f"| {title} | {_code(own)} |"] if own else []
    return Markdown("\n".join(rows))


def _bare(line: str) -> str:
    """A line without what differs between examples for their own reasons."""
    return re.sub(r"self\.|\.float\(\)|, num_workers=2", "", line)


def _code(lines: list[str]) -> str:
    return "<br>".join(f"`{line}`" for line in lines)


def loop(framework: str) -> Markdown:
    """The example behind its imports, with all marks."""
    text = (FOLDER / f"in_{framework}.py").read_text(encoding="utf-8")
    code = text[re.search(r"^(class|def) ", text, re.M).start() :]  # type: ignore[union-attr]
    return Markdown(f"```python\n{code}```")


def trained(framework: str) -> Markdown:
    """Each strategy trained here: loss at the end, and whether a pause changes a bit."""
    needed = NEEDS.get(framework)
    if needed and importlib.util.find_spec(needed) is None:
        return Markdown(f"{needed} is not installed: `pip install 'hardtrain[frameworks]'`")
    gc.freeze()  # Trainer collects garbage before it trains, which takes a second otherwise
    rows = [
        "| strategy | lines | cross-entropy | paused and resumed |",
        "| --- | --- | --- | --- |",
    ]
    for strategy in (None, *STRATEGIES):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = _train(framework, strategy, folder / "whole")
            _train(framework, strategy, folder / "paused", pause_after=2)
            resumed = _train(framework, strategy, folder / "paused")
        pairs = zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
        same = "the same bits" if all(torch.equal(*pair) for pair in pairs) else "other bits"
        with torch.no_grad():
            inputs = small.INPUTS.view(-1, 1, 8, 8) if framework == "timm" else small.INPUTS
            loss = cross_entropy(model(inputs), small.TARGETS).item()
        count = len(added(framework, strategy)) if strategy else 0
        title = STRATEGIES[strategy] if strategy else "plain training"
        rows.append(f"| {title} | {count} | {loss:.2f} | {same} |")
    return Markdown("\n".join(rows))


def _train(
    framework: str, strategy: str | None, checkpoint: Path, **options: int
) -> torch.nn.Module:
    code = compile(source(framework, *([strategy] if strategy else [])), framework, "exec")
    space: dict = {"__name__": f"in_{framework}"}
    quiet = io.StringIO()  # of what frameworks say about themselves
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(quiet):
            exec(code, space)
            return space["train"](checkpoint, num_epochs=3, **options)
