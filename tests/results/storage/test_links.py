"""Links, FIFOs, devices and folders under the names that a run uses: nothing waits, nothing else is changed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap

import pytest
from programs import environment
from run_files import SETTINGS, make_record

from spectra.errors import CheckpointError, StorageError
from spectra.results.storage import atomic_write as replacing
from spectra.results.storage import lock as locking
from spectra.results.storage.atomic_write import check_writable, replace_file
from spectra.results.storage.lock import only_writer, refuse_if_written
from spectra.results.storage.merge import merge
from spectra.results.storage.partial import Partial, PartialFile
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.results.storage.safe_open import resolved

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and FIFOs of POSIX systems")

SECRET = b"a private key\n" * 100


@pytest.fixture(autouse=True)
def no_waiting():
    """A test that opens a FIFO would wait for ever: it ends after a minute."""

    def late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "id_rsa"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder / "run.h5"


def put_socket(place):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(place.parent)  # the path of a socket must be short
        try:
            server.bind(place.name)
        finally:
            os.chdir(here)


PUT = {
    "link": lambda place, secret: place.symlink_to(secret),
    "relative link": lambda place, secret: place.symlink_to(os.path.relpath(secret, place.parent)),
    "link to a link": lambda place, secret: (
        place.with_name("other").symlink_to(secret),
        place.symlink_to(place.with_name("other")),
    ),
    "hard link": lambda place, secret: os.link(secret, place),
    "dangling link": lambda place, secret: place.symlink_to(secret.with_name("not there")),
    "link to a folder": lambda place, secret: place.symlink_to(secret.parent),
    "loop": lambda place, secret: place.symlink_to(place),
    "fifo": lambda place, secret: os.mkfifo(place),
    "link to a fifo": lambda place, secret: (
        os.mkfifo(secret.with_name("fifo")),
        place.symlink_to(secret.with_name("fifo")),
    ),
    "socket": lambda place, secret: put_socket(place),
    "folder": lambda place, secret: place.mkdir(),
    "device": lambda place, secret: place.symlink_to("/dev/full"),
}


def names(folder):
    return sorted(os.listdir(folder))


def refused(caught):
    words = str(caught.value)
    assert "\n" not in words
    return words


# -- the lock


@pytest.mark.parametrize("kind", PUT)
def test_what_has_the_name_of_the_lock_is_neither_written_nor_removed(path, secret, kind):
    lock = path.with_name(".run.h5.lock")
    PUT[kind](lock, secret)
    before = names(path.parent), lock.lstat()
    refuse_if_written(path)
    words = r"run\.h5: its lock file \.run\.h5\.lock .*; remove it if"
    with pytest.raises(StorageError, match=words) as caught, only_writer(path):
        pytest.fail("the lock was taken")
    refused(caught)
    assert (names(path.parent), lock.lstat().st_ino) == (before[0], before[1].st_ino)
    assert secret.read_bytes() == SECRET
    assert not secret.with_name("not there").exists()


ANOTHER_USER = """
import errno, os, sys
from spectra.results.storage import lock as locking
from spectra.results.storage import safe_open as regular
real = os.open
def refuse(path, flags, *rest, **options):
    if flags & os.O_RDWR and os.path.exists(path):
        raise PermissionError(errno.EACCES, "Permission denied")
    return real(path, flags, *rest, **options)
{refusing}
from spectra.errors import StorageError
try:
    with locking.only_writer({path!r}):
        print("held", flush=True)
        sys.stdin.read()
except StorageError as error:
    print(error, flush=True)
