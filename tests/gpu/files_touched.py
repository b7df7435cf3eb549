#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Says which files a running process opens or reads while a command runs, by fanotify on the root file system (root alone),
and its major page faults, which reads of mapped files would be.

    files_touched.py PID COMMAND [ARGUMENT...]
"""

import ctypes
import os
import pathlib
import struct
import subprocess
import sys
import time

FAN_NONBLOCK, FAN_UNLIMITED_QUEUE = 0x2, 0x10
FAN_MARK_ADD, FAN_MARK_FILESYSTEM = 0x1, 0x100
FAN_ACCESS, FAN_OPEN = 0x1, 0x20
EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata


def watch(libc):
    group = libc.fanotify_init(FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, os.O_RDONLY)
    mask = ctypes.c_uint64(FAN_ACCESS | FAN_OPEN)
    if group < 0 or libc.fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, -100, b"/") < 0:
        sys.exit(f"fanotify: {os.strerror(ctypes.get_errno())}")
    return group


def events(group):
    """(pid, path) of all that has happened."""
    while True:
        try:
            data = os.read(group, 1 << 16)
        except BlockingIOError:
            return
        while data:
            length, _, _, _, _, fd, pid = EVENT.unpack_from(data)
            if fd >= 0:
                yield pid, os.readlink(f"/proc/self/fd/{fd}")
                os.close(fd)
            data = data[length:]


def major_faults(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


def main():
    pid, command = int(sys.argv[1]), sys.argv[2:]
    group = watch(ctypes.CDLL(None, use_errno=True))
    before = major_faults(pid)
    with subprocess.Popen(command) as process:
        seen, others = [], 0
        while True:
            done = process.poll() is not None
            for who, path in events(group):
                if who == pid:
                    seen.append(path)
                else:
                    others += 1
            if done:
                break
            time.sleep(0.01)
    faults = major_faults(pid) - before
    print(f"process {pid}: {len(seen)} files opened or read, {faults} major page faults; all others: {others} files")
    for path in sorted(set(seen)):
        print(f"  {path}")
    sys.exit(process.returncode or (1 if seen or faults else 0))


if __name__ == "__main__":
    main()
