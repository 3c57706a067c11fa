"""Text stores: the right row for every photograph, the same bytes whatever happened in between."""

from __future__ import annotations

import fcntl
import json
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from text_store_cases import CAPTIONS, HashedTexts, contents, embeddings_of, make_store
from torch.utils.data import DataLoader, Dataset

from framer.data.outputs import LOCK_FILE
from framer.data.texts.manifest import DTYPES, MANIFEST_FILE, UNFINISHED_FILE, StoredDtype
from framer.data.texts.store import NULL_ROW, TextStore, verify_text_store, write_text_store
from framer.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "store"
    make_store(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))


def test_every_photograph_has_the_embeddings_of_its_caption(finished: Path) -> None:
    store = TextStore(finished)
    assert (store.sizes, store.tokens, store.dtype, len(store)) == ((5, 4), 3, "fp16", 15)
    for key, caption in CAPTIONS.items():
        row = store.row_of(key)
        assert store.caption(row) == caption
        found, expected = store.embeddings(row), embeddings_of(caption)
        assert expected.pooled is not None
        assert found.pooled is not None
        assert found.prompt.dtype == found.pooled.dtype == torch.float32
        torch.testing.assert_close(found.prompt, expected.prompt.half().float(), rtol=0, atol=0)
        torch.testing.assert_close(found.pooled, expected.pooled.half().float(), rtol=0, atol=0)
    assert store.row_of("no text") == NULL_ROW
    assert store.row_of("street/00") == store.row_of("street/13")
    assert dict(store.keys).keys() == CAPTIONS.keys()


