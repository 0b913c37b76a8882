"""Every field with its default: DeiT's recipe on ImageNet-1k (Touvron et al., 2021).

Any field can be changed on the command line: --config.batch_size=256. The other files
of this folder start from this one and state only what differs. A placeholder is empty
until somebody sets it.
"""

from ml_collections.config_dict import ConfigDict, FieldReference, placeholder


def get_config():
    """DeiT-S as its authors trained it: 300 epochs, 1,024 images a step."""
    config = ConfigDict()
    config.seed = 0  # every random draw is a function of it, the step and the sample
    config.image_size = 224  # pixels a side, a multiple of the patch size
    config.num_classes = 1000  # outputs; labels are 0 .. num_classes - 1

    config.model = ConfigDict()
    config.model.name = FieldReference("deit_s")  # or deit_ti, deit_b, vit_mini, timm's
    #                     name of a public model; empty: `arch` and the size say it all
    config.model.stem = "patch"  # "patch", or "conv": ImagePiece's local coherence bias
    config.model.arch = architecture()
    # Images in [0, 1], by channel; empty: as the weights say that a run starts from,
    # else the name, else as ImageNet's: (.485, .456, .406) and (.229, .224, .225).
    config.model.mean = placeholder(tuple)
    config.model.std = placeholder(tuple)
    config.model.drop_path_rate = 0.1  # of the last block; linear from 0 at the first
    config.model.dtype = "bfloat16"  # of layers; or "float32", or for use "float16";
    #                     parameters are always float32
    config.model.attention = "auto"  # "xla", "cudnn", or "auto": by device and dtype
    # These override the size that the name stands for; empty: as named.
    config.model.patch_size = placeholder(int)  # pixels a side
    config.model.embed_dim = placeholder(int)  # width of a token
    config.model.depth = placeholder(int)  # blocks
    config.model.num_heads = placeholder(int)  # of attention
    config.model.mlp_ratio = placeholder(float)  # MLP's width / token's

    # A method of imagepiece_jax.reduction.methods and fields of it, such as
    # "evit:keep_rate=0.5:blocks=(3,6,9)", or a share of the dense model's MACs, "0.5".
    config.reduction = "none"  # no reduction: the dense model

    config.data = ConfigDict()
    config.data.name = "imagenet2012"  # or hf:OWNER/NAME, folder:PATH, csv:FILE, digits
    config.data.dir = ""  # where TFDS keeps its data sets; empty: its own default
    config.data.crop = "random_resized"  # training: or "shift", "none"
    config.data.area = (0.08, 1.0)  # share of the image that a random crop covers
    config.data.shift = 4  # pixels, for crop="shift"
    config.data.flip = True  # left and right, half of the time
    config.data.resize = "deit"  # evaluation: short side to size / eval_crop, center
    #                              crop; "none": images have the right size already
    config.data.eval_crop = placeholder(float)  # share of the resized side; empty: as
    #                              the weights say that a run starts from, else DeiT's
    #                              0.875, and images of up to 32 pixels stay as they are
    #                              (other values of the next three need it)
    config.data.eval_crop_mode = "center"  # or "squash": both sides are resized
    config.data.eval_interpolation = "bicubic"  # or "bilinear"
    config.data.eval_rule = "timm"  # or "transformers": whose rounding of the crop
    config.data.repeats = 3  # copies of an image in a row (repeated augmentation): as
    #                          many steps an epoch as for 1, with a third of the images
    config.data.workers = 8  # processes that read and decode; 0: the training process
    config.data.threads = 2  # that read and decode in each of them; 0: none

    config.augment = ConfigDict()
    config.augment.layers = 2  # operations an image (RandAugment); 0: off
    config.augment.prob = 0.5  # of each being applied
    config.augment.magnitude = 9.0  # of 10, mean of the draws
    config.augment.magnitude_std = 0.5  # their standard deviation
    config.augment.erase_prob = 0.25  # of a random box of noise in an image; 0: off

    config.epochs = 300  # passes over the training images
    config.batch_size = 1024  # images a step, over all devices and micro-batches
    config.grad_accum_steps = 1  # micro-batches a step
    config.lr = 5e-4  # per 512 images: scaled by batch_size / 512
    config.min_lr = 1e-5  # at the end of the cosine, not scaled
    config.warmup_lr = 1e-6  # at the start, not scaled
    config.warmup_epochs = 5.0  # linear, from warmup_lr
    config.lr_offset = 0  # 1: by whole epochs and one late, as DeiT's own code
    config.weight_decay = 0.05  # not on biases, 1-D parameters, positions, class token
    config.betas = (0.9, 0.999)  # AdamW's averages of gradient and square
    config.eps = 1e-8  # AdamW's, beside the root of the square
    config.clip_grad_norm = 0.0  # 0: no clipping
    config.max_skipped_steps = 10  # in a row, not finite, before the run stops; 0: none
    config.remat = False  # compute a block's activations twice to hold fewer: DeiT-S
    #                       with 256 images works in 2.2 GB instead of 10.1 (H200), by
    #                       estimate for a quarter more time
    config.label_smoothing = 0.1  # share of the target spread over all classes
    config.mixup = 0.8  # alpha of Beta(alpha, alpha); 0: off
    config.cutmix = 1.0  # likewise
    config.mixup_prob = 1.0  # of mixing a batch at all
    config.mixup_switch_prob = 0.5  # of cutmix where both are on
    config.ema_decay = 0.99996  # average of the weights, reported beside; 0: off

    config.teacher = ConfigDict()
    config.teacher.weights = ""  # of the model that distillation and some methods
    #                     learn from, frozen: a file, folder, run or hf://OWNER/NAME

    config.distill = ConfigDict()
    config.distill.kind = "none"  # "soft": learn the teacher's probabilities, "hard":
    #                     its first class; with a distillation token by its head
    config.distill.temperature = 3.0  # of "soft": divides the logits of both
    config.distill.weight = 0.5  # of the teacher's term, 1 - weight of the labels'

    config.init = ConfigDict()
    config.init.weights = ""  # a weights file or a run's folder to start from;
    #                     a config that needs some has a placeholder
    config.init.fresh = ()  # what may be new then, such as ("head",)

    config.eval_batch_size = 512  # images at once, over all devices
    config.eval_every_epochs = 1  # and after the last
    config.checkpoint_every_steps = 1250  # beside one after each evaluation
    config.keep_every_steps = 0  # checkpoints of its multiples stay for good; 0: none
    config.log_every_steps = 50  # a line of metrics, over the steps since the last
    config.progress = True  # print a line where metrics are logged
    config.profile = False  # a trace of some early steps, for TensorBoard or Perfetto
    config.lock()
    return config


