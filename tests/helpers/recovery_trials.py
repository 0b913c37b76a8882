"""Short recoveries of tiny models: slowed down, interrupted, or stopped early."""

import signal

import numpy as np

import imagepiece_jax
from imagepiece_jax.recovery import recover, recovery_step
from tests.helpers import picture_files, tiny_vit

DROPPING = "evit:keep_rate=0.3:blocks=(0,):fuse_token=False"
MERGING = "tome:r=5"


def reduced_model(reduction=DROPPING, **options):
    """A model of two blocks: the second one shows losses in the first."""
    return tiny_vit.pretrained(reduction, depth=2, **options)


def noise(count=48, side=tiny_vit.SIDE):
    return picture_files.noise(count, side, side)


def run_recovery(vit, images=None, **fields):
    images = noise() if images is None else images
    options = {"steps": 8, "batch_size": 8, **fields}
    return imagepiece_jax.recover(vit, images, **options)


def held_out_logits(vit, stretches=16):
    """A model's logits for the held-out images of `noise`, float64."""
    images = noise()[np.arange(48) % (48 // stretches) < 16 // stretches]
    images = imagepiece_jax.normalize(images, vit.config.mean, vit.config.std)
    return tiny_vit.logits(vit.model)(vit.variables, images).astype(float)


def interrupt_step(monkeypatch, step):
    """Press Ctrl-C in a training step. Returns a list of all steps' arguments."""
    train_step = recovery_step.StudentFit.train_step
    taken = []

    def interrupted(self, *args):
        taken.append(args)
        if len(taken) == step:
            # A real signal that finds no Python handler would end the whole suite.
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)
        return train_step(self, *args)

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", interrupted)
    return taken


def slow_down(monkeypatch, clock, name, seconds, first=None):
    """Let a StudentFit method take `seconds` by the clock, its first call `first`."""
    call = getattr(recovery_step.StudentFit, name)
    calls = []

    def slowly(self, *args):
        clock[0] += seconds if calls or first is None else first
        calls.append(args)
        return call(self, *args)

    monkeypatch.setattr(recovery_step.StudentFit, name, slowly)


def record_progress(monkeypatch):
    """Return a list that gets (bar, progress) at each update."""
    shown = []
    update = recover.ProgressBar.update

    def updated(self, n):
        update(self, n)
        shown.append((self, self.n))

    monkeypatch.setattr(recover.ProgressBar, "update", updated)
    return shown
