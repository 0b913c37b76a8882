"""The flags of a command on labeled images, which are a model's to be tested on."""

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError, renamed

flags.disclaim_key_flags()  # they are flags of the command that asks for them


def labeled_images():
    """Define --data, --limit and how images are read.

    Returns two functions: one checks, before weights are read, that --data are there;
    the other returns the LabeledImages for a Pretrained.
    """
    data = cli.data("those that the run of --weights was tested on")
    data_dir = cli.data_dir()
    limit = cli.limit()
    batch = cli.integer("batch", None, "images at once; default: the run's, or 512", 1)
    workers = cli.integer(
        "workers", None, "processes that read; default: the run's, or 8", 0
    )
    threads = cli.integer(
        "threads", None, "that decode, in each process; default: the run's, or 2", 0
    )

    def check():
        # It reads tables of all data.
        from imagepiece_jax.input import registry

        if data.value:
            with renamed({"name": "--data"}):
                registry.check_found(data.value)

    def read(vit):
        from imagepiece_jax.config import labeled

        own = "config.data.name of the run"
        names = {"num_classes": "num_classes of the weights"}
        names |= {"name": "--data" if data.value else own, "data": "--data"}
        names["data_dir"] = "--data_dir"
        try:
            return labeled.labeled_images(
                vit,
                data.value or None,
                data_dir=data_dir.value,
                limit=limit.value,
                batch=batch.value,
                workers=workers.value,
                threads=threads.value,
            )
        except InputError as error:
            hint = ""
            if not data.value and error.field in ("name", "data", "num_classes"):
                hint = f"give --data: a folder of classes, {cli.IMAGE_SETS}"
            raise error.renamed(names).inside(hint=hint) from error

    return check, read
