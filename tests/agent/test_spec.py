"""What is started against what was approved: another program, image, config, data; what is verified, told, unknown."""

from typing import Any

import pytest

from keyturn_agent.errors import RefusedError
from keyturn_agent.switch.spec import Start, check_spec, check_wanted, describe
from keyturn_protocol.openings import Opening, Openings, commitment
from keyturn_protocol.values import SpecPart

ARGV = ["python", "train.py", "--lr", "3e-4"]
VALUES: dict[SpecPart, Any] = {
    "argv": ARGV,
    "image": "sha256:" + "1" * 64,
    "config": "sha256:" + "2" * 64,
    "data": "sha256:" + "3" * 64,
}
OPENINGS = Openings(v=1, parts={part: Opening(salt=f"{i:064x}", value=v) for i, (part, v) in enumerate(VALUES.items())})
SPEC: dict[SpecPart, str | None] = {part: commitment(part, each).hex() for part, each in OPENINGS.parts.items()}
DIGESTS: dict[SpecPart, str] = {part: value for part, value in VALUES.items() if part != "argv"}


def without(*parts: SpecPart) -> Openings:
    return Openings(v=1, parts={part: each for part, each in OPENINGS.parts.items() if part not in parts})


def words(openings: Openings | None, start: Start, spec: dict[SpecPart, str | None] = SPEC) -> str:
    return describe(check_spec(spec, openings, start))


def test_what_was_hashed_is_verified_what_was_told_is_declared() -> None:
    assert words(OPENINGS, Start(ARGV, hashed=DIGESTS)) == "argv, config, data, image verified"
    told: dict[SpecPart, str] = {"image": DIGESTS["image"]}
    assert words(OPENINGS, Start(ARGV, told=told)) == "argv verified · image declared · config, data unchecked"
    assert words(without("argv"), Start(ARGV, hashed=DIGESTS)) == "config, data, image verified · argv unchecked"
    # Nothing opens the commitments: a digest compares with nothing.
    assert words(None, Start(ARGV, hashed=DIGESTS)) == "argv, config, data, image unchecked"


@pytest.mark.parametrize(
    ("code", "start"),
    [
        ("other_program", Start([*ARGV, "--more"], hashed=DIGESTS)),
        ("other_program", Start(["python", "other.py"], hashed=DIGESTS)),
        ("other_program", Start([" ".join(ARGV)], hashed=DIGESTS)),
        ("other_image", Start(ARGV, hashed=DIGESTS | {"image": "sha256:" + "4" * 64})),
        ("other_image", Start(ARGV, told={"image": "sha256:" + "4" * 64})),
        ("other_config", Start(ARGV, hashed=DIGESTS | {"config": "sha256:" + "4" * 64})),
        ("other_data", Start(ARGV, hashed=DIGESTS | {"data": DIGESTS["image"]})),
    ],
)
def test_another_program_image_config_or_data_is_refused(code: str, start: Start) -> None:
    with pytest.raises(RefusedError) as caught:
        check_spec(SPEC, OPENINGS, start)
    assert caught.value.code == code


def test_openings_of_another_run_are_refused() -> None:
    other = Openings(v=1, parts={"argv": Opening(salt="f" * 64, value=ARGV)})
    with pytest.raises(RefusedError) as caught:
        check_spec(SPEC, other, Start(ARGV))
    assert caught.value.code == "bad_openings"
    # A value that was never committed to opens nothing.
    with pytest.raises(RefusedError):
        check_spec({**SPEC, "argv": None}, OPENINGS, Start(ARGV, hashed=DIGESTS))


def test_what_the_policy_wants_verified_and_is_not_refuses_the_start() -> None:
    checks = check_spec(SPEC, OPENINGS, Start(ARGV, told={"image": DIGESTS["image"]}))
    check_wanted(checks, ["argv"], SPEC)
    with pytest.raises(RefusedError, match="image") as caught:
        check_wanted(checks, ["argv", "image"], SPEC)
    assert (caught.value.code, caught.value.hint) == ("unverified", "give --openings FILE and --image FILE")
    with pytest.raises(RefusedError) as caught:
        check_wanted(checks, ["data"], {**SPEC, "data": None})
    assert caught.value.hint == "the request commits to no data: it can't be verified"
