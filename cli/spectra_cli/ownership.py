"""The ownership check of ``spectra.toml``: file and folder must belong to the user who runs spectra.

The rule is that of git's ``safe.directory``: the owner is the effective user; under ``sudo`` also the user who called
it. Nobody else's file is trusted, also not one of root where another user runs. Systems without user numbers have no
such check.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from spectra.errors import TaskError

_MOST_LINKS = 40  # as many as Linux follows


def check_ownership(toml: Path) -> None:
    """Check the file, the folder that it is in, and the same of every link on the way to its target.

    A file or folder that every user may write is refused too, whoever owns it. One that a group may write is accepted:
    on many systems each user has a group of their own, which may write all of the user's files.

    Raises:
        TaskError: another user owns one of them, or everybody may write it.
    """
    if not hasattr(os, "geteuid"):
        return
    trusted = _trusted()
    for place in _places(toml):
        found = place.lstat()
        if found.st_uid not in trusted:
            raise TaskError(
                f"{toml}: not used, since {_what(place, found)} belongs to {_user(found.st_uid)}, and spectra runs as "
                f"{_user(os.geteuid())}: name the task with --task, or change the owner of {place}"
            )
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & stat.S_IWOTH and not _sticky(found):
            raise TaskError(
                f"{toml}: not used, since every user may write {_what(place, found)} of {_user(found.st_uid)}: name "
                f"the task with --task, or take that right away (chmod o-w {place})"
            )


def _places(toml: Path) -> Iterator[Path]:
    """The folder of each name on the way to the file, and the name: that of a link before its target's."""
    name = toml
    for _ in range(_MOST_LINKS):
        folder = name.parent.resolve()
        name = folder / name.name
        yield folder
        yield name
        if not name.is_symlink():
            return
        name = folder / os.readlink(name)
    raise TaskError(f"{toml}: a loop of symbolic links")


def _trusted() -> set[int]:
    user = os.geteuid()
    caller = os.environ.get("SUDO_UID", "")
    return {user, int(caller)} if user == 0 and caller.isdecimal() else {user}


def _sticky(found: os.stat_result) -> bool:
    """Whether this is a folder like ``/tmp``, in which no user can replace the file of another."""
    return stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)


def _what(place: Path, found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return f"the link {place}"
    return f"the folder {place}" if stat.S_ISDIR(found.st_mode) else f"the file {place}"


def _user(number: int) -> str:
    """The name and number of a user.

    Example:
        >>> _user(2**31 - 7)
        'user 2147483641'
    """
    import pwd

    try:
        return f"{pwd.getpwuid(number).pw_name} (user {number})"
    except KeyError:
        return f"user {number}"
