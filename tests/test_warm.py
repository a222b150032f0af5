"""The helper process behind the stages: a stage that runs in its fork is, from outside, what it would be by itself."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stages import warm

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import json, os, sys, time
from pathlib import Path
from stages import console, warm

@console.entry
def main():
    import decimal
    what = sys.argv[1:]
    facts = {"parent": os.getppid(), "folder": os.getcwd(), "mark": os.environ.get("MARK"), "what": what,
             "helped": os.getsid(0)}
    print(json.dumps(facts), flush=True)
    if what == ["mistake"]:
        raise console.GraftError("so and so: do this")
    if what == ["crash"]:
        raise ValueError("a defect")
    if what == ["die"]:
        os.kill(os.getpid(), 9)
    if what == ["read"]:
        print(sys.stdin.readline().strip().upper())
    if what == ["wait"]:
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            Path("ended").write_text("cleanly")

if __name__ == "__main__":
    warm.run("stages.probe", main)
"""

pytestmark = pytest.mark.skipif(
    not warm.usable() and os.environ.get("GRAFT_WARM") != "0", reason="this machine does without a helper (see warm.usable)"
)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose helper imports next to nothing, and its probe of a stage."""
    monkeypatch.setenv("GRAFT_WARM", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    if not warm.usable():
        pytest.skip("this machine does without a helper (see warm.usable)")
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dvc.yaml").touch()
    (folder / "stages" / "probe.py").write_text(PROBE)
    code = (folder / "stages" / "warm.py").read_text()
    start = code.index("PACKAGES = (")
    code = code[:start] + 'PACKAGES = ("decimal",)' + code[code.index(")\n", start) + 1 :]
    (folder / "stages" / "warm.py").write_text(code)
    yield folder
    shutil.rmtree(folder)  # ends the helper


def probe(folder, *what, **options):
    import json

    done = subprocess.run(
        [sys.executable, "-m", "stages.probe", *what], cwd=folder, capture_output=True, text=True, timeout=60, **options
    )
    return done, json.loads(done.stdout.splitlines()[0])


def started(folder):
    """A clone whose helper runs. Returns the session of the stage that started it."""
    _, facts = probe(folder)
    deadline = time.monotonic() + 30
    while True:
        _, next_ = probe(folder)
        if next_["helped"] != facts["helped"]:
            return next_
        assert time.monotonic() < deadline, "no stage was run by the helper"
        time.sleep(0.2)


def test_a_stage_in_the_helper_has_its_own_folder_environment_arguments_and_streams(clone):
    first = started(clone)
    done, facts = probe(clone, "read", input="hello\n", env={**os.environ, "MARK": "mine"})
    assert done.returncode == 0
    assert facts["parent"] == first["parent"], "the same helper"
    assert facts["folder"] == str(clone)
    assert facts["mark"] == "mine"
    assert facts["what"] == ["read"]
    assert done.stdout.splitlines()[1] == "HELLO"
    assert done.stderr == ""


def test_a_stage_in_the_helper_runs_the_code_of_its_own_folder_as_it_is_now(clone):
    first = started(clone)
    probe_file = clone / "stages" / "probe.py"
    probe_file.write_text(probe_file.read_text().replace('"folder": os.getcwd()', '"folder": "edited"'))
    _, facts = probe(clone)
    assert (facts["parent"], facts["folder"]) == (first["parent"], "edited")


def test_exit_status_and_messages_are_those_of_the_stage(clone):
    first = started(clone)
    mistake, facts = probe(clone, "mistake")
    assert facts["parent"] == first["parent"]
    assert (mistake.returncode, mistake.stderr) == (1, "error: so and so: do this\n")
    crash, _ = probe(clone, "crash")
    assert crash.returncode == 1
    assert "ValueError: a defect" in crash.stderr
    killed, _ = probe(clone, "die")
    assert killed.returncode == -signal.SIGKILL
    assert probe(clone)[1]["parent"] == first["parent"], "the helper outlives the stages that fail"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_to_end_the_process_that_dvc_sees_ends_the_stage(clone, number):
    started(clone)
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.probe", "wait"],
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background are run with it ignored
    )
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(number)
    assert process.wait(30) == (130 if number == signal.SIGINT else -number)
    process.communicate()
    if number == signal.SIGINT:
        assert (clone / "ended").read_text() == "cleanly"


def test_other_settings_of_the_packages_get_a_helper_of_their_own(clone):
    started(clone)
    _, facts = probe(clone, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "1", "OMP_NUM_THREADS": "1"})
    assert facts["helped"] == os.getsid(0), "no helper has these settings: the stage runs by itself"


def test_the_helper_can_be_done_without(clone):
    started(clone)
    _, facts = probe(clone, env={**os.environ, "GRAFT_WARM": "0"})
    assert facts["helped"] == os.getsid(0)


def test_the_helper_ends_with_its_clone(clone):
    helper = started(clone)["parent"]
    (clone / "dvc.yaml").unlink()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{helper}/cmdline").exists() and Path(f"/proc/{helper}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_folder_that_others_can_enter_is_not_used(monkeypatch, request):
    short = tempfile.mkdtemp(prefix="g")  # a socket's path may have 107 bytes, and pytest's folders take most of them
    request.addfinalizer(lambda: shutil.rmtree(short))
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: short)
    address = warm._address()
    assert warm._connect(address) is None
    address.parent.chmod(0o755)
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        assert warm._connect(address) is None
        address.parent.chmod(0o700)
        with warm._connect(address) as connection:
            assert connection is not None
