"""What users get wrong about methods, students and teachers, projectors and encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from alignment_cases import MeanColours, save_dino, tiny_images, tiny_inputs, tiny_transformer
from torch import Tensor, nn

from framer import Framer, FramerConfig
from framer.alignment import ImageEncoder, attach_projectors, load_encoder
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError
from framer.features import FeatureError, UnsupportedModelError, detach_heads, heads_set_aside


def problems(**framer: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_config(TrainConfig, {"output_dir": "x", "framer": framer}, source="test")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("framer", "problem"),
    [
        (
            {"method": "l3"},
            "framer.method: should be one of framer, l2, layersync, sra, repa, dispersive, got 'l3'",
        ),
        (
            {"method": "l2", "bands": "quantile", "fam": False},
            "framer: settings without effect on method l2: bands quantile, fam False; leave them out, or choose "
            "another method",
        ),
        (
            {"method": "layersync", "feature_space": "x0"},
            "framer: settings without effect on method layersync: feature_space x0; leave them out, or choose another "
            "method",
        ),
        (
            {"method": "l2", "repa": {"encoder": "dino"}},
            "framer: settings without effect on method l2: repa {'encoder': 'dino'}; leave them out, or choose another "
            "method",
        ),
        (
            {"sra": {"noise_gap": 0.1}, "repa": {"encoder": "dino"}},
            "framer: settings without effect on method framer: sra {'noise_gap': 0.1}, repa {'encoder': 'dino'}; leave "
            "them out, or choose another method",
        ),
        (
            {"method": "repa", "teacher": 3, "repa": {"encoder": "dino"}},
            "framer: settings without effect on method repa: teacher 3; leave them out, or choose another method",
        ),
        (
            {"method": "l2", "preset": "released"},
            "framer: preset released is one of method framer, got method l2: leave it out",
        ),
        (
            {"method": "sra", "teacher": 0.5},
            "framer: method sra learns from the averaged weights: teacher must be ema, got 0.5; sra.teacher_layer "
            "chooses their layer",
        ),
        (
            {"method": "repa"},
            "framer.method repa needs framer.repa.encoder: the folder of a vision model of transformers, such as "
            "DINOv2",
        ),
        ({"students": 1.0}, "framer.students: should be less than 1, got 1.0"),
        ({"students": [0, -1]}, "framer.students.1: should be greater than or equal to 0, got -1"),
        ({"teacher": "first"}, "framer.teacher: should be one of last, ema or an integer or a number, got 'first'"),
        (
            {"method": "sra", "sra": {"noise_gap": 1.5}},
            "framer.sra.noise_gap: should be less than or equal to 1, got 1.5",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(framer: dict[str, object], problem: str) -> None:
    assert problems(**framer) == [problem]


@pytest.mark.parametrize("framer", [{"method": "sra"}, {"teacher": "ema"}, {"sra": {"noise_gap": 0.1}}])
def test_an_average_that_teaches_is_on_unless_it_is_turned_off(framer: dict[str, object]) -> None:
    content = {"output_dir": "x", "framer": framer}
    assert build_config(TrainConfig, content, source="test").training.ema.decay == 0.9999
    given = content | {"training": {"ema": {"decay": 0.99}}}
    assert build_config(TrainConfig, given, source="test").training.ema.decay == 0.99
    with pytest.raises(
        ConfigError, match=r"framer.teacher ema .* needs training.ema.decay, got null; set it to 0.9999"
    ):
        build_config(TrainConfig, content | {"training": {"ema": {"decay": None}}}, source="test")
    without = content | {"framer": {**framer, "enabled": False}}
    assert build_config(TrainConfig, without, source="test").training.ema.decay is None


def test_without_an_alignment_loss_its_needs_do_not_matter() -> None:
    content = {"output_dir": "x", "framer": {"enabled": False, "method": "repa"}}
    assert build_config(TrainConfig, content, source="test").framer.method == "repa"


@pytest.mark.parametrize("method", ["framer", "l2", "layersync", "sra", "repa", "dispersive"])
def test_a_resolved_configuration_loads_to_itself(method: str) -> None:
    config = FramerConfig(method=method)
    assert FramerConfig(**config.model_dump()) == config
    assert FramerConfig(**json.loads(config.model_dump_json())) == config


def test_a_methods_section_alone_chooses_it_and_given_values_win() -> None:
    assert FramerConfig(repa={"encoder": "dino"}).method == "repa"
    config = FramerConfig(method="layersync", students=[2], weight=3.0)
    assert (config.students, config.teacher, config.weight) == ([2], 0.67, 3.0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "framer", "students": 0.3}, r"leaves 1 students; 2 or more are needed, so that each has another"),
        ({"method": "l2", "students": [9]}, r"framer.students: \[9\] are not layers; the model's layers are 0 "),
        ({"method": "layersync", "students": [3]}, r"framer.students: 3 \(transformer_blocks.3\) is the teacher"),
        ({"method": "layersync", "teacher": 1}, r"is the teacher and cannot be a student"),
        ({"method": "l2", "teacher": 0}, r"leaves 0 students; 1 or more are needed; the model's layers"),
        ({"method": "dispersive", "students": [1, 1]}, r"framer.students: \[1, 1\] names a layer twice"),
        ({"method": "sra", "sra": {"teacher_layer": 6}}, r"framer.teacher: 6 is not a layer"),
    ],
)
def test_layers_that_the_model_does_not_have(settings: dict[str, object], problem: str) -> None:
    model, config = tiny_transformer(), FramerConfig(**settings)
    with pytest.raises(ConfigError, match=problem):
        make_framer(model, config)


def make_framer(model: nn.Module, config: FramerConfig) -> Framer:
    attach_projectors(model, config)
    return Framer(model, config)


def test_a_late_teacher_of_layersync_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    Framer(tiny_transformer(), FramerConfig(method="layersync"))
    assert not caplog.records
    Framer(tiny_transformer(), FramerConfig(method="layersync", teacher="last"))
    assert "transformer_blocks.5 is among the last fifth of the layers" in caplog.text


def test_projectors_are_asked_for_before_the_optimizer() -> None:
    model = tiny_transformer()
    with pytest.raises(
        ConfigError, match=r"SD3Transformer2DModel has no projectors: call framer.alignment.attach_proj"
    ):
        Framer(model, FramerConfig(method="sra"))
    attach_projectors(model, FramerConfig(method="sra"))
    with pytest.raises(ConfigError, match="projectors are of the layers 1, and the students are 0, 2"):
        Framer(model, FramerConfig(method="sra", students=[0, 2]))
    with pytest.raises(ConfigError, match=r"has heads already \(framer_heads\)"):
        attach_projectors(model, FramerConfig(method="sra"))
    detach_heads(model)
    attach_projectors(model, FramerConfig(method="sra"))


def test_methods_without_projectors_get_none() -> None:
    for method in ("framer", "l2", "layersync", "dispersive"):
        model = tiny_transformer()
        attach_projectors(model, FramerConfig(method=method))
        assert not hasattr(model, "framer_heads")


def test_projectors_are_the_seeds_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    weights = []
    for seed in (1, 1, 2):
        model = tiny_transformer()
        torch.manual_seed(7)
        attach_projectors(model.bfloat16(), FramerConfig(method="sra"), seed=seed)
        weights.append(model.framer_heads["1"].layers[0].weight)
    assert torch.equal(torch.rand(1), expected)
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_diffusers_saves_has_no_trace_of_projectors_set_aside(tmp_path: Path) -> None:
    model = tiny_transformer()
    attach_projectors(model, FramerConfig(method="sra"))
    with heads_set_aside(model):
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not any("framer" in name for name in loaded.state_dict())
    assert torch.equal(loaded(**tiny_inputs()).sample, model(**tiny_inputs()).sample)


def test_a_model_that_does_not_tell_its_channels() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(4)])
            self.weight = nn.Parameter(torch.zeros(1))
            self.config = type("Config", (dict,), {"patch_size": 2})()

        def forward(self, sample: Tensor) -> Tensor:
            return sample

    with pytest.raises(UnsupportedModelError, match="how many channels the layers of Odd have is not known"):
        attach_projectors(Odd(), FramerConfig(method="sra"))


def test_repa_asks_for_its_encoder_and_images() -> None:
    config = FramerConfig(method="repa")
    model = tiny_transformer()
    with pytest.raises(ConfigError, match="method repa: pass the encoder to attach_projectors"):
        attach_projectors(model, config)
    attach_projectors(model, config, encoder=MeanColours())
    with pytest.raises(ConfigError, match="method repa: pass its encoder"):
        Framer(model, config)
    framer = Framer(model, config, encoder=MeanColours())
    for images, problem in ((None, "pass the clean images"), (tiny_images(2), r"images have shape \[2, 3, 32, 48\]")):
        with framer.capture():
            model(**tiny_inputs())
        with pytest.raises(FeatureError, match=problem):
            framer.loss(images=images)
    with pytest.raises(ConfigError, match="an encoder is for method repa; the method is l2"):
        Framer(tiny_transformer(), FramerConfig(method="l2"), encoder=MeanColours())


def test_an_encoder_of_ones_own_that_gives_something_else() -> None:
    class Wrong(ImageEncoder):
        def features(self, images: Tensor, height: int, width: int) -> Tensor:
            return images.flatten(2)

    with pytest.raises(FeatureError, match=r"Wrong gave features of shape \[3, 3, 1536\]; expected \[3, 5, h, w\]"):
        Wrong(5)(tiny_images(), 4, 6)


def test_features_are_refused_where_no_layer_teaches() -> None:
    model = tiny_transformer()
    framer = Framer(model, FramerConfig(method="dispersive"))
    with framer.capture():
        model(**tiny_inputs())
    with pytest.raises(ConfigError, match="dispersive has none"):
        framer.features()


@pytest.mark.parametrize("registers", [False, True])
def test_dinos_patches_make_the_students_grid(tmp_path: Path, registers: bool) -> None:
    encoder = load_encoder(save_dino(tmp_path / "dino", registers=registers))
    images = tiny_images()
    features = encoder(images, 4, 6)
    assert features.shape == (3, 12, 4, 6)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.model.training
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = nn.functional.interpolate((images + 1) / 2, size=(28, 42), mode="bicubic", antialias=True).clamp(0, 1)
    tokens = encoder.model(pixel_values=(pixels - mean) / std).last_hidden_state[:, 5 if registers else 1 :]
    torch.testing.assert_close(features, tokens.mT.reshape(3, 12, 4, 6))


def test_a_preprocessors_mean_and_deviation_are_taken(tmp_path: Path) -> None:
    folder = save_dino(tmp_path / "dino")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    assert load_encoder(folder).mean.flatten().tolist() == [0.5] * 3
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.25] * 3}))
    with pytest.raises(UserError, match=r"preprocessor_config.json is damaged: image_mean \[0.5\]"):
        load_encoder(folder)


def test_a_folder_that_holds_no_vision_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"framer.repa.encoder: .*config.json not found"):
        load_encoder(tmp_path / "nowhere")
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=10)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="BertModel is no encoder of images in patches"):
        load_encoder(tmp_path / "bert")


@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_weights_that_cannot_be_loaded(tmp_path: Path, damage: str) -> None:
    folder = save_dino(tmp_path / "dino")
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        torch.save({}, folder / "pytorch_model.bin")
        weights.unlink()
    with pytest.raises(UserError, match=r"framer.repa.encoder: cannot load .*dino: "):
        load_encoder(folder)
