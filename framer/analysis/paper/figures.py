"""Draws the figures that were asked for out of what was measured, and says which could not be drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from framer.analysis.history import StepMetrics
from framer.analysis.paper import collapse, cross_image, depth, modulation, spectra
from framer.analysis.paper.depth import Measured
from framer.analysis.paper.page import Section, Table
from framer.analysis.paper.sources import Source
from framer.files import write_text


@dataclass(frozen=True)
class Analysis:
    """Everything that figures are drawn from.

    Attributes:
        sources: The models.
        measured: What was measured of them, by label and timestep.
        metrics: What runs logged, by label.
        images: The images' names.
        folder: Where pictures and numbers go.
    """

    sources: Sequence[Source]
    measured: Measured
    metrics: Mapping[str, Sequence[StepMetrics]]
    images: Sequence[str]
    folder: Path

    @property
    def comparable(self) -> Measured:
        """The models that have layers which can be compared with the last one."""
        return {
            label: measures for label, measures in self.measured.items() if all(at.layers for at in measures.values())
        }

    @property
    def incomparable(self) -> list[str]:
        """A sentence for each model, some of whose layers cannot be compared with the last one."""
        sentences = []
        for label, measures in self.measured.items():
            some = next(iter(measures.values()))
            if some.incomparable:
                sentences.append(
                    f"{label}: {len(some.incomparable)} of {some.count - 1} layers have maps of another shape than the "
                    f"last one's ({', '.join(some.incomparable)}). Comparing them takes the heads that training gives "
                    "them, which exports do not have; the report of a run has been drawn with them."
                )
        return sentences

    def write(self, name: str, numbers: Any) -> None:
        """Writes a figure's numbers.

        Raises:
            UserError: The folder cannot be written to.
        """
        write_text(self.folder / f"{name}.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def spectra_section(analysis: Analysis) -> Section:
    """Fig. 2."""
    timestep = depth.timesteps_in(analysis.measured)[0]
    shown = {}
    for label, measures in analysis.measured.items():
        at = measures.get(timestep) or next(iter(measures.values()))
        shown[label if at.timestep == timestep else f"{label} (t = {at.timestep})"] = at.spectra
    path = analysis.folder / "fig2.png"
    title = f"Spectra in the low and the high band, t = {timestep}"
    spectra.plot_spectra(path, shown, title=title)
    numbers = spectra.spectra_numbers(shown)
    analysis.write("fig2", {"timestep": timestep, **numbers})
    rows = [
        [label, name, f"{values['mean_lf']:.4f}", f"{values['mean_hf']:.4f}"]
        for label, maps in numbers["models"].items()
        for name, values in maps.items()
    ]
    return Section(
        title="Fig. 2: spectra of images and features",
        pictures=[(path, title)],
        caption=(
            "Density of log(1 + |F|), F the discrete Fourier transform of each channel, over all bins of the low (LF) "
            "and of the high (HF) band: of the low-resolution image at the model's input, of the clean target, as it "
            "is diffused, and of the first, a middle and the last layer's feature maps."
        ),
        reading=(
            "A curve further to the right has larger amplitudes. Two curves that lie apart mean that one band "
            "outweighs the other there: a comparison of whole maps would see that band alone. Amplitudes of maps "
            "of different sizes differ for that reason too, for F is not normalised."
        ),
        table=Table(header=("model", "map", "mean LF", "mean HF"), rows=rows),
    )


def depth_section(analysis: Analysis) -> Section:
    """Fig. 3."""
    title = "Similarity to the last layer"
    section = Section(title="Fig. 3: similarity to the last layer against depth", missing=analysis.incomparable)
    measured = analysis.comparable
    if not measured:
        return section
    path = analysis.folder / "fig3.png"
    depth.plot_depth_by_model(path, measured, title=title)
    analysis.write("fig3", depth.depth_numbers(measured))
    header, rows = depth.depth_rows(measured)
    return Section(
        title=section.title,
        pictures=[(path, title)],
        caption=(
            "Cosine similarity of each layer's feature map to the last layer's, of the same tile, in the low (LF) and "
            "the high (HF) band, mean over the tiles. Layer i of N stands at depth i/N; the last layer's similarity to "
            "itself is 1 by definition. Timesteps are of 1000: 0 is clean, 1000 is noise."
        ),
        reading=(
            "Where the LF curve rises before the HF curve, the model settles the coarse content first and the detail "
            "late. The paper reports this order for pretrained models."
        ),
        table=Table(header=header, rows=rows),
        missing=section.missing,
    )


def comparison_section(analysis: Analysis) -> Section:
    """Fig. 7."""
    heading = "Fig. 7: similarity against depth, model against model"
    measured = analysis.comparable
    if len(measured) < 2:
        reason = f"It compares models, and {len(measured)} with comparable layers is given: name two or more."
        return Section(title=heading, missing=[reason, *analysis.incomparable])
    path, title = analysis.folder / "fig7.png", "Similarity to the last layer, all models"
    depth.plot_depth_of_models(path, measured, title=title)
    analysis.write("fig7", depth.depth_numbers(measured))
    header, rows = depth.depth_rows(measured)
    return Section(
        title=heading,
        pictures=[(path, title)],
        caption="The curves of Fig. 3 with all models in one plot: a row for each band, a column for each timestep.",
        reading=(
            "A model whose curve lies higher at the same depth has layers that agree earlier with what it ends with, "
            "which is what FRAMER trains for."
        ),
        table=Table(header=header, rows=rows),
        missing=analysis.incomparable,
    )


def cross_image_section(analysis: Analysis) -> Section:
    """Fig. 5."""
    heading = "Fig. 5: similarity between images"
    if len(analysis.images) < 2:
        return Section(
            title=heading, missing=["It compares different images, and there is one: give --images with more."]
        )
    if all(
        at.teacher_lf.mean(same=False) is None for measures in analysis.measured.values() for at in measures.values()
    ):
        reason = "No two images were in one batch: give --batch-size 2 or more, and as many --max-tiles."
        return Section(title=heading, missing=[reason])
    path, title = analysis.folder / "fig5_teacher.png", "Last layer's features of different images"
    cross_image.plot_matrices(path, analysis.measured, analysis.images, cross_image.teacher_matrix, title=title)
    pictures = [(path, title)]
    measured = analysis.comparable
    if measured:
        path, title = analysis.folder / "fig5_student.png", "Middle layer (rows) against last layer (columns)"
        cross_image.plot_matrices(path, measured, analysis.images, cross_image.student_matrix, title=title)
        pictures.append((path, title))
        path, title = analysis.folder / "fig5_depth.png", "Similarity to the last layer of the same and of other images"
        cross_image.plot_own_and_other(path, measured, title=title)
        pictures.append((path, title))
    analysis.write("fig5", cross_image.cross_image_numbers(analysis.measured, analysis.images))
    header, rows = cross_image.cross_image_rows(analysis.measured)
    shown, count = cross_image.SHOWN_IMAGES, len(analysis.images)
    some = f" Heat maps show the first {shown} of {count} images." if count > shown else ""
    return Section(
        title=heading,
        pictures=pictures,
        caption=(
            "Cosine similarity between features of different images, per band, mean over pairs of tiles. First the "
            "last layer's features with each other; then a middle layer's (rows) with the last layer's (columns), on "
            "the diagonal of the same tile; then every layer's similarity to the last layer's of the same image "
            "(solid) and of other images (dashed)."
            + some
            + " White cells were not measured: only images of one batch are compared."
        ),
        reading=(
            "Where different images are alike in a band, that band says little about which image it is of, and pushing "
            "other images away there would push at what they share. FRAMER takes other images as negatives in the HF "
            "band alone."
        ),
        table=Table(header=header, rows=rows),
        missing=analysis.incomparable,
    )


def collapse_section(analysis: Analysis) -> Section:
    """Fig. 8."""
    heading = "Fig. 8: similarity against training steps"
    logged, missing = {}, []
    for label, records in _runs(analysis).items():
        history = collapse.similarity_history(records)
        if history is None:
            missing.append(f"{label}: no layers in its metrics.jsonl; it was trained without FRAMER.")
        else:
            logged[label] = history
    missing += [
        f"{source.label}: no metrics.jsonl beside it; name the run's folder rather than its export."
        for source in analysis.sources
        if source.metrics is None
    ]
    measured = _measured_at_steps(analysis)
    if not measured:
        missing.append(
            "On these images: no run was measured at two steps or more; give --every-step with runs that keep "
            "checkpoints (training.checkpoints_kept, training.checkpoint_keep_every), or name several checkpoints."
        )
    if not logged and not measured:
        return Section(title=heading, missing=missing)
    path, title = analysis.folder / "fig8.png", "Similarity to the last layer in the course of training"
    collapse.plot_collapse(path, logged, measured, title=title)
    analysis.write("fig8", collapse.collapse_numbers(logged, measured))
    header, rows = collapse.collapse_rows(logged, measured)
    return Section(
        title=heading,
        pictures=[(path, title)],
        caption=(
            "Cosine similarity of the layers to the last one against optimizer steps: the mean over the layers, and "
            "pale the span from the lowest to the highest layer. In training batches: as metrics.jsonl has it, 0 where "
            "it is negative, smoothed over 2 % of the steps; on these images: measured on the checkpoints"
            + (f" at t = {depth.timesteps_in(analysis.measured)[0]}." if measured else ".")
        ),
        reading=(
            "Layers that all reach 1 and stay there have become alike: there is nothing left to learn from the last. "
            "The paper shows this collapse within 1000 to 5000 steps where FAW and FAM are off."
        ),
        table=Table(header=header, rows=rows),
        missing=missing,
    )


def modulation_section(analysis: Analysis) -> Section:
    """Fig. 9."""
    heading = "Fig. 9: FAW x FAM over the layers"
    found = {}
    for source in analysis.sources:
        records = analysis.metrics.get(source.label)
        trained = (
            "no metrics.jsonl beside it" if records is None else modulation.trained_curves(records, fam=source.fam)
        )
        found[source.label] = modulation.Modulations(
            trained, modulation.measured_curves(analysis.measured[source.label])
        )
    missing = [
        f"{label}, {where}: {' '.join(reason.split())}."
        for label, each in found.items()
        for where, reason in (("in training", each.trained), ("on these images", each.measured))
        if isinstance(reason, str)
    ]
    drawn = {
        label: each
        for label, each in found.items()
        if not (isinstance(each.trained, str) and isinstance(each.measured, str))
    }
    if not drawn:
        return Section(title=heading, missing=missing)
    path, title = analysis.folder / "fig9.png", "FAW x FAM weights by layer"
    modulation.plot_modulations(path, drawn, title=title)
    analysis.write("fig9", modulation.modulation_numbers(found))
    header, rows = modulation.modulation_rows(drawn)
    return Section(
        title=heading,
        pictures=[(path, title)],
        caption=(
            "The weight that each layer's loss has in the low (LF) and the high (HF) band: FAW, 1 where student and "
            "last layer have the same energy in the band, times FAM, the similarity already reached. In training: "
            "means over the first and the last tenth of the steps of the run. On these images: means over the tiles, "
            "with the bands of this analysis and FAW relative to the student."
        ),
        reading=(
            "A layer near 0 hardly learns in that band, one near 1 learns with the whole loss. Weights that grow from "
            "early to late are of layers that have come closer to the last one."
        ),
        table=Table(header=header, rows=rows),
        missing=missing,
    )


def _runs(analysis: Analysis) -> dict[str, Sequence[StepMetrics]]:
    """The runs that have metrics, each once, by the name that all its models share."""
    names = _run_names(analysis)
    return {
        names[source.label]: analysis.metrics[source.label]
        for source in analysis.sources
        if source.label in analysis.metrics
    }


def _run_names(analysis: Analysis) -> dict[str, str]:
    """A run's name for each model: its label, or where several steps of a run are given, what they begin with."""
    names = {}
    for source in analysis.sources:
        step = f", step {source.step}"
        names[source.label] = source.label.removesuffix(step)
    return names


def _measured_at_steps(analysis: Analysis) -> dict[str, dict[int, Any]]:
    timestep = depth.timesteps_in(analysis.measured)[0]
    names = _run_names(analysis)
    found: dict[str, dict[int, Any]] = {}
    for source in analysis.sources:
        at = analysis.comparable.get(source.label, {}).get(timestep)
        if source.step is not None and at is not None:
            found.setdefault(names[source.label], {})[source.step] = at
    return {run: steps for run, steps in found.items() if len(steps) > 1}


FIGURES: Final[Mapping[str, Callable[[Analysis], Section]]] = {
    "fig2": spectra_section,
    "fig3": depth_section,
    "fig5": cross_image_section,
    "fig7": comparison_section,
    "fig8": collapse_section,
    "fig9": modulation_section,
}
"""The figures by the names that ``--only`` takes."""
