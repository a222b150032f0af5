import hashlib
import json
from importlib import metadata

import pytest

from graft.system import installed
from graft.system.console import GraftError

DIGEST = hashlib.sha256(b"a wheel").hexdigest()
WHEEL = {
    "url": "file:///d/graft%20vision-0.1.0-py3-none-any.whl",
    "archive_info": {"hashes": {"sha256": DIGEST}},
}
COMMIT = {"url": "https://x/graft.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}


@pytest.fixture
def origin(monkeypatch):
    """origin(what the installer noted, version)"""

    def set(noted, version="1.2.0"):
        class Distribution:
            def read_text(self, name):
                return json.dumps(noted) if noted else None

        monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
        monkeypatch.setattr(metadata, "version", lambda name: version)

    return set


@pytest.mark.parametrize(
    ("noted", "line"),
    [
        ({}, "graft-vision[onnx]==1.2.0"),
        (WHEEL, f"graft-vision[onnx] @ {WHEEL['url']}#sha256={DIGEST}"),
        (COMMIT, f"graft-vision[onnx] @ git+https://x/graft.git@{'a' * 40}"),
    ],
)
def test_a_pin_is_met_by_what_it_pins_and_by_nothing_else(noted, line, origin, tmp_path):
    file = tmp_path / "requirements.txt"
    origin(noted)
    assert installed.pin(("onnx",)) == line
    file.write_text(f"# pins\n{line}\nnumpy\n")
    installed.check_pin(file)
    others = [
        ({}, "1.3.0"),
        ({**WHEEL, "archive_info": {"hash": f"sha256={'0' * 64}"}}, "1.3.0"),
        ({**COMMIT, "vcs_info": {"vcs": "git", "commit_id": "b" * 40}}, "1.3.0"),
    ]
    for other in others:
        origin(*other)
        with pytest.raises(
            GraftError, match=r"asks for graft-vision.* and graft 1.3.0 is installed.* -r .*\.txt$"
        ):
            installed.check_pin(file)


def test_an_installer_that_notes_no_digest_leaves_the_wheel_to_be_asked(origin, tmp_path):
    wheel = tmp_path / "a wheel.whl"
    wheel.write_bytes(b"a wheel")
    origin({"url": wheel.as_uri(), "archive_info": {}})
    assert installed.pin() == f"graft-vision @ {wheel.as_uri()}#sha256={DIGEST}"
    wheel.unlink()
    assert installed.pin() == "graft-vision==1.2.0"


def test_what_a_user_wrote_is_taken_as_pip_takes_it(origin, tmp_path):
    file = tmp_path / "requirements.txt"
    origin({})
    for line in ("graft-vision>=1.1,<2", "# nothing", "graft-vision[onnx] ~= 1.2"):
        file.write_text(line)
        installed.check_pin(file)
    for line in ("graft-vision>1.2", "graft-vision at home"):
        file.write_text(line)
        with pytest.raises(GraftError, match="another one"):
            installed.check_pin(file)
    installed.check_pin(tmp_path / "none.txt")


def test_a_clone_cannot_be_pinned(origin):
    origin({"url": "file:///clone", "dir_info": {"editable": True}})
    with pytest.raises(
        GraftError, match="graft runs from a clone, which no project can pin: `make wheel` there"
    ):
        installed.pin()
