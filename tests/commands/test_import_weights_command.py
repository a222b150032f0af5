import io
import zipfile

import h5py
import numpy as np
import pytest

from graft.commands import main
from graft.commands.import_weights import bring
from graft.system.console import GraftError


def hdf5(arrays):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as tree:
        for name, array in arrays.items():
            tree[name] = array
    return buffer.getvalue()


WEIGHTS = hdf5(
    {
        "layers/conv/vars/0": np.ones((3, 3), np.float32),
        "layers/bias": np.zeros(4, np.float16),
        "count": 7,
    }
)


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


@pytest.fixture
def weights(clone):
    folder = clone / "data" / "weights"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["a.h5", "b.weights.h5", "c.keras"])
def test_a_file_is_brought_and_the_next_commands_are_said(weights, tmp_path_factory, name, capsys):
    source = tmp_path_factory.mktemp("elsewhere") / name
    source.write_bytes(
        archive(config__json=b"{}", model__weights__h5=WEIGHTS) if name == "c.keras" else WEIGHTS
    )
    for _ in range(2):  # once more changes nothing
        main.main(["import-weights", str(source)])
        first, add, train = capsys.readouterr().out.splitlines()
        assert first == f"data/weights/{name}: 2 arrays, 13 values"
        assert f"dvc add data/weights/{name} " in add and "--temp" in add and "--queue" in add
        assert train.endswith(f"-S backbone.weights={name}")
        assert [path.name for path in weights.iterdir()] == [name]
        assert (weights / name).read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.h5", b"no HDF5", "a.h5: not readable as weights"),
        ("a.h5", WEIGHTS[: len(WEIGHTS) // 2], "a.h5: not readable as weights"),
        ("a.h5", hdf5({"names": b"conv"}), "a.h5: holds no weights"),
        ("a.h5", None, "not readable as weights: .*No such file"),
        ("a.keras", WEIGHTS, "not readable as weights: File is not a zip file"),
        ("a.keras", archive(config__json=b"{}"), "not readable as weights: .*model.weights.h5"),
        ("a.pth", WEIGHTS, "end in .h5 or .keras"),
        ("a b.h5", WEIGHTS, "letters, digits"),
    ],
)
def test_what_is_no_weights_is_refused_and_leaves_nothing(weights, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(GraftError, match=words) as error:
        bring(tmp_path / name)
    assert "\n" not in str(error.value)
    assert list(weights.iterdir()) == []


def test_an_array_that_is_not_in_the_file_is_refused_and_never_read(weights, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(400))
    with h5py.File(tmp_path / "out.h5", "w") as tree:
        tree.create_dataset("kernel", (100,), "f4", external=[(str(secret), 0, 400)])
    with h5py.File(tmp_path / "virtual.h5", "w") as tree:
        layout = h5py.VirtualLayout((100,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "out.h5"), "kernel", (100,))
        tree.create_virtual_dataset("kernel", layout)
    with h5py.File(tmp_path / "bomb.h5", "w") as tree:
        tree.create_dataset("kernel", (10**6, 10**6), "f4", chunks=(1, 1000))
    for name, words in (
        ("out", "lies in another file"),
        ("virtual", "lies in another file"),
        ("bomb", r"claims to be 4000\.0 GB"),
    ):
        with pytest.raises(GraftError, match=f"kernel {words}"):
            bring(tmp_path / f"{name}.h5")
    assert list(weights.iterdir()) == []


def test_another_file_of_that_name_stays(weights, tmp_path):
    (weights / "a.h5").write_bytes(b"mine")
    (tmp_path / "a.h5").write_bytes(WEIGHTS)
    with pytest.raises(
        GraftError, match=r"data/weights/a\.h5 is there already, with another content"
    ):
        bring(tmp_path / "a.h5")
    assert (weights / "a.h5").read_bytes() == b"mine"


def test_elsewhere_than_at_the_root_nothing_is_made(clone, tmp_path):
    (tmp_path / "a.h5").write_bytes(WEIGHTS)
    with pytest.raises(GraftError, match="data/weights: no such folder; run from the root"):
        bring(tmp_path / "a.h5")
    assert not (clone / "data").exists()
