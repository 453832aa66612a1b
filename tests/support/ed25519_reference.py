"""Ed25519 verification in plain Python, after RFC 8032 §5.1: a second opinion that shares no code with us.

Cofactorless, and with every encoding checked. Slow, not constant-time, for tests only.
"""

from hashlib import sha512

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)

Point = tuple[int, int, int, int]
"""Extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z."""
IDENTITY: Point = (0, 1, 1, 0)


def add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def multiply(n: int, p: Point) -> Point:
    q = IDENTITY
    while n:
        if n & 1:
            q = add(q, p)
        p = add(p, p)
        n >>= 1
    return q


def encode(p: Point) -> bytes:
    z = pow(p[2], -1, P)
    x, y = p[0] * z % P, p[1] * z % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    """The point that ``data`` encodes, also where the encoding isn't the canonical one; None if there is none."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, (number & (1 << 255) - 1) % P
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * SQRT_M1 % P
    if (x * x - x2) % P:
        return None
    if x & 1 != sign:
        x = -x % P
    return (x, y, 1, x * y % P)


def is_canonical(data: bytes) -> bool:
    """Whether ``data`` is the one encoding of the point that it means."""
    point = decode(data)
    return point is not None and encode(point) == data


def has_low_order(data: bytes) -> bool:
    """Whether eight times the point is the identity."""
    point = decode(data)
    return point is not None and encode(multiply(8, point)) == encode(IDENTITY)


_BASE = decode(bytes.fromhex("5866666666666666666666666666666666666666666666666666666666666666"))


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """RFC 8032 §5.1.7 with the cofactorless equation: S < L and encode([S]B - [k]A) == R, as bytes."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    a = decode(public_key)
    s = int.from_bytes(signature[32:], "little")
    if a is None or s >= L:
        return False
    k = int.from_bytes(sha512(signature[:32] + public_key + message).digest(), "little") % L
    minus_a = (-a[0] % P, a[1], a[2], -a[3] % P)
    assert _BASE is not None
    return encode(add(multiply(s, _BASE), multiply(k, minus_a))) == signature[:32]
