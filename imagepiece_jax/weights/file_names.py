"""Names of the files that hold weights, and of those beside them."""

# What says which model the weights are.
CONFIG = "config.json"  # of timm, transformers and `save`, and of a run
OURS = "imagepiece_jax"  # the part of it that is this package's own
OPEN_CLIP = "open_clip_config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of images and of text, since transformers 5
# A folder's file of weights, the preferred names first; those of OpenCLIP are last.
INDEX = ".index.json"  # the end of a file that lists the parts of a sharded one
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
WEIGHTS += (f"pytorch_model.bin{INDEX}",)
WEIGHTS += ("model.npz", "model.pth", "pytorch_model.pth")
WEIGHTS += ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Of weights by other names.
ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
# Beside the weights of a saved model.
SELECTORS = "selectors.safetensors"  # that a reduction learned
RECOVERED = "recovered.safetensors"  # for reduced forms of the model
BESIDE = (SELECTORS, RECOVERED)
