"""Writes the tables of docs/backbones.md: ``python tests/framer/features/backbone_table.py``.

Every class that diffusers has is built tiny and taken through one step with FRAMER; what a table says of it is what
happened then, and the remarks are those of this file.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from tiny_transformers import NOT_IMAGES, TINY
from tiny_video_transformers import TINY_VIDEO, dense_flex_attention
from torch import Tensor, nn
from torch.nn.attention import flex_attention
from unet_models import unet, unet_inputs

from framer import Framer, FramerConfig
from framer.config.engine import ActivationCheckpointingConfig
from framer.distill import FramerOutput
from framer.features import (
    Adapter,
    FeatureError,
    FeatureTap,
    TransformerAdapter,
    UNetAdapter,
    adapter_for,
    attach_heads,
    feature_space,
)
from framer.features.adapters.video_catalogue import UNSUPPORTED
from framer.patching import replaced
from framer.training.activation_checkpointing import enable_activation_checkpointing

PAGE = Path(__file__).parents[3] / "docs" / "backbones.md"
COMMAND = "python tests/framer/features/backbone_table.py"
BEGIN = f"<!-- written by {COMMAND}; do not edit -->"
END = "<!-- end of what it writes -->"

# On random weights some similarities are negative, where the gate FAM lets no gradient through.
UNGATED = FramerConfig(fam=False)

OWN_HEAD = "its head cannot be called from outside"

REMARKS: dict[str, tuple[str, ...]] = {
    "AnyFlowFARTransformer3DModel": ("the frames that are not compressed; no `kv_cache`, which is for sampling",),
    "AuraFlowTransformer2DModel": ("diffusers' checkpointing keeps `attention_kwargs` from its blocks",),
    "BriaFibo2Transformer2DModel": ("prompts of one length in a batch",),
    "BriaTransformer2DModel": ("diffusers hands `attention_kwargs` to its blocks under checkpointing alone",),
    "ChromaTransformer2DModel": ("diffusers' checkpointing keeps the mask from its single blocks",),
    "Cosmos3OmniTransformer": ("one video a forward pass",),
    "DiTTransformer2DModel": ("square images: the model takes the root of the number of tokens for a side", OWN_HEAD),
    "DreamLiteTransformer2DModel": ("a part of DreamLite's U-Net; its output is a residual of its input",),
    "ErnieImageTransformer2DModel": (OWN_HEAD,),
    "Flux2Transformer2DModel": ("without `kv_cache_mode`, which is for sampling",),
    "HiDreamImageTransformer2DModel": ("the model pads an image that is not square",),
    "LatteTransformer3DModel": ("a layer is a block within frames and one along time",),
    "LTX2VideoTransformer3DModel": ("give it `num_frames`, `height` and `width`",),
    "LTXVideoTransformer3DModel": ("give it `num_frames`, `height` and `width`",),
    "Lumina2Transformer2DModel": ("diffusers' checkpointing leaves `noise_refiner` out",),
    "MiniMaxH3Transformer3DModel": ("conditions come before the video and have a timestep of their own",),
    "OmniGenTransformer2DModel": (OWN_HEAD,),
    "PixArtTransformer2DModel": (OWN_HEAD,),
    "QwenImage21Transformer2DModel": (OWN_HEAD,),
    "Transformer2DModel": ("of patches, or a part of a U-Net", OWN_HEAD),
    "UNet2DConditionModel": ("here SD1.5's stages; SD2.1's and SDXL's are tested too",),
    "WanAnimate2Transformer3DModel": ("the pass over the noisy videos, `kv_cache_mode='cached'`",),
    "ZImageTransformer2DModel": ("no reference images",),
}
"""What a user of a class should know that a step does not show."""

OTHER_UNETS: dict[str, str] = {
    "AudioLDM2UNet2DConditionModel": "makes sound",
    "I2VGenXLUNet": "makes videos; U-Nets of videos have not been declared",
    "Kandinsky3UNet": "its stages have not been declared",
    "StableCascadeUNet": "its stages have not been declared",
    "UNet1DModel": "makes sequences, which have no rows and columns",
    "UNet3DConditionModel": "makes videos; U-Nets of videos have not been declared",
    "UNetControlNetXSModel": "a U-Net and its ControlNet in one; its stages have not been declared",
    "UNetMotionModel": "makes videos; U-Nets of videos have not been declared",
    "UNetSpatioTemporalConditionModel": "makes videos; U-Nets of videos have not been declared",
    "UVit2DModel": "predicts tokens of a codebook, not a latent",
}
"""U-Nets of diffusers that have no adapter."""


@dataclass(frozen=True)
class Case:
    """A class at test size.

    Attributes:
        build: Makes the model, the same one at each call.
        inputs: Makes the arguments of its forward, the same ones at each call.
        prediction: The image ``[B, C, H, W]`` within the model's output, where there is one.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[[Any], dict[str, Any]]
    prediction: Callable[[Tensor], Tensor] = lambda output: output


