"""Freed memory is kept where that is possible, and where nobody has said otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from hardtrain import records, training
from hardtrain.memory import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
PAGES = """
import resource, sys
import torch
from hardtrain.memory import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
def fill():
    [torch.empty(5_000_000).fill_(1) for _ in range(8)]  # 160 MB in blocks of 20 MB
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(done, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


def faults(way, **environment):
    command = [sys.executable, "-c", PAGES, way]
    own = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True)
    done, number = run.stdout.split()
    return done, int(number)


@glibc
def test_kept_memory_costs_no_new_pages():
    assert faults("hand back")[1] > 5000  # pages of 4 kB; all would be 39,000 a round
    done, number = faults("keep")
    assert done == "True"
    assert number < 4000


@glibc
def test_the_environment_comes_first():
    done, number = faults("keep", MALLOC_MMAP_THRESHOLD_="100000")
    assert done == "False"
    assert number > 5000


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


def test_a_run_on_the_cpu_keeps_freed_memory_before_its_first_step(tiny_run, store, monkeypatch):
    seen, fit = [], training.fit
    monkeypatch.setattr(records, "keep_freed_memory", lambda: seen.append("kept"))
    monkeypatch.setattr(training, "fit", lambda *a, **k: seen.append("fit") or fit(*a, **k))
    records.train_run(tiny_run(), store)
    assert seen == ["kept", "fit"]
