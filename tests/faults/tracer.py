"""Stops a child of ours at each system call that changes a store.

It kills the child there, tears the write, or lets the call fail.

ptrace and a seccomp filter, called through ctypes: Linux on x86-64 only. The kernel stops the child
at the calls of CALLS and at no other, so that what is traced runs at nearly full speed. A kill
leaves what the kernel has taken, as a killed process does; the loss of power, which may undo what
was not fsynced, cannot be made here.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRACEME, CONT, GETREGS, SETREGS, SYSCALL, SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
EXITKILL, TRACESECCOMP, TRACESYSGOOD = 0x100000, 0x80, 0x01
STOPPED_BY_FILTER = signal.SIGTRAP | 7 << 8
RAX, RDX, RSI, RDI, ORIG_RAX = 10, 12, 13, 14, 15  # of the 27 numbers of user_regs_struct
CALLS = {
    1: "write", 18: "pwrite64", 74: "fsync", 75: "fdatasync", 77: "ftruncate",
    82: "rename", 83: "mkdir", 87: "unlink", 263: "unlinkat", 264: "renameat",
}  # fmt: skip
# which argument is the path, where it is none of an open file
BY_NAME = {82: 0, 83: 0, 87: 0, 263: 1, 264: 1}
WRITES = {1, 18}


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


@dataclass(frozen=True)
class Call:
    """The `number`-th call on the store's files."""

    number: int
    name: str
    file: str


def able() -> str:
    """Why calls cannot be stopped here; "" if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "system calls are stopped on Linux on x86-64 only"
    pid = os.fork()
    if not pid:
        os._exit(0 if libc().ptrace(TRACEME, 0, None, None) == 0 else 1)
    return "ptrace is not permitted here" if os.waitpid(pid, 0)[1] else ""


def libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None, use_errno=True)
    found.ptrace.restype = ctypes.c_long
    found.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    return found


def be_traced() -> None:
    """In the child: stops, then at every call of CALLS."""
    library = libc()
    load, jump, give = 0x20, 0x15, 0x06
    numbers = list(CALLS)
    code = struct.pack("HBBI", load, 0, 0, 0)
    for index, number in enumerate(numbers):
        code += struct.pack("HBBI", jump, len(numbers) - index, 0, number)
    code += struct.pack("HBBI", give, 0, 0, 0x7FFF0000) + struct.pack(
        "HBBI", give, 0, 0, 0x7FF00000
    )
    program = Filter(len(code) // 8, code)
    library.ptrace(TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    library.prctl(38, 1, 0, 0, 0)  # no new privileges: what a filter needs
    library.prctl(22, 2, ctypes.byref(program))


def follow(pid: int, folder: Path, decide: Callable[[Call], int | str | None]) -> int:
    """Follows a child that calls `be_traced`, to its end; returns its exit code.

    Args:
        decide: what becomes of a call on a file in `folder`: None: it goes on; an errno: it fails
            so; "kill": it is never made; "tear": a write is made by half, anything else whole, and
            then the child is killed.
    """
    library, count = libc(), 0
    os.waitpid(pid, 0)
    library.ptrace(SETOPTIONS, pid, None, EXITKILL | TRACESECCOMP | TRACESYSGOOD)
    library.ptrace(CONT, pid, None, None)
    while True:
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)
        if status >> 8 != STOPPED_BY_FILTER:
            stopped_by = os.WSTOPSIG(status)
            library.ptrace(CONT, pid, None, None if stopped_by == signal.SIGTRAP else stopped_by)
            continue
        registers = (ctypes.c_ulonglong * 27)()
        library.ptrace(GETREGS, pid, None, registers)
        number, file = registers[ORIG_RAX], file_of(pid, registers)
        verdict = None
        if file.startswith(str(folder)):
            count += 1
            verdict = decide(Call(count, CALLS[number], file[len(str(folder)) :].lstrip("/")))
        if verdict == "kill":
            os.kill(pid, signal.SIGKILL)
        elif verdict == "tear":
            if number in WRITES:
                registers[RDX] //= 2
                library.ptrace(SETREGS, pid, None, registers)
            library.ptrace(SYSCALL, pid, None, None)
            os.waitpid(pid, 0)
            os.kill(pid, signal.SIGKILL)
        elif verdict is not None:
            registers[ORIG_RAX], registers[RAX] = 2**64 - 1, 2**64 - int(verdict)
            library.ptrace(SETREGS, pid, None, registers)
        library.ptrace(CONT, pid, None, None)


def file_of(pid: int, registers: "ctypes.Array[ctypes.c_ulonglong]") -> str:
    """The file a call is about; "" where that is gone."""
    number = registers[ORIG_RAX]
    try:
        if number in BY_NAME:
            with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                memory.seek((registers[RDI], registers[RSI])[BY_NAME[number]])
                return memory.read(1024).split(b"\0")[0].decode(errors="replace")
        return os.readlink(f"/proc/{pid}/fd/{registers[RDI]}").removesuffix(" (deleted)")
    except OSError:
        return ""