def test_the_files_are_what_the_manifest_says(finished: Path) -> None:
    files = [f"texts-{number:06d}.safetensors" for number in range(4)]
    assert {path.name for path in finished.iterdir()} == {MANIFEST_FILE, *files}
    manifest = json.loads((finished / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert [record["rows"] for record in manifest["files"]] == [4, 4, 4, 3]
    tensors = load_file(finished / files[3])
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "prompt_embeds": [3, 3, 5],
        "pooled_prompt_embeds": [3, 4],
    }
    assert verify_text_store(finished).fingerprint == manifest["fingerprint"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_dtypes_round_and_no_more(tmp_path: Path, dtype: StoredDtype) -> None:
    store = write_text_store(tmp_path, {"a": "text"}, HashedTexts(), dtype=dtype)
    assert load_file(tmp_path / "texts-000000.safetensors")["prompt_embeds"].dtype == DTYPES[dtype]
    expected = embeddings_of("text").prompt.to(DTYPES[dtype]).float()
    found = store.embeddings(store.row_of("a")).prompt
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.zero_()  # what a caller does to a row stays with the caller
    torch.testing.assert_close(store.embeddings(1).prompt, expected, rtol=0, atol=0)


def test_a_family_without_pooled_texts(tmp_path: Path) -> None:
    store = write_text_store(tmp_path, {"a": "text"}, HashedTexts(pooled=False))
    assert store.sizes == (5, None)
    assert store.embeddings(1).pooled is None


def test_no_photograph_has_a_text(tmp_path: Path) -> None:
    store = write_text_store(tmp_path, dict.fromkeys(("a", "b"), ""), HashedTexts())
    assert (len(store), store.row_of("b")) == (1, NULL_ROW)


def test_the_bytes_do_not_depend_on_the_order_of_the_photographs(finished: Path, tmp_path: Path) -> None:
    items = list(CAPTIONS.items())
    random.Random(0).shuffle(items)
    write_text_store(tmp_path, dict(items), HashedTexts(), rows_per_file=4)
    assert contents(tmp_path) == contents(finished)


def test_distinct_captions_are_encoded_once_and_finished_stores_not_again(tmp_path: Path) -> None:
    encoder = HashedTexts()
    write_text_store(tmp_path, CAPTIONS, encoder, rows_per_file=4)
    assert sorted(encoder.encoded) == sorted({*CAPTIONS.values(), ""})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    again = HashedTexts()
    write_text_store(tmp_path, CAPTIONS, again, rows_per_file=4)
    assert again.encoded == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}


def test_long_texts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_text_store(tmp_path, CAPTIONS, HashedTexts())
    assert "1 of 15 distinct texts have more tokens than the text encoder sees" in caplog.text
    assert "Grüße" in caplog.text


_WRITE_SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import text_store_cases
encode = text_store_cases.HashedTexts.encode
def slowly(self, texts):
    time.sleep(0.03)
    return encode(self, texts)
text_store_cases.HashedTexts.encode = slowly
print("ready", flush=True)
text_store_cases.make_store(Path(sys.argv[2]))
"""


def _kill_after(folder: Path, seconds: float) -> None:
    arguments = [sys.executable, "-c", _WRITE_SLOWLY, str(Path(__file__).parent), str(folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_and_run_again(finished: Path, tmp_path: Path) -> None:
    _kill_after(tmp_path / "store", 0.08)
    make_store(tmp_path / "store")
    assert contents(tmp_path / "store") == contents(finished)


@pytest.mark.slow
def test_killed_many_times_and_run_again(finished: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        for _ in range(2):
            _kill_after(folder, rng.uniform(0.0, 0.15))
        make_store(folder)
        assert contents(folder) == contents(finished)


@pytest.mark.parametrize("at", ["second file", "manifest", "removal of the unfinished"])
def test_interrupted_at_each_step(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    from framer.data.texts import store

    write_bytes, write_text, sync_folder = store.write_bytes, store.write_text, store.sync_folder

    def stop_at_file(path: Path, content: bytes) -> None:
        if at == "second file" and path.name == "texts-000001.safetensors":
            path.with_name(f".{path.name}.partial").write_bytes(content[:50])
            raise KeyboardInterrupt
        write_bytes(path, content)

    def stop_at_manifest(path: Path, content: str) -> None:
        if at == "manifest" and path.name == MANIFEST_FILE:
            raise KeyboardInterrupt
        write_text(path, content)
        if at == "removal of the unfinished" and path.name == MANIFEST_FILE:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_bytes", stop_at_file)
    monkeypatch.setattr(store, "write_text", stop_at_manifest)
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path)
    assert (tmp_path / UNFINISHED_FILE).is_file()
    monkeypatch.setattr(store, "write_bytes", write_bytes)
    monkeypatch.setattr(store, "write_text", write_text)
    monkeypatch.setattr(store, "sync_folder", sync_folder)
    if at != "removal of the unfinished":
        with pytest.raises(UserError, match="its texts are not finished; run the command"):
            TextStore(tmp_path)
    encoder = HashedTexts()
    write_text_store(tmp_path, CAPTIONS, encoder, rows_per_file=4)
    assert len(encoder.encoded) == (11 if at == "second file" else 0)
    assert contents(tmp_path) == contents(finished)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_files_are_named_and_only_they_are_made_again(
    finished: Path, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "texts-000002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-10] if damage == "truncate" else data)
    with pytest.raises(UserError, match=r"1 of 4 files of texts are damaged.*\n.*texts-000002\.safetensors"):
        verify_text_store(folder)
    if damage != "flip":
        with pytest.raises(UserError, match=r"texts-000002\.safetensors: .*; run the command that wrote the texts"):
            TextStore(folder)
    encoder = HashedTexts()
    write_text_store(folder, CAPTIONS, encoder, rows_per_file=4)
    assert len(encoder.encoded) == 4
    assert "texts-000002.safetensors is missing or damaged" in caplog.text
    assert contents(folder) == contents(finished)


def test_a_file_that_is_damaged_while_it_is_used_is_named(folder: Path) -> None:
    store = TextStore(folder)
    shapes, header, cut = (folder / f"texts-{number:06d}.safetensors" for number in range(3))
    shapes.write_bytes(shapes.read_bytes().replace(b"[4,3,5]", b"[4,5,3]"))
    header.write_bytes(b"\xff" * header.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:-1])
    for row, path in ((0, shapes), (5, header), (8, cut)):
        with pytest.raises(UserError, match=rf"{path.name}.*; run the command that wrote the texts again"):
            store.embeddings(row)
    assert store.embeddings(12).prompt.shape == (3, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": CAPTIONS | {"street/00": "another"}}, r"captions of 22 photographs, SHA-256 \w+ \(now of 22"),
        ({"encoder": HashedTexts(identity="others")}, r"encoder hashes \(now others\); give another folder"),
        ({"dtype": "bf16"}, r"dtype fp16 \(now bf16\)"),
        ({"rows_per_file": 5}, r"rows_per_file 4 \(now 5\)"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_texts_of_something_else_are_refused(folder: Path, changes: dict[str, Any], message: str, state: str) -> None:
    if state == "unfinished":
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        (folder / MANIFEST_FILE).unlink()
        kept = {key: manifest[key] for key in ("format_version", "made_from", "files")}
        (folder / UNFINISHED_FILE).write_text(json.dumps(kept))
    before = contents(folder)
    arguments: dict[str, Any] = {"captions": CAPTIONS, "encoder": HashedTexts(), "rows_per_file": 4} | changes
    with pytest.raises(UserError, match=message):
        write_text_store(folder, arguments.pop("captions"), arguments.pop("encoder"), **arguments)
    assert contents(folder) == before


def _mutated(manifest: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return manifest[: rng.randrange(len(manifest))]
    if kind == 1:
        data = bytearray(manifest)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    content = json.loads(manifest)
    inside = rng.choice([content, content["keys"], content["files"][1], content["made_from"]])
    name = rng.choice(sorted(inside))
    if kind == 2:
        del inside[name]
    else:
        inside[name] = rng.choice([None, -1, 0, 3, 1.5, "", "text", [], {}, True])
    return json.dumps(content).encode()


def test_a_damaged_manifest_never_mixes_up_texts(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    manifest, rng = path.read_bytes(), random.Random(1)
    refused: list[str] = []
    for _ in range(200):
        path.write_bytes(_mutated(manifest, rng))
        try:
            store = TextStore(folder)
            rows = {key: store.row_of(key) for key in CAPTIONS}
            found = {key: store.embeddings(row) for key, row in rows.items()}
        except UserError as error:
            refused.append(str(error))
            continue
        for key, caption in CAPTIONS.items():
            assert store.caption(rows[key]) == caption
            for each, expected in zip(found[key], embeddings_of(caption), strict=True):
                assert expected is not None
                torch.testing.assert_close(each, expected.half().float(), rtol=0, atol=0)
    assert len(refused) > 150
    assert all(str(folder) in message for message in refused)


def test_unknown_photographs_and_rows(finished: Path) -> None:
    store = TextStore(finished)
    with pytest.raises(UserError, match="holds no text of the photograph street/99"):
        store.row_of("street/99")
    for row in (-1, 15):
        with pytest.raises(IndexError, match=f"15 rows, there is no row {row}"):
            store.embeddings(row)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e6, r"gave \S+e\+06, which is too large for fp16; store bf16 or fp32"),
        (float("nan"), "gave numbers that are not finite for the text ''"),
    ],
)
def test_embeddings_that_fp16_cannot_hold_are_refused(tmp_path: Path, factor: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_text_store(tmp_path, {"a": "text"}, HashedTexts(factor=factor))
    assert not (tmp_path / MANIFEST_FILE).exists()


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no texts\.json: it is no store of texts"):
        TextStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        make_store(tmp_path / "file")


class _Rows(Dataset[torch.Tensor]):
    def __init__(self, store: TextStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._store.embeddings(row).prompt


def test_stores_go_to_other_processes(finished: Path) -> None:
    store = TextStore(finished)
    expected = [store.embeddings(row).prompt for row in range(len(store))]  # its files are open now
    copy = pickle.loads(pickle.dumps(store))
    torch.testing.assert_close(copy.embeddings(7).prompt, expected[7])
    loader = DataLoader(_Rows(store), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for found, each in zip(loader, expected, strict=True):
        torch.testing.assert_close(found, each, rtol=0, atol=0)


def test_a_folder_that_another_process_writes_into_is_refused(tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing into"):
            make_store(tmp_path)
    assert set(contents(tmp_path)) == {LOCK_FILE}