"""
NOT_MINE = "os.open = refuse"


def start(path, refusing=""):
    program = textwrap.dedent(ANOTHER_USER).replace("{path!r}", repr(str(path))).replace("{refusing}", refusing)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )


def said(process):
    return process.stdout.readline()


@pytest.mark.parametrize("removable", [True, False])
def test_a_lock_that_another_user_left_stands_in_nobodys_way(path, monkeypatch, removable):
    lock = path.with_name(".run.h5.lock")
    lock.write_text(json.dumps({"process": 1, "machine": "m", "command": "c"}))
    before = lock.read_bytes()
    real = os.open

    def refuse(place, flags, *rest, **options):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(place, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    if not removable:  # a folder like /tmp

        def keep(*_, **__):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("pathlib.Path.unlink", keep)
    with only_writer(path):
        assert lock.read_bytes() == before
    assert lock.exists() != removable
    with only_writer(path) if removable is False else open(os.devnull):
        pass


@pytest.mark.parametrize(("first", "second"), [(NOT_MINE, NOT_MINE), (NOT_MINE, ""), ("", NOT_MINE)])
def test_two_live_writers_exclude_each_other_whoever_owns_the_lock(path, first, second):
    path.with_name(".run.h5.lock").write_text('{"process": 1, "machine": "m", "command": "c"}')
    one = start(path, first)
    assert said(one) == "held\n"
    with pytest.raises(StorageError, match="is writing it; wait for it") as caught:
        refuse_if_written(path)
    # A lock file that its holder could not write names a process that is long gone.
    expected = "another process (whose number is not" if first else f"process {one.pid} on"
    assert expected in refused(caught)
    other = start(path, second)
    assert expected in said(other)
    other.communicate("")
    one.communicate("")
    again = start(path, second)
    assert said(again) == "held\n"
    again.communicate("")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("mode", [0o1777, 0o777])
@pytest.mark.parametrize("readable", [True, False])
def test_another_user_in_a_shared_folder(tmp_path, mode, readable):
    """Truly another one: in a folder like /tmp, where only the owner removes a file, and in one where anyone does."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            if folder.name.startswith("pytest-") or folder == tmp_path or folder.parent.name.startswith("pytest-"):
                folder.chmod(0o711)
            else:
                pytest.skip(f"{folder} is closed to others")
    shared.chmod(mode)
    lock = shared / ".run.h5.lock"
    lock.write_text("{}")
    lock.chmod(0o644 if readable else 0o600)

    def as_nobody():
        receive, send = os.pipe()
        number = os.fork()
        if number == 0:
            words = "held"
            try:
                locking._HELD.clear()
                os.setgid(65534)
                os.setuid(65534)
                with only_writer(shared / "run.h5"):
                    pass
            except BaseException as error:
                words = str(error)
            finally:
                os.write(send, words.encode())
                os._exit(0)
        os.close(send)
        os.waitpid(number, 0)
        with open(receive) as pipe:
            return pipe.read()

    if not readable:
        assert "cannot be used: Permission denied; remove it if no run is writing there" in as_nobody()
        return
    lock.unlink()
    with only_writer(shared / "run.h5"):  # a live writer
        lock.chmod(0o644)
        assert f"process {os.getpid()} on" in as_nobody()
    lock.write_text("{}")
    assert as_nobody() == "held"
    assert lock.exists() == (mode == 0o1777)


def test_a_lock_that_cannot_be_opened_at_all_is_one_line(path, monkeypatch):
    path.with_name(".run.h5.lock").write_text("x")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="cannot be used: Permission denied; remove it if no run"), only_writer(path):
        pass


def test_the_words_of_a_lock_file_are_plain(path):
    one = start(path)
    assert said(one) == "held\n"
    words = {"process": one.pid, "machine": "\x1b[31mred\x07", "command": "x" * 9000 + "\n"}
    path.with_name(".run.h5.lock").write_text(json.dumps(words)[:4000])
    with pytest.raises(StorageError) as caught, only_writer(path):
        pass
    assert str(caught.value).isprintable()
    path.with_name(".run.h5.lock").write_text(json.dumps(words | {"command": "c"}))
    with pytest.raises(StorageError, match=r"on \?\[31mred\? \(c\)"), only_writer(path):
        pass
    one.communicate("")


# -- temporary files


def test_no_name_of_a_temporary_file_can_be_known_before(path, secret, monkeypatch):
    seen = []
    real = os.open

    def spy(place, flags, *rest, **options):
        if str(place).endswith(".part"):
            seen.append(place.name)
            assert flags & os.O_EXCL
            assert flags & os.O_NOFOLLOW
        return real(place, flags, *rest, **options)

    monkeypatch.setattr(os, "open", spy)
    for _ in range(3):
        replace_file(path, b"x")
    assert len(set(seen)) == 3
    # The name that earlier versions would have used.
    for name in (f"{replacing._prefix(path)}{os.getpid()}.part", *seen):
        path.with_name(name).symlink_to(secret)
    replace_file(path, b"y")
    assert (path.read_bytes(), secret.read_bytes()) == (b"y", SECRET)


def test_a_name_that_is_taken_is_never_written_to(path, secret, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda *_: "00")
    for kind in ("link", "hard link", "dangling link"):
        place = path.with_name(f"{replacing._prefix(path)}{os.getpid()}-00.part")
        PUT[kind](place, secret)
        with pytest.raises(StorageError, match="cannot be written") as caught:
            replace_file(path, b"x")
        refused(caught)
        assert not path.exists()
        assert secret.read_bytes() == SECRET
        place.unlink(missing_ok=True)
    assert not secret.with_name("not there").exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "fifo", "loop"])
def test_what_has_the_name_of_a_leftover_goes_without_its_target(path, secret, kind):
    gone = 2**22 + 1  # no process has this number
    place = path.with_name(f"{replacing._prefix(path)}{gone}-0123456789abcdef.part")
    PUT[kind](place, secret)
    check_writable(path, shown="run.h5")
    assert secret.read_bytes() == SECRET
    assert names(path.parent) == ([place.name] if kind == "folder" else [])


