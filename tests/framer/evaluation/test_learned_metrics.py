"""Learned metrics with a stand-in that has pyiqa's interface, for the library itself cannot be installed everywhere.

The stand-in looks for weights where pyiqa 0.1.16 does, fetches them with torch.hub as it does, and checks what it is
given as it does; its numbers are simple sums.
"""

import json
import socket
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from framer.cli import main
from framer.data.images import read_image, write_png
from framer.evaluation.folders import Measured, NotComputed, Settings, evaluate_folders
from framer.evaluation.learned import MIN_PICTURES_FOR_FID, offline, weights_path
from framer.evaluation.protocols import PROTOCOLS, Learned

STAND_IN = """
import os
import numpy as np
import torch
from PIL import Image

CACHE = os.path.join(torch.hub.get_dir(), "pyiqa")
WEIGHTS = {
    "lpips": "LPIPS_v0.1_alex-df73285e.pth",
    "musiq": "musiq_koniq_ckpt-e95806b9.pth",
    "fid": "pt_inception-2015-12-05-6726825d.pth",
}


class InferenceModel(torch.nn.Module):
    def __init__(self, name, device):
        super().__init__()
        self.name, self.device = name, device
        path = os.path.join(CACHE, WEIGHTS[name])
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            torch.hub.download_url_to_file("https://huggingface.co/" + WEIGHTS[name], path, progress=False)
        self.offset = torch.nn.Parameter(torch.rand(()), requires_grad=False).to(device)

    def forward(self, target, ref=None, **kwargs):
        if self.name == "fid":
            assert kwargs == {"num_workers": 0, "verbose": False}
            means = []
            for folder in (target, ref):
                pictures = [np.asarray(Image.open(os.path.join(folder, f))) for f in sorted(os.listdir(folder))]
                assert all(p.ndim == 3 and p.dtype == np.uint8 for p in pictures)
                means.append(np.mean([p.mean() for p in pictures]))
            return np.float64((means[0] - means[1]) ** 2)
        for picture in (target, ref) if self.name == "lpips" else (target,):
            assert picture.dim() == 4 and picture.shape[1] == 3 and picture.dtype == torch.float32
            assert 0 <= picture.min() and picture.max() <= 1
            assert min(picture.shape[2:]) >= 32, "Kernel size can't be greater than actual input size"
        if self.name == "lpips":
            return (target - ref).abs().mean(dim=(1, 2, 3), keepdim=True)
        assert ref is None
        return target.mean() + self.offset + torch.rand(()) + float(np.random.rand())


def create_metric(metric_name, as_loss=False, device=None, **kwargs):
    return InferenceModel(metric_name, device)
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Installs the stand-in and empty caches of weights; yields the folder of pyiqa's."""
    site = tmp_path / "site"
    (site / "pyiqa").mkdir(parents=True)
    (site / "pyiqa" / "__init__.py").write_text(STAND_IN)
    (site / "pyiqa-0.1.16.dist-info").mkdir()
    (site / "pyiqa-0.1.16.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pyiqa\nVersion: 0.1.16\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    cache = tmp_path / "torch" / "hub" / "pyiqa"
    cache.mkdir(parents=True)
    yield cache
    sys.modules.pop("pyiqa", None)


def fill_caches():
    for metrics in PROTOCOLS.values():
        for metric in metrics:
            for weights in metric.weights if isinstance(metric, Learned) else ():
                path = weights_path(weights)
                path.parent.mkdir(parents=True, exist_ok=True)
                if weights.store == "huggingface":
                    path.mkdir(exist_ok=True)
                else:
                    path.write_bytes(b"weights")


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", 3)


def write_pictures(folder, count, size=40):
    generator = np.random.default_rng(0)
    for number in range(count):
        hr = generator.integers(0, 150, (size, size, 3), dtype=np.uint8)
        write_png(folder / "hr" / f"{number}.png", hr)
        write_png(folder / "sr" / f"{number}.png", hr + np.uint8(5))
        write_png(folder / "other" / f"{number}.png", hr + np.uint8(10 + number))
    return folder


def measure(folder, *metrics, protocol="osediff", **settings):
    runs = tuple((run, folder / run) for run in ("sr", "other"))
    asked = Settings(runs=runs, reference=folder / "hr", protocol=protocol, metrics=metrics, workers=0, **settings)
    return evaluate_folders(asked).results


def test_values_are_the_librarys_of_each_picture(library, pictures):
    fill_caches()
    (result,) = measure(pictures, "lpips")
    assert isinstance(result, Measured)
    assert result.values["sr"] == pytest.approx([5 / 255] * 3)
    assert result.values["other"] == pytest.approx([10 / 255, 11 / 255, 12 / 255])
    assert result.library == "pyiqa 0.1.16"
    assert sorted(result.weights) == ["LPIPS_v0.1_alex-df73285e.pth", "alexnet-owt-7be5be79.pth"]


def test_what_the_library_draws_is_seeded_and_nobody_elses(library, pictures):
    fill_caches()
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    untouched = (torch.rand(3), np.random.rand(3))  # noqa: NPY002
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    (first,), (again,) = measure(pictures, "musiq"), measure(pictures, "musiq")
    assert np.array_equal(first.values["sr"], again.values["sr"])
    assert torch.equal(untouched[0], torch.rand(3))
    assert np.array_equal(untouched[1], np.random.rand(3))  # noqa: NPY002


def test_missing_weights_are_named_and_not_fetched(library, pictures, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    (result,) = measure(pictures, "lpips")
    assert isinstance(result, NotComputed)
    assert str(library / "LPIPS_v0.1_alex-df73285e.pth") in result.reason
    assert "checkpoints/alexnet-owt-7be5be79.pth" in result.reason
    assert "run again with --download" in result.reason


def test_a_fetch_that_nobody_expected_is_refused(library, pictures):
    fill_caches()
    # Present by its name, but a release of the library that wants another file would go and fetch it.
    (library / "musiq_koniq_ckpt-e95806b9.pth").write_bytes(b"")
    (result,) = measure(pictures, "musiq")
    assert isinstance(result, NotComputed)
    assert "no connection to huggingface.co: nothing is downloaded without --download" in result.reason


def test_download_lets_the_library_fetch(library, pictures, monkeypatch):
    look_up = socket.getaddrinfo

    def fetch(url, path, progress):
        assert socket.getaddrinfo is look_up
        (library / path).write_bytes(b"fetched")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    (result,) = measure(pictures, "musiq", download=True)
    assert isinstance(result, Measured)
    assert list(result.weights) == ["musiq_koniq_ckpt-e95806b9.pth"]


def test_offline_refuses_other_machines_and_lets_go_again():
    look_up, connect, constant = socket.getaddrinfo, socket.socket.connect, huggingface_hub.constants.HF_HUB_OFFLINE
    with offline(), socket.socket() as one:
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        with pytest.raises(OSError, match="no connection to localhost: nothing is downloaded"):
            socket.create_connection(("localhost", 9))
        with pytest.raises(OSError, match="nothing is downloaded"):
            one.connect(("127.0.0.1", 9))
    assert (socket.getaddrinfo, socket.socket.connect) == (look_up, connect)
    assert constant == huggingface_hub.constants.HF_HUB_OFFLINE


def test_offline_lets_go_where_something_fails():
    look_up = socket.getaddrinfo
    with pytest.raises(KeyError), offline():
        raise KeyError
    assert socket.getaddrinfo is look_up


def test_a_picture_that_a_network_refuses_costs_only_that_metric(library, tmp_path):
    fill_caches()
    folder = write_pictures(tmp_path / "small", 2, size=20)
    psnr, lpips = measure(folder, "psnr", "lpips")
    assert isinstance(psnr, Measured)
    assert isinstance(lpips, NotComputed)
    assert f"it failed on {folder / 'sr' / '0.png'} (AssertionError: Kernel size" in lpips.reason


def test_a_metric_that_the_library_lacks_is_not_computed(library, pictures):
    fill_caches()
    (result,) = measure(pictures, "dists")
    assert isinstance(result, NotComputed)
    assert "pyiqa could not make it (KeyError: 'dists')" in result.reason


def test_a_library_that_cannot_be_imported_is_not_computed(library, pictures, tmp_path):
    fill_caches()
    (tmp_path / "site" / "pyiqa" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    (result,) = measure(pictures, "lpips")
    assert isinstance(result, NotComputed)
    assert result.reason == "pyiqa cannot be imported (RuntimeError: operator nms does not exist)"


def test_fid_is_refused_for_few_pictures(library, tmp_path):
    fill_caches()
    few = write_pictures(tmp_path / "few", MIN_PICTURES_FOR_FID - 1, size=16)
    (result,) = measure(few, "fid")
    assert isinstance(result, NotComputed)
    assert "49 pictures say nothing about" in result.reason
    assert "at least 50" in result.reason


def test_fid_is_of_the_pictures_as_they_are_measured(library, tmp_path, monkeypatch, capsys):
    fill_caches()
    enough = write_pictures(tmp_path / "enough", MIN_PICTURES_FOR_FID, size=16)
    framed = np.full((16, 16, 3), 255, np.uint8)
    framed[3:-3, 3:-3] = read_image(enough / "sr" / "0.png")[3:-3, 3:-3]
    write_png(enough / "sr" / "0.png", framed)
    (result,) = measure(enough, "fid", border=3)
    assert isinstance(result, Measured)
    assert result.values["sr"] == pytest.approx([25.0])
    assert result.values["other"] == pytest.approx([(10 + (MIN_PICTURES_FOR_FID - 1) / 2) ** 2])

    assert main([*evaluate_other(enough, tmp_path / "out"), "--metrics", "fid", "psnr"]) == 0
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["metrics"]["fid"]["means"] == {"other": {"value": pytest.approx(34.5**2)}}
    # It has no value for a picture, so nothing to compare picture by picture.
    assert all("fid" not in picture["values"] for picture in document["pictures"])
    assert "fewer than 2048" in capsys.readouterr().out


def evaluate_other(folder, output):
    inputs = [str(folder / "other"), "--reference", str(folder / "hr")]
    return ["evaluate", *inputs, "--protocol", "osediff", "--device", "cpu", "--workers", "0", "-o", str(output)]


def test_only_fid_leaves_nothing_to_plot(library, tmp_path):
    fill_caches()
    enough = write_pictures(tmp_path / "enough", MIN_PICTURES_FOR_FID, size=16)
    assert main([*evaluate_other(enough, tmp_path / "out"), "--metrics", "fid"]) == 0
    assert not (tmp_path / "out" / "comparison.png").exists()
    assert (tmp_path / "out" / "per_image.csv").read_text().splitlines()[:2] == ["run,name", "other,0"]
