"""Fine-tuning: one task, one network, one start.

    python -m medinit_jax.main --config=configs/finetune.py:phantom_drive_seg
    python -m medinit_jax.main --config=configs/finetune.py:aptos_dr --config.model.name=resnet50 \
        --config.init.start=hyper --config.init.path=runs/hyper
    python -m medinit_jax.main --config=configs/finetune.py:medinit_table/mine --config.labels=grade

After the colon stands one of the twelve tasks, "phantom_" and a task for its drawn twin (also at
another size or with a share of the images: `phantom_drive_seg_64px_x0.5`), or any prepared set with
labels. Real sets are prepared first (`python -m medinit_jax.data list`); twins draw themselves.

Every task has the recipe of the paper that it comes from. First paper (arXiv 2206.03661): 512 px,
zoom in [0.8, 1.2], flips, rotation by up to 15 degrees (our reading), SGD with momentum
0.9 and a cosine from 0.01. Batch size, epochs and weight decay are not printed there: ours are 32,
50 and 1e-4. Second paper (SWCL, arXiv 2108.02122): 224 px, Nesterov SGD at a constant rate, batches
of 64 for at most 120 epochs, or crops of 384 px in batches of 8 for at most 300; early stopping.

Hardware and time: the papers' recipes are meant for an accelerator and were not run to the end by
us. What runs on two CPU cores, with its figures, stands in docs/results.md.
"""

from ml_collections import ConfigDict

FIRST_PAPER = ("eyepacs_dr", "aptos_dr", "refuge2_seg", "drive_seg", "rsna_ihd", "rsna_cxr")
SECOND_PAPER = ("messidor", "idrid", "refuge_cls", "stare_seg", "chase_seg", "refuge_seg")


def get_config(task: str = "phantom_aptos_dr") -> ConfigDict:
    """Returns the fine-tuning of a task; see the head of this file."""
    config = _default(task)
    known = task.removeprefix("phantom_")
    name = next((t for t in (*FIRST_PAPER, *SECOND_PAPER) if known.startswith(t)), "")
    segmentation = name.endswith("_seg")
    if name in SECOND_PAPER:
        second_paper(config, segmentation)
    elif segmentation:
        config.data.recipe = "hyper512seg"
        config.model.name = "unet"
        config.train.batch = 8
    if name == "messidor":
        config.protocol.fold = 0
    return config.lock()


