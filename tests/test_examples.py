"""The examples of other people's loops: each plain, and with the lines of each strategy."""

import gc
import importlib.util
import logging
import multiprocessing
import os
import runpy
import sys

import pytest
import torch
from lines import FOLDER, STRATEGIES, added, marked, source

NEEDS = {
    "pytorch": (),
    "lightning": ("lightning",),
    "timm": ("timm",),
    "accelerate": ("accelerate",),
    "trainer": ("transformers", "accelerate"),
    "ddp": (),
}
STATEFUL = ("trimming", "hard", "noise", "bias", "pruning", "selective")
LOOPS = [name for name in NEEDS if name != "ddp"]
EPOCHS = {"num_epochs": 3}


def needed(framework):
    missing = [name for name in NEEDS[framework] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install 'hardtrain[frameworks]')")


def train(framework, strategies, checkpoint, changes=(), names=(), **options):
    """The weights at the end, in one row; ``changes`` are texts of the example and what comes in
    their place, ``names`` what these use."""
    text = source(framework, *strategies)
    for old, new in (("num_workers=2", "num_workers=0"), *changes):
        assert old in text or old == "num_workers=2", old
        text = text.replace(old, new)
    space = {"__name__": f"in_{framework}"} | dict(names)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)  # frameworks call it, which takes long here
        exec(compile(text, f"<{framework} with {strategies}>", "exec"), space)
        model = space["train"](checkpoint, **EPOCHS | options)
    return torch.cat([value.flatten() for value in model.state_dict().values()])


PLAIN = {}


def plain(framework, folder):
    """The weights of plain training, trained once."""
    if framework not in PLAIN:
        needed(framework)
        PLAIN[framework] = train(framework, (), folder / "plain")
    return PLAIN[framework]


# --- the lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", NEEDS)
def test_each_strategy_adds_three_lines_at_most_and_one_for_its_state(framework):
    for strategy in STRATEGIES:
        assert 1 <= len(added(framework, strategy)) <= 3, strategy
        assert len(added(framework, strategy, "state:")) <= 1, strategy


@pytest.mark.parametrize("framework", NEEDS)
def test_plain_training_knows_nothing_of_ours(framework):
    code = source(framework).partition('"""\n\n')[2]  # behind the docstring
    assert "hardtrain" not in code
    assert "ht." not in code
    names = set().union(*(names for _, _, names in marked(framework)))
    assert names == {"all", *STRATEGIES}


def printed(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["lines.py", *words])
    runpy.run_path(str(FOLDER / "lines.py"), run_name="__main__")
    return capsys.readouterr().out


def test_the_command_prints_what_is_asked_for(monkeypatch, capsys):
    assert printed(monkeypatch, capsys, "ddp") == source("ddp")
    assert printed(monkeypatch, capsys, "ddp", "hard", "noise") == source("ddp", "hard", "noise")
    wrong = {
        "pytorch triming": "unknown strategy 'triming'; known: trimming, hard",
        "torch": "invalid choice: 'torch' (choose from",
        "": "the following arguments are required: framework",
    }
    for words, said in wrong.items():
        with pytest.raises(SystemExit):
            printed(monkeypatch, capsys, *words.split())
        assert said in capsys.readouterr().err


# --- trained -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("framework", LOOPS)
def test_a_strategy_acts_and_goes_on_from_its_state(framework, strategy, tmp_path):
    without = plain(framework, tmp_path)
    whole = train(framework, [strategy], tmp_path / "whole")
    assert whole.isfinite().all()
    assert not torch.equal(whole, without)
    if strategy in STATEFUL:
        train(framework, [strategy], tmp_path / "paused", pause_after=2)
        assert torch.equal(train(framework, [strategy], tmp_path / "paused"), whole)


@pytest.mark.parametrize("framework", LOOPS)
def test_strategies_that_do_nothing_are_plain_training_bit_for_bit(framework, tmp_path):
    without = plain(framework, tmp_path)
    nothing = (("end=0.2", "end=1.0"), ("alpha=1e-3", "alpha=0"))
    neutral = train(framework, ["trimming", "noise"], tmp_path / "neutral", nothing)
    assert torch.equal(neutral, without)
    # nothing was left behind by all that ran before in this process
    assert torch.equal(train(framework, (), tmp_path / "again"), without)


def test_a_compiled_network_changes_nothing_of_a_strategy(tmp_path):
    compiled = (("data, model = DATA, Network()", "data, model = DATA, Network()\n"
                 '    model.compile(backend="aot_eager")'),)  # fmt: skip
    names = ["trimming", "noise", "hard"]
    whole = train("pytorch", names, tmp_path / "eager")
    assert torch.equal(train("pytorch", names, tmp_path / "compiled", compiled), whole)


def test_workers_change_nothing_of_a_strategy(tmp_path):
    without = train("pytorch", ["hard"], tmp_path / "without")
    workers = (("num_workers=0", "num_workers=2"),)
    assert torch.equal(train("pytorch", ["hard"], tmp_path / "with", workers), without)


# --- Lightning's own ways ------------------------------------------------------------------------

NOTED = (
    "self.chosen.update(indices",
    "taken.append(indices.tolist()), self.chosen.update(indices",
)


