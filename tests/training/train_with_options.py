"""train.py where the platform has compiler options, as a GPU has.

python -m tests.training.train_with_options --config ...
"""

import runpy

from imagepiece_jax.models import compiler
from tests import compiling, runs

if __name__ == "__main__":
    compiler.OPTIONS["cpu"] = compiling.HARMLESS
    runpy.run_path(str(runs.ROOT / "train.py"), run_name="__main__")
