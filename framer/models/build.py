"""Building the model that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.models.backbones import Backbone, InputChannels, backbone_for, model_class
from framer.models.conditioning import expand_input_channels
from framer.models.folders import class_in_folder, pretrained_folder, read_model_config
from framer.models.latents import LatentShape, latent_shape
from framer.models.lora import add_lora
from framer.models.modulewise import (
    check_names,
    draw,
    fill_modules,
    filler_from,
    large_parameters_on_meta,
    load_buffers,
)
from framer.models.trainable import trainable_parameters
from framer.models.weights import check_weights, load_pretrained
from framer.seeding import derived_seed

if TYPE_CHECKING:
    from diffusers import ModelMixin


def build_model(config: ModelConfig, *, seed: int) -> ModelMixin:
    """Builds the model in float32 on the CPU, conditioned on the low-resolution image.

    The global random state stays as it was.

    Args:
        config: Pretrained folder or architecture, conditioning, latent space and adapters.
        seed: Seed of random weights.

    Raises:
        UserError: The pretrained folder is missing, incomplete, damaged or of another class, or has other channels; or
            adapters match no layer, or leave the low-resolution image without a way into the model.
    """
    backbone, folder, shape = backbone_for(config), pretrained_folder(config), latent_shape(config)
    with _random_state_of_weights(seed):
        if folder is None:
            model = _new_model(backbone, config, shape)
            for name, module in model.named_modules():
                if backbone.drawn_by_name:
                    _draw_by_name(name, module, seed)
                backbone.start_module(name, module)
            backbone.start_model(model)
        else:
            model = backbone.adopt(load_pretrained(model_class(class_in_folder(folder)), folder), config, seed=seed)
    widened = _fit_channels(model, backbone, config, shape)
    _add_adapters(model, backbone, config, seed=seed, widened=widened)
    return model


def build_model_by_module(
    config: ModelConfig, *, seed: int, fill: bool, place: Callable[[nn.Module], None]
) -> ModelMixin:
    """Builds what :func:`build_model` builds, with one module's parameters at a time in memory.

    Args:
        config: As there.
        seed: As there.
        fill: False where another rank gives the parameters their values.
        place: Takes over a module once its own parameters are made; it may partition them.

    Raises:
        UserError: As there.
    """
    backbone, folder, shape = backbone_for(config), pretrained_folder(config), latent_shape(config)
    kept = backbone.input_projection
    with ExitStack() as stack:
        stack.enter_context(_random_state_of_weights(seed))
        if folder is None:
            with large_parameters_on_meta():
                model = _new_model(backbone, config, shape)

            def start(name: str, module: nn.Module) -> None:
                if backbone.drawn_by_name:
                    _draw_by_name(name, module, seed)
                else:
                    draw(module)
                backbone.start_module(name, module)

            fill_modules(model, start if fill else None, place, kept=kept)
            if fill:
                backbone.start_model(model)
        else:
            check_weights(folder)
            with large_parameters_on_meta():
                settings = backbone.folder_settings(read_model_config(folder), config)
                model = backbone.model_class.from_config(settings)
            reader = stack.enter_context(backbone.open_weights(folder, config))
            added = frozenset(name for name in model.state_dict() if backbone.is_added(name, config)) - reader.names
            check_names(model, reader, folder, added=added)
            load_buffers(model, reader)
            sources = {name: backbone.source_of_added(name) for name in added}
            read = filler_from(reader, sources, start=partial(backbone.start_added, seed=seed))
            fill_modules(model, read if fill else None, place, kept=kept)
        widened = _fit_channels(model, backbone, config, shape)
        projection = model.get_submodule(kept)
        for module in (projection, *_add_adapters(model, backbone, config, seed=seed, widened=widened)):
            place(module)
    return model


def build_model_without_weights(config: ModelConfig) -> ModelMixin:
    """The model of :func:`build_model` for the device ``meta``: a pretrained folder's weights are not read.

    Raises:
        UserError: The pretrained folder's ``config.json`` is missing, damaged or does not fit.
    """
    backbone, folder, shape = backbone_for(config), pretrained_folder(config), latent_shape(config)
    if folder is None:
        model = _new_model(backbone, config, shape)
    else:
        settings = backbone.folder_settings(read_model_config(folder), config)
        try:
            model = backbone.model_class.from_config(settings)
        except Exception as error:  # whatever wrong settings make a model raise
            raise UserError(f"model.pretrained: cannot plan the model of {folder}: {error}") from error
    widened = _fit_channels(model, backbone, config, shape)
    _add_adapters(model, backbone, config, seed=0, widened=widened)
    return model


@contextmanager
def _random_state_of_weights(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        yield


def _fit_channels(model: ModelMixin, backbone: Backbone, config: ModelConfig, shape: LatentShape) -> bool:
    """Gives the model the inputs of the low-resolution image; whether it had none."""
    backbone.check_model(model)
    if backbone.condition_like_latents and shape.condition_channels != shape.channels:
        raise ConfigError(
            f"model.conditioning={config.conditioning} needs the low-resolution image as latents like the noisy ones; "
            f"model.latents={config.latents} gives {shape.condition_channels} channels beside {shape.channels}; "
            "expected vae or pixel"
        )
    channels, space = shape.channels, f"model.latents={config.latents}"
    conditioned = channels + (shape.condition_channels if backbone.condition_joins_input else 0)
    if int(model.config.out_channels) != channels:
        raise UserError(
            f"model.pretrained: the model predicts {model.config.out_channels} channels; {space} needs {channels}"
        )
    if int(model.config.in_channels) not in (channels, conditioned):
        joined = "" if conditioned == channels else f", or {conditioned} with the low-resolution image"
        raise UserError(
            f"model.pretrained: the model takes {model.config.in_channels} input channels; {space} needs "
            f"{channels}{joined}"
        )
    widened = int(model.config.in_channels) < conditioned
    expand_input_channels(model, backbone.input_projection, conditioned)
    return widened


def _add_adapters(
    model: ModelMixin, backbone: Backbone, config: ModelConfig, *, seed: int, widened: bool
) -> tuple[nn.Module, ...]:
    """Adds what ``model.lora`` asks for; the new modules with parameters.

    Raises:
        ConfigError: A target matches no layer, or inputs of the low-resolution image that start at zero do not train.
    """
    adapters = () if config.lora is None else add_lora(model, config.lora, seed=seed)
    projection = backbone.input_projection
    if widened and not any(name.startswith(projection) for name in trainable_parameters(model, config)):
        key, remedy = "model.trainable", "add control to model.trainable"
        if config.lora is not None:
            key = "model.lora"
            remedy = f"add control to model.lora.train_also, or {projection} to model.lora.target_modules"
        raise ConfigError(
            f"{key}: {config.pretrained} has no inputs for the low-resolution image; it gets them with weights of "
            f"zero, which would not train, so that the image would never count: {remedy}"
        )
    return adapters


def _new_model(backbone: Backbone, config: ModelConfig, shape: LatentShape) -> ModelMixin:
    channels = InputChannels(shape.channels, shape.condition_channels)
    return backbone.model_class(**backbone.settings(config, channels))


def _draw_by_name(name: str, module: nn.Module, seed: int) -> None:
    torch.manual_seed(derived_seed(seed, "weights", name))
    draw(module)
