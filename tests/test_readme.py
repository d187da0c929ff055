"""The snippets of README.md, run as they stand."""

import re
from pathlib import Path

import pytest
import torch

from hardtrain.report.claims import all_claims, findings_markdown

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_a_strategy_in_ones_own_loop():
    (snippet,) = (text for text in SNIPPETS if "loss_function" in text)
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    batch = (torch.randn(8, 4, generator=generator), torch.arange(8) % 3)
    space = {"num_epochs": 3, "loader": [batch], "model": model}
    space["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(snippet, space)
    assert (model.weight != before).any()
    assert space["loss_function"].keep == pytest.approx(0.2)


def test_whole_trainings_compared(tmp_path, monkeypatch):
    (snippet,) = (text for text in SNIPPETS if "run_missing(runs)" in text)
    monkeypatch.setenv("HARDTRAIN_RUNS", str(tmp_path))
    space = {}
    exec(snippet, space)
    results = space["results"]
    assert (results["status"] == "finished").all()
    assert results.groupby("method")["test_error"].mean().max() < 0.1


def test_the_findings_are_those_of_the_figure_folders():
    claims = all_claims(ROOT / "figures")
    assert len(claims) >= 35
    text = (ROOT / "README.md").read_text()
    assert f"<!-- findings -->\n\n{findings_markdown(claims)}\n<!-- end of findings -->" in text
    assert (ROOT / "figures" / "findings.png").is_file()