def test_lightning_takes_whole_rounds_with_workers_too(tmp_path):
    """Its loop asks for the length when workers have begun a pass already."""
    needed("lightning")
    taken, without = [], train("lightning", ["hard"], tmp_path / "without")
    workers = (("batch_sampler=self.chosen)", "batch_sampler=self.chosen, num_workers=2)"), NOTED)
    ours = train("lightning", ["hard"], tmp_path / "with", workers, names={"taken": taken})
    assert torch.equal(ours, without)
    assert len(taken) == 6 + 3 + 3


def test_rounds_that_lightning_cuts_short_go_on(tmp_path):
    needed("lightning")
    taken = []
    limited = (("accelerator=", "limit_train_batches=4, accelerator="), NOTED)
    train("lightning", ["hard"], tmp_path / "end", limited, num_epochs=5, names={"taken": taken})
    every, after = taken[:6], taken[6:]  # 4 + 2, then rounds of 3
    assert sorted(index for batch in every for index in batch) == list(range(96))
    assert len(after) == 3 * 3
    assert len({tuple(batch) for batch in after[:3]}) == 3
    assert {tuple(batch) for batch in after} <= {tuple(batch) for batch in every}


def test_noise_as_a_hook_is_refused_where_lightning_steps_with_a_closure(tmp_path):
    needed("lightning")
    hook = ((", hook=False", ""), ("        self.noise.add()", "        pass"))
    with pytest.raises(ValueError, match=r"closure.*hook=False.*on_before_optimizer_step"):
        train("lightning", ["noise"], tmp_path / "end", hook)


def test_noise_after_accelerates_prepare_is_refused_with_the_way_out(tmp_path):
    needed("accelerate")
    line = "    noise = ht.GradientNoise(optimizer, alpha=1e-3)\n"
    line += "    accelerator.register_for_checkpointing(noise)\n"
    prepared = "    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)\n"
    late = ((line, ""), (prepared, prepared + line))
    with pytest.raises(ValueError, match=r"takes no hooks \(AcceleratedOptimizer\).*hook=False"):
        train("accelerate", ["noise"], tmp_path / "end", late)


# --- several ranks -------------------------------------------------------------------------------

FLOAT32 = ('precision="bf16-mixed"', 'precision="32-true"')
IN_LIGHTNING = (
    FLOAT32,
    ("DataLoader(data, batch_sampler=self.chosen)",
     "DataLoader(data, batch_sampler=ht.RankBatchSampler(self.chosen))"),
    ("self.chosen.update(indices, loss)",
     "self.chosen.update(self.all_gather(indices).flatten(), self.all_gather(losses).mean())"),
    ("accelerator=", 'devices=2, strategy="ddp", use_distributed_sampler=False, accelerator='),
)  # fmt: skip


def work(rank, folder, with_lightning):
    """What a rank does; the weights that it ends with go to a file."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    ends = {"plain": train("ddp", (), folder / "plain")}
    for strategy in STRATEGIES:
        ends[strategy] = train("ddp", [strategy], folder / strategy)
    for strategy in STATEFUL:
        train("ddp", [strategy], folder / f"{strategy} paused", pause_after=2)
        ends[f"{strategy} resumed"] = train("ddp", [strategy], folder / f"{strategy} paused")
    ends["neutral"] = train("ddp", ["noise"], folder / "neutral", (("alpha=1e-3", "alpha=0"),))
    if with_lightning:
        ends["lightning"] = train("lightning", ["hard"], folder / "lightning", IN_LIGHTNING)
        *others, (old, new) = IN_LIGHTNING
        forgotten = (*others, (old, new.replace("use_distributed_sampler=False, ", "")))
        try:
            train("lightning", ["hard"], folder / "forgotten", forgotten)
        except TypeError as error:
            ends["forgotten"] = str(error)
    torch.save(ends, folder / f"ends {rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks ended with, by name."""
    if sys.platform == "win32" or not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo and a fork server")
    folder = tmp_path_factory.mktemp("ranks")
    with_lightning = importlib.util.find_spec("lightning") is not None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "hardtrain.runs.sweep", "lightning"])
    processes = [context.Process(target=work, args=(r, folder, with_lightning)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"ends {rank}") for rank in (0, 1)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_stay_equal_and_go_on_from_one_state(ranks, strategy):
    first, second = ranks
    assert torch.equal(first[strategy], second[strategy])
    assert not torch.equal(first[strategy], first["plain"])
    if strategy in STATEFUL:
        assert torch.equal(first[f"{strategy} resumed"], first[strategy])


def test_noise_of_variance_zero_on_ranks_is_plain_training(ranks):
    for ends in ranks:
        assert torch.equal(ends["neutral"], ends["plain"])


def test_hard_batches_of_ranks_in_lightning_are_those_of_one_process(ranks, tmp_path):
    needed("lightning")
    alone = train("lightning", ["hard"], tmp_path / "alone", (FLOAT32,))
    for ends in ranks:
        torch.testing.assert_close(ends["lightning"], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(ranks[0]["lightning"], ranks[1]["lightning"])
    assert all("use_distributed_sampler=False" in ends["forgotten"] for ends in ranks)
