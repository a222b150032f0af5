"""Small folders as people bring them, made by a script that lies beside the project; the like of
each, made here, elsewhere."""

import importlib.util
import unicodedata
from pathlib import Path

import pytest

from graft.commands import check
from graft.dataset import scan
from graft.dataset.importing import import_dataset
from graft.dataset.labels import ByFolder
from graft.dataset.layout import Unclear
from graft.dataset.scan_cache import ScanCache
from graft.params import ImportLimits
from graft.system.console import GraftError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT.parent / "shared" / "cases" / "make_cases.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no ../shared/cases beside the project")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("make_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(root := tmp_path_factory.mktemp("cases"))
    return root


def found(root, **rules):
    with ScanCache(None, root) as cache:
        return {
            (image.label, image.given)
            for image in scan.scan(root, cache=cache, rules=ByFolder(**rules)).images
        }


def test_layout_sets(cases, capsys):
    assert found(cases / "layout_sets") == {
        (label, split) for label in ("cats", "dogs") for split in ("train", "test")
    }
    assert (
        "test_set/ is taken for test, training_set/ is taken for train" in capsys.readouterr().out
    )


def test_layout_flat(cases):
    with pytest.raises(Unclear, match=r"-S 'data\.label_by=.*-S data\.layout=classes") as caught:
        found(cases / "layout_flat")
    assert found(cases / "layout_flat", label_by=caught.value.readings[0].value) == {
        ("cat", "train"),
        ("dog", "train"),
    }
    assert found(cases / "layout_flat", layout="classes") == {("train", ""), ("test1", "")}


def test_other_case(cases):
    with pytest.raises(
        GraftError, match=r"class 'cat' \(and 1 more\) is only in valid/, train/ has 'Cat'"
    ):
        found(cases / "other_case")
    both = {(label, split) for label in ("cat", "dog") for split in ("train", "val")}
    assert found(cases / "other_case", class_map={"Cat": "cat", "Dog": "dog"}) == both


def test_names_zip(cases, tmp_path):
    limits = ImportLimits(max_files=99, max_gb=1, max_ratio=99)
    result = import_dataset(cases / "names.zip", into=tmp_path, limits=limits)
    assert result.classes == ["Möhren", "Äpfel", "りんご"]
    names = {unicodedata.normalize("NFC", p.name) for p in result.folder.iterdir()}
    assert names == set(result.classes)


def test_linked(cases):
    with pytest.raises(GraftError, match="valid is a link to a folder"):
        check.refuse_hazards(cases / "linked")
