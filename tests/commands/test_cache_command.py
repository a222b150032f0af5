import numpy as np
import pytest

from graft.commands import main
from graft.features.cache import FeatureCache


@pytest.fixture
def filled(clone):
    about = {"size": 96, "view": 1, "cut": "pooling", "runtime": "litert"}
    with (
        FeatureCache(max_gb=1).space("abcdef0123456789", (4,), np.float16, about).writer() as writer
    ):
        for i in range(5):
            writer.append(f"{i:064x}", np.zeros(4, np.float16))


def test_cache_shows_what_is_there_and_clears_it(filled, clone, capsys):
    main.main(["cache"])
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("abcdef012345 ")
    assert first.endswith(" 1 segment at 96 px, view 1, pooling, litert")
    assert last.startswith("1 entries, 0.0 MB of 20000 MB, in ")
    main.main(["cache", "--clear"])
    assert "cleared 1 entries" in capsys.readouterr().out
    assert FeatureCache(max_gb=1).entries() == []
