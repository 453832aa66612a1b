"""The configuration file: what it takes, and what it says about everything else."""

from dataclasses import fields
from pathlib import Path

import pytest

from keyturn_agent.config import Config, key_of, names
from keyturn_agent.errors import StoreError, UsageError
from keyturn_agent.settings import load_config


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(write(folder / "agent.toml", text), {})
    return str(caught.value)


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_config(None, {}, tmp_path / "none.toml") == Config()


def test_the_default_file_is_read_where_it_exists(tmp_path: Path) -> None:
    path = write(tmp_path / "agent.toml", "[upload]\njitter_s = 7\n")
    assert load_config(None, {}, path) == Config(jitter_s=7)


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reading the configuration"):
        load_config(tmp_path / "none.toml", {})


def test_a_disk_that_cannot_read_is_no_wrong_setting() -> None:
    # The first page of a process's memory: nothing is mapped there, and the kernel says EIO.
    with pytest.raises(StoreError, match="reading the configuration"):
        load_config(Path("/proc/self/mem"), {})


def test_values_are_in_the_units_of_their_names_and_flags_override_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "agent.toml",
        """
        [usage]
        interval_s = 20
        [upload]
        interval_s = 60
        jitter_s = 0
        proxy = "http://proxy.example.org:3128"
        ca_file = "/etc/keyturn/ca.pem"
        [spool]
        days = 3
        mib = 5
        """,
    )
    config = load_config(path, {"jitter_s": 9, "timeout_s": None})
    assert config == Config(
        interval_us=20_000_000,
        checkpoint_us=60_000_000,
        jitter_s=9,
        proxy="http://proxy.example.org:3128",
        ca_file="/etc/keyturn/ca.pem",
        spool_s=3 * 86400,
        spool_bytes=5 * 1024 * 1024,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[upload]\ninterval_s = -5", "upload.interval_s: must be > 0 (got -5)"),
        ("[upload]\ninterval_s = 0", "upload.interval_s: must be > 0 (got 0)"),
        ("[upload]\njitter_s = -1", "upload.jitter_s: must be >= 0 (got -1)"),
        ("[upload]\ninterval_s = 1.5", "upload.interval_s: must be a whole number (got 1.5)"),
        ("[upload]\ninterval_s = true", "upload.interval_s: must be a whole number (got True)"),
        ("[upload]\ninterval_s = '5'", "upload.interval_s: must be a whole number (got '5')"),
        ("[upload]\ninterval_s = 99999999999", "upload.interval_s: must be <= 9007199254 (got 99999999999)"),
        ("[upload]\nproxy = 3128", "upload.proxy: must be text (got 3128)"),
        ("[upload]\nca_file = ''", "upload.ca_file: must be text (got '')"),
        ("[upload]\nintervall_s = 5", "upload.intervall_s: unknown key"),
        ("[uploads]\ninterval_s = 5", "uploads: unknown table"),
        ("jitter_s = 5", "jitter_s: unknown key"),
        ("upload = 5", "upload: must be a table (got 5)"),
        ("[metrics]\nlisten = '9464'", "metrics.listen: must be HOST:PORT (got 9464)"),
        ("[metrics]\nlisten = '127.0.0.1:99999'", "metrics.listen: must be HOST:PORT (got 127.0.0.1:99999)"),
        ("[metrics]\ntextfile = '/run/keyturn'", "metrics.textfile: must end in .prom (got /run/keyturn)"),
    ],
)
def test_every_mistake_names_its_key(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text) == message


def test_a_misspelt_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path / "agent.toml", "[upload]\nintervall_s = 5"), {})
    assert caught.value.hint == "did you mean upload.interval_s?"


def test_what_is_not_toml_is_said(tmp_path: Path) -> None:
    assert "not TOML" in complaint(tmp_path, "[upload")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not TOML"):
        load_config(tmp_path / "binary.toml", {})


@pytest.mark.parametrize("proxy", ["proxy.example.org:3128", "socks5://p:1", "http://u:hunter2@p:1/path"])
def test_a_bad_proxy_is_refused_without_being_quoted(tmp_path: Path, proxy: str) -> None:
    message = complaint(tmp_path, f"[upload]\nproxy = '{proxy}'")
    assert message.startswith("upload.proxy: must be a URL")
    assert "hunter2" not in message


def test_flags_are_checked_like_the_file() -> None:
    with pytest.raises(UsageError, match=r"^upload\.interval_s: must be > 0 \(got -5\)$"):
        load_config(None, {"checkpoint_us": -5_000_000}, Path("/nonexistent"))


def test_every_field_has_a_key_of_its_own() -> None:
    keys = [key_of(name).name for name in names()]
    assert len(set(keys)) == len(keys) == len(fields(Config))
    assert all(key.count(".") == 1 for key in keys)