class Row(NamedTuple):
    """What a table says of a class."""

    name: str
    layers: str
    grid: str
    spaces: str
    by_framer: str
    by_diffusers: str
    status: str


class Step(NamedTuple):
    """What one step with FRAMER leaves."""

    outputs: list[Tensor]
    loss: FramerOutput
    gradients: dict[str, Tensor]


def _unet_with_heads() -> nn.Module:
    model = unet("sd15")
    attach_heads(model)
    return model


def _other_unet(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, name)(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        **config,
    )
    attach_heads(model)
    return model


def _unconditional_inputs(_: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in unet_inputs().items() if name != "encoder_hidden_states"}


IMAGES = [
    Case(tiny.name, tiny.build, lambda _, tiny=tiny: tiny.inputs(2), tiny.prediction)
    for tiny in sorted(TINY.values(), key=lambda tiny: tiny.name)
]
VIDEOS = [
    Case(tiny.name, tiny.build, lambda model, tiny=tiny: tiny.inputs(model, tiny.batch))
    for tiny in sorted(TINY_VIDEO.values(), key=lambda tiny: tiny.name)
]
UNETS = [
    Case(
        "DreamLiteUNetModel",
        partial(
            _other_unet,
            "DreamLiteUNetModel",
            block_out_channels=(8, 16, 16),
            cross_attention_dim=8,
            attention_head_dim=(1, 2, 2),
        ),
        lambda _: unet_inputs(),
    ),
    Case("UNet2DConditionModel", _unet_with_heads, lambda _: unet_inputs()),
    Case(
        "UNet2DModel",
        partial(
            _other_unet,
            "UNet2DModel",
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            attention_head_dim=4,
        ),
        _unconditional_inputs,
    ),
]


CASES = {case.name: case for case in (*IMAGES, *UNETS, *VIDEOS)}
LEFT_OUT = {name: why for name, why in {**NOT_IMAGES, **OTHER_UNETS, **UNSUPPORTED}.items() if name not in CASES}

HEAD = Row("class", "blocks found", "grid", "feature spaces", "checkpointing", "diffusers' own", "status")


def tables(rows: Mapping[str, Row]) -> str:
    """The tables in Markdown.

    Args:
        rows: By the names of the classes.
    """
    work = sum(row.status.split(";")[0] == "works" for row in rows.values())
    sections = [f"With diffusers {diffusers.__version__}, {work} of {len(rows)} classes work."]
    for title, cases in (("Image transformers", IMAGES), ("U-Nets", UNETS), ("Video transformers", VIDEOS)):
        sections += [f"### {title}", _markdown(HEAD, [rows[case.name] for case in cases])]
    reasons = [(f"`{name}`", LEFT_OUT[name].rstrip(".")) for name in sorted(LEFT_OUT)]
    return "\n\n".join([*sections, "### Left out", _markdown(("class", "why"), reasons)])


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(_line(cells) for cells in (head, ["---"] * len(head), *rows))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rows_of(page: str) -> dict[str, Row]:
    """The rows that a page has already."""
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): Row(*row) for row in cells if len(row) == len(HEAD)}


def row_of(case: Case) -> Row:
    """Takes one class through its steps."""
    with _quiet_and_differentiable():
        model = case.build()
        adapter = adapter_for(model)
        plain = _step(model, case.inputs(model))
        faults = [*_faults_of_the_capture(case, plain), *_faults_of_the_step(adapter, plain)]
        by_framer = _recomputed(case, plain, lambda m: enable_activation_checkpointing(m, _BY_TORCH))
        by_diffusers = _recomputed(case, plain, lambda m: m.enable_gradient_checkpointing())
        grid, spaces = _grid_and_spaces(case)
    if adapter.changed_by_diffusers_checkpointing:
        arguments = " or ".join(f"`{name}`" for name in adapter.changed_by_diffusers_checkpointing)
        by_diffusers += f"; refused with {arguments}"
    status = "; ".join(["fails: " + ", ".join(faults) if faults else "works", *REMARKS.get(case.name, ())])
    return Row(f"`{case.name}`", _layers(adapter), grid, spaces, by_framer, by_diffusers, status)


