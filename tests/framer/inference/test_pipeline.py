from __future__ import annotations

import json
import shutil
from pathlib import Path

import family_folders
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

from framer import cli
from framer.errors import UserError
from framer.inference.pipeline import FramerUpscalePipeline
from framer.inference.tiled_latents import AutoencoderTiles
from framer.models.text import TextEmbeddings, write_text_embeddings

ORIENTATION, ARTIST, EXIF_IFD, EXIF_WIDTH, INTEROPERABILITY = 0x0112, 0x013B, 0x8769, 0xA002, 0xA005


def image(height: int = 6, width: int = 9, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipeline() -> FramerUpscalePipeline:
    loaded = FramerUpscalePipeline.from_export("base")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_makes_what_the_command_makes(pipeline: FramerUpscalePipeline, tmp_path: Path) -> None:
    image().save(tmp_path / "a.png")
    options = ("--seed", "3", "--steps", "2", "--colour-fix", "wavelet")
    assert cli.main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), *options]) == 0
    made = pipeline(image(), seed=3, num_inference_steps=2, colour_fix="wavelet")
    assert isinstance(made, ImagePipelineOutput)
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(Image.open(tmp_path / "b.png")))


def test_images_come_as_they_are_and_leave_as_asked(pipeline: FramerUpscalePipeline) -> None:
    pil = pipeline(image()).images[0]  # type: ignore[union-attr]
    samples = np.asarray(image())
    tensor = torch.tensor(samples).permute(2, 0, 1)
    for given in (samples, samples.astype(np.float64) / 255, tensor, tensor / 255, tensor[None], [image()]):
        assert np.array_equal(np.asarray(pipeline(given).images[0]), np.asarray(pil))  # type: ignore[union-attr]
    (array,) = pipeline([image(), image(seed=1)], output_type="np", return_dict=False)
    assert array.shape == (2, 24, 36, 3)
    assert np.array_equal(np.rint(array[0] * 255), np.asarray(pil))
    (tensors,) = pipeline([image(), image(5, 5)], output_type="pt", return_dict=False)
    assert [list(one.shape) for one in tensors] == [[3, 24, 36], [3, 20, 20]]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_greyness_and_transparency_are_kept(mode: str, pipeline: FramerUpscalePipeline) -> None:
    result = pipeline(image().convert(mode)).images[0]  # type: ignore[union-attr]
    assert result.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
    assert result.size == (36, 24)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_and_keeps_profile_and_exif(
    orientation: int, pipeline: FramerUpscalePipeline, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = orientation, "Ada"
    exif[EXIF_IFD] = {EXIF_WIDTH: 9, INTEROPERABILITY: {1: "R98"}}
    image().save(tmp_path / "phone.jpg", exif=exif, icc_profile=b"profile")
    assert cli.main(["upscale", str(tmp_path / "phone.jpg"), "-o", str(tmp_path / "command.png"), "--steps", "2"]) == 0
    given = Image.open(tmp_path / "phone.jpg")
    made = pipeline(given, num_inference_steps=2).images[0]  # type: ignore[union-attr]
    assert given.getexif().get(ORIENTATION) == orientation
    made.save(tmp_path / "pipeline.png", exif=made.getexif())
    with Image.open(tmp_path / "command.png") as command, Image.open(tmp_path / "pipeline.png") as own:
        assert np.array_equal(np.asarray(own), np.asarray(command))
        assert own.size == ((24, 36) if orientation > 4 else (36, 24))
        for one in (command, own):
            found = one.getexif()
            assert (found.get(ORIENTATION), found[ARTIST], one.info["icc_profile"]) == (None, "Ada", b"profile")
            assert found.get_ifd(EXIF_IFD)[EXIF_WIDTH] == own.width
            assert found.get_ifd(INTEROPERABILITY)[1] == "R98"


def test_an_image_does_not_depend_on_the_others(pipeline: FramerUpscalePipeline) -> None:
    first, second = pipeline([image(), image(seed=1)], seed=2).images  # type: ignore[union-attr]
    assert np.array_equal(np.asarray(second), np.asarray(pipeline(image(seed=1), seed=2).images[0]))  # type: ignore[union-attr]
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_generators_are_drawn_from(pipeline: FramerUpscalePipeline) -> None:
    def run(generator: object) -> list[np.ndarray]:
        made = pipeline([image(), image()], generator=generator, output_type="np")  # type: ignore[arg-type]
        return list(made.images)  # type: ignore[union-attr]

    first, second = run(torch.Generator().manual_seed(0))
    assert not np.array_equal(first, second)
    again = run([torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)])
    assert np.array_equal(again[0], first)
    assert np.array_equal(again[1], first)
    with pytest.raises(UserError, match="1 generators for 2 images"):
        run([torch.Generator()])


