"""Names of weights files and of the files beside them."""

from collections.abc import Mapping
from typing import Any

JsonFields = Mapping[str, Any]  # of a JSON file
# Files that tell which model the weights are.
CONFIG_FILE = "config.json"  # of timm, transformers, `save` and runs
OWN_KEY = "imagepiece_jax"  # key of this package's own part in CONFIG_FILE
OPEN_CLIP_FILE = "open_clip_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # for images and text, since transformers 5
INDEX_ENDING = ".index.json"  # ending of the file that lists a sharded file's parts
# Weights files in order of preference. OpenCLIP's come last, because its repositories
# often hold transformers' weights too.
WEIGHTS_FILES = """
    model.safetensors model.safetensors.index.json pytorch_model.bin
    pytorch_model.bin.index.json model.npz model.pth pytorch_model.pth
    open_clip_model.safetensors open_clip_pytorch_model.bin
""".split()
# Names of files that tell something about the weights, beside them.
FACT_FILES = (CONFIG_FILE, OPEN_CLIP_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE)
FACT_FILES += tuple(name for name in WEIGHTS_FILES if name.endswith(INDEX_ENDING))
# Endings of weights files with any other name.
WEIGHTS_ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
# Files beside a saved model's weights.
SELECTORS_FILE = "selectors.safetensors"  # learned by a reduction
RECOVERED_FILE = "recovered.safetensors"  # parameters of recovered variants
LEARNED_FILES = (SELECTORS_FILE, RECOVERED_FILE)