def test_leftovers_of_a_name_with_brackets_are_found(path):
    path = path.with_name("run[1].h5")
    path.with_name(f"{replacing._prefix(path)}{2**22 + 1}.part").write_bytes(b"x")
    check_writable(path, shown="run")
    assert names(path.parent) == []


def test_the_permissions_of_a_file_last_and_privileges_do_not(path):
    path.write_bytes(b"x")
    path.chmod(0o4640)
    replace_file(path, b"y")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# -- the finished probes


@pytest.mark.parametrize("kind", sorted(set(PUT) - {"hard link"}))
def test_finished_probes_are_read_from_a_file_alone(path, secret, kind):
    file = PartialFile(path)
    PUT[kind](file.path, secret)
    with pytest.raises(StorageError, match=r"run\.h5\.partial: ") as caught:
        file.read()
    refused(caught)
    with contextlib.suppress(StorageError):  # what is there is replaced, or is no file that can be
        file.write(Partial({}, {}, [[]]))
    assert secret.read_bytes() == SECRET


# -- results files


IRREGULAR = ("loop", "fifo", "link to a fifo", "socket", "folder", "link to a folder", "device")


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_refused_at_once(path, secret, kind):
    PUT[kind](path, secret)
    before = names(path.parent)
    for use in (
        load_trajectory,
        lambda place: RunFile.open(place, SETTINGS),
        lambda place: merge([place], place.with_name("out.h5")),
        lambda place: merge([place], place),
        lambda place: replace_file(place, b"x"),
    ):
        with pytest.raises(StorageError, match=rf"^{path}: ") as caught:
            use(path)
        refused(caught)
    assert [name for name in names(path.parent) if name != "out.h5"] == before


@pytest.mark.parametrize("kind", IRREGULAR)
def test_the_commands_refuse_it_in_one_line(path, secret, kind):
    pytest.importorskip("torch")
    PUT[kind](path, secret)
    (path.parent / "a.pt").write_bytes(b"x")
    for command in (["show", "run.h5"], ["analyze", "a.pt", "--task", "digits-convnet", "--out", "run.h5"]):
        if command[0] == "analyze" and kind != "fifo":  # it is slow to start
            continue
        done = subprocess.run(
            [sys.executable, "-m", "spectra_cli.main", *command],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=path.parent,
            env=environment(),
        )
        assert done.returncode != 0
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert "run.h5" in lines[0]


@pytest.mark.parametrize("kind", ["link", "link to a link", "dangling link"])
def test_an_output_that_is_a_link_leads_to_its_file(path, tmp_path, kind):
    there = tmp_path / "elsewhere.h5"
    if kind != "dangling link":
        RunFile.open(there, SETTINGS).append(make_record(0))
    PUT[kind](path, there if kind != "dangling link" else tmp_path / "x")
    with only_writer(path):
        RunFile.open(path, SETTINGS).append(make_record(1))
    assert path.is_symlink()
    assert len(load_trajectory(path)) == (1 if kind == "dangling link" else 2)


def test_a_loop_of_two_links_is_named(tmp_path):
    (tmp_path / "a.h5").symlink_to(tmp_path / "b.h5")
    (tmp_path / "b.h5").symlink_to(tmp_path / "a.h5")
    for place in (tmp_path / "a.h5", tmp_path / "a.h5" / "run.h5"):
        with pytest.raises(StorageError, match="symbolic links form a loop; remove the link"):
            resolved(place)


# -- checkpoints


def save(path):
    torch = pytest.importorskip("torch")
    from spectra import save_checkpoint

    save_checkpoint(path, torch.nn.Linear(2, 2), epoch=1)


def test_saving_a_checkpoint_touches_no_other_file(path, secret):
    path = path.with_name("a.pt")
    for name in (f".a.pt.{os.getpid()}.part", f"{replacing._prefix(path)}{os.getpid()}.part"):
        path.with_name(name).symlink_to(secret)
    path.symlink_to(secret)
    save(path)
    assert secret.read_bytes() == SECRET
    assert not path.is_symlink()
    os.unlink(path)
    os.link(secret, path)
    save(path)
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("kind", IRREGULAR)
def test_a_checkpoint_that_is_no_regular_file_is_refused_at_once(path, secret, kind):
    pytest.importorskip("torch")
    from spectra import load_checkpoint

    path = path.with_name("a.pt")
    PUT[kind](path, secret)
    before = names(path.parent)
    with pytest.raises(CheckpointError, match=rf"^{path}: cannot be written: ") as caught:
        save(path)
    refused(caught)
    with pytest.raises(CheckpointError, match=rf"^{path}: ") as caught:
        load_checkpoint(path)
    refused(caught)
    assert names(path.parent) == before
