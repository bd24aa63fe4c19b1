"""What fine-tuning asks of a backbone: its stages in order, to freeze them; its layers in order; less memory.

Everything goes by the order in which modules were registered, which is the order of computation in timm's,
torchvision's and transformers' models. A backbone has to say no more than which module ends each stage, and even
that is found where the stages are the members of one list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from torch import nn

from vision_stack.backbones.checkpointing import checkpoint_activations


class StageGroup(NamedTuple):
    """A stage and all that was registered since the one before, by name within the backbone."""

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


class FineTunable(nn.Module):
    """Frozen stages, layer groups and gradient checkpointing, for any backbone."""

    config: Any
    own_prefixes: tuple[str, ...] = ("norms.",)  # parameters that published weights never hold
    frozen_stages: int = 0  # see `freeze_stages`
    gradient_checkpointing: bool = False
    _frozen_modules: tuple[str, ...] = ()
    _frozen_parameters: tuple[str, ...] = ()

    def stage_modules(self) -> dict[str, str]:
        """Name of each stage -> name of the module that ends it, in order; a stem may be left out.

        Here: the members of the outermost list of modules that is as long as the config's list of stages, stem aside,
        or as those up to the last selected one.
        """
        out_specs = self.config.out_specs
        specs = [spec for spec in getattr(self.config, "stages", out_specs) if spec.name != "stem"]
        built = specs.index(out_specs[-1]) + 1 if out_specs[-1] in specs else 0
        lists = [(name, m) for name, m in self.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
        lists.sort(key=lambda item: item[0].count("."))
        for count in (len(specs), built):
            for name, members in lists:
                if len(members) == count > 0:
                    children = [f"{name}.{child}" for child, _ in members.named_children()]
                    return dict(zip([spec.name for spec in specs], children, strict=False))
        return {}

    def stage_groups(self) -> list[StageGroup]:
        """The stem, then each stage; layers that published weights do not have, such as output norms, are in none.

        Raises:
            ValueError: the backbone does not say what its stages are.
        """
        ends = self.stage_modules()
        if not ends:
            name = type(self).__name__
            raise ValueError(f"{name} does not say what its stages are; define `stage_modules()`, which names them")
        return group_by_stage(self, ends, self.own_prefixes)

    def layer_groups(self) -> list[list[str]]:
        """Names of parameters by layer, from the input on, for learning rates that decay with depth; here by stage."""
        return [list(group.parameters) for group in self.stage_groups()]

    def freeze_stages(self, count: int) -> None:
        """Freeze the first `count` of stem, stage 1, stage 2, ..., and unfreeze all others.

        Frozen stages have no gradients, and stay in eval mode whatever `train()` says: batch norms keep their
        statistics, dropout and stochastic depth are off.

        Raises:
            ValueError: there are not as many.
        """
        groups = self.stage_groups() if count else []
        if count > len(groups):
            raise ValueError(
                f"finetune.freeze_stages: {count} is more than there are, {len(groups)}: "
                f"{', '.join(group.name for group in groups)}"
            )
        for name in self._frozen_parameters:
            self.get_parameter(name).requires_grad_(True)
        parameters = [name for group in groups[:count] for name in group.parameters]
        self.frozen_stages = count
        # Those that were never to be trained, such as fixed position tables, are not to be unfrozen later.
        self._frozen_parameters = tuple(name for name in parameters if self.get_parameter(name).requires_grad)
        self._frozen_modules = tuple(name for group in groups[:count] for name in group.modules)
        for name in self._frozen_parameters:
            self.get_parameter(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch, but that frozen stages stay in eval mode."""
        super().train(mode)
        for name in self._frozen_modules:
            self.get_submodule(name).training = False
        return self

    def enable_gradient_checkpointing(self) -> list[str]:
        """Keep only the inputs of blocks for the backward pass and recompute the rest; gradients are the same.

        Returns:
            the names of the blocks; the stem is left as it is.

        Raises:
            ValueError: the backbone does not say what its stages are, or has no blocks.
        """
        modules = dict.fromkeys(name for group in self.stage_groups()[1:] for name in group.modules)
        outermost = [name for name in modules if name.rpartition(".")[0] not in modules]
        blocks = checkpoint_activations(self, outermost)
        if not blocks:
            raise ValueError(f"finetune.gradient_checkpointing: {type(self).__name__} has no blocks; leave it false")
        self.gradient_checkpointing = True
        return blocks


def group_by_stage(module: nn.Module, stages: Mapping[str, str], left_out: tuple[str, ...] = ()) -> list[StageGroup]:
    """Modules and parameters of `module` by stage, the stem first.

    What precedes the first stage is the stem, unless that stage is the stem or the end of it: so called, or with no
    layer before it, or without a layer (the norm or the activation of a stem). Parameters of the module itself, such
    as position tables, belong to the stem; what follows the last stage belongs to that.

    Args:
        stages: name of each stage -> name of the module that ends it, in the order of registration; at least one.
        left_out: prefixes of names that belong to no stage.
    """
    names, ends = list(stages), list(stages.values())
    around = {end.rsplit(".", i)[0] for end in ends for i in range(1, end.count(".") + 1)} | {""}
    stage_of: dict[str, int] = {}
    before_first: list[str] = []
    stage, entered = 0, False
    for name, _ in module.named_modules():
        if name in around or f"{name}.".startswith(left_out):
            continue
        if entered and not _within(name, ends[stage]) and stage + 1 < len(ends):
            stage, entered = stage + 1, False
        entered |= _within(name, ends[stage])
        stage_of[name] = stage
        if stage == 0 and not entered:
            before_first.append(name)
    layers = {name.rpartition(".")[0] for name, p in module.named_parameters() if p.ndim > 1}
    has_layer = any(_within(name, ends[0]) for name in layers)
    has_stem = not names[0].startswith("stem") and has_layer and not layers.isdisjoint(before_first)
    if has_stem:
        stem = set(before_first)
        stage_of = {name: 0 if name in stem else i + 1 for name, i in stage_of.items()}
    names = ["stem", *(names if has_stem else names[1:])]
    parameters: list[list[str]] = [[] for _ in names]
    for name, _ in module.named_parameters():
        if not name.startswith(left_out):
            parameters[stage_of.get(name.rpartition(".")[0], 0)].append(name)
    modules = [[name for name, i in stage_of.items() if i == n] for n in range(len(names))]
    return [StageGroup(n, tuple(m), tuple(p)) for n, m, p in zip(names, modules, parameters, strict=True)]


def _within(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")
