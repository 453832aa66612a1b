"""A /proc that is made up."""

from pathlib import Path

from keyturn_agent.procs import HOST_PIDS


class Proc:
    """A procfs that is made up."""

    def __init__(self, root: Path, namespace: str = HOST_PIDS) -> None:
        self.root = root
        (root / "self" / "ns").mkdir(parents=True)
        (root / "self" / "ns" / "pid").symlink_to(namespace)

    def add(self, pid: int, cgroup: str, *, start: int = 100, uid: int = 1000, name: str = "python") -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        fields = " ".join(["S", *map(str, range(1, 19)), str(start), "0", "0"])
        (folder / "stat").write_text(f"{pid} ({name}) {fields}\n")
        (folder / "cgroup").write_text(f"0::{cgroup}\n")
        (folder / "status").write_text(f"Name:\tx\nUmask:\t0022\nUid:\t{uid}\t0\t0\t0\n")

    def remove(self, pid: int) -> None:
        for path in (self.root / str(pid)).iterdir():
            path.unlink()
        (self.root / str(pid)).rmdir()
