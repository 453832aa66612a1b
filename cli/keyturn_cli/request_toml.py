"""A request as people write it: TOML, options over it, and the digests of files that it names.

label = "aurora-2 pre-training"
purpose = "a language model"
lineage = "aurora"
flop = 2.4e24                              # the budget
chips = 16384                              # at once
dtypes = ["bf16", "fp8"]
sites = ["FRA1"]                           # left out: any
from = 2026-01-01
to = 2026-04-01

[spec]
image = "sha256:3b7a…"
config = "train.yaml"                      # a file beside this one: its SHA-256 is what counts
argv = ["torchrun", "train.py"]

[[ancestor]]
run = "aurora-1"
flop = 3e23                                # left out: not known, which counts as unbounded
basis = "metered, r-91c4d0e2"
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.moments import moment_us, tflop
from keyturn_cli.toml_forms import convert, read_toml
from keyturn_protocol.canonical import Record
from keyturn_protocol.openings import ARGV, Value
from keyturn_protocol.runs import Ancestor, Scope
from keyturn_protocol.values import SpecPart

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class _Ancestor(Record, frozen=True, kw_only=True):
    run: str
    basis: str
    flop: Any = None


class _Form(Record, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    label: str
    lineage: str
    flop: Any
    chips: int
    dtypes: list[str]
    start: Any
    end: Any
    purpose: str = ""
    chip_uuids: list[str] | None = None
    sites: list[str] | None = None
    spec: dict[SpecPart, str | list[str]] = msgspec.field(default_factory=dict)
    ancestor: list[_Ancestor] = msgspec.field(default_factory=list)


class _Spec(Record, frozen=True, kw_only=True):
    spec: dict[SpecPart, str | list[str]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request is to say."""

    label: str
    purpose: str
    lineage: str
    scope: Scope
    ancestors: list[Ancestor]
    values: dict[SpecPart, Value]


def read(path: Path | None, options: Mapping[str, Any]) -> Wanted:
    """What the file says, and options over it.

    :param options: by the names of the file; what is None isn't given.
    :raises CliError: which key is wrong, and how.
    """
    table = {} if path is None else read_toml(path, "FILE")
    spec = {**table.get("spec", {}), **{k: v for k, v in options.get("spec", {}).items() if v is not None}}
    table |= {name: value for name, value in options.items() if value is not None and name != "spec"}
    form = convert({**table, "spec": spec} if spec else table, _Form, "" if path is None else str(path))
    folder = Path() if path is None else path.parent
    scope = Scope(
        budget_tflop=tflop("flop", form.flop),
        chips=form.chips,
        chip_uuids=_listed(form.chip_uuids),
        sites=_listed(form.sites),
        dtypes=sorted(set(form.dtypes)),
        not_before_us=moment_us("from", form.start),
        not_after_us=moment_us("to", form.end),
    )
    ancestors = [_ancestor(one) for one in form.ancestor]
    values = {part: _value(part, given, folder) for part, given in form.spec.items()}
    return Wanted(form.label, form.purpose, form.lineage, scope, ancestors, values)


def read_spec(path: Path) -> dict[SpecPart, Value]:
    """The values of the ``[spec]`` in a file.

    :raises CliError: which key is wrong, and how.
    """
    form = convert({"spec": read_toml(path, "--spec").get("spec", {})}, _Spec, str(path))
    return {part: _value(part, given, path.parent) for part, given in form.spec.items()}


def _listed(values: list[str] | None) -> list[str] | None:
    return None if values is None else sorted(set(values))


def _ancestor(one: _Ancestor) -> Ancestor:
    much = None if one.flop is None else tflop(f"ancestor {one.run}: flop", one.flop, least=0, up=True)
    return Ancestor(run=one.run, tflop=much, basis=one.basis)


def _value(part: SpecPart, given: str | list[str], folder: Path) -> Value:
    if (part == ARGV) != isinstance(given, list):
        expected = "a list of words" if part == ARGV else "sha256:<hex> or a file"
        raise CliError(f"spec.{part}: must be {expected} (got {given})", exit=Exit.USAGE)
    if isinstance(given, list) or _DIGEST.fullmatch(given):
        return given
    if part == "image":
        raise CliError(f"spec.image: must be sha256:<hex>, as its registry names it (got {given})", exit=Exit.USAGE)
    return "sha256:" + _digest_of_file(folder / given, f"spec.{part}")


def _digest_of_file(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CliError(f"{what}: {path}: {error.strerror or error}", exit=Exit.USAGE) from None
