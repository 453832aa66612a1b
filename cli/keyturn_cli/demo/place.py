"""Where the demo works, and the recordings that it plays."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped

MARK: Final = ".keyturn-demo"
"""Lies in a folder that the demo made: only such a folder is ever emptied."""
_TRUTH_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Recording:
    """A folder of ``hardware_fixtures``, and what its host does."""

    name: str
    story: str

    def file(self, fixtures: Path) -> Path:
        return fixtures / self.name / "recording.jsonl"


TRAINING: Final = Recording("h100_pcie_training", "one H100 in training, measured on real hardware")
SHARED: Final = Recording("derived_shared_gpu", "one GPU shared by two workloads")
LOSS: Final = Recording("derived_driver_loss", "two GPUs that lose their driver midway")
RECORDINGS: Final = (TRAINING, SHARED, LOSS)


def checkout() -> Path:
    """The checkout: the current folder, or the one that this package is installed from.

    :raises CliError: neither holds the recordings.
    """
    here = Path(__file__).resolve()
    for place in (Path.cwd(), here.parents[3]):
        if all(recording.file(place / "hardware_fixtures").is_file() for recording in RECORDINGS):
            return place
    raise CliError(
        "no recordings to play: hardware_fixtures is not here",
        exit=Exit.USAGE,
        hint="the demo runs in a checkout: git clone, then make demo",
    )


def prepare(folder: Path) -> None:
    """An empty folder for the demo; what an earlier demo left in it is removed, and nothing else ever.

    :raises CliError: the folder holds something else.
    """
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise CliError(f"{folder} is not a folder", exit=Exit.USAGE)
        if folder.exists() and any(folder.iterdir()):
            if not (folder / MARK).is_file():
                raise CliError(
                    f"{folder} holds something that no demo made",
                    exit=Exit.USAGE,
                    hint="name an empty folder with --dir",
                )
            for entry in folder.iterdir():
                if entry.name != MARK:
                    remove(entry)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text("made by keyturn demo, which may empty this folder\n")
    except OSError as error:
        raise CliError(f"{folder}: {error.strerror or error}", exit=Exit.USAGE) from None


def remove(entry: Path) -> None:
    """A file or a folder; links are removed, never followed."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def executed_flop(fixtures: Path) -> int:
    """What the training program itself counted during the recording.

    :raises CliError: ``ground_truth.json`` doesn't say.
    """
    path = fixtures / TRAINING.name / "ground_truth.json"
    try:
        truth = msgspec.json.decode(read_capped(path, _TRUTH_BYTES, "ground truth"))
        return int(truth["trace"]["executed_flop"])
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError):
        raise CliError(f"{path} has no trace.executed_flop", exit=Exit.USAGE) from None
