"""A benchmark of milliseconds: a model of a few parameters, and few short turns."""

from tests.runs import ROOT

TINY = ["--config", f"{ROOT}/configs/quickstart.py", "--config.model.depth=2"]
TINY += ["--config.model.embed_dim=8", "--config.model.num_heads=2"]
TINY += ["--config.reduction.merge_blocks=(0,)", "--config.reduction.prune_blocks=(1,)"]
SMALL = ["--warmup=2", "--repeats=2", "--seconds=0.001", "--batch_size=4"]
