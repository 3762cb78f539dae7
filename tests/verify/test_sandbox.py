"""Programs that mean harm are contained: by bubblewrap and by `unshare`, as root and as anybody else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.errors import RunError
from potstill.recipe.verify import SandboxSettings
from potstill.verify import isolation
from potstill.verify import sandbox as sandbox_module
from potstill.verify.isolation import bubblewrap, unshare
from potstill.verify.sandbox import Method, Run, Sandbox, _limits, _watched, interpreter

METHODS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("bubblewrap", "unshare")]
MOST_FORKS = 200
"""Even if it is not contained, the fork bomb of these tests stops there, and its children end by themselves."""

IS_ROOT = os.geteuid() == 0


def settings(method: Method, **more: object) -> SandboxSettings:
    return SandboxSettings.model_validate({"method": method, "wall_seconds": 10.0, **more})


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    found: Method = request.param
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """An argument by which a program is known, so that what it leaves behind is found."""
    made = uuid.uuid4().hex
    yield made
    assert_gone(made)


def running(mark: str) -> list[str]:
    """Command lines of live processes that have the mark, ourselves aside."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes()
                if mark.encode() in line:
                    found.append(line.decode().replace("\0", " ")[:200])
            except OSError:
                continue
    return found


def assert_gone(mark: str) -> None:
    """A killed process is a moment dying: longer than that, and it lives."""
    until = time.monotonic() + 120.0
    while running(mark) and time.monotonic() < until:
        time.sleep(0.01)
    assert running(mark) == []


def run(asked: SandboxSettings, program: str, mark: str, *arguments: str) -> Run:
    box = Sandbox(asked)
    command = [box.python, "-I", "/program/main.py", mark, *arguments]
    return box.run(command, {"main.py": textwrap.dedent(program)})


FORK_BOMB = f"""
    import os, time
    made = 0
    for _ in range({MOST_FORKS}):
        try:
            if os.fork() == 0:
                os.close(1); os.close(2)
                time.sleep(20)
                os._exit(0)
            made += 1
        except OSError:
            break
    print(made, flush=True)
"""


def test_a_fork_bomb_comes_to_the_limit(method: Method, mark: str) -> None:
    done = run(settings(method, processes=16), FORK_BOMB, mark)
    assert not done.stopped and done.status == 0, done
    assert 0 < int(done.out) < 16


def test_an_allocation_of_two_gibibytes_fails(method: Method, mark: str) -> None:
    done = run(settings(method, memory_megabytes=512), "x = bytearray(2 << 30); print('had it')", mark)
    assert "had it" not in done.out and "MemoryError" in done.err


def test_processes_do_not_take_together_what_one_may_not(method: Method, mark: str) -> None:
    program = """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                x = bytearray(150 << 20)
                x[::4096] = b"x" * len(x[::4096])
                time.sleep(60)
                os._exit(0)
        time.sleep(60)
        print("had it")
    """
    done = run(settings(method, memory_megabytes=300), program, mark)
    assert "together took more than 300 MB" in done.stopped


HANDED_ON = """
    import mmap, os, time
    # Each process fills a shared mapping and hands it on, unread, to a child: nobody has its pages mapped any more.
    for _ in range(6):
        held = mmap.mmap(-1, 100 << 20)
        for at in range(0, 100 << 20, 4096):
            held[at] = 1
        if os.fork():
            os.wait()
            os._exit(0)
    time.sleep(5)
    print("had it", flush=True)
"""