def _default(task: str) -> ConfigDict:
    config = ConfigDict()
    config.route = "finetune"
    config.task = task
    config.seed = 42
    config.cache_dir = ""
    # Steps that are traced for TensorBoard's profiler; 0 = none.
    config.profile = 0
    config.note = ""
    # Features to predict, separated by commas; "" = the task's own.
    config.labels = ""
    # "" = the task's own; for sets of your own "accuracy" or "macro AUC", for instance.
    config.metric = ""
    # random, torch_default (as PyTorch's layers start); with a path: hyper, matched, untrained,
    # encoder, torch (weights from a file; imagenet, file and bit are other words for it).
    config.init = ConfigDict(
        {
            "start": "random",
            "path": "",
            "only": "auto",
            # Which tensors take predicted values, and how; see hyper.starts.Transfer.
            "depth_fraction": 1.0,
            "kinds": ("kernel", "scale", "bias", "embedding"),
            "init_noise": 0.0,
            "orthogonal": False,
            "deviation": "predicted",
            "unknown_types": "error",
            # Of weights in a file: whose names they have, "auto" or a key of interop.layouts, and
            # whether what fits in part, is not finite or very large is taken.
            "layout": "auto",
            "force": False,
            # Of BiT's weights: the last norm starts plainly, as in the code of SWCL's authors.
            "bit_skip_final_norm": False,
        }
    )
    # Any name of models.zoo; what is 0 or "" is left to the network's builder.
    config.model = ConfigDict(
        {
            "name": "resnet18",
            "stem": "",
            "width": 0,
            "norm": "",
            "output_stride": 0,
            # 1: the last stage does not stride, so that maps are twice as fine (ResNets).
            "last_stride": 0,
            # Of U-Nets and DeepLabs: "", or "swcl" for that of SWCL's authors.
            "decoder": "",
        }
    )
    config.data = ConfigDict(
        {
            "data_dir": "data",
            "recipe": "hyper512",
            # Side of the images that the network sees, in pixels; 0 = the recipe's.
            "size": 0,
            # Whether pixels outside the field of view neither train nor count.
            "fov": False,
            # "label", or "rotation": which right angle the image was turned by.
            "target": "label",
            "normalization": "auto",
            "cache_mb": 2048.0,
            "workers": 0,
        }
    )
    config.protocol = ConfigDict(
        {
            # Validation images, folds and a share of the labels are drawn so that each has the
            # classes of the first head in proportion; the classes of other heads fall as they may.
            # Of findings of one vector the first that an image has counts; masks have no classes.
            # Share of the training images held out where the set has no validation images.
            "validation": 0.2,
            "split_seed": 0,
            # Which fold is tested; -1 = the set's own test images. Folds are those of the paper's
            # authors ("authors"), of the set with patients kept together ("grouped"), or "made".
            "fold": -1,
            "folds": "authors",
            # Share of the labels that may be seen.
            "fraction": 1.0,
        }
    )
    config.train = ConfigDict(
        {
            "epochs": 50,
            # Updates in all; 0 = as many as the epochs have.
            "steps": 0,
            # Epochs between validations.
            "validate_every": 1,
            "batch": 32,
            # Parts of a batch that are computed one after another, to save memory.
            "accumulate": 1,
            # Epochs without a better validation figure before training stops; 0 = never.
            "patience": 0,
            # none, encoder (all but head or decoder), or prefixes of module names, with commas.
            "freeze": "none",
            # Each block further from the head learns by this factor more slowly.
            "layer_decay": 1.0,
            # none, or balanced: classes count by the inverse of their frequency.
            "class_weights": "none",
            # Decay of an average of the parameters that is judged in their place; 0 = none. It
            # warms up: after n steps the decay is at most (1 + n) / (10 + n), so that the average
            # forgets the start (0.99 is reached after 890 steps, 0.999 after 8,990).
            "ema": 0.0,
            "dtype": "float32",
            # While no more steps than these are done, batch statistics are estimated anew before
            # the network is judged: running ones lag behind a start that came without them.
            "recalibrate_steps": 100,
            "recalibrate_batches": 16,
            # Seconds between checkpoints, which are made after an epoch, and when you stop it.
            "checkpoint_seconds": 120.0,
            # How many of the newest checkpoints stay, and whether each is read back at once.
            "checkpoints_kept": 2,
            "checkpoints_verified": False,
            # Devices that share a batch; 0 = all local ones.
            "devices": 0,
        }
    )
    config.optim = ConfigDict(
        {
            "name": "sgd",
            "learning_rate": 0.01,
            "weight_decay": 1e-4,
            "momentum": 0.9,
            "nesterov": False,
            "schedule": "cosine",
            "warmup_steps": 0,
            # Of schedule=step: the rate is multiplied by `decay` at each of these steps.
            "milestones": (),
            "decay": 0.1,
            "clip": 0.0,
            # Whether moments are divided among the devices, a part on each.
            "sharded": False,
        }
    )
    config.evaluate = ConfigDict(
        {
            "batch": 16,
            # Of the bootstrap that gives the 95 % interval.
            "resamples": 2000,
            # Epochs after which class activation maps are kept, and of how many test images.
            "cam_epochs": (),
            "cam_images": 6,
        }
    )
    return config


def second_paper(config: ConfigDict, segmentation: bool) -> None:
    """Sets the recipe of the second paper; DRIVE, which both have, is the first's by its name."""
    config.optim.nesterov = True
    config.optim.schedule = "constant"
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 5e-4 if segmentation else 1e-3
    config.train.epochs = 300 if segmentation else 120
    config.train.patience = 50 if segmentation else 20
    config.train.batch = 8 if segmentation else 64
    config.data.recipe = "swcl384" if segmentation else "swcl224"
    config.model.name = "resnetv2_50x1_bit"
    if segmentation:
        config.model.name = "deeplabv3plus_resnetv2_50x1_bit"
        config.model.output_stride = 8
        config.model.decoder = "swcl"
