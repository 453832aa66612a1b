"""NVML's return codes in our words: a cause for the log, and how far a failure reaches.

The numbers are ``nvmlReturn_t`` of ``nvml.h``; a test holds them to those of the binding.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from keyturn_protocol.values import Slug


class Reach(Enum):
    """What a failed call means for what is asked next."""

    ONCE = auto()
    """This value, this time."""
    VALUE = auto()
    """This value for as long as the driver stays: asking again only costs time (for a permission, less often)."""
    CHIP = auto()
    """The chip: no value of it can be trusted, and each further call may hang."""
    SESSION = auto()
    """All chips: the library must be closed and opened again."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One return code, as entries name it."""

    slug: Slug
    reach: Reach


SUCCESS: Final = 0
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
FUNCTION_NOT_FOUND: Final = 13
LIB_RM_VERSION_MISMATCH: Final = 18
GPU_NOT_FOUND: Final = 28
UNKNOWN: Final = 999

NOT_PERMITTED: Final[Slug] = "no_permission"
"""Of all refusals the one that may be taken back: another profiler held the counters, or somebody allowed it."""

CAUSES: Final[dict[int, Cause]] = {
    1: Cause("nvml_uninitialized", Reach.SESSION),
    2: Cause("invalid_argument", Reach.ONCE),
    NOT_SUPPORTED: Cause("not_supported", Reach.VALUE),
    NO_PERMISSION: Cause(NOT_PERMITTED, Reach.VALUE),
    5: Cause("already_initialized", Reach.SESSION),
    NOT_FOUND: Cause("not_found", Reach.ONCE),
    7: Cause("insufficient_size", Reach.ONCE),
    8: Cause("insufficient_power", Reach.CHIP),
    9: Cause("driver_not_loaded", Reach.SESSION),
    10: Cause("driver_timeout", Reach.ONCE),
    11: Cause("irq_issue", Reach.CHIP),
    12: Cause("library_not_found", Reach.SESSION),
    FUNCTION_NOT_FOUND: Cause("function_not_found", Reach.VALUE),
    14: Cause("corrupted_inforom", Reach.ONCE),
    15: Cause("gpu_lost", Reach.CHIP),
    16: Cause("gpu_reset_required", Reach.CHIP),
    17: Cause("operating_system", Reach.ONCE),
    LIB_RM_VERSION_MISMATCH: Cause("driver_version_mismatch", Reach.SESSION),
    19: Cause("in_use", Reach.ONCE),
    20: Cause("out_of_memory", Reach.ONCE),
    21: Cause("no_data", Reach.ONCE),
    22: Cause("ecc_not_supported", Reach.VALUE),
    23: Cause("insufficient_resources", Reach.ONCE),
    24: Cause("frequency_not_supported", Reach.VALUE),
    25: Cause("argument_version_mismatch", Reach.VALUE),
    26: Cause("deprecated", Reach.VALUE),
    27: Cause("not_ready", Reach.ONCE),
    GPU_NOT_FOUND: Cause("gpu_not_found", Reach.CHIP),
    29: Cause("invalid_state", Reach.ONCE),
    30: Cause("reset_type_not_supported", Reach.VALUE),
    UNKNOWN: Cause("unknown_error", Reach.ONCE),
}

NO_VALUE: Final[Slug] = "no_value"
"""The call came back without an error, and with a number that means none: NaN, or all bits set."""
CALL_HUNG: Final[Slug] = "call_hung"
PAUSED: Final[Slug] = "paused"
REOPENED: Final[Slug] = "reopened"
"""The first sample after NVML was closed: counters may have restarted unseen, so nothing spans it."""


def cause_of(code: int) -> Cause:
    """The cause of a return code; one that a newer driver made up counts for one value, once."""
    return CAUSES.get(code) or Cause(f"nvml_error_{code}", Reach.ONCE)


class NvmlFailure(Exception):
    """An NVML call came back with an error.

    :param code: ``nvmlReturn_t``.
    :param call: the name of the function.
    """

    def __init__(self, code: int, call: str) -> None:
        self.code = code
        self.call = call
        self.cause = cause_of(code)
        super().__init__(f"{call}: {self.cause.slug}")
