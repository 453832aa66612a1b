"""What ``doctor`` says about assurance: the level that this host has, what its hardware would carry, what is missing.

The verifier computes levels from evidence. This agent gives none yet, so that every host is at level 0; what is here
tells whoever buys and sets up hosts which of them could go further.
"""

from pathlib import Path
from typing import Final

from keyturn_agent.doctor import Check

_SECURE_BOOT: Final = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_GUESTS: Final = {"sev-guest": "SEV-SNP", "tdx_guest": "TDX"}
_VIRTUAL: Final = ("QEMU", "KVM", "Amazon EC2", "Google", "Microsoft Corporation", "VMware", "Xen", "innotek")
"""Makers in DMI under which a TPM is one of software (level 1): of a cloud or of an emulator."""


def assurance(folder: Path, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> Check:
    """The level, and what stands between this host and the next ones."""
    there: list[str] = []
    missing: list[str] = []

    def note(found: bool, what: str) -> None:
        (there if found else missing).append(what)

    note(_text(sysfs / "class" / "tpm" / "tpm0" / "tpm_version_major") == "2", _tpm(sysfs))
    note((sysfs / "kernel" / "security" / "tpm0" / "binary_bios_measurements").exists(), "a measured boot log")
    note(_secure_boot(sysfs), "Secure Boot")
    note((folder / "config.json").exists() and not (folder / "key").exists(), "a sealed log key")
    there += [f"a {name} guest" for device, name in _GUESTS.items() if (dev / device).exists()]
    detail = "level 0, self-reported: this agent gives no evidence about host or counters"
    detail += f"; here: {', '.join(there) or 'nothing that could be attested'}"
    if missing:
        detail += f"; missing for more: {', '.join(missing)}"
    return Check(name="assurance", state="ok", detail=detail)


def _tpm(sysfs: Path) -> str:
    maker = _text(sysfs / "class" / "dmi" / "id" / "sys_vendor")
    return "a virtual TPM 2.0 (level 1 at most)" if maker.startswith(_VIRTUAL) else "a TPM 2.0"


def _secure_boot(sysfs: Path) -> bool:
    try:
        # Four bytes of attributes, and then the value.
        return (sysfs / _SECURE_BOOT).read_bytes()[4:5] == b"\x01"
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
