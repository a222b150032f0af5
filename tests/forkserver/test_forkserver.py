"""The fork server behind the stages: a stage that runs in its fork is, from outside, what it would
be by itself."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft.forkserver import client, server

ROOT = Path(__file__).resolve().parents[2]
# A process that is called dvc: it runs the commands that it reads, one after the other, and ends
# with its input.
DVC = """
import json, subprocess, sys
for line in sys.stdin:
    command, options = json.loads(line)
    done = subprocess.run(command, capture_output=True, text=True, **options)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
"""
STAGE = """
import json, os, resource, sys, time
from pathlib import Path
from graft.forkserver import client
from graft.system import answer, console

@console.entry
def main():
    import decimal
    print(json.dumps({
        "pid": os.getpid(), "parent": os.getppid(), "folder": os.getcwd(),
        "mark": os.environ.get("MARK"), "arguments": sys.argv, "path": sys.path[0],
        "name": __name__, "file": sys.modules["__main__"].__file__, "answer": answer.ANSWER,
        "forked": os.environ.get("GRAFT_FORKED"), "nice": os.nice(0),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "mask": os.umask(0), "processors": len(os.sched_getaffinity(0)),
    }), flush=True)
    what = sys.argv[1:]
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
            Path("waiting").write_text(str(os.getpid()))
            time.sleep(60)
        finally:
            Path("ended").write_text("cleanly")

