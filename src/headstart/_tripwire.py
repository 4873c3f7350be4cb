"""The tripwire: what a call does past every seam while its effects are held.

Rules of this file:

1. Off, or outside of a call that is not confirmed, the hook does nothing and costs next
   to nothing: the tests come in that order.
2. The hook can raise and cannot wait. So it gives a call up, or only notes what it saw.
3. It runs inside of any code whatever: a finalizer, an import, a handler of logging.
   There it lets pass, for what would fail is not the tool's.
4. A hook is never removed from a process. There is one, which is switched on and off.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ._barrier import WriteBarrier
from ._errors import UsageError
from ._seams import Seam
from ._thread_guard import is_passing, unconfirmed_call

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

    from ._thread_guard import UnconfirmedCall

logger = logging.getLogger("headstart")

SWITCH = "HEADSTART_TRIPWIRE"

_A_FILE = "writing to a file"
_A_MESSAGE = "sending a message"
_A_SOCKET = "opening a connection"
_A_PROCESS = "starting a process"
_WATCHED = {
    "open": _A_FILE,
    "os.remove": "removing a file",
    "os.rename": "renaming a file",
    "os.mkdir": "making a directory",
    "os.rmdir": "removing a directory",
    "os.link": "making a link",
    "os.symlink": "making a link",
    "os.truncate": _A_FILE,
    "os.chmod": "changing a file's rights",
    "os.chown": "changing a file's owner",
    "os.chflags": "changing a file's flags",
    "os.utime": "changing a file's times",
    "os.setxattr": "changing a file's attributes",
    "os.removexattr": "changing a file's attributes",
    "shutil.chown": "changing a file's owner",
    "shutil.copyfile": "copying a file",
    "shutil.copymode": "changing a file's rights",
    "shutil.copystat": "changing a file's rights",
    "shutil.copytree": "copying files",
    "shutil.make_archive": "making an archive",
    "shutil.move": "moving a file",
    "shutil.rmtree": "removing files",
    "shutil.unpack_archive": "unpacking an archive",
    "tempfile.mkdtemp": "making a directory",
    "tempfile.mkstemp": _A_FILE,
    "socket.bind": "listening on a port",
    "socket.connect": _A_SOCKET,
    "socket.sendmsg": _A_MESSAGE,
    "socket.sendto": _A_MESSAGE,
    "http.client.send": "sending an HTTP request",
    "ftplib.sendcmd": "sending an FTP command",
    "imaplib.send": "sending an IMAP command",
    "poplib.putline": "sending a POP command",
    "smtplib.send": "sending mail",
    "os.exec": _A_PROCESS,
    "os.fork": _A_PROCESS,
    "os.forkpty": _A_PROCESS,
    "os.posix_spawn": _A_PROCESS,
    "os.spawn": _A_PROCESS,
    "os.startfile": _A_PROCESS,
    "os.system": _A_PROCESS,
    "pty.spawn": _A_PROCESS,
    "subprocess.Popen": _A_PROCESS,
    "os.kill": "signalling a process",
    "os.killpg": "signalling a process",
    "sqlite3.connect": "opening a database",
}
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a call did past every seam before it was confirmed.

    Attributes:
        tool: The tool's name.
        call_id: The call's identifier.
        event: The audit event of Python, such as `"open"`.
        what: What that means, without the arguments, such as `"writing to a file"`.
        file: Where in the tool's code it came from: the innermost line that is neither
            the standard library's, nor a package's, nor headstart's. In a thread or
            task that a package started, where there is no such line, the package's.
        line: The line in it.
    """

    tool: str
    call_id: str
    event: str
    what: str
    file: str
    line: int

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.file}:{self.line}: the call {self.call_id!r} of {self.tool!r} was "
            f"{self.what} ({self.event}) before it was confirmed"
        )


class Arming:
    """The tripwire, armed in a `with` block.

    Attributes:
        findings: What it saw, each once, in order.
    """

    def __init__(
        self, *, deny: bool, on_finding: Callable[[Finding], None] | None = None
    ) -> None:
        self.findings: list[Finding] = []
        self.deny = deny
        self._on_finding = on_finding
        self._seen: set[Finding] = set()

    def __enter__(self) -> list[Finding]:
        global _armings  # noqa: PLW0603 - a hook sees the whole process
        _install()
        with _lock:
            _armings = (*_armings, self)
        return self.findings

    def __exit__(self, *_: object) -> None:
        global _armings  # noqa: PLW0603
        with _lock:
            _armings = tuple(each for each in _armings if each is not self)

    def note(self, finding: Finding) -> None:
        """Take what was seen."""
        with _lock:
            if finding in self._seen:
                return
            self._seen.add(finding)
            self.findings.append(finding)
        if self._on_finding is not None:
            self._on_finding(finding)


def tripwire(*, deny: bool = False) -> Arming:
    """Find what calls do past every seam before they are confirmed.

    ```python
    with tripwire() as findings:
        await agent.run("Refund order 7.")
    assert findings == []
    ```

    It sees files that are opened to be written, removed or renamed, connections that are
    opened, processes that are started, databases of `sqlite3` that are opened, from any
    thread, and asks which call that is. It is no barrier: it cannot wait, and it does
    not see everything (see `docs/effects/tripwire.md`). Of what a seam lets pass it
    knows, and of what is outside of unconfirmed calls it says nothing.

    It watches the whole process. Python never removes its hook, which does next to
    nothing while it is not armed.

    Args:
        deny: Also give the call up, so that its real call runs instead, and raise
            `WriteDenied` from what it was about to do.
    """
    return Arming(deny=deny)