@pytest.mark.parametrize("counted_by", ["control group", "samples"])
def test_shared_pages_count_too(method: Method, mark: str, counted_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if counted_by == "samples":
        monkeypatch.setattr(isolation, "_parent", lambda: None)
    elif isolation._parent() is None:
        pytest.skip("no control group can be made here")
    done = run(settings(method, memory_megabytes=300, disk_megabytes=16), HANDED_ON, mark)
    assert "had it" not in done.out and "together took more than 300 MB" in done.stopped, done


def test_memory_that_belongs_to_no_process_is_refused(method: Method, mark: str) -> None:
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            os.memfd_create("x")
            print("memfd")
        except PermissionError:
            pass
        for what, call in {
            "segment": lambda: libc.shmget(0, 1 << 20, 0o1600),
            "user namespace": lambda: libc.unshare(0x10000000),
            "mount namespace": lambda: libc.unshare(0x00020000),
            "clone": lambda: libc.syscall(56 if os.uname().machine == "x86_64" else 220, 0x10000011, 0, 0, 0, 0),
        }.items():
            if call() != -1 or ctypes.get_errno() != 1:
                print(what, flush=True)
        import threading
        threading.Thread(target=lambda: print("and threads start")).start()
    """
    assert run(settings(method), program, mark).out == "and threads start\n"


def test_memory_is_counted_once_however_many_processes_share_it() -> None:
    program = (
        "import mmap, os, time\nheld = mmap.mmap(-1, 64 << 20)\nheld.write(b'x' * (64 << 20))\n"
        "own = bytearray(b'x') * (32 << 20)\n[os.fork() for _ in range(2)]\nprint('ready', flush=True)\ntime.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        assert 96 << 20 <= isolation.held_bytes([process.pid]) < 160 << 20
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


def test_endless_output_is_cut(method: Method, mark: str) -> None:
    done = run(settings(method, output_bytes=100_000), "while True: print('x' * 1000)", mark)
    assert done.stopped == "wrote more than 100000 bytes"
    assert len(done.out) <= 100_000 + (1 << 16)


def test_a_program_is_stopped_when_its_time_is_up(method: Method, mark: str) -> None:
    done = run(settings(method, wall_seconds=1.0), "while True: pass", mark)
    assert done.stopped == "not done within 1 s"
    assert done.seconds >= 1.0


def test_a_program_that_closed_its_output_is_stopped_too(method: Method, mark: str) -> None:
    done = run(settings(method, wall_seconds=1.0), "import os, time; os.close(1); os.close(2); time.sleep(30)", mark)
    assert done.stopped == "not done within 1 s"


CONNECT = """
    import socket, sys
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=2).close()
        print("connected")
    except OSError as error:
        print("no:", error)
