"""Methods for the tests of sweeps: plain training that leaves a log, dies once, or fails."""

import os
import signal
import time
from pathlib import Path

from hardtrain import DataError
from hardtrain.training import methods
from hardtrain.training.lookup import version


def folder():
    return Path(os.environ["HARDTRAIN_TEST_LOG"])


def _plain(run, data, model, start_epoch):
    method = methods.plain(run, data, model)
    method.start_epoch = start_epoch
    return method


@version(1)
def logged(run, data, model):
    """Notes the beginning of each epoch, and takes its time."""

    def start_epoch(epoch):
        with open(folder() / "log", "ab", buffering=0) as file:
            file.write(f"{run.key} {epoch} {os.getpid()} {time.time()}\n".encode())
        time.sleep(0.1)

    return _plain(run, data, model, start_epoch)


@version(1)
def dies_once(run, data, model):
    """Kills its process at the beginning of its third epoch, the first time."""

    def start_epoch(epoch):
        with open(folder() / f"died {run.seed}", "a") as file:
            file.write(f"{epoch} ")
        died = (folder() / f"died {run.seed}").read_text().split()
        if epoch == 2 and died.count("2") == 1 and "HARDTRAIN_TEST_LIVE" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)

    return _plain(run, data, model, start_epoch)


@version(1)
def fails(run, data, model):
    """Its data are not what it needs, as is seen late."""

    def start_epoch(epoch):
        raise DataError("these images cannot be had here")

    return _plain(run, data, model, start_epoch)