if __name__ == "__main__":
    client.run("stages.probe", main)
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="this machine does without a server (see client.usable)",
)


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Dvc:
    """Something called `dvc` that runs in a clone."""

    def __init__(self, folder):
        self.folder, self.forks = folder, False
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "dvc")],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, *what, command=(), env=None, **options):
        """Start the probe of a stage."""
        asked = [
            [*command, sys.executable, "-m", "stages.probe", *what],
            {"env": {**os.environ, **(env or {})}, **options},
        ]
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def finish(self):
        """(exit status, what it said of itself, further lines of its output, its stderr)"""
        status, out, err = json.loads(self.process.stdout.readline())
        first, *lines = out.splitlines() or ["{}"]
        return status, json.loads(first), lines, err

    def probe(self, *what, **options):
        self.begin(*what, **options)
        return self.finish()

    def served(self):
        """What a stage says of itself that ran in the fork server, once it does."""

        def in_a_fork():
            _, said, _, _ = self.probe()
            return said if self.is_fork(said) else None

        return wait_for(in_a_fork, "no stage was run by the server")

    def is_fork(self, said):
        """Whether the stage was run by the server, which is no child of the dvc."""
        return said["parent"] != self.process.pid

    def folders(self):
        return list((self.folder / ".dvc" / "tmp" / "graft-forkserver").glob("*"))

    def end(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        wait_for(lambda: not self.folders(), "the server outlives its dvc")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose fork server imports next to nothing."""
    monkeypatch.delenv(client.SWITCH, raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    # Longer than the address of a socket may be.
    folder = tmp_path / ("a clone with a long path " + 90 * "x")
    for name in ("forkserver", "system"):
        shutil.copytree(
            ROOT / "graft" / name,
            folder / "graft" / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("dvc.yaml", "graft/__init__.py", "stages/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "dvc").write_text(DVC)
    (folder / "stages" / "probe.py").write_text(STAGE)
    (folder / "graft" / "system" / "answer.py").write_text("ANSWER = 41\n")
    code = (folder / "graft" / "forkserver" / "server.py").read_text()
    code, found = re.subn(
        r"PACKAGES = \(\n.*?\n\)", 'PACKAGES = ("decimal",)', code, flags=re.DOTALL
    )
    assert found == 1
    (folder / "graft" / "forkserver" / "server.py").write_text(code)
    return folder


@pytest.fixture
def dvc(clone):
    dvc = Dvc(clone)
    yield dvc
    dvc.end()


def test_a_stage_in_a_fork_has_its_own_folder_environment_arguments_and_streams(clone, dvc):
    first = dvc.served()
    status, said, lines, err = dvc.probe("read", env={"MARK": "mine"}, input="hello\n")
    assert (status, lines, err) == (0, ["HELLO"], "")
    assert said["parent"] == first["parent"], "the same server"
    assert (said["folder"], said["path"], said["mark"]) == (str(clone), str(clone), "mine")


def test_a_stage_in_a_fork_is_run_as_python_runs_a_module(clone, dvc):
    _, by_itself, _, _ = dvc.probe("mistake", env={client.SWITCH: "0"})
    assert not dvc.is_fork(by_itself)
    dvc.served()
    _, forked, _, _ = dvc.probe("mistake")
    assert dvc.is_fork(forked)
    for said in (by_itself, forked):
        del said["pid"], said["parent"]
    assert forked == by_itself
    assert forked["arguments"] == [str(clone / "stages" / "probe.py"), "mistake"]
    assert (forked["name"], forked["file"], forked["forked"]) == (
        "__main__",
        forked["arguments"][0],
        None,
    )


def test_it_has_the_callers_limits_and_not_the_servers(dvc):
    before = dvc.served()
    shell = 'ulimit -n 99; umask 027; exec nice -n 3 "$0" "$@"'
    _, said, _, _ = dvc.probe(command=("sh", "-c", shell))
    assert dvc.is_fork(said)
    assert (said["files"], said["mask"], said["nice"]) == (99, 0o27, before["nice"] + 3)


def test_both_packages_are_read_anew_for_each_stage(clone, dvc):
    first = dvc.served()
    (clone / "graft" / "system" / "answer.py").write_text("ANSWER = 'edited'\n")
    stage = clone / "stages" / "probe.py"
    stage.write_text(
        stage.read_text().replace('"folder": os.getcwd()', '"folder": "edited as well"')
    )
    _, said, _, _ = dvc.probe()
    assert (said["parent"], said["answer"], said["folder"]) == (
        first["parent"],
        "edited",
        "edited as well",
    )


def test_another_form_of_its_own_code_is_another_server(clone, dvc):
    first = dvc.served()
    with (clone / "graft" / "forkserver" / "client.py").open("a") as code:
        code.write("# edited\n")
    assert dvc.served()["parent"] != first["parent"]


def test_exit_status_and_messages_are_those_of_the_stage(dvc):
    first = dvc.served()
    status, said, _, err = dvc.probe("mistake")
    assert (said["parent"], status, err) == (first["parent"], 1, "error: so and so: do this\n")
    status, _, _, err = dvc.probe("crash")
    assert status == 1 and "ValueError: a defect" in err
    assert dvc.probe("die")[0] == -signal.SIGKILL
    assert dvc.probe()[1]["parent"] == first["parent"], "the server outlives the stages that fail"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_to_end_the_process_that_dvc_sees_ends_the_stage(clone, dvc, number):
    first = dvc.served()
    # Tests in the background are run with SIGINT ignored, and so would be the stage.
    dvc.begin("wait", command=("env", "--default-signal=INT"))
    stage = int(
        wait_for(
            lambda: (clone / "waiting").exists() and (clone / "waiting").read_text(),
            "no stage waits",
        )
    )
    (seen,) = Path(f"/proc/{dvc.process.pid}/task/{dvc.process.pid}/children").read_text().split()
    assert int(seen) != stage
    os.kill(int(seen), number)
    status, said, _, _ = dvc.finish()
    assert (status, said["pid"], said["parent"]) == (
        130 if number == signal.SIGINT else -number,
        stage,
        first["parent"],
    )
    wait_for(lambda: not is_running(stage), "the stage goes on")
    assert (clone / "ended").exists() == (number == signal.SIGINT)


def test_a_killed_server_takes_its_stage_with_it(clone, dvc):
    parent = dvc.served()["parent"]
    dvc.begin("wait")
    stage = int(
        wait_for(
            lambda: (clone / "waiting").exists() and (clone / "waiting").read_text(),
            "no stage waits",
        )
    )
    os.kill(parent, signal.SIGKILL)
    status, _, _, err = dvc.finish()
    assert (status, err) == (
        1,
        "error: the fork server ended before the stage; try again, or set GRAFT_FORKSERVER=0\n",
    )
    wait_for(lambda: not is_running(stage), "two writers at the next try")
    assert not dvc.is_fork(dvc.probe()[1])
    for left in dvc.folders():  # by the server of a later dvc
        assert str(dvc.process.pid) in left.name
        shutil.rmtree(left)


@pytest.mark.parametrize("served", [True, False])
def test_a_killed_dvc_takes_its_stage_with_it(clone, served):
    dvc = Dvc(clone)
    if served:
        dvc.served()
    dvc.begin("wait", env={} if served else {client.SWITCH: "0"})
    stage = int(
        wait_for(
            lambda: (clone / "waiting").exists() and (clone / "waiting").read_text(),
            "no stage waits",
        )
    )
    dvc.process.kill()
    dvc.process.wait()
    wait_for(lambda: not is_running(stage), "two writers at the next try")
    assert not (clone / "ended").exists()
    wait_for(lambda: not dvc.folders(), "the server outlives its dvc")
    dvc.process.stdin.close()
    dvc.process.stdout.close()


def test_the_server_ends_with_its_dvc_and_leaves_nothing(clone):
    dvc, other = Dvc(clone), Dvc(clone)
    first, second = dvc.served()["parent"], other.served()["parent"]
    assert first != second, "a dvc has its own"
    dvc.process.stdin.close()
    dvc.process.wait(60)
    wait_for(lambda: not is_running(first), "the server outlives its dvc")
    assert is_running(second)
    (left,) = wait_for(lambda: len(other.folders()) == 1 and other.folders(), "the folder is left")
    assert left.stat().st_mode & 0o777 == 0o700
    other.end()
    dvc.process.stdout.close()
    wait_for(lambda: not is_running(second), "the other server outlives its dvc")


def test_what_a_killed_server_left_is_swept_by_the_next(clone):
    left = clone / ".dvc" / "tmp" / "graft-forkserver" / "999999999-1-00000000"
    left.mkdir(parents=True)
    dvc = Dvc(clone)
    dvc.served()
    assert not left.exists()
    dvc.end()


def test_other_settings_of_the_packages_are_not_for_this_server(dvc):
    dvc.served()
    assert not dvc.is_fork(dvc.probe(env={"OMP_NUM_THREADS": "1"})[1])
    assert dvc.is_fork(dvc.probe(env={"UNREAD": "1"})[1])


def test_without_a_dvc_there_is_no_server(clone):
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "stages.probe"],
            cwd=clone,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["parent"] == os.getpid()
    assert not (clone / ".dvc").exists()


@pytest.mark.parametrize(
    ("what", "usable"),
    [
        ("nothing", True),
        ("switch", False),
        ("one processor", False),
        ("debugger", False),
        ("other system", False),
    ],
)
def test_usable(monkeypatch, what, usable):
    monkeypatch.delenv(client.SWITCH, raising=False)
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    if what == "switch":
        monkeypatch.setenv(client.SWITCH, "0")
    elif what == "one processor":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    elif what == "debugger":
        monkeypatch.setattr(sys, "gettrace", lambda: print)
    elif what == "other system":
        monkeypatch.setattr(sys, "platform", "darwin")
    assert client.usable() == usable


@pytest.mark.parametrize(("mode", "trusted"), [(0o700, True), (0o755, False), (0o710, False)])
def test_a_folder_that_others_can_enter_is_not_used(tmp_path, mode, trusted):
    with socket.socket(socket.AF_UNIX) as listener:
        with client.short_path(tmp_path) as place:
            listener.bind(f"{place}/socket")
        listener.listen()
        tmp_path.chmod(mode)
        connection = client._connect(tmp_path)
        assert (connection is not None) == trusted
        if connection:
            connection.close()


def test_with_a_gpu_a_server_ends_and_no_other_tries(clone, monkeypatch):
    """A fork after the driver has been initialised is not safe."""
    monkeypatch.chdir(clone)
    dvc = (os.getpid(), client.process_times(os.getpid())[1])
    imports = []
    monkeypatch.setattr(server, "import_packages", lambda: imports.append(1))
    monkeypatch.setattr(server, "_has_gpu", lambda: True)
    for _ in range(2):
        assert server.serve(dvc) is None
        monkeypatch.chdir(clone)
    assert imports == [1]


def test_has_gpu_asks_tensorflow(monkeypatch):
    class Config:
        found = []

        @classmethod
        def list_physical_devices(cls, kind):
            return {"GPU": cls.found}[kind]

    class TensorFlow:
        config = Config

    monkeypatch.setitem(sys.modules, "tensorflow", TensorFlow)
    assert not server._has_gpu()
    Config.found = ["one"]
    assert server._has_gpu()
    monkeypatch.delattr(TensorFlow, "config")
    assert server._has_gpu(), "where it cannot say, there may be one"


def test_each_dvc_of_one_search_is_served_by_the_searchs_server(clone, monkeypatch):
    monkeypatch.setenv(client.LENT, client.lend()[client.LENT])  # this process is the search
    one, other = Dvc(clone), Dvc(clone)
    server = one.served()["parent"]
    try:
        one.process.stdin.close()
        one.process.wait(60)
        assert other.probe()[1]["parent"] == server
        assert [folder.name.split("-")[0] for folder in other.folders()] == [str(os.getpid())]
    finally:
        os.kill(server, signal.SIGKILL)
        for each in (one, other):
            each.process.stdin.close()
            each.process.wait(60)
            each.process.stdout.close()


def test_a_search_that_is_no_ancestor_lends_nothing(clone, monkeypatch):
    monkeypatch.setenv(client.LENT, "1 1")
    dvc = Dvc(clone)
    dvc.served()
    assert dvc.folders()[0].name.startswith(f"{dvc.process.pid}-")
    dvc.end()