_BY_TORCH = ActivationCheckpointingConfig(backend="torch")


@contextmanager
def _quiet_and_differentiable() -> Iterator[None]:
    """Without warnings about deprecation, and with an attention that has a backward pass on the CPU."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(replaced(flex_attention, "flex_attention", dense_flex_attention))
        yield


def _run(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    output = model(**inputs, return_dict=False)
    return list(_tensors(output))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _step(model: Any, inputs: dict[str, Any]) -> Step:
    framer = Framer(model, UNGATED)
    with framer.capture():
        outputs = _run(model, inputs)
    loss = framer.loss()
    noise = torch.stack([output.square().mean() for output in outputs]).sum()
    (noise + loss.total).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Step([output.detach() for output in outputs], loss, gradients)


def _faults_of_the_capture(case: Case, captured: Step) -> Iterator[str]:
    model = case.build()
    with torch.no_grad():
        expected = _run(model, case.inputs(model))
    if not _equal(captured.outputs, expected):
        yield "capture changes the output"


def _faults_of_the_step(adapter: Adapter, step: Step) -> Iterator[str]:
    if not torch.isfinite(step.loss.total):
        yield f"the loss is {float(step.loss.total)}"
    for student in step.loss.layer_names:
        own = [gradient for name, gradient in step.gradients.items() if name.startswith(f"{student}.")]
        if not any(gradient.any() for gradient in own):
            yield f"`{student}` gets no gradient"
        if not all(gradient.isfinite().all() for gradient in own):
            yield f"a gradient of `{student}` is not finite"
    if len(step.loss.layer_names) != len(adapter.blocks) - 1:
        yield f"{len(step.loss.layer_names)} students of {len(adapter.blocks)} layers"


def _recomputed(case: Case, plain: Step, enable: Callable[[Any], object]) -> str:
    """How a step with checkpointing compares with one without."""
    model = case.build()
    try:
        enable(model)
        step = _step(model, case.inputs(model))
    except (TypeError, ValueError) as error:
        return f"cannot: {_reason(error)}"
    if not _equal(step.outputs, plain.outputs) or not torch.equal(step.loss.layers.loss, plain.loss.layers.loss):
        return "another output"
    largest = max(float(gradient.abs().max()) for gradient in plain.gradients.values())
    near = partial(torch.allclose, rtol=1e-4, atol=1e-5 * largest)
    same = step.gradients.keys() == plain.gradients.keys() and all(
        near(step.gradients[name], gradient) for name, gradient in plain.gradients.items()
    )
    return "equal" if same else "other gradients"


def _reason(error: Exception) -> str:
    text = str(error)
    if "does not support gradient checkpointing" in text:
        return "diffusers does not offer it"
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    if unexpected is None:
        raise error
    return f"it hands over keyword arguments, `{unexpected[1]}` first, that its own function does not take"


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _grid_and_spaces(case: Case) -> tuple[str, str]:
    """The grid of the input, and the spaces in which the last layer's feature is what the model itself predicts."""
    model = case.build().eval()
    adapter = adapter_for(model)
    tap = FeatureTap(adapter)
    with tap.record():
        outputs = _run(model, case.inputs(model))
    capture = tap.capture
    assert capture is not None
    grid = str(capture.grid)
    try:
        to_prediction = feature_space(capture, adapter, "velocity")
    except FeatureError:
        return grid, "`hidden`"
    predicted = to_prediction(capture.features[len(adapter.blocks) - 1])
    output = outputs[0] if len(outputs) == 1 else torch.stack(outputs)
    torch.testing.assert_close(predicted, case.prediction(output), rtol=1e-4, atol=1e-4)
    return grid, "`hidden`, `x0`, `velocity`"


def _layers(adapter: Adapter) -> str:
    if isinstance(adapter, UNetAdapter):
        model = adapter.model
        middle = int(model.mid_block is not None)
        return f"stages: {len(model.down_blocks)} down, {middle} mid, {len(model.up_blocks)} up; `conv_act`"
    assert isinstance(adapter, TransformerAdapter)
    stacks = [(stack.path, len(adapter.model.get_submodule(stack.path))) for stack in adapter.layout.stacks]
    return ", ".join(f"{count} `{path}`" for path, count in stacks)


def page_with(written: str, page: str) -> str:
    """The page with these tables between its two markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


if __name__ == "__main__":
    rows = {name: row_of(case) for name, case in CASES.items()}
    PAGE.write_text(page_with(tables(rows), PAGE.read_text()))
    sys.stdout.write(f"wrote {PAGE}\n")
