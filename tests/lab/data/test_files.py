from __future__ import annotations

import hashlib
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lowland.core.errors import DataError
from lowland.lab.data import files

FOLDER = "cifar-100-python"
Write = Callable[..., Path]


def read(data: Path | None) -> list[bytes]:
    return files.read("cifar100", FOLDER, ["train", "test"], data, "https://example.org")


@pytest.fixture
def both(put: Write, tmp_path: Path) -> Path:
    put(f"{FOLDER}/train", b"the training part")
    put(f"{FOLDER}/test", b"the test part", packed=True)
    return tmp_path


@pytest.mark.parametrize("inner", ["", FOLDER])
def test_finds_files_below_the_root_and_in_it(both: Path, inner: str) -> None:
    assert read(both / inner) == [b"the training part", b"the test part"]


def test_argument_goes_before_the_environment(both: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWLAND_DATA", str(tmp_path / "nowhere"))
    assert len(read(both)) == 2
    monkeypatch.setenv("LOWLAND_DATA", str(both))
    assert len(read(None)) == 2


@pytest.mark.parametrize("value", [None, ""])
def test_no_folder_given(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("LOWLAND_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("LOWLAND_DATA", value)
    with pytest.raises(DataError, match="no data folder is given") as caught:
        read(None)
    for part in (f"DIR/{FOLDER}/", "train, test", "https://example.org", "--data DIR", "LOWLAND_DATA=DIR"):
        assert part in str(caught.value)


def test_missing_file_names_folder_layout_and_remedy(both: Path) -> None:
    (both / FOLDER / "test.gz").unlink()
    with pytest.raises(DataError) as caught:
        read(both)
    text = str(caught.value)
    assert f"{both / FOLDER} has no test." in text
    assert f"DIR/{FOLDER}/" in text
    assert "--data DIR" in text
    assert f"now {both}" in text


def test_empty_folder_names_all_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train, test\."):
        read(tmp_path)


def test_wrong_checksum_names_file_expected_and_got(both: Path) -> None:
    path = both / FOLDER / "train"
    path.write_bytes(b"something else")
    with pytest.raises(DataError) as caught:
        read(both)
    text = str(caught.value)
    assert str(path) in text
    assert hashlib.md5(b"the training part").hexdigest() in text
    assert hashlib.md5(b"something else").hexdigest() in text
    assert "get it again from https://example.org" in text


def test_the_file_of_another_task_is_not_to_be_deleted(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"sentences"
    monkeypatch.setitem(files.MD5, "glue/SST-2/train.tsv", hashlib.md5(content).hexdigest())
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_bytes(content)
    with pytest.raises(DataError, match=r"must be glue/CoLA/train.tsv, but is glue/SST-2/train.tsv") as caught:
        files.read("cola", "glue/CoLA", ["train.tsv"], tmp_path / "SST-2", "https://example.org")
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("keep", [5, 25, -4], ids=["in the header", "in the data", "in the checksum"])
def test_torn_gzip_is_a_data_error(both: Path, keep: int) -> None:
    path = both / FOLDER / "test.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cannot read .*test\.gz.*get it again"):
        read(both)


def test_every_task_file_has_a_checksum() -> None:
    assert len(files.MD5) == 6 + 2 + 4 + 10 + 2 + 1
    assert all(len(value) == 32 for value in files.MD5.values())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickle_of_plain_values_and_arrays(protocol: int) -> None:
    values = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [0, 1], b"name": "x"}
    if protocol == 2:  # Python 3 writes its bytes as a call of a codec there, unlike Python 2
        del values["data"], values[b"name"]
    got = files.unpickled("cifar10", "data_batch_1", pickle.dumps(values, protocol=protocol))
    assert got["labels"] == [0, 1]
    if protocol > 2:
        assert np.array_equal(got["data"], values["data"])
        assert got["name"] == "x"


def test_pickle_of_python_2() -> None:
    """As the upstream files are: text and array data as byte strings, flags of a dtype as integers."""
    text = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x03\x85cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x03\x07\x80\xfftbs."
    )
    got = files.unpickled("cifar10", "data_batch_1", text)
    assert got["data"].tolist() == [7, 128, 255]
    assert got["data"].dtype == np.uint8


class Runs:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return subprocess.check_output, (["true"],)


class Opens:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(("value", "named"), [(Runs(), "check_output"), (Opens(), "eval")])
def test_pickle_that_runs_code_is_refused(
    value: object, named: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps({"data": value}, protocol=protocol)
    monkeypatch.setattr(subprocess, "check_output", lambda *_: pytest.fail("the pickle ran"))
    with pytest.raises(DataError, match=f"wants to import .*{named}.*do not use this file"):
        files.unpickled("cifar10", "data_batch_1", content)


def test_pickle_with_an_array_of_objects_is_refused() -> None:
    content = pickle.dumps({"data": np.array([{}], dtype=object)}, protocol=4)
    with pytest.raises(DataError, match="array of Python objects"):
        files.unpickled("cifar10", "data_batch_1", content)


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": 1})[:-3]])
def test_damaged_pickle(content: bytes) -> None:
    with pytest.raises(DataError, match="data_batch_1 is no readable pickle"):
        files.unpickled("cifar10", "data_batch_1", content)


def test_pickle_of_another_kind() -> None:
    with pytest.raises(DataError, match="must hold a dictionary, but holds a list"):
        files.unpickled("cifar10", "data_batch_1", pickle.dumps([1]))
