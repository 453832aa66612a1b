"""What the gate says no to. Codes are stable; the agent tells them apart by these."""


class GateError(Exception):
    """A request that isn't done, or a program that can't go on.

    :param code: stable, for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
