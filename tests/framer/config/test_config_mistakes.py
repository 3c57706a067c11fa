"""What a user gets wrong in a configuration, and what the message says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError


def message_of(tmp_path: Path, yaml_text: str, *overrides: str) -> str:
    """The error of a file with ``output_dir`` and ``yaml_text``."""
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: runs/x\n{yaml_text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, path, overrides)
    return str(caught.value)


def problems_of(tmp_path: Path, yaml_text: str, *overrides: str) -> list[str]:
    """The lines of the error, one a problem."""
    first, *problems = message_of(tmp_path, yaml_text, *overrides).splitlines()
    assert first.startswith(f"the configuration {tmp_path / 'run.yaml'}")
    assert first.endswith("is not valid:")
    return [problem.strip() for problem in problems]


def alternatives(annotation: object) -> list[object]:
    inner = [option for part in get_args(annotation) for option in alternatives(part)]
    return [annotation, *inner]


def walk(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Each key's path, and whether it is a section."""
    for name, field in section.model_fields.items():
        types = [t for t in alternatives(field.annotation) if isinstance(t, type)]
        nested = [t for t in types if issubclass(t, BaseModel)]
        yield (*prefix, name), bool(nested)
        for section_type in nested[:1]:  # of several, the one that is meant where none is named
            yield from walk(section_type, (*prefix, name))


KEYS = list(walk(TrainConfig))
LEAVES = [".".join(path) for path, nested in KEYS if not nested]
SECTIONS = [".".join(path) for path, nested in KEYS if nested]
OPTIONAL_SECTIONS = {"model.lora", "trackers.wandb"}


def nested_content(dotted: str, value: object) -> dict[str, object]:
    *parents, last = dotted.split(".")
    content: dict[str, object] = {last: value}
    for parent in reversed(parents):
        content = {parent: content}
    return {"output_dir": "runs/x"} | content


def test_there_are_keys_at_every_depth() -> None:
    assert {"output_dir", "seed"} <= set(LEAVES)
    assert {"framer.preset", "data.train", "model.architecture.num_layers"} <= set(LEAVES)
    assert "model.architecture" in SECTIONS


@pytest.mark.parametrize("dotted", [*LEAVES, *SECTIONS])
def test_a_misspelt_key_is_refused_by_its_path_with_the_right_spelling(dotted: str) -> None:
    name = dotted.rsplit(".", 1)[-1]
    with pytest.raises(ConfigError) as caught:
        build_config(TrainConfig, nested_content(f"{dotted}x", 1), source="x.yaml")
    line = str(caught.value).splitlines()[1]
    assert line.startswith(f"  {dotted}x: unknown key; did you mean '{name}'? allowed here: ")
    assert name in line.split("allowed here: ")[1].split(", ")


@pytest.mark.parametrize("dotted", LEAVES)
def test_a_section_where_a_value_belongs_is_refused_by_the_keys_path(dotted: str) -> None:
    with pytest.raises(ConfigError, match=f"(?m)^  {dotted}: should be .*, got {{'x': 1}}$"):
        build_config(TrainConfig, nested_content(dotted, {"x": 1}), source="x.yaml")


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        (dotted, value)
        for dotted in SECTIONS
        for value in (None, True, 3, "on", ["x"])
        if (dotted, value) != ("training.activation_checkpointing", True)  # a switch, see test_config_loading
    ],
)
def test_a_value_where_a_section_belongs_is_refused_with_the_sections_keys(dotted: str, value: object) -> None:
    if value is None and dotted in OPTIONAL_SECTIONS:
        assert build_config(TrainConfig, nested_content(dotted, value), source="x.yaml")
        return
    with pytest.raises(ConfigError) as caught:
        build_config(TrainConfig, nested_content(dotted, value), source="x.yaml")
    line = str(caught.value).splitlines()[1]
    got = "null" if value is None else "true" if value is True else repr(value)
    assert line.startswith(f"  {dotted}: should be a section with keys, got {got}; its keys: ")
    inside = [leaf for leaf in LEAVES if leaf.rsplit(".", 1)[0] == dotted]
    assert {leaf.rsplit(".", 1)[1] for leaf in inside} <= set(line.split("its keys: ")[1].split(", "))