"""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        yield listening


def test_there_is_no_network(method: Method, mark: str, server: socket.socket) -> None:
    done = run(settings(method), CONNECT, mark, str(server.getsockname()[1]))
    assert done.out.startswith("no:"), done
    with pytest.raises(TimeoutError):
        server.accept()


def test_the_server_of_these_tests_can_be_reached_without_walls(mark: str, server: socket.socket) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CONNECT), mark, str(server.getsockname()[1])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "connected\n"
    server.accept()[0].close()


def test_the_home_folder_and_other_files_are_not_there(method: Method, mark: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("told")
    secret.chmod(0o644)
    program = """
        import os, sys
        for path in sys.argv[2:]:
            try:
                print(open(path).read())
            except OSError as error:
                print(type(error).__name__)
        for folder, folders, files in os.walk(sys.argv[3]):
            if sys.prefix.startswith(folder) or folder.startswith(sys.prefix):
                folders[:] = [f for f in folders if not os.path.join(folder, f).startswith(sys.prefix)]
                print(*(os.path.join(folder, f) for f in files))
            else:
                print("found", folder)
    """
    done = run(settings(method), program, mark, str(secret), str(Path.home()), "/etc/shadow", "/proc/1/environ")
    assert "told" not in done.out and "found" not in done.out
    assert done.out.split()[0] == "FileNotFoundError"


def test_orphans_do_not_outlive_the_run(method: Method, mark: str) -> None:
    program = """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                if len(sys.argv) > 2:
                    os.close(0); os.close(1); os.close(2)
                time.sleep(600)
            os._exit(0)
        print("gone")
    """
    for more in ((), ("quiet",)):
        done = run(settings(method), program, mark, *more)
        assert done.out == "gone\n" and not done.stopped, done
        assert_gone(mark)


def test_nothing_is_written_outside(method: Method, mark: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    program = """
        import os, sys
        for folder in ["/", "/usr", "/etc", "/dev", "/program", "/proc", *sys.argv[2:]]:
            try:
                open(os.path.join(folder, "x"), "w").close()
                print("wrote", folder)
            except OSError:
                pass
        try:
            with open("/tmp/big", "wb") as file:
                for _ in range(100):
                    file.write(b"x" * (1 << 20))
            print("wrote 100 MB")
        except OSError:
            print("full")
    """
    done = run(settings(method, disk_megabytes=16), program, mark, str(tmp_path), str(Path.home()))
    assert "wrote" not in done.out, done.out
    assert done.out == "full\n" or done.status == -25 or done.status == 128 + 25, done  # SIGXFSZ ends it first
    assert list(tmp_path.iterdir()) == []


def test_signals_reach_nobody_outside(method: Method, mark: str) -> None:
    program = """
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in (os.getppid(), 1, int(sys.argv[2])):
            try:
                os.kill(pid, signal.SIGTERM) if pid else None
            except OSError as error:
                print(type(error).__name__)
        print("asked", flush=True)
        os.kill(-1, signal.SIGKILL)
    """
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        done = run(settings(method), program, mark, str(bystander.pid))
        assert "asked" in done.out and not done.stopped, done
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


# ---- as somebody who is not root -----------------------------------------------------------------------------

SHELL_BOMB = "i=0; while [ $i -lt 60 ]; do sleep 20 >/dev/null 2>&1 & i=$((i+1)); echo $i; done"
SHELL_PROGRAM = f"cat /etc/shadow; touch /usr/x; touch /program/x; touch /tmp/mine && echo made; {SHELL_BOMB}; echo all"


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(bubblewrap, marks=pytest.mark.needs("bubblewrap"), id="bubblewrap"),
        pytest.param(unshare, marks=pytest.mark.needs("unshare"), id="unshare"),
    ],
)
def test_anybody_else_than_root_is_contained_too(build: object, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shell is in /usr: the interpreter of these tests may lie where only root may look.
    if IS_ROOT and Path("/usr/bin/python3").exists():
        monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    asked = SandboxSettings(processes=16, wall_seconds=10.0)
    with tempfile.TemporaryDirectory() as made, Path(os.devnull).open("rb") as nothing:
        Path(made).chmod(0o755)
        script = f"{SHELL_PROGRAM}; : {mark}"
        inner = build(["/bin/sh", "-c", script], Path(made), (), _limits(asked), root=False)  # type: ignore[operator]
        somebody = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"] if IS_ROOT else []
        command = [*somebody, *inner]
        done = _watched(command, nothing.fileno(), asked, None)
    assert not done.stopped, done
    said = done.out.split()
    assert said[0] == "made" and "all" not in said and 0 < int(said[-1]) < 16, done
    assert "Cannot fork" in done.err and done.err.count("Read-only file system") == 2, done
    assert "/etc/shadow: No such file" in done.err, done


# ---- choosing ------------------------------------------------------------------------------------------------


def test_without_a_working_method_programs_are_refused_unless_unsafe(
    monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setattr(sandbox_module, "why_not", lambda method: "the moon is full")
    with pytest.raises(RunError, match=r"(?s)bubblewrap: the moon is full; unshare: .*unsafe: true"):
        Sandbox(SandboxSettings())
    asked = SandboxSettings(unsafe=True, wall_seconds=1.0)
    assert Sandbox(asked).method == "none"
    done = run(asked, "print('ran')", mark)
    assert done.out == "ran\n"
    assert run(asked, "while True: pass", mark).stopped == "not done within 1 s"


def test_bubblewrap_comes_first_then_unshare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "why_not", lambda method: None)
    assert Sandbox(SandboxSettings()).method == "bubblewrap"
    monkeypatch.setattr(sandbox_module, "why_not", lambda method: "no" if method == "bubblewrap" else None)
    assert Sandbox(SandboxSettings(unsafe=True)).method == "unshare"


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(RunError, match=r"no interpreter here"):
        interpreter(Path("/no/such/python"))


def test_another_interpreter_comes_with_its_packages(method: Method, mark: str) -> None:
    done = run(settings(method, python=sys.executable), "import pydantic; print('found')", mark)
    assert done.out == "found\n", done
