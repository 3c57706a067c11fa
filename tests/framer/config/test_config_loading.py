"""Reading a configuration that is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from framer.config.distillation import FramerConfig
from framer.config.loading import build_config, load_config, save_config
from framer.config.training import TrainConfig

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# The ablations' tables are no configurations of runs; tests of their own read them.
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS / "ablations")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: runs/x\n")
    return path


def test_only_the_output_folder_is_required(path: Path) -> None:
    config = load_config(TrainConfig, path)
    assert config == TrainConfig(output_dir="runs/x")
    assert (config.training.resume, config.framer.enabled, config.data.train) == ("auto", True, "bundled")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("5.e-5", 5e-5),
        (".5e-4", 5e-5),
        (".5e1", 5.0),
        ("1e0", 1.0),
        ("+1e-4", 1e-4),
        ("0.0001", 1e-4),
        ("1", 1.0),
    ],
)
def test_numbers_as_people_write_them(path: Path, text: str, number: float) -> None:
    assert load_config(TrainConfig, path, [f"optimizer.lr={text}"]).optimizer.lr == number
    path.write_text(f"output_dir: x\noptimizer:\n  lr: {text}  # peak\n")
    lr = load_config(TrainConfig, path).optimizer.lr
    assert lr == number
    assert isinstance(lr, float)


@pytest.mark.parametrize("text", ["1e", "e5", "e-4", "1e-", "runs/1e-4", "1e-4x", "v1e-4", "12e4567g"])
def test_text_that_only_resembles_a_number_stays_text(path: Path, text: str) -> None:
    assert load_config(TrainConfig, path, [f"output_dir={text}"]).output_dir == text


def test_a_date_is_a_name_for_a_folder(path: Path) -> None:
    assert load_config(TrainConfig, path, ["output_dir=2025-11-23"]).output_dir == "2025-11-23"


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("optimizer.lr=1e-3", ("optimizer", "lr"), 1e-3),
        (" optimizer . lr = 1e-3 ", ("optimizer", "lr"), 1e-3),
        ("framer.enabled=false", ("framer", "enabled"), False),
        ("framer.enabled=False", ("framer", "enabled"), False),
        ("framer.preset=released", ("framer", "weight"), 0.1),
        ("framer.faw=null", ("framer", "faw"), None),
        ("optimizer.betas=[0.8, 0.95]", ("optimizer", "betas"), [0.8, 0.95]),
        ("optimizer={lr: 1e-3}", ("optimizer", "lr"), 1e-3),
        ("output_dir=runs/a b", ("output_dir",), "runs/a b"),
        ("output_dir=runs/a=b", ("output_dir",), "runs/a=b"),
        ("output_dir='007'", ("output_dir",), "007"),
        ("model.architecture.num_layers=12", ("model", "architecture", "num_layers"), 12),
        ("training.resume=never", ("training", "resume"), "never"),
        ("model.pretrained=null", ("model", "pretrained"), None),
        ("deepspeed.zero_stage=3", ("deepspeed", "zero_stage"), 3),
    ],
)
def test_overrides(path: Path, override: str, keys: tuple[str, ...], value: object) -> None:
    node: object = load_config(TrainConfig, path, [override])
    for key in keys:
        node = getattr(node, key)
    assert node == value
    assert type(node) is type(value)


def test_an_override_leaves_the_rest_of_its_section_and_wins_over_the_file(path: Path) -> None:
    path.write_text("output_dir: x\noptimizer:\n  lr: 1e-3\n  eps: 1e-6\n")
    config = load_config(TrainConfig, path, ["optimizer.lr=1e-5"])
    assert (config.optimizer.lr, config.optimizer.eps) == (1e-5, 1e-6)


def test_the_last_override_wins(path: Path) -> None:
    assert load_config(TrainConfig, path, ["seed=1", "seed=2"]).seed == 2
    config = load_config(TrainConfig, path, ["optimizer.eps=1e-6", "optimizer={lr: 1e-3}", "optimizer.lr=1e-4"])
    assert (config.optimizer.lr, config.optimizer.eps) == (1e-4, 1e-8)


def test_an_override_fills_a_section_that_the_file_leaves_empty(path: Path) -> None:
    path.write_text("output_dir: x\noptimizer:\n")
    assert load_config(TrainConfig, path, ["optimizer.lr=1e-3"]).optimizer.lr == 1e-3


def test_yaml_anchors_and_merge_keys(path: Path) -> None:
    path.write_text("output_dir: x\nframer: &f {seed: 3}\nevaluation:\n  <<: *f\n  crop_size: 128\n")
    config = load_config(TrainConfig, path)
    assert (config.evaluation.seed, config.evaluation.crop_size) == (3, 128)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("changes", [{}, {"weight": 0.5, "faw": None, "cutoff": 0.3}, {"enabled": False}])
def test_the_resolved_configuration_loads_back_equal(path: Path, preset: str, changes: dict[str, object]) -> None:
    content = {"output_dir": "runs/x", "framer": {"preset": preset, **changes}}
    config = build_config(TrainConfig, content, source="test")
    path.write_text(save_config(config), encoding="utf-8")
    assert load_config(TrainConfig, path) == config


def test_the_resolved_configuration_holds_the_presets_values_and_every_default() -> None:
    text = save_config(TrainConfig(output_dir="x", framer=FramerConfig(preset="released")))
    assert "  preset: released\n" in text
    assert "  bands: quantile\n" in text
    assert "  weight: 0.1\n" in text
    assert "  stage3_param_persistence_threshold: 100000\n" in text


@pytest.mark.parametrize(
    "name",
    [
        *("1e-4", "1E5", ".5e4", "12e45", "1.0", "007", "0x1f", "1_000", "1:30", "2025-11-23", "2025-11-23 10:00:00"),
        *("no", "yes", "on", "true", "null", "~", "NaN", ".inf", "=", "<<", "-", "?", "*a", "&a", "!x", "@", "%x"),
        *("a: b", "a #b", "#x", " leading", "trailing ", "tab\there", "two\nlines", "'", '"', "[1]", "{a: 1}", "\\"),
        *("été/写真", "😀", "\u2028", "\x07", "x" * 300, "word " * 60),
    ],
)
def test_any_name_of_a_folder_survives_saving(path: Path, name: str) -> None:
    config = TrainConfig(output_dir=name)
    path.write_text(save_config(config), encoding="utf-8")
    assert load_config(TrainConfig, path).output_dir == name


@pytest.mark.parametrize("number", [1e-5, 5e-324, 1 / 3, 1e300, 0.1 + 0.2, 123456789.0])
def test_numbers_survive_saving_to_the_last_bit(path: Path, number: float) -> None:
    config = build_config(TrainConfig, {"output_dir": "x", "optimizer": {"lr": number}, "seed": 10**25}, source="test")
    path.write_text(save_config(config))
    again = load_config(TrainConfig, path)
    assert again.optimizer.lr == number
    assert again.seed == 10**25


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
def test_shipped_configurations_are_valid_and_survive_saving(shipped: Path, path: Path) -> None:
    config = load_config(TrainConfig, shipped)
    path.write_text(save_config(config))
    assert load_config(TrainConfig, path) == config


def test_the_quickstart_writes_where_the_readme_says() -> None:
    (quickstart,) = [shipped for shipped in SHIPPED if shipped.name == "quickstart.yaml"]
    assert load_config(TrainConfig, quickstart).output_dir == "runs/quickstart"


def test_a_configuration_does_not_change_after_it_was_checked() -> None:
    config = TrainConfig(output_dir="x")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.optimizer.lr = 1.0  # type: ignore[misc]


def test_loading_leaves_the_mapping_it_was_given_alone() -> None:
    content = {"output_dir": "x", "framer": {"preset": "released"}}
    build_config(TrainConfig, content, source="test")
    assert content == {"output_dir": "x", "framer": {"preset": "released"}}


@pytest.mark.parametrize(("switch", "backend"), [(True, "torch"), (False, None)])
def test_activation_checkpointing_takes_a_switch(switch: bool, backend: str | None) -> None:
    config = build_config(
        TrainConfig, {"output_dir": "x", "training": {"activation_checkpointing": switch}}, source="x"
    )
    assert config.training.activation_checkpointing.backend == backend
    assert config.training.activation_checkpointing.every == 1


def test_one_word_of_what_trains_is_a_list_of_one() -> None:
    config = build_config(TrainConfig, {"output_dir": "x", "model": {"trainable": "attention"}}, source="x")
    assert config.model.trainable == ["attention"]