def arm_by_environment() -> None:
    """Arm it for the life of the process, if `HEADSTART_TRIPWIRE` says so.

    Raises:
        UsageError: It says something else.
    """
    value = os.environ.get(SWITCH, "").strip().lower()
    if value in ("", "0", "off", "false"):
        return
    if value not in ("1", "on", "true", "deny", "report"):
        msg = (
            f"{SWITCH} is {value!r}. Set it to 1 to give up calls that act past every "
            "seam, to report to log them only, or leave it out."
        )
        raise UsageError(msg)
    Arming(deny=value != "report", on_finding=_log).__enter__()


def _log(finding: Finding) -> None:
    logger.warning("%s", finding)


_armings: tuple[Arming, ...] = ()
_lock = threading.Lock()
_seam: Seam | None = None


class _Inside(threading.local):
    active = False


_inside = _Inside()


def _install() -> None:
    global _seam  # noqa: PLW0603 - once a process
    with _lock:
        if _seam is not None:
            return
        _seam = Seam("tripwire")  # which has plain threads noted as well
    sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _armings:
        return
    what = _WATCHED.get(event)
    if what is None or (event in _HARMLESS and _HARMLESS[event](*args)):
        return
    call = unconfirmed_call()
    if call is None or _inside.active or is_passing():
        return
    _inside.active = True
    try:
        _trip(event, what, call)
    finally:
        _inside.active = False


def _trip(event: str, what: str, call: UnconfirmedCall) -> None:
    here = sys._getframe(2)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    place = _place_of(here)
    if place is None:
        return
    file, line = place
    finding = Finding(
        tool=call.name,
        call_id=call.call_id,
        event=event,
        what=what,
        file=file,
        line=line,
    )
    armings = _armings
    for arming in armings:
        arming.note(finding)
    if _seam is not None and any(arming.deny for arming in armings):
        _seam.refuse(
            f"{what} ({event}) in the call {finding.call_id!r} at {file}:{line}",
            "it goes past every seam",
        )


def _only_reads(path: Any, mode: Any, flags: Any, *_: object) -> bool:
    """Whether a file is opened that way, or was open before, or keeps nothing."""
    if isinstance(path, int) or path in (os.devnull, os.devnull.encode()):
        return True
    if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
        return False
    return not (isinstance(flags, int) and flags & _CHANGING)


def _is_in_memory(database: Any, *_: object) -> bool:
    try:
        name = os.fsdecode(database)
    except TypeError:
        return False
    in_memory = name.startswith("file:") and "mode=memory" in name
    return in_memory or name in ("", ":memory:", "file::memory:")


def _only_asks(_: object, signal: Any, *__: object) -> bool:
    return signal == 0  # whether a process is there


_HARMLESS: dict[str, Callable[..., bool]] = {
    "open": _only_reads,
    "sqlite3.connect": _is_in_memory,
    "os.kill": _only_asks,
}

_HOME = str(Path(__file__).parent) + os.sep
_SEAMS = _HOME + "effects" + os.sep
_BARRIER = WriteBarrier.wait.__code__.co_filename
_LOGGING = str(Path(logging.__file__).parent) + os.sep
_EVENT_LOOP = str(Path(sysconfig.get_path("stdlib"), "asyncio", "events.py"))
_STANDARD = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")}
)
_PACKAGES = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib")}
)
_NAMES_OF_PACKAGES = (
    f"{os.sep}site-packages{os.sep}",
    f"{os.sep}dist-packages{os.sep}",
)


def _place_of(frame: FrameType | None) -> tuple[str, int] | None:
    """The line of the tool's code that a frame was called from.

    `None` says that it is nobody's doing: a finalizer that runs here by chance, an
    import that writes its cache, a handler of logging.
    """
    innermost = package = None
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        place = file, frame.f_lineno
        if innermost is None:
            innermost = place
        if file == _BARRIER or _is_by_chance(file, function):
            return None
        kind = _kind_of(file)
        if kind == "own":
            return place
        if kind == "package" and package is None:
            package = place
        if kind == "headstart" or file == _EVENT_LOOP:
            break  # what called the tool
        frame = frame.f_back
    return package or innermost


def place_in(coroutine: Coroutine[Any, Any, Any]) -> tuple[str, int] | None:
    """The line of the tool's code at which a coroutine of it waits."""
    place, inner = None, cast("Any", coroutine)
    while (frame := _frame_of(inner)) is not None:
        if is_own(frame.f_code.co_filename):
            place = frame.f_code.co_filename, frame.f_lineno
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return place


def is_own(file: str) -> bool:
    """Whether a file is neither the standard library's, a package's nor headstart's."""
    return _kind_of(file) == "own"


def _frame_of(coroutine: Any) -> FrameType | None:
    return getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)


def _is_by_chance(file: str, function: str) -> bool:
    if file.startswith(("<frozen importlib", _LOGGING)):
        return True
    return function == "__del__" or (
        function == "__call__" and file.endswith(f"{os.sep}weakref.py")
    )


def _kind_of(file: str) -> str:
    if file.startswith(_HOME):
        return "package" if file.startswith(_SEAMS) else "headstart"
    if file.startswith(_PACKAGES) or any(name in file for name in _NAMES_OF_PACKAGES):
        return "package"
    return "standard" if file.startswith((*_STANDARD, "<frozen ")) else "own"
