"""Patterns of what a URL may hold, each with what it means for the person who reads why it was refused."""

from typing import Final

HEX_32: Final = "^[0-9a-f]{32}$"
HEX_64: Final = "^[0-9a-f]{64}$"
VISIBLE: Final = "^[!-~]+$"

IN_WORDS: Final = {
    HEX_32: "32 hex digits, in lower case",
    HEX_64: "64 hex digits, in lower case",
    VISIBLE: "ASCII characters without spaces",
}