def test_it_is_saved_and_loaded(pipeline: FramerUpscalePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/model_index.json").read_text())["_class_name"] == "FramerUpscalePipeline"
    for folder in ("saved", "saved/model"):
        loaded = FramerUpscalePipeline.from_pretrained(tmp_path / folder)
        assert isinstance(loaded, DiffusionPipeline)
        loaded.set_progress_bar_config(disable=True)
        assert np.array_equal(np.asarray(loaded(image()).images[0]), np.asarray(pipeline(image()).images[0]))  # type: ignore[union-attr]
    half = FramerUpscalePipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert next(half.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"torch_dtype torch.float16: expected"):
        FramerUpscalePipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16)


def test_it_goes_to_a_dtype_and_says_where_it_is(tmp_path: Path) -> None:
    moved = FramerUpscalePipeline.from_export("base").to(torch.bfloat16)
    moved.set_progress_bar_config(disable=True)
    assert moved.dtype == torch.bfloat16
    assert moved.device == torch.device("cpu")
    assert set(moved.components) == {"model", "vae"}
    assert moved(image()).images[0].size == (36, 24)


@pytest.fixture(scope="module")
def latent_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny SD 2.1 that restores in one step, with an autoencoder and a text of its own."""
    folder = tmp_path_factory.mktemp("export")
    family_folders.autoencoder(folder / "vae")
    family_folders.sd21(folder / "export")
    settings = {
        "latents": "vae",
        "conditioning": "none",
        "scale": 4,
        "tile": 64,
        "text_tokens": 1,
        "text_embeddings": str(family_folders.texts(folder / "text.safetensors", prompt=16)),
        "vae": str(folder / "vae"),
        "vae_precision": "fp32",
        "objective": "one_step",
        "timestep": 1,
    }
    (folder / "export/restoration.json").write_text(json.dumps(settings))
    return folder


def test_a_saved_pipeline_carries_its_autoencoder_and_its_text(latent_export: Path, tmp_path: Path) -> None:
    first = FramerUpscalePipeline.from_export(latent_export / "export")
    first.set_progress_bar_config(disable=True)
    made = np.asarray(first(image(30, 20)).images[0])  # type: ignore[union-attr]
    first.save_pretrained(tmp_path / "saved")
    for name in ("vae", "text.safetensors"):
        (latent_export / name).rename(latent_export / f"gone {name}")
    try:
        again = FramerUpscalePipeline.from_pretrained(tmp_path / "saved")
        with pytest.raises(UserError, match=r"text\.safetensors not found|vae"):
            FramerUpscalePipeline.from_pretrained(latent_export / "export")
    finally:
        for name in ("vae", "text.safetensors"):
            (latent_export / f"gone {name}").rename(latent_export / name)
    again.set_progress_bar_config(disable=True)
    assert again.vae is not None
    assert np.array_equal(np.asarray(again(image(30, 20)).images[0]), made)  # type: ignore[union-attr]


def test_the_empty_text_of_an_export_is_seen_and_saved(latent_export: Path, tmp_path: Path) -> None:
    shutil.copytree(latent_export / "export", tmp_path / "export")
    settings = json.loads((tmp_path / "export/restoration.json").read_text())
    write_text_embeddings(tmp_path / "export/null.safetensors", TextEmbeddings(torch.full((3, 16), 2.0), None))
    settings |= {"text_embeddings": None, "null_text": "null.safetensors", "text_tokens": 3}
    (tmp_path / "export/restoration.json").write_text(json.dumps(settings))
    FramerUpscalePipeline.from_export(tmp_path / "export").save_pretrained(tmp_path / "saved")
    again = FramerUpscalePipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again._restoring.restoration.text.prompt, torch.full((3, 16), 2.0))


def test_a_saved_controlnet_carries_its_frozen_model(tmp_path: Path) -> None:
    frozen = UNet2DConditionModel.from_pretrained(family_folders.sd21(tmp_path / "sd21"))
    # diffusers' own embedding of the image is for latents of an eighth; these are of a half.
    control = ControlNetModel.from_unet(frozen, conditioning_channels=3, conditioning_embedding_out_channels=(16, 32))
    control.save_pretrained(tmp_path / "export")
    settings = {
        "latents": "vae",
        "vae": str(family_folders.autoencoder(tmp_path / "vae")),
        "conditioning": "controlnet",
        "pretrained": str(tmp_path / "sd21"),
        "scale": 4,
        "tile": 32,
        "text_tokens": 1,
        "objective": "diffusion",
        "prediction_type": "epsilon",
    }
    (tmp_path / "export/restoration.json").write_text(json.dumps(settings))
    first = FramerUpscalePipeline.from_pretrained(tmp_path / "export")
    first.save_pretrained(tmp_path / "saved")
    (tmp_path / "sd21").rename(tmp_path / "gone")
    again = FramerUpscalePipeline.from_pretrained(tmp_path / "saved")
    made, remade = (
        np.asarray(one(image(), num_inference_steps=2).images[0])  # type: ignore[union-attr]
        for one in (first, again)
    )
    assert np.array_equal(made, remade)


def test_latents_are_tiled(latent_export: Path) -> None:
    loaded = FramerUpscalePipeline.from_export(latent_export / "export")
    loaded.set_progress_bar_config(disable=True)
    whole = loaded(image(30, 40), output_type="np").images[0]  # type: ignore[union-attr]
    tiled = loaded(image(30, 40), output_type="np", vae_tiles=AutoencoderTiles(64, 32)).images[0]  # type: ignore[union-attr]
    assert whole.shape == tiled.shape == (120, 160, 3)
    assert 0 < np.abs(whole - tiled).mean() < 0.25


def test_prompts_come_as_embeddings_or_through_an_encoder(latent_export: Path) -> None:
    loaded = FramerUpscalePipeline.from_export(latent_export / "export")
    loaded.set_progress_bar_config(disable=True)
    embeddings = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(1))

    def run(**settings: object) -> np.ndarray:
        made: np.ndarray = loaded(image(), output_type="np", **settings).images  # type: ignore[arg-type, union-attr]
        return made

    plain, told = run(), run(prompt_embeds=embeddings[0])
    guided = run(prompt_embeds=embeddings[0], negative_prompt_embeds=embeddings[1], guidance_scale=3.0)
    assert not np.array_equal(plain, told)
    assert not np.array_equal(guided, told)
    with pytest.raises(UserError, match="guidance scale 3 needs"):
        run(prompt_embeds=embeddings[0], guidance_scale=3.0)
    with pytest.raises(UserError, match="prompt_embeds of shape"):
        run(prompt_embeds=embeddings.expand(2, 4, 5, 16))
    short = embeddings[0, :, :3]
    for other in (
        {"prompt_embeds": short},
        {"prompt_embeds": embeddings[0], "negative_prompt_embeds": short, "guidance_scale": 3.0},
    ):
        with pytest.raises(UserError, match="prompt_embeds: 3 text tokens, but the model was trained with 5"):
            run(**other)
    with pytest.raises(UserError, match="a prompt needs a text encoder"):
        run(prompt="a cat")

    class StandIn:
        def encode(self, texts: list[str]) -> TextEmbeddings:
            return TextEmbeddings(embeddings[0 if texts == ["a cat"] else 1], None)

    loaded._text_encoder = StandIn()  # type: ignore[assignment]
    assert np.array_equal(run(prompt="a cat"), told)
    assert np.array_equal(run(prompt="a cat", guidance_scale=3.0), guided)
    with pytest.raises(UserError, match="5 sampling steps have no effect on a model that restores in one step"):
        run(num_inference_steps=5)
    for text in ({"prompt": "a cat"}, {"prompt_embeds": embeddings[0], "negative_prompt_embeds": embeddings[1]}):
        with pytest.raises(UserError, match="guidance scale nan: expected a finite number"):
            run(guidance_scale=float("nan"), **text)
    with pytest.raises(UserError, match="negative_prompt has no effect without a guidance_scale other than 1"):
        run(prompt="a cat", negative_prompt="blur")
    with pytest.raises(UserError, match="negative_prompt_embeds has no effect without a guidance_scale other than 1"):
        run(prompt_embeds=embeddings[0], negative_prompt_embeds=embeddings[1])
    with pytest.raises(UserError, match="2 prompts for 1 images"):
        run(prompt=["a", "b"])
    with pytest.raises(UserError, match="not both"):
        run(prompt="a", prompt_embeds=embeddings[0])
    embeddings = embeddings[:, :, :3]
    with pytest.raises(UserError, match="the text encoder: 3 text tokens, but the model was trained with 5"):
        run(prompt="a cat")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image": []}, "there is no image"),
        ({"image": np.zeros((4, 4, 4))}, r"an image array of shape \[4, 4, 4\]"),
        ({"image": torch.zeros(1, 4, 4)}, r"an image tensor of shape \[1, 4, 4\]"),
        ({"image": np.zeros((0, 4, 3))}, r"an image of shape \[0, 4, 3\] has no pixels"),
        ({"image": torch.zeros(3, 4, 0)}, r"an image of shape \[3, 4, 0\] has no pixels"),
        ({"image": np.zeros((0, 4, 4, 3))}, "there is no image"),
        ({"image": Image.new("RGB", (0, 4))}, "an image of 0x4 pixels"),
        ({"negative_prompt": "blur"}, "negative_prompt has no effect without prompt"),
        ({"pooled_prompt_embeds": torch.zeros(32)}, "pooled_prompt_embeds has no effect without prompt_embeds"),
        (
            {"negative_pooled_prompt_embeds": torch.zeros(32)},
            "negative_pooled_prompt_embeds has no effect without negative_prompt_embeds",
        ),
        (
            {"negative_prompt_embeds": torch.zeros(4, 32), "negative_pooled_prompt_embeds": torch.zeros(32)},
            "negative_prompt_embeds has no effect without a guidance_scale",
        ),
        ({"prompt_embeds": torch.zeros(4, 32)}, "without pooled_prompt_embeds: the model takes both, .* of 32"),
        (
            {"prompt_embeds": torch.zeros(4, 31), "pooled_prompt_embeds": torch.zeros(32)},
            r"prompt_embeds of shape \[4, 31\]: expected those of one text, \[T, 32\]",
        ),
        (
            {"prompt_embeds": torch.zeros(4, 32), "pooled_prompt_embeds": torch.zeros(7)},
            r"pooled_prompt_embeds of shape \[7\]: expected those of one text, \[32\]",
        ),
        ({"image": np.full((4, 4, 3), 1.5)}, r"expected uint8, or floats in \[0, 1\]"),
        ({"image": np.full((4, 4, 3), np.nan)}, r"expected uint8, or floats in \[0, 1\]"),
        ({"image": Image.new("I;16", (4, 4))}, "Pillow's mode I;16"),
        ({"output_type": "latent"}, "output_type 'latent': expected pil, np or pt"),
        ({"start": "image"}, "start 'image': expected noise or lr"),
        ({"seed": -1}, "seed must not be negative"),
        ({"vae_tiles": AutoencoderTiles(512)}, "VAE tiles have no effect on a model without an autoencoder"),
        ({"colour_fix": "adam"}, "colour fix 'adam'"),
    ],
)
def test_mistakes(settings: dict[str, object], says: str, pipeline: FramerUpscalePipeline) -> None:
    with pytest.raises(UserError, match=says):
        pipeline(**({"image": image()} | settings))  # type: ignore[arg-type]


def test_a_pipeline_needs_the_settings_of_an_export(pipeline: FramerUpscalePipeline) -> None:
    with pytest.raises(UserError, match=r"restoration.json are needed"):
        FramerUpscalePipeline(pipeline.model)
    with pytest.raises(UserError, match="give vae"):
        FramerUpscalePipeline(pipeline.model, None, {"latents": "vae"})
