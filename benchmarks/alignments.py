"""``python -m benchmarks.alignments``: time and memory that each alignment method adds to one training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import get_args

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from benchmarks.machine import describe
from benchmarks.measure import Times, interleaved, median_interval
from benchmarks.memory import peak_allocated, saved_bytes
from benchmarks.models import StepCase
from framer import Framer, FramerConfig
from framer.alignment import PatchEncoder, attach_projectors
from framer.config.alignment import Method
from framer.config.health import EmaConfig
from framer.training.ema import Ema

WITHOUT = "none"
CASE = StepCase(layers=12, dual_attention=0, batch=4, latent=32, text=1, heads=4, text_width=32, pooled_width=32)
"""12 blocks of 256 channels on 16 x 16 tokens."""
SMALL_VIT = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 224, "patch_size": 14}
"""DINOv2-S of random weights: REPA's cost does not depend on them."""
ROUNDS = 11


@dataclass(frozen=True)
class AlignedStep:
    """A training step with one alignment method.

    Attributes:
        model: With projectors where the method has them.
        framer: None without an alignment loss.
        inputs: Arguments of the model's forward.
        images: The clean images.
        average: Of the weights, where it teaches.
        encoder: Where it teaches.
    """

    model: nn.Module
    framer: Framer | None
    inputs: dict[str, Tensor]
    images: Tensor
    average: Ema | None = None
    encoder: PatchEncoder | None = None

    def __call__(self) -> None:
        """Forward and backward; gradients dropped, as the optimizer's share does not depend on the method."""
        prediction = self.forward()
        loss = prediction.square().mean()
        if self.framer is not None:
            loss = loss + self.framer.loss(images=self.images).total
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad = None

    def forward(self) -> Tensor:
        """The model's pass, after that of the average where it teaches."""
        if self.framer is None:
            return self._predict()
        if self.average is not None:
            with self.average.swapped_in(), self.framer.capture_teacher():
                self._predict()
        with self.framer.capture():
            return self._predict()

    def _predict(self) -> Tensor:
        return self.model(**self.inputs, return_dict=False)[0]

    def saved(self) -> int:
        """Bytes that the loss keeps for the backward pass beside the features that the model's pass keeps anyway."""
        framer = self.framer
        if framer is None:
            return 0
        prediction = self.forward()
        features = framer._captured().features.values()
        alive = [prediction, *features, *self.model.parameters()]
        return saved_bytes(lambda: framer.loss(images=self.images), without=alive)

    @property
    def added_parameters(self) -> tuple[int, int]:
        """Parameters of projectors, and of what else is held: the average, or the encoder."""
        heads = sum(p.numel() for name, p in self.model.named_parameters() if name.startswith("framer_heads"))
        own = sum(p.numel() for p in self.model.parameters())
        encoder = 0 if self.encoder is None else sum(p.numel() for p in self.encoder.parameters())
        return heads, own if self.average is not None else encoder


def aligned_step(method: Method | None, case: StepCase = CASE, device: str = "cpu") -> AlignedStep:
    """The step of one and the same model with a method, or without."""
    model = case.model().to(device)
    inputs = {name: x.to(device) for name, x in case.inputs().items()}
    images = torch.rand(case.batch, 3, 4 * case.latent, 4 * case.latent, device=device) * 2 - 1
    if method is None:
        return AlignedStep(model, None, inputs, images)
    config = FramerConfig(method=method)
    encoder = None
    if method == "repa":
        torch.manual_seed(0)
        encoder = PatchEncoder(Dinov2Model(Dinov2Config(**SMALL_VIT))).to(device)
    attach_projectors(model, config, encoder=encoder)
    average = Ema(SimpleNamespace(module=model), EmaConfig(decay=0.999)) if config.teacher == "ema" else None
    return AlignedStep(model, Framer(model, config, encoder=encoder), inputs, images, average, encoder)


def all_steps(case: StepCase = CASE, device: str = "cpu") -> dict[str, AlignedStep]:
    """Steps without and with each method."""
    return {WITHOUT: aligned_step(None, case, device)} | {
        method: aligned_step(method, case, device) for method in get_args(Method)
    }


def table(steps: dict[str, AlignedStep], times: Times) -> str:
    """A Markdown table of time, memory and parameters, over the step without an alignment loss."""
    peaks = {name: peak_allocated(step) for name, step in steps.items()}
    lines = [
        "| method | time over none (95 % interval) | kept beside the features | peak over none | trained | held |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, step in steps.items():
        ratio = median_interval(times.ratios(name, WITHOUT))
        trained, held = step.added_parameters
        lines.append(
            f"| `{name}` | {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) | {_kibibytes(step.saved())} | "
            f"{peaks[name] / peaks[WITHOUT]:.3f} | {trained / 1e6:.2f} M | {held / 1e6:.1f} M |"
        )
    return "\n".join(lines)


def processor_times(steps: Mapping[str, Callable[[], object]], *, rounds: int) -> Times:
    """As `interleaved`, but what this process alone used of the processor, so that others' work counts little."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        names = [*steps][turn % len(steps) :] + [*steps][: turn % len(steps)]
        for name in names:
            start = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - start)
    return Times(seconds, [])


def _kibibytes(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.2f} MiB"


def main() -> None:
    """Measures, and prints the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = all_steps(device=device)
    times = interleaved(steps, rounds=ROUNDS) if device == "cuda" else processor_times(steps, rounds=ROUNDS)
    machine = describe()
    print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}")
    print(table(steps, times))


if __name__ == "__main__":
    main()
