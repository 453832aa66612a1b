"""A machine under a live systemd: pid 1 in namespaces of its own, on a copy-on-write view of this host's files.

Not a container manager's: those ask a running systemd or have devices and cgroups of their own mind. What is needed is
root, overlayfs, a cgroup2 hierarchy and systemd's binary; whoever lacks one gets its name as the reason of a skip.
The network is the host's, so that a verifier on 127.0.0.1 is there.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

SYSTEMD: Final = next((p for p in map(Path, ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")) if p.exists()), None)
_BOOT: Final = r"""
set -e
root=$1; shift
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$1,workdir=$2" "$root"; shift 2
for pair; do mkdir -p "$root${pair#*:}"; mount --bind "${pair%%:*}" "$root${pair#*:}"; done
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"; done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mknod -m 666 "$root/dev/tty" c 5 0
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cd "$root"
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
# As a container manager does: services get their credentials by propagation.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin "$SYSTEMD" --unit=basic.target --log-target=journal
"""


class Machine:
    """The machine; its files are ``upper`` over the host's."""

    def __init__(self, folder: Path, cgroup: Path, binds: dict[Path, str]) -> None:
        self.upper, self._cgroup = folder / "upper", cgroup
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        # No package manager's timers, and nothing else that this host would do by itself.
        (self.upper / "etc" / "systemd" / "system").mkdir(parents=True)
        (self.upper / "etc" / "systemd" / "system" / "timers.target").symlink_to("/dev/null")
        cgroup.mkdir()
        pairs = [f"{host}:{inside}" for host, inside in binds.items()]
        self._log = (folder / "boot.log").open("wb+")
        self._process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup",
             "bash", "-c", _BOOT, "boot", folder / "root", self.upper, folder / "work", *pairs],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=os.environ | {"SYSTEMD": str(SYSTEMD)},
            preexec_fn=lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid())) and None,
        )  # fmt: skip
        self.pid = 0

    def wait_for_boot(self, seconds: float = 60) -> None:
        """:raises RuntimeError: with what the boot said."""
        deadline = time.monotonic() + seconds
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while time.monotonic() < deadline and self._process.poll() is None:
            if (found := children.read_text().split()) and _name(int(found[0])) == "systemd":
                self.pid = int(found[0])
                if self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"):
                    return
            time.sleep(0.2)
        self._log.seek(0)
        raise RuntimeError(f"no boot within {seconds:g} s: {self._log.read(2000).decode(errors='replace')}")

    def run(self, *command: str | Path, check: bool = True) -> str:
        """What a command says in the machine."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C", "--", *command],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}{self.journal()}"
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, unit: str, condition: Callable[[dict[str, str]], bool], *names: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition(found := self.show(unit, *names)):
            assert time.monotonic() < deadline, f"{unit}: {found}\n{self.journal()}"
            time.sleep(0.1)

    def journal(self) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "--", "journalctl", "-n", "60", "--no-pager", "-o", "cat"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    def close(self) -> None:
        # Its child, pid 1 of the machine, dies with it, and with that all that runs there.
        self._process.kill()
        self._process.wait()
        self._log.close()
        deadline = time.monotonic() + 20
        while self._cgroup.exists() and time.monotonic() < deadline:
            for folder in sorted(self._cgroup.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                self._cgroup.rmdir()
            time.sleep(0.1)


@contextlib.contextmanager
def machine(folder: Path, binds: dict[Path, str]) -> Iterator[Machine]:
    """A booted machine.

    :param binds: folders of the host, and where they are in the machine.
    """
    if os.geteuid() != 0:
        pytest.skip("booting a systemd needs root")
    if SYSTEMD is None or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("booting a systemd needs systemd, unshare and nsenter here")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    hierarchy = next((Path(m[1]) for m in mounts if m[2] == "cgroup2"), None)
    if hierarchy is None or not os.access(hierarchy, os.W_OK):
        pytest.skip("booting a systemd needs a cgroup2 hierarchy that can be written")
    made = Machine(folder, hierarchy / f"keyturn-test-{os.getpid()}", binds)
    try:
        try:
            made.wait_for_boot()
        except RuntimeError as error:
            pytest.skip(f"no systemd boots here: {error}")
        yield made
    finally:
        made.close()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
