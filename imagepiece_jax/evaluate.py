"""How accurate are these weights? Top-1, top-5 and loss over every image of a set.

python -m imagepiece_jax.evaluate --config configs/deit_ti.py --weights FILE_OR_WORKDIR \\
    --data folder:PATH
"""

import json

from absl import flags

from imagepiece_jax import cli

CONFIG = cli.define_config()
WEIGHTS = flags.DEFINE_string(
    "weights", None, "a .npz, .safetensors or .pth file, or the folder of a run"
)
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ["best", "latest"], "which of a run's checkpoints"
)
DATA = flags.DEFINE_string(
    "data", None, "csv:FILE, folder:PATH, imagenet2012 or digits; default: config.data"
)
RESIZE = flags.DEFINE_enum(
    "resize", None, ["deit", "none"], "none: images have the right size already"
)
JSON = flags.DEFINE_string("json", None, "also write the results to this file")


def main():
    config, path = cli.required(CONFIG), cli.required(WEIGHTS)
    from imagepiece_jax.data import loader
    from imagepiece_jax.models import zoo
    from imagepiece_jax.training import evaluation, parallel, setup, weights
    from imagepiece_jax.training.record import replace_file

    config.data.name = DATA.value or config.data.name
    config.data.resize = RESIZE.value or config.data.resize
    setup.check(config)
    model = setup.model(config)
    source = setup.source(config, "val")
    like = weights.fresh(model, config.image_size, config.seed)
    variables = weights.load(path, like, which=CHECKPOINT.value)
    place = loader.Placement(local_devices=len(parallel.local_devices()))
    batches = loader.eval_batches(
        source,
        setup.eval_transform(config),
        batch_size=setup.eval_batch_size(config, place),
        placement=place,
        workers=config.data.workers,
    )
    step = evaluation.compiled(model)
    result = evaluation.evaluate(step, parallel.replicate(variables), batches)
    result["gmacs"] = zoo.model_macs(model, config.image_size) / 1e9
    result["unreadable"] = source.unreadable.count
    print(
        "acc1 {acc1:.2f} %  acc5 {acc5:.2f} %  loss {loss:.4f}  images {images}  "
        "gmacs {gmacs:.3f}  throughput {throughput:.1f} img/s".format(**result)
    )
    if JSON.value:
        replace_file(JSON.value, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