@pytest.mark.parametrize(
    ("yaml_text", "problem"),
    [
        ("framer: {preset: papr}", "framer.preset: should be one of paper, released, got 'papr'"),
        ("framer: {preset: [paper]}", "framer.preset: should be one of paper, released, got ['paper']"),
        (
            "framer: {faw: relative}",
            "framer.faw: should be one of relative_student, relative_teacher, absolute or null, got 'relative'",
        ),
        (
            "model: {architecture: {qk_norm: layer_norm}}",
            "model.architecture.qk_norm: should be one of rms_norm or null, got 'layer_norm'",
        ),
        ("data: {scale: 3}", "data.scale: should be one of 2, 4, 8, got 3"),
        ("data: {scale: 4.0}", "data.scale: should be one of 2, 4, 8, got 4.0"),
        ("data: {degradation: null}", "data.degradation: should be one of heavy, light, stablesr, got null"),
        ("deepspeed: {zero_stage: 4}", "deepspeed.zero_stage: should be one of 0, 1, 2, 3, got 4"),
        ("deepspeed: {zero_stage: '3'}", "deepspeed.zero_stage: should be one of 0, 1, 2, 3, got '3'"),
        ("deepspeed: {zero_stage: true}", "deepspeed.zero_stage: should be one of 0, 1, 2, 3, got true"),
        ("deepspeed: {zero_stage: false}", "deepspeed.zero_stage: should be one of 0, 1, 2, 3, got false"),
        ("training: {precision: fp8}", "training.precision: should be one of fp32, bf16, fp16, got 'fp8'"),
        ("data: {crop_size: '64'}", "data.crop_size: should be an integer, got '64'"),
        ("data: {crop_size: true}", "data.crop_size: should be an integer, got true"),
        ("data: {crop_size: 64.0}", "data.crop_size: should be an integer, got 64.0"),
        ("training: {max_steps: 1e4}", "training.max_steps: should be an integer, got 10000.0"),
        ("optimizer: {lr: '1e-4'}", "optimizer.lr: should be a number, got '1e-4'"),
        ("optimizer: {lr: true}", "optimizer.lr: should be a number, got true"),
        ("optimizer: {lr: .nan}", "optimizer.lr: should be a finite number, got nan"),
        ("framer: {weight: .inf}", "framer.weight: should be a finite number, got inf"),
        ("data: {horizontal_flip: 1}", "data.horizontal_flip: should be true or false, got 1"),
        ("data: {horizontal_flip: 'yes'}", "data.horizontal_flip: should be true or false, got 'yes'"),
        ("data: {train: 007}", "data.train: should be text (put it in quotes if it is), got 7"),
        ("data: {train: ''}", "data.train: should not be empty, got ''"),
        ("training: {resume: no}", "training.resume: should be text (put it in quotes if it is), got false"),
        ("model: {pretrained: 5}", "model.pretrained: should be text (put it in quotes if it is) or null, got 5"),
        ("data: {buckets: 64}", "data.buckets: should be a list, got 64"),
        ("data: {buckets: [64]}", "data.buckets.0: should be a list, got 64"),
        ("data: {buckets: [[64]]}", "data.buckets.0: list should have at least 2 items, not 1, got [64]"),
        ("data: {buckets: [[64, 64], [0, 64]]}", "data.buckets.1.0: should be greater than 0, got 0"),
        ("data: {buckets: [[64, 96.0]]}", "data.buckets.0.1: should be an integer, got 96.0"),
        ("data: {buckets: [[64, 64], [48, 90]]}", "data.buckets: [48, 90] is not a multiple of scale 4"),
        (
            "data: {buckets: [[48, 96], [64, 64], [64, 128]]}",
            "data.buckets: [48, 96] and [64, 128] have the same aspect ratio, so no photograph is nearer to one of "
            "them; keep one",
        ),
        ("data: {rescale: 0.5}", "data.rescale: should be a list, got 0.5"),
        ("data: {rescale: []}", "data.rescale: list should have at least 1 item, not 0, got []"),
        ("data: {rescale: [1.0, 2]}", "data.rescale.1: should be less than or equal to 1, got 2"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas: list should have at least 2 items, not 1, got [0.9]"),
        ("optimizer: {betas: [0.9, 1.0]}", "optimizer.betas.1: should be less than 1, got 1.0"),
        ("optimizer: {lr: 0}", "optimizer.lr: should be greater than 0, got 0"),
        ("evaluation: {tile_overlap: 0.6}", "evaluation.tile_overlap: should be less than or equal to 0.5, got 0.6"),
        ("evaluation: {tile_overlap: .nan}", "evaluation.tile_overlap: should be less than or equal to 0.5, got nan"),
        ("seed: -1", "seed: should be greater than or equal to 0, got -1"),
        (
            "model: {architecture: {num_layers: 2}}",
            "model.architecture.num_layers: should be greater than or equal to 3, got 2",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_what_is_allowed(
    tmp_path: Path, yaml_text: str, problem: str
) -> None:
    assert problems_of(tmp_path, yaml_text) == [problem]


@pytest.mark.parametrize(
    ("yaml_text", "problem"),
    [
        ("data: {crop_size: 63}", "data: crop_size 63 is not a multiple of scale 4"),
        (
            "model: {architecture: {num_attention_heads: 2, attention_head_dim: 3}}",
            "model.architecture: num_attention_heads 2 times attention_head_dim 3 is 6, not a multiple of 4",
        ),
        (
            "model: {architecture: {num_layers: 4, dual_attention_layers: [0, 4]}}",
            "model.architecture: dual_attention_layers [4]: num_layers is 4, so blocks are 0 to 3",
        ),
        (
            "data: {crop_size: 8}\nmodel: {architecture: {patch_size: 3}}",
            "data.crop_size 8 is not a multiple of model.architecture.patch_size 3",
        ),
        (
            "data: {buckets: [[60, 68]]}\nmodel: {architecture: {patch_size: 8}}",
            "data.buckets: [60, 68] is not a multiple of model.architecture.patch_size 8",
        ),
        (
            "framer: {assignment: intra_high, backend: portable}",
            "framer: assignment intra_high is computed by the reference backend alone, got backend portable; leave it "
            "at auto",
        ),
        (
            "framer: {method: l2, assignment: inter_both}",
            "framer: settings without effect on method l2: assignment inter_both; leave them out, or choose another "
            "method",
        ),
        ("evaluation: {crop_size: 66}", "evaluation.crop_size 66 is not a multiple of data.scale 4"),
        (
            "evaluation: {crop_size: 32}",
            "evaluation.crop_size 32 is smaller than data.crop_size 64, the tile of inference",
        ),
        ("lr_scheduler: {warmup_steps: 1001}", "lr_scheduler.warmup_steps 1001 exceeds training.max_steps 1000"),
        (
            "training: {precision: fp16}",
            "training.precision fp16 needs deepspeed.zero_stage 2 or 3, got 0: in stage 0 DeepSpeed sums gradients in "
            "low precision, and in stage 1 it takes another optimizer, which keeps all gradients in float32 on every "
            "rank; on one rank stage 2 costs nothing",
        ),
        (
            "model: {compile_blocks: true}\ndeepspeed: {zero_stage: 3}",
            "model.compile_blocks with deepspeed.zero_stage 3: DeepSpeed gathers parameters between a block's "
            "modules, so that hardly anything would be compiled; use stage 2, or do not compile",
        ),
        (
            "training: {activation_checkpointing: {every: 2}}",
            "training.activation_checkpointing: every, blocks and cpu_offload have no effect with backend null; set it "
            "to torch",
        ),
        (
            "training: {activation_checkpointing: {backend: deepspeed, cpu_offload: true}}",
            "training.activation_checkpointing: cpu_offload needs backend torch: DeepSpeed's empties the tensors that "
            "it has moved, which are the features that FRAMER taps",
        ),
        (
            "deepspeed: {zero_stage: 2, offload_param: cpu}",
            "deepspeed: offload_param cpu needs zero_stage 3, got 2",
        ),
        ("deepspeed: {offload_optimizer: cpu}", "deepspeed: offload_optimizer cpu needs zero_stage 1, 2 or 3, got 0"),
        (
            "deepspeed: {zero_stage: 1, offload_optimizer: nvme}",
            "deepspeed: offload_optimizer nvme needs zero_stage 3, got 1; use cpu",
        ),
        (
            "deepspeed: {zero_stage: 3, offload_param: nvme}",
            "deepspeed: nvme_path is needed by offload to nvme: a folder on a fast local disk",
        ),
    ],
)
def test_an_impossible_combination_names_all_keys_and_values(tmp_path: Path, yaml_text: str, problem: str) -> None:
    assert problems_of(tmp_path, yaml_text) == [problem]


def test_the_patch_size_of_an_architecture_that_is_not_used_does_not_matter() -> None:
    content = {"output_dir": "x", "model": {"pretrained": "base", "architecture": {"patch_size": 3}}}
    assert build_config(TrainConfig, content, source="x").model.pretrained == "base"


def test_a_key_that_has_moved_is_refused_with_its_new_name(tmp_path: Path) -> None:
    problem = "training.tensorboard: is now called trackers.tensorboard"
    assert problems_of(tmp_path, "training: {tensorboard: false}") == [problem]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = "framer: {weigth: 1, weight: -1}\ndata: {scale: 3}\noptimiser: {}"
    assert [problem.split(":")[0] for problem in problems_of(tmp_path, text)] == [
        "framer.weight",
        "framer.weigth",
        "data.scale",
        "optimiser",
    ]


@pytest.mark.parametrize(
    ("yaml_text", "problem"),
    [
        ("1: 2", "the key 1 is not text; allowed here: output_dir, seed, framer"),
        ("on: 2", "the key true is not text; allowed here: output_dir, seed, framer"),
        ("data: {1: 2}", "data: the key 1 is not text; allowed here: train, evaluation"),
    ],
)
def test_a_key_that_is_not_text(tmp_path: Path, yaml_text: str, problem: str) -> None:
    (line,) = problems_of(tmp_path, yaml_text)
    assert line.startswith(problem)


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n", "seed: 1\n"])
def test_an_empty_file_lacks_the_one_required_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"(?m)^  output_dir: required, but not given$"):
        load_config(TrainConfig, path)


@pytest.mark.parametrize(("content", "kind"), [("[a, b]", "list"), ("hello", "str"), ("3", "int"), ("- a: 1", "list")])
def test_a_file_that_is_not_a_mapping(tmp_path: Path, content: str, kind: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"run.yaml: expected a mapping of keys at the top, got {kind}"):
        load_config(TrainConfig, path)


@pytest.mark.parametrize(
    ("content", "line", "key"),
    [
        ("output_dir: a\noutput_dir: b\n", 2, "output_dir"),
        ("output_dir: a\ndata:\n  crop_size: 64\n  workers: 1\n  crop_size: 32\n", 5, "crop_size"),
        ("output_dir: a\nmodel: {architecture: {patch_size: 2, 'patch_size': 4}}\n", 2, "patch_size"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path, content: str, line: int, key: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"run.yaml: line {line}: the key '{key}' is given twice"):
        load_config(TrainConfig, path)


def test_the_same_key_in_two_sections_is_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: a\nseed: 1\nevaluation: {seed: 2}\nframer: {seed: 3}\n")
    config = load_config(TrainConfig, path)
    assert (config.seed, config.evaluation.seed, config.framer.seed) == (1, 2, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"output_dir: r\ndata: {crop_size: 64\n",
        b"output_dir: r\n\tseed: 1\n",
        b"output_dir: r\n---\nseed: 1\n",
        b"output_dir: *a\n",
        b"output_dir: !!python/object/apply:os.getcwd []\n",
        b"output_dir: r\n? [1, 2]\n: 3\n",
        b"output_dir: r\n? {a: 1}\n: 3\n",
        b"\x00\x01\x02",
    ],
)
def test_a_file_that_is_not_yaml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml is not valid YAML: "):
        load_config(TrainConfig, path)


def test_a_picture_given_as_configuration(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe")
    with pytest.raises(ConfigError, match=r"photo\.png is not a text file in UTF-8"):
        load_config(TrainConfig, path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"configuration file not found: .*nope\.yaml"):
        load_config(TrainConfig, tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match=f"cannot read the configuration file {tmp_path}: Is a directory"):
        load_config(TrainConfig, tmp_path)


@pytest.mark.parametrize("override", ["optimizer.lr", "=3", "optimizer.=3", ".lr=3", "optimizer..lr=3", "", "  =1"])
def test_an_override_that_is_no_assignment(tmp_path: Path, override: str) -> None:
    expected = f"override '{override}': expected key=value, for example optimizer.lr=1e-4"
    assert message_of(tmp_path, "", override) == expected


@pytest.mark.parametrize("override", ["optimizer.betas=[0.9,", "output_dir=a: b: c", "data.train=*x", "seed=@"])
def test_an_override_whose_value_is_not_yaml(tmp_path: Path, override: str) -> None:
    assert message_of(tmp_path, "", override).startswith(f"override '{override}': the value is not valid YAML")


def test_an_override_that_gives_a_key_twice_names_the_override(tmp_path: Path) -> None:
    override = "optimizer={lr: 1e-4, lr: 1e-3}"
    assert message_of(tmp_path, "", override) == f"override '{override}': line 1: the key 'lr' is given twice"


def test_an_override_below_a_value(tmp_path: Path) -> None:
    expected = "override 'optimizer.betas.0=0.5': 'optimizer.betas' is a value, not a section; give the whole of "
    expected += "optimizer.betas anew"
    assert message_of(tmp_path, "optimizer: {betas: [0.9, 0.99]}", "optimizer.betas.0=0.5") == expected
    assert problems_of(tmp_path, "", "optimizer.lr.x=1") == ["optimizer.lr: should be a number, got {'x': 1}"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "optimizer.lrr=1",
            "optimizer.lrr: unknown key; did you mean 'lr'? allowed here: lr, betas, weight_decay, eps",
        ),
        ("optimizr.lr=1", "optimizr: unknown key; did you mean 'optimizer'? allowed here: output_dir, seed"),
        ("--seed=3", "--seed: unknown key; did you mean 'seed'?"),
        ("optimizer.lr=", "optimizer.lr: should be a number, got null"),
        ("optimizer=3", "optimizer: should be a section with keys, got 3; its keys: lr, betas"),
        ("framer.enabled=0", "framer.enabled: should be true or false, got 0"),
        ("framer.enabled=flase", "framer.enabled: should be true or false, got 'flase'"),
    ],
)
def test_an_override_is_checked_like_the_file_and_named_beside_it(tmp_path: Path, override: str, problem: str) -> None:
    message = message_of(tmp_path, "", "seed=5", override)
    assert message.splitlines()[0] == f"the configuration {tmp_path / 'run.yaml'} with seed=5 {override} is not valid:"
    assert message.splitlines()[1].strip().startswith(problem)


def test_a_configuration_error_is_the_users() -> None:
    assert issubclass(ConfigError, UserError)
