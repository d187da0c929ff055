"""Times measured in turns: what is called how often, and which way round a ratio is."""

import pytest

from hardtrain.report import timing


@pytest.fixture
def clock(monkeypatch):
    """``clock[name]`` is how long the function of that name takes; ``calls`` says who ran."""
    takes, calls, now = {"plain": 2.0, "slow": 6.0}, [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def function(name):
        def run():
            calls.append(name)
            now[0] += takes[name]

        return run

    return {name: function(name) for name in takes}, calls


def test_interleaved_runs_every_function_once_a_round_and_does_not_count_the_warmup(clock):
    functions, calls = clock
    times = timing.interleaved(functions, 3, warmup=2)
    assert times == {"plain": [2.0] * 3, "slow": [6.0] * 3}
    rounds = list(zip(calls[::2], calls[1::2], strict=True))
    assert len(rounds) == 5
    assert {frozenset(names) for names in rounds} == {frozenset(functions)}
    assert len(set(rounds)) == 2  # in different orders


def test_ratios_by_round_divide_within_a_round(monkeypatch):
    times = {0: [1.0, 10.0], 1: [2.0, 5.0], 2: [3.0, 10.0]}
    monkeypatch.setattr(timing, "interleaved", lambda *_, **__: times)
    nothing = list
    assert timing.ratios_by_round(nothing, [nothing] * 2, 2).tolist() == [[2, 3], [0.5, 1]]
