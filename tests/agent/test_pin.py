"""A pinned root: what a verifier may show later, and what it may not take back."""

from pathlib import Path

import pytest

from keyturn_agent.errors import StoreError, UsageError
from keyturn_agent.switch.pin import Pin, root_argument
from keyturn_protocol.errors import ProtocolError
from tests.support.assembly import Assembly
from tests.support.parties import NAME, changed, policy, root


def pinned(folder: Path, hall: Assembly) -> Pin:
    folder.mkdir(exist_ok=True)
    pin = Pin.first(folder, NAME, hall.root, hall.bundle())
    pin.keep()
    return pin


def see(pin: Pin, data: bytes) -> None:
    pin.take(pin.open(data))


def next_root(hall: Assembly) -> None:
    old = hall.switch.standing
    assert old is not None
    new = changed(old.root, version=2, previous=old.hash, root=old.hash)
    hall.root = hall.say(new, "lab-a/ada", "operator-b/eve")


def test_what_was_seen_is_there_after_a_restart(tmp_path: Path) -> None:
    hall = Assembly()
    pin = pinned(tmp_path, hall)
    run = hall.approved()
    see(pin, hall.bundle(run))
    hall.suspend(run)
    see(pin, hall.bundle(run))
    again = Pin.load(tmp_path, NAME, pin.root_sha256)
    assert (again.epoch(run), again.versions) == (1, pin.versions)
    assert again.index(run) == pin.open(hall.bundle(run)).bundle.index


def test_another_root_than_the_pinned_one(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="not under the root that is pinned"):
        Pin.first(tmp_path, NAME, "0" * 64, Assembly().bundle())
    with pytest.raises(ProtocolError, match="another deployment"):
        Pin.first(tmp_path, "other.example", Assembly().root, Assembly().bundle())


def test_an_older_root_or_policy_is_refused(tmp_path: Path) -> None:
    hall = Assembly()
    pin = pinned(tmp_path, hall)
    before_root = hall.bundle()
    next_root(hall)
    see(pin, hall.bundle())
    with pytest.raises(ProtocolError, match="an older root than one seen before"):
        see(pin, before_root)
    before_policy = hall.bundle()
    hall.say(policy(hall.root, version=2, previous=hall.policy), "lab-a/ada", "office/ivy")
    see(pin, hall.bundle())
    with pytest.raises(ProtocolError, match="an older policy than one seen before"):
        see(pin, before_policy)
    # Also when the agent was started again meanwhile.
    with pytest.raises(ProtocolError, match="an older root than one seen before"):
        see(Pin.load(tmp_path, NAME, pin.root_sha256), before_root)


def test_a_verifier_that_drops_a_suspension_it_has_shown(tmp_path: Path) -> None:
    hall = Assembly()
    pin = pinned(tmp_path, hall)
    run = hall.approved()
    before = hall.bundle(run)
    hall.suspend(run)
    see(pin, hall.bundle(run))
    with pytest.raises(ProtocolError, match="not what was seen before of the run"):
        see(pin, before)
    assert pin.epoch(run) == 1


def test_a_backup_of_one_file_is_refused(tmp_path: Path) -> None:
    """root.json from later, authority.json from before: nothing is believed until somebody has looked."""
    hall = Assembly()
    pin = pinned(tmp_path, hall)
    old = (tmp_path / "authority.json").read_bytes()
    next_root(hall)
    see(pin, hall.bundle())
    (tmp_path / "authority.json").write_bytes(old)
    with pytest.raises(StoreError, match="older root"):
        Pin.load(tmp_path, NAME, pin.root_sha256)


def test_a_crash_between_the_two_files_is_gone_after_the_next_look(tmp_path: Path) -> None:
    hall = Assembly()
    pin = pinned(tmp_path, hall)
    remembered = (tmp_path / "root.json").read_bytes()
    next_root(hall)
    see(pin, hall.bundle())
    (tmp_path / "root.json").write_bytes(remembered)
    again = Pin.load(tmp_path, NAME, pin.root_sha256)
    assert again.versions.root == 1
    see(again, hall.bundle())
    assert Pin.load(tmp_path, NAME, pin.root_sha256).versions.root == 2


@pytest.mark.parametrize("name", ["root.json", "authority.json"])
def test_lost_or_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    pin = pinned(tmp_path, Assembly())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-2])
    with pytest.raises(StoreError, match=name):
        Pin.load(tmp_path, NAME, pin.root_sha256)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=name):
        Pin.load(tmp_path, NAME, pin.root_sha256)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "G" * 64, "md5:" + "0" * 64, "0" * 64]
)
def test_what_is_no_root(text: str) -> None:
    with pytest.raises(UsageError, match="--root"):
        root_argument(text)


def test_a_root_argument() -> None:
    assert root_argument("sha256:" + "0a" * 32) == "0a" * 32
    assert root().version == 1
