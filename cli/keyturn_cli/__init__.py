"""``keyturn``: the commands for people. Reads a verifier's numbers and audits evidence without one."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("keyturn")
except PackageNotFoundError:  # run from a checkout that isn't installed
    __version__ = "0+unknown"
