"""transparency-dev/merkle vectors: every proof that must verify does, every other is refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.merkle import verify_consistency, verify_inclusion


def vectors(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    found = [(str(path.relative_to(folder)), json.loads(path.read_text())) for path in sorted(folder.rglob("*.json"))]
    assert len(found) > 50
    return found


def raw(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def refusal(check: Any, *arguments: Any) -> Code | None:
    try:
        check(*arguments)
    except ProtocolError as error:
        return error.code
    return None


def test_inclusion(shared_vectors: Path) -> None:
    for name, vector in vectors(shared_vectors / "merkle" / "inclusion"):
        proof = [raw(step) for step in vector["proof"] or []]
        leaf, root = raw(vector["leafHash"]), raw(vector["root"])
        refused = refusal(verify_inclusion, vector["leafIdx"], vector["treeSize"], leaf, proof, root)
        assert refused == (Code.BAD_PROOF if vector["wantErr"] else None), name


def test_consistency(shared_vectors: Path) -> None:
    for name, vector in vectors(shared_vectors / "merkle" / "consistency"):
        proof = [raw(step) for step in vector["proof"] or []]
        sizes = vector["size1"], vector["size2"]
        refused = refusal(verify_consistency, *sizes, raw(vector["root1"]), raw(vector["root2"]), proof)
        assert refused == (Code.BAD_PROOF if vector["wantErr"] else None), name


def test_from_the_empty_tree_to_any_other() -> None:
    """Theirs refuses every proof from size 0; ours accepts the empty one, as witnesses need (C2SP tlog-witness).

    Their one vector of the kind has a root that isn't a hash, so both refuse it.
    """
    empty = raw("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
    verify_consistency(0, 5, empty, bytes(32), [])
    with pytest.raises(ProtocolError, match="not a SHA-256 hash"):
        verify_consistency(0, 5, empty, b"don't care", [])
    with pytest.raises(ProtocolError, match="two roots"):
        verify_consistency(0, 5, bytes(32), bytes(32), [])
