"""What a run leaves on disk, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framer.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """The layout of ``output_dir``; other tools rely on these names."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def deepspeed(self) -> Path:
        """The DeepSpeed configuration that the engine runs with."""
        return self.root / "deepspeed.json"

    @property
    def metrics(self) -> Path:
        """One JSON object an optimizer step."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        """Sample sheets and the evaluation's numbers."""
        return self.root / "samples"

    def sample_sheet(self, step: int) -> Path:
        """Sample sheet after ``step`` optimizer steps."""
        return self.samples / f"step-{step:08d}.png"

    def sample_table(self, step: int) -> Path:
        """The evaluation's numbers after ``step`` steps; written after the sheet."""
        return self.samples / f"step-{step:08d}.json"

    @property
    def plots(self) -> Path:
        """Figures of the report."""
        return self.root / "plots"

    @property
    def export(self) -> Path:
        """The trained transformer as a diffusers folder."""
        return self.root / "export"

    def create(self) -> None:
        """Makes the folders.

        Raises:
            UserError: They cannot be made or written to.
        """
        try:
            for folder in (self.root, self.checkpoints, self.samples, self.plots):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"output_dir: cannot write to {self.root}: {error.strerror or error}") from error
