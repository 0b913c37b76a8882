"""What is a run made of? Model, data, optimiser and programs, from a config.

Where a run's weights come from, in this order: its own newest checkpoint in the
workdir; `config.init.weights`; fresh ones drawn from the seed.
"""

import functools
import importlib.metadata
import json
import platform
import sys
import time
import zlib

import jax
import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models import summary
from imagepiece_jax.training import (
    checks,
    from_config,
    host_consistency,
    initial_weights,
)
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.run_dir import Hold, record_classes, record_run
from imagepiece_jax.training.sample_images import Panels
from imagepiece_jax.training.train_step import init_state

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Run:
    """The parts of one run; made once, in the order in which mistakes should show."""

    def __init__(self, config, workdir):
        self.config = config
        self.workdir = workdir
        self.model = from_config.model(config, axis_name=parallel.AXIS)
        self.recipe = from_config.recipe(config)
        self.dense = from_config.dense(config)
        self.place = from_config.placement(config)
        self.train_transform = from_config.train_transform(config)
        self.eval_transform = from_config.eval_transform(config)
        self.checkpoints = Checkpoints(workdir, config.keep_every_steps)
        self.eval_step = accuracy.compiled(self.model, config.seed)
        self.method = from_config.method(config)
        self.panels = Panels(workdir, self.model, self.recipe, config.pictures)
        self._program = None  # (its key, the step as compiled)
        self.lock = None

    def close(self):
        """Let others have the workdir."""
        if self.lock is not None:
            self.lock.close()

    def open_data(self):
        """Open both splits; the length of the run follows."""
        self.train_source = from_config.source(self.config, "train")
        self.val_source = from_config.source(self.config, "val")
        # A size that does not fit shows here, not in the first step.
        from_config.try_first(
            self.train_source, self.train_transform, rng=np.random.default_rng(0)
        )
        from_config.try_first(self.val_source, self.eval_transform)
        self.length = from_config.length(self.config, len(self.train_source))
        self.rate = from_config.schedule(self.config, self.length.steps_per_epoch)
        self.optimizer = from_config.adamw(
            self.config, self.rate, self.length.steps_per_epoch
        )

    def start(self, write=True):
        """(state, meta, restored step or None) that training starts from."""
        record = functools.partial(
            record_run,
            self.workdir,
            self.config.to_dict(),
            checks.MAY_CHANGE,
            _versions(),
            assumed=checks.ASSUMED,
        )
        record(is_main=False)  # only compares: a mistake leaves no folder behind
        resumed = host_consistency.decided(self.checkpoints.latest_step) is not None
        names = self.train_source.class_names
        initial_weights.check_classes(self.config, self.workdir, names, resumed)
        told = zlib.crc32(json.dumps(names).encode())
        host_consistency.check_same({"the checksum of the names of the classes": told})
        first_state = functools.partial(
            init_state, optimizer=self.optimizer, with_ema=self.config.ema_decay > 0
        )
        evaluated = self.config.init.evaluate and not resumed
        self.given = (
            initial_weights.as_given(self.config, self.dense) if evaluated else None
        )
        if resumed:  # the checkpoint has the values: shapes will do
            shapes = summary.shapes(self.model, self.config.image_size)
            state = jax.eval_shape(first_state, shapes)
        else:
            state = first_state(initial_weights.initial(self.config, self.model))
        self.teacher_model = self.teacher = None
        if self.method.needs_teacher:
            self.teacher_model = self.dense.clone(drop_path_rate=0.0)
            self.teacher = initial_weights.teacher(self.config, self.teacher_model)
        if write and parallel.is_main():
            self.lock = Hold(self.workdir)
            self.checkpoints.check_room(state, self.length.steps)
        if write:
            record(is_main=parallel.is_main())
            if parallel.is_main():
                record_classes(self.workdir, names)
            host_consistency.check_workdir(self.workdir)
        meta = {"best": {"acc1": -1.0, "step": 0}, "last": None, "evaluated": 0}
        meta["images"] = images = [len(self.train_source), len(self.val_source)]
        step = None
        if resumed:
            state, meta, step = self.checkpoints.restore(state)
            self._check_images(meta.setdefault("images", images), images)
        arrays = state, self.teacher, self.given
        host_consistency.check_start(step, arrays, self.train_source, self.val_source)
        return state, meta, step

    def _check_images(self, before, now):
        """InputError where the data are not those that the run was begun with."""
        if before != now:
            raise InputError(
                f"{self.config.data.name} has {now[0]} training and {now[1]} test "
                f"images now, but the run in {self.workdir} was begun with {before[0]} "
                f"and {before[1]}: allowed are the same, or another --workdir"
            )

    def compiled_step(self, epoch):
        """`steps.train_step` for all devices as of `epoch`, with its state donated.

        One program for all: only a keep rate that warms up has several. The newest is
        kept, and the others are unloaded.
        """
        model = from_config.train_model(self.config, epoch, parallel.AXIS)
        key = from_config.program_key(model)
        if self._program is not None:
            if self._program[0] == key:
                return self._program[1]
            self._program = None
            parallel.forget_programs()
        step = from_config.step(
            self.config, model, self.optimizer, self.rate, self.teacher_model
        )
        compiled = parallel.pmap(step, donate_argnums=(0,), model=True)
        self._program = key, compiled
        return compiled


def _versions():
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "devices": [str(d.device_kind) for d in parallel.local_devices()],
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
