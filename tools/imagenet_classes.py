"""Names of ImageNet-1k's classes, read from timm: python -m tools.imagenet_classes

Writes imagepiece_jax/pretrained/imagenet_classes.txt: the WordNet synset of each
class, in the order of the labels, and its lemmas. Needs timm.
"""

import importlib.metadata
import pathlib

from timm.data import ImageNetInfo

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "imagepiece_jax" / "models" / "imagenet_classes.txt"


def main():
    info = ImageNetInfo("imagenet-1k")
    rows = zip(info.label_names(), info.label_descriptions(), strict=True)
    version = importlib.metadata.version("timm")
    head = [
        "# ImageNet-1k's classes by label: WordNet synset and its lemmas (WordNet 3.0,",
        "# Princeton University), as in timm's data/_info/imagenet_synsets.txt and",
        f"# imagenet_synset_to_lemma.txt ({version}), by tools.imagenet_classes",
    ]
    lines = [f"{synset}\t{lemmas}" for synset, lemmas in rows]
    OUT.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
