"""Building a model a module at a time, for models that do not fit whole where they are built.

The model is first made without memory for its large parameters. Then each module's own parameters are made, filled and
handed on, to be partitioned over ranks for example, before the next module's are made. Weights equal those of
the model built at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from framer.errors import UserError
from framer.models.weights import WeightReader
from framer.patching import replaced

Place = Callable[[nn.Module], None]
Fill = Callable[[str, nn.Module], None]


@contextmanager
def large_parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that can initialise themselves are made on the meta device, without memory or numbers."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and hasattr(module, "reset_parameters"):
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with replaced(nn.Module, "register_parameter", register_on_meta):
        yield


def fill_modules(model: nn.Module, fill: Fill | None, place: Place, *, kept: str) -> None:
    """Makes every module's own parameters on the CPU, fills them and hands the module on.

    Args:
        model: Made under :func:`large_parameters_on_meta`.
        fill: Given a module and its name, fills its own parameters; None leaves their values undefined, for a rank that
            receives them from another.
        place: Takes over a module whose own parameters are filled.
        kept: Name of a module that is filled but not handed on.
    """
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for key, parameter in own.items():
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                setattr(module, key, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        if own and fill is not None:
            fill(name, module)
        if own and name != kept:
            place(module)


def draw(module: nn.Module) -> None:
    """Random weights as the module draws them when it is made; those without this method have theirs already."""
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()


def filler_from(
    reader: WeightReader, added: Mapping[str, str | None] | None = None, *, start: Fill | None = None
) -> Fill:
    """Fills modules with a folder's weights, in the parameters' dtype.

    Args:
        reader: The folder's weights.
        added: For parameters that are not in the folder, the one there that they start as a copy of, or None where they
            start as their module does.
        start: Gives such a module its first weights; by default it draws them.
    """
    sources = added or {}

    @torch.no_grad()
    def fill(name: str, module: nn.Module) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            own = f"{name}.{key}"
            source = sources.get(own, own)
            if source is None:
                if start is None:
                    draw(module)
                else:
                    start(name, module)
                return
            _copy(parameter, reader.read(source), own)

    return fill


@torch.no_grad()
def load_buffers(model: nn.Module, reader: WeightReader) -> None:
    """Fills the buffers that are saved with the weights."""
    for name, buffer in model.named_buffers():
        if name in reader.names:
            _copy(buffer, reader.read(name), name)


def check_names(model: nn.Module, reader: WeightReader, folder: Path, *, added: AbstractSet[str] = frozenset()) -> None:
    """Compares the folder's weights with the model's; those ``added`` need not be there.

    Args:
        model: The model.
        reader: The folder's weights.
        folder: The folder, for the message.
        added: Names of parameters that the model has beyond the folder's.

    Raises:
        UserError: Some are missing, or have no place in the model.
    """
    wanted = set(model.state_dict())
    for what, names in (("missing", wanted - reader.names - added), ("unexpected", reader.names - wanted)):
        if names:
            raise UserError(
                f"model.pretrained: the weights in {folder} do not fit config.json: {len(names)} {what} weights, such "
                f"as {min(names)}"
            )


def _copy(target: Tensor, source: Tensor, name: str) -> None:
    if target.shape != source.shape:
        raise UserError(
            f"model.pretrained: {name} has shape {list(source.shape)}, but config.json asks for {list(target.shape)}"
        )
    target.copy_(source)
