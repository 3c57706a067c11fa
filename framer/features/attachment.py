"""Putting heads on a model before it trains, and taking them off for what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from framer.errors import UserError
from framer.features.adapters import adapter_for
from framer.features.heads import HEADS, FeatureHeads, heads_of
from framer.features.selection import Students, Teacher, select_layers
from framer.seeding import generator


def attach_heads(
    model: nn.Module,
    students: Students = "all",
    teacher: Teacher = "last",
    *,
    seed: int = 0,
) -> tuple[str, ...]:
    """Gives the model a head for every student, as its submodule ``framer_heads``.

    For models whose layers differ in shape, such as U-Nets; others are left as they are. Call it before the optimizer
    and the distributed engine are made, so that these know the heads' parameters, and before a wrapper is put around
    the model; not within ``deepspeed.zero.Init``, which would take the weights away before they are drawn. Heads get
    the device and dtype of the model, and require gradients whatever of the model is frozen.

    ``save_pretrained`` writes the heads with the model; see :func:`heads_set_aside`.

    Args:
        model: A diffusers model that has an adapter (see ``framer.features``).
        students: As in the FRAMER config.
        teacher: As in the FRAMER config.
        seed: Of the heads' initial weights; a student's are the same whichever others there are.

    Returns:
        Names of the heads' parameters within the model; none for a family that needs no heads.

    Raises:
        UnsupportedModelError: Where the model keeps its features is not known.
        ConfigError: Students or teacher are not in the model.
        UserError: The model is wrapped already, or has heads of other students or for another teacher.
    """
    adapter = adapter_for(model)
    channels = adapter.channels
    if channels is None:
        return ()
    names = adapter.block_names
    selection = select_layers(names, students, teacher, fewest=1)
    widths = {names[student]: channels[student] for student in selection.students}
    heads = FeatureHeads(widths, channels[selection.teacher], {name: generator(seed, HEADS, name) for name in widths})
    present = heads_of(adapter.model)
    if present is None:
        if model is not adapter.model:
            raise UserError(
                f"attach_heads got a {type(model).__name__} around {type(adapter.model).__name__}: attach heads to the "
                "model itself, before the optimizer and the distributed engine are made, or these do not train them."
            )
        like = next(model.parameters())
        model.add_module(HEADS, heads.to(device=like.device, dtype=like.dtype))
    elif present.shapes != heads.shapes:
        raise UserError(
            f"{type(adapter.model).__name__} has heads {_described(present)} already, but students {students} and "
            f"teacher {teacher} need {_described(heads)}: call framer.features.detach_heads(model) first, and make a "
            "new optimizer."
        )
    return tuple(f"{HEADS}.{name}" for name, _ in heads.named_parameters())


def detach_heads(model: nn.Module) -> None:
    """Takes the heads off the model; without any, it does nothing."""
    inner = adapter_for(model).model
    if hasattr(inner, HEADS):
        delattr(inner, HEADS)


@contextmanager
def heads_set_aside(model: nn.Module) -> Iterator[None]:
    """The model is without its heads meanwhile, and has the very same ones afterwards.

    Example:
        with heads_set_aside(unet):
            unet.save_pretrained(folder)

    Where an engine has partitioned the parameters, ``save_pretrained`` cannot see them whole: gather them, drop the
    heads with :func:`without_heads`, and load the rest into a model of the same config.
    """
    inner = adapter_for(model).model
    heads: nn.Module | None = getattr(inner, HEADS, None)
    detach_heads(inner)
    try:
        yield
    finally:
        if heads is not None:
            inner.add_module(HEADS, heads)


def _described(heads: FeatureHeads) -> str:
    return ", ".join(f"{name} ({into} -> {out})" for name, (into, out) in heads.shapes.items())