def architecture():
    """Parts that differ from the name's, or without a name from DeiT's.

    models/architecture.py says more of each.
    """
    arch = ConfigDict()
    arch.class_token = placeholder(bool)  # in front of the patches, as the next two
    arch.dist_token = placeholder(bool)  # DeiT's, with a head
    arch.registers = placeholder(int)  # tokens without a meaning
    arch.positions = placeholder(bool)  # an embedding is added to the patches
    arch.prefix_positions = placeholder(bool)  # and to the tokens in front of them
    arch.rotary = placeholder(dict)  # the fields of a Rotary; only in a config file
    arch.patch_bias = placeholder(bool)  # the projection of patches has a bias
    arch.qkv_bias = placeholder(bool)  # so have those to queries, keys and values
    arch.key_bias = placeholder(bool)  # False: only those to queries and values
    arch.pre_norm = placeholder(bool)  # a norm before the first block
    arch.post_norm = placeholder(bool)  # norms of what attention and MLP give
    arch.attn_norm = placeholder(bool)  # a norm of the heads' output
    arch.mlp_norm = placeholder(bool)  # a norm of the hidden layer
    arch.norm_eps = placeholder(float)  # added to variances in norms
    arch.layer_scale = placeholder(bool)  # a factor a channel for each branch
    arch.gelu = placeholder(str)  # "exact", "tanh" (faster on GPUs), "quick"
    arch.mlp = placeholder(str)  # "gelu", "swiglu"
    arch.pool = placeholder(str)  # the head's input: "token", "mean", "map", "none"
    arch.pool_include_prefix = placeholder(bool)  # a mean or a map reads it, too
    arch.pool_heads = placeholder(int)  # of a map; 0: as many as a block has
    arch.pool_mlp_ratio = placeholder(float)  # of a map's MLP
    arch.final_norm = placeholder(bool)  # a norm of all tokens before the pool
    arch.fc_norm = placeholder(bool)  # a norm of the pool's result
    arch.resize = placeholder(str)  # of positions: "antialias", "bicubic", ..
    return arch
