"""Every field with its default: DeiT's recipe on ImageNet-1k (Touvron et al., 2021).

Any field can be changed on the command line: --config.batch_size=256. The other files
of this folder start from this one and state only what differs.
"""

from ml_collections import config_dict


def get_config():
    """DeiT-S as its authors trained it: 300 epochs, 1,024 images a step."""
    config = config_dict.ConfigDict()
    config.seed = 0  # every random draw is a function of it, the step and the sample
    config.image_size = 224  # pixels a side, a multiple of the patch size
    config.num_classes = 1000  # outputs; labels are 0 .. num_classes - 1

    config.model = config_dict.ConfigDict()
    config.model.name = config_dict.FieldReference("deit_s")  # or deit_ti, deit_b,
    #                     vit_mini, timm's name of a public model; empty: `arch` and
    #                     the size say it all
    config.model.stem = "patch"  # "patch", or "conv": ImagePiece's local coherence bias
    config.model.gelu = config_dict.placeholder(str)  # "exact", "tanh" (faster on
    #                     GPUs) or "quick", three functions; empty: as the name has it
    config.model.class_token = config_dict.placeholder(bool)  # False: the head reads
    #                     the mean over patches; empty: as the name has it
    config.model.norm_eps = config_dict.placeholder(float)  # added to variances in
    #                     layer norms; empty: as the name has it
    config.model.resize = config_dict.placeholder(str)  # how positions get another
    #                     grid: models/positions.py; empty: as the name has it
    config.model.arch = config_dict.ConfigDict()  # parts that differ from DeiT's:
    #                     models/architecture.py; empty: as the name has it
    config.model.mean = config_dict.placeholder(tuple)  # of the images, in [0, 1], by
    #                     channel; empty: those of the weights that a run starts
    #                     from, else the name's, else ImageNet's,
    #                     (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)
    config.model.std = config_dict.placeholder(tuple)  # likewise
    config.model.drop_path_rate = 0.1  # of the last block; linear from 0 at the first
    config.model.prop_attn = config_dict.placeholder(bool)  # proportional attention:
    #                     + log(size) on the logits; empty: the method's own
    config.model.dtype = "bfloat16"  # of the layers; parameters are always float32;
    #                           "float32", or, but for training, "float16"
    config.model.attention = "auto"  # "xla", "cudnn", or "auto": by device and dtype
    config.model.kernels = config_dict.placeholder(str)  # of reductions: "plain",
    #                     "fused" into one kernel each where there is one, "auto" (fused
    #                     where that runs); empty: auto in optimized programs on CPUs,
    #                     else plain
    # These override the size that the name stands for; empty: as named.
    config.model.patch_size = config_dict.placeholder(int)  # pixels a side
    config.model.embed_dim = config_dict.placeholder(int)  # width of a token
    config.model.depth = config_dict.placeholder(int)  # blocks
    config.model.num_heads = config_dict.placeholder(int)  # of attention
    config.model.mlp_ratio = config_dict.placeholder(float)  # MLP's width / token's

    # A method of imagepiece_jax.reduction.methods, and those of its fields that differ
    # from the defaults of its class.
    config.reduction = config_dict.ConfigDict()
    config.reduction.name = "none"  # no reduction: the dense model

    config.data = config_dict.ConfigDict()
    config.data.name = "imagenet2012"  # or folder:PATH, csv:FILE, digits
    config.data.dir = ""  # where TFDS keeps its data sets; empty: its own default
    config.data.crop = "random_resized"  # training: or "shift", "none"
    config.data.area = (0.08, 1.0)  # share of the image that a random crop covers
    config.data.shift = 4  # pixels, for crop="shift"
    config.data.flip = True  # left and right, half of the time
    config.data.resize = "deit"  # evaluation: short side to size / 0.875, center crop;
    #                              "none": images have the right size already
    config.data.eval_crop = config_dict.placeholder(float)  # share of the resized side
    #                              that evaluation looks at; empty: 0.875, and images of
    #                              up to 32 pixels are not resized
    config.data.eval_crop_mode = "center"  # or "squash": both sides are resized
    config.data.eval_interpolation = "bicubic"  # or "bilinear"
    config.data.canvas = 0  # pixels a side of the square that an image is decoded to,
    #                         to be cropped on the device; 0: cropped on the host
    config.data.repeats = 3  # copies of an image in a row (repeated augmentation): an
    #                          epoch has its steps, with a third of the images
    config.data.workers = 8  # processes that read and decode; 0: the training process
    config.data.threads = 2  # that read and decode in each of them; 0: none

    config.augment = config_dict.ConfigDict()
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
    #                       with 256 images, compiled for an H200, works in 2.2 GB
    #                       instead of 10.1, by estimate for a quarter more time
    config.label_smoothing = 0.1  # share of the target spread over all classes
    config.mixup = 0.8  # alpha of Beta(alpha, alpha); 0: off
    config.cutmix = 1.0  # likewise
    config.mixup_prob = 1.0  # of mixing a batch at all
    config.mixup_switch_prob = 0.5  # of cutmix where both are on
    config.ema_decay = 0.99996  # average of the weights, reported beside; 0: off
    config.best_by = "weights"  # whose test accuracy chooses the best checkpoint: the
    #                         "weights" themselves, or their "averages"

    config.teacher = config_dict.ConfigDict()
    config.teacher.weights = ""  # of the model that distillation and some methods
    #                     learn from, frozen: a file, folder, run or hf://OWNER/NAME
    # Facts about a teacher for distillation that its weights lack; empty: its own.
    config.teacher.name = config_dict.placeholder(str)  # timm's, as config.model.name
    config.teacher.num_heads = config_dict.placeholder(int)  # of attention
    config.teacher.image_size = config_dict.placeholder(int)  # pixels a side
    config.teacher.mean = config_dict.placeholder(tuple)  # of the images that it sees
    config.teacher.std = config_dict.placeholder(tuple)  # likewise

    config.distill = config_dict.ConfigDict()
    config.distill.kind = "none"  # "soft": learn the teacher's probabilities, "hard":
    #                     its first class; with a distillation token by its head
    config.distill.temperature = 3.0  # of "soft": divides the logits of both
    config.distill.weight = 0.5  # of the teacher's term, 1 - weight of the labels';
    #                     1: training images need no labels

    config.init = config_dict.ConfigDict()
    config.init.weights = ""  # a weights file or a run's folder to start from
    config.init.fresh = ()  # what may be new then, such as ("head",)
    config.init.evaluate = False  # report the given dense model's accuracy first

    config.eval = config_dict.ConfigDict()
    config.eval.sets = config_dict.ConfigDict()  # evaluations by name, such as
    #                     {"val": {}, "real": {"data": "csv:real.csv"}}, each with
    #                     `data` (default: config.data.name), `every_epochs` (default:
    #                     eval_every_epochs) and `classes`, labels by class name
    #                     (default: those of the training data); empty: one
    config.eval.best_set = ""  # of several: whose accuracy chooses the best checkpoint
    config.eval_batch_size = 512  # images at once, over all devices
    config.eval_every_epochs = 1  # and after the last
    config.checkpoint_every_steps = 1250  # beside one after each evaluation
    config.keep_every_steps = 0  # checkpoints of its multiples stay for good; 0: none
    config.log_every_steps = 50  # a line of metrics, over the steps since the last
    config.progress = True  # a progress bar, in a terminal; else lines
    config.pictures = 6  # test images in the picture of the tokens, drawn after each
    #                      evaluation; 0: no pictures, in TensorBoard neither
    config.profile = False  # a trace of some early steps, for TensorBoard or Perfetto
    config.lock().reduction.unlock()  # each method has fields of its own
    return config
