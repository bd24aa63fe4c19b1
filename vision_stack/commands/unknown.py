"""What to write instead of an option that does not exist: one sentence, for names that other tools use above all."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from vision_stack.commands.aliases import ALIASES, canonical
from vision_stack.commands.option_docs import choices, groups, known_options

OWN_YAML = "options from a file of your own: put it at DIR/experiment/NAME.yaml, give --config-dir DIR experiment=NAME"
_CLASSES = "classes come from the data: the categories of its json, or data.classes of data=semantic; leave it out"
_AUGMENT = "give augment=none, light, standard, lsj or strong, and single values, as in augment.mosaic=0.5"
_PRECISION = "give precision=bf16, or precision=fp16"
START = "weights=PATH starts a new run from a model, resume=PATH continues a run"
_JSON = "give data.train_annotations=, data.train_images=, data.val_annotations= and data.val_images="
_DEVICES = "give device=0,1 for these GPUs, or trainer=ddp trainer.devices=2 for any two"
_NEVER = "a folder that holds a run is never overwritten; give another run_dir or name"
_ALWAYS = "results are always written; leave it out"
_EVERY = {  # name -> what to do
    **dict.fromkeys(("optimizer", "opt"), "the optimizer is AdamW; give optim.lr, optim.weight_decay or optim.betas"),
    "momentum": "the optimizer is AdamW, with optim.betas",
    **dict.fromkeys(("num_classes", "nc", "names", "class_names", "categories"), _CLASSES),
    **dict.fromkeys(("model", "arch", "network"), f"give backbone=NAME and head=NAME; {START}"),
    **dict.fromkeys(("checkpoint", "ckpt", "ckpt_path", "load_from", "resume_from", "model.weights"), START),
    **dict.fromkeys(("amp", "half", "fp16", "bf16", "mixed_precision"), _PRECISION),
    **dict.fromkeys(("augmentation", "augmentations", "aug", "augmix", "scale", "translate", "perspective"), _AUGMENT),
    "degrees": "give augment.rotation, the most in degrees, and augment.warp, its probability",
    "shear": "give augment.shear, the most in degrees, and augment.warp, its probability",
    **dict.fromkeys(("hsv_h", "hsv_s", "hsv_v"), "give augment.color_jitter=true, or augment.photometric"),
    "close_mosaic": "give augment.stop_fraction, the share of the run that ends without augmentation",
    "save_period": "give callbacks.checkpoints.every_n_steps",
    "fraction": "give data.max_train_images=N, the first images only",
    **dict.fromkeys(("conf", "threshold"), "predict has threshold=0.5; training needs none"),
    "nbs": "give trainer.accumulate_grad_batches=N; a derived learning rate follows the effective batch",
    **dict.fromkeys(
        ("accumulate", "grad_accum", "gradient_accumulation_steps"), "give trainer.accumulate_grad_batches"
    ),
    **dict.fromkeys(("config_file", "config", "cfg", "hyp"), OWN_YAML),
    **dict.fromkeys(("split", "splits"), "data.val_fraction=0.2 holds out images for validation"),
    **dict.fromkeys(("images", "annotations", "ann_file", "img_dir"), _JSON),
    "dataset": "give data=DIR",
    "project": "give run_dir=DIR; for Weights & Biases logger=[csv,wandb] logger.wandb.project=NAME",
    **dict.fromkeys(("exist_ok", "overwrite"), _NEVER),
    **dict.fromkeys(("save", "save_txt", "save_json", "plots"), _ALWAYS),
    **dict.fromkeys(("cos_lr", "lr_scheduler", "scheduler"), "give optim.schedule=cosine, poly, step or constant"),
    **dict.fromkeys(("warmup", "warmup_epochs", "warmup_iters"), "give optim.warmup_steps"),
    **dict.fromkeys(("solver.ims_per_batch", "ims_per_batch"), "give data.batch_size, images of one device"),
    **dict.fromkeys(("gpus", "devices", "num_gpus", "nproc", "nproc_per_node"), _DEVICES),
    **dict.fromkeys(("random_seed", "manual_seed"), "give seed"),
    **dict.fromkeys(("freeze", "freeze_at", "frozen_stages"), "give finetune.freeze_stages=N"),
    "freeze_backbone": "give finetune.freeze_stages=all",
    "unfreeze_at_epoch": "give finetune.unfreeze_epochs",
    **dict.fromkeys(("grad_checkpointing", "with_cp"), "give finetune.gradient_checkpointing"),
    "norm_eval": "give backbone.freeze_norm",
    "drop_path": "give backbone.drop_path_rate",
    **dict.fromkeys(("lr_multiplier", "lr_mult"), "give optim.backbone_lr_multiplier"),
    "layerwise_decay": "give optim.layer_decay",
    "overfit_batches": "give experiment=overfit, or data.max_train_images",
}
_OF_VERB: dict[str, dict[str, str]] = {
    "train": {},
    "eval": {
        "split": "validation images are evaluated; give data.split=test, or data.val_annotations= and data.val_images=",
        "augment": "there is no augmentation in evaluation; leave it out",
        **dict.fromkeys(("conf", "threshold"), "every score counts for AP; leave it out"),
        **dict.fromkeys(("source", "images"), "give data.root=DIR; pictures without annotations are for predict"),
    },
    "predict": {
        **dict.fromkeys(("augment", "imgsz"), "images are resized as the model was trained; leave it out"),
        **dict.fromkeys(("batch_size", "workers"), "images are read one by one; leave it out"),
        **dict.fromkeys(("half", "amp", "precision"), "predict computes in float32; leave it out"),
        **dict.fromkeys(("data", "images", "input", "img", "image"), "give source=FILE, a folder or a pattern"),
    },
}


def unknown_option(verb: str, key: str) -> str:
    """One line about an option that does not exist, or that nothing chosen has."""
    known = known_options(verb)
    if key.startswith("trainer."):
        from vision_stack.training.trainer_options import REFUSED, is_trainer_argument  # Lightning takes a while

        name = key.partition(".")[2]
        if name in REFUSED["eval" if verb == "eval" else "train"]:
            return f"{key}: {REFUSED['eval' if verb == 'eval' else 'train'][name].remedy}"
        if is_trainer_argument(name):
            return f"{key}: an argument of Lightning's Trainer that has no default here; write +{key}=VALUE"
    if key in known:
        return _not_chosen(key, known[key])
    return f"{key}: unknown option; {_instead(verb, key)}"


def _instead(verb: str, key: str) -> str:
    known, name = known_options(verb), canonical(key.rpartition(".")[2])
    for hints in (_OF_VERB[verb], _EVERY):
        for each in (key.lower(), canonical(key), name.lower()):
            if each in hints:
                return hints[each]
    if alias := ALIASES[verb].get(name):
        return f"give {name}=VALUE ({alias.place})"
    for group in groups() if verb == "train" else ():
        if name in choices(group):
            return f"give {_choose(group, name)}"
    close = [option for option in known if option.rpartition(".")[2] == name]
    close = close or _closest(key, known)
    short = difflib.get_close_matches(name, ALIASES[verb], n=1, cutoff=0.75)
    if short and (not close or "." in close[0]) and "." not in key:
        return f"did you mean {short[0]}?"
    if close:
        return f"did you mean {' or '.join(_with_its_choice(verb, option) for option in close[:4])}?"
    if verb != "train" and (name in ALIASES["train"] or name in {o.rpartition(".")[2] for o in known_options("train")}):
        return f"it is one of train's, and {verb} has none of that kind; leave it out"
    return f"`vision-stack {verb} --help` lists them"


def _closest(key: str, known: Collection[str]) -> list[str]:
    """The option that was probably meant; what both have in common by their group does not count."""
    group, dot, name = key.partition(".")
    siblings = {option.partition(".")[2]: option for option in known if option.startswith(f"{group}.")} if dot else {}
    if siblings:
        return [siblings[close] for close in difflib.get_close_matches(name, siblings, n=1, cutoff=0.7)]
    return difflib.get_close_matches(key, known, n=1, cutoff=0.7)


def _with_its_choice(verb: str, option: str) -> str:
    """An option of a callback or logger that a run has only if it is chosen, with the choice."""
    group, having = option.partition(".")[0], known_options(verb)[option]
    if group in ("callbacks", "logger") and not {"default", "csv"} & set(having):
        return f"{_choose(group, _first(having))} {option}=VALUE"
    return option


def _not_chosen(option: str, having: Sequence[str]) -> str:
    group = option.partition(".")[0]
    if group in ("callbacks", "logger"):
        return f"{option}: comes with {_choose(group, _first(having))}; add that"
    shown = ", ".join(having[:4]) + (f" and {len(having) - 4} more" if len(having) > 4 else "")
    return f"{option}: not an option of the {group} that is chosen, but of {group}={shown}"


def _choose(group: str, name: str) -> str:
    """Callbacks come on top of the default ones by themselves, loggers do not."""
    name = f"[{name}]" if group == "callbacks" else f"[csv,{name}]" if group == "logger" and name != "none" else name
    return f"{group}={name}"


def _first(names: Sequence[str]) -> str:
    return min(names, key=lambda name: (name == "both", name))  # `logger=both` is csv and tensorboard
