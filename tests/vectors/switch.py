"""Vectors of the start switch: every kind of statement, and permit bundles, made without the code that reads them."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from tests.vectors.leases import LeaseKey, lease
from tests.vectors.people import FileKey, signed
from tests.vectors.pieces import Case, Json, b64, bad, canonical, content, good

Cases = Iterator[tuple[str, Case]]
NAME = "keyturn.example.org"
T0 = 1_790_000_000_000_000
MINUTE = 60_000_000
DAY_S = 86_400
HASH = sha256(b"something").hexdigest()
PEOPLE = {"lab-a/ada": "lab", "lab-a/bob": "lab", "office/ivy": "regulator", "operator-b/eve": "operator"}
ORGANISATION = {"lab-a": "acme", "office": "state", "operator-b": "hosting"}


def hash_of(said: Json) -> str:
    return sha256(canonical(said)).hexdigest()


def common(kind: str, root: str | None, at: int = 0) -> Json:
    return {"v": 1, "type": kind, "deployment": NAME, "root": root, "time_us": T0 + at * MINUTE}


def vkey(name: str, kind: int) -> str:
    public = FileKey(f"service {name}").point
    ident = sha256(f"{NAME}/{name}\n".encode() + bytes([kind]) + public).digest()[:4]
    return f"{NAME}/{name}+{ident.hex()}+{b64(bytes([kind]) + public)}"


def person_key(seed: str, **changes: Any) -> Json:
    valid = {"valid_from_us": 0, "valid_until_us": None, "compromised_since_us": None}
    return {"key": FileKey(seed).text, **valid, **changes}


def person(name: str, *keys: Json) -> Json:
    return {"id": name, "party": name.partition("/")[0], "keys": list(keys) or [person_key(name)]}


def root(**changes: Any) -> Json:
    two = {"persons": 2, "organisations": 2, "minimum": {}}
    classes = {name.partition("/")[0]: kind for name, kind in PEOPLE.items()}
    return {
        **common("root", None),
        "version": 1,
        "previous": None,
        "expires_us": T0 + 3650 * DAY_S * 1_000_000,
        "parties": [
            {"id": party, "organisation": ORGANISATION[party], "class": kind, "name": party.title()}
            for party, kind in sorted(classes.items())
        ],
        "persons": [person(name) for name in sorted(PEOPLE)],
        "services": {
            "log_vkey": vkey("log", 1),
            "receipt_vkey": vkey("receipt", 4),
            "lease_vkey": LeaseKey(f"{NAME}/lease").vkey,
        },
        "witnesses": [],
        "watchers": [],
        "thresholds": {"root": two, "policy": two},
        **changes,
    }


def tier(**changes: Any) -> Json:
    return {
        "name": "large",
        "above": {"budget_tflop": 10**11, "chips": 1024, "lineage_tflop": None},
        "approve": {"persons": 2, "organisations": 2, "minimum": {"operator": 1, "regulator": 1}},
        "deny": 2,
        "veto": ["operator", "regulator"],
        "colleagues": True,
        "decide_s": 7 * DAY_S,
        "start_s": 30 * DAY_S,
        "grace_s": 600,
        "lease_s": 2 * DAY_S,
        "assurance": 0,
        "verified": ["argv"],
        "watchers": [],
        **changes,
    }


def policy(of: str, **changes: Any) -> Json:
    return {
        **common("policy", of, 1),
        "version": 1,
        "previous": None,
        "name": "three parties",
        "requesters": ["lab"],
        "tiers": [tier()],
        "allowance": {
            "window_s": 7 * DAY_S,
            "organisation_tflop": 10**9,
            "lineage_tflop": 10**9,
            "diagnostics_tflop": 10**6,
            "chips": 64,
            "lease_s": 3600,
        },
        "stop": {"notice_s": 1800, "alone_s": 3 * DAY_S, "kill_s": 60},
        **changes,
    }


def scope(**changes: Any) -> Json:
    return {
        "budget_tflop": 10**12,
        "chips": 16_384,
        "chip_uuids": None,
        "sites": ["fra1", "fra2"],
        "dtypes": ["bf16", "fp8"],
        "not_before_us": T0,
        "not_after_us": T0 + 100 * DAY_S * 1_000_000,
        **changes,
    }


SPEC = {"argv": "3" * 64, "config": None, "data": None, "image": "1" * 64}


def request(of: str = HASH, under: str = HASH, **changes: Any) -> Json:
    return {
        **common("request", of, 2),
        "policy": under,
        "requester": "lab-a/ada",
        "label": "aurora-2 pre-training",
        "purpose": "a language model",
        "lineage": "aurora",
        "spec": SPEC,
        "scope": scope(),
        "ancestors": [{"run": "aurora-1", "tflop": 10**10, "basis": "its bundle"}],
        "nonce": "4" * 64,
        **changes,
    }


def about(kind: str, of: str = HASH, under: str = HASH, at: int = 3, **changes: Any) -> Json:
    """A decision, withdrawal, suspension or proposal."""
    said: dict[str, Json] = {
        "decision": {"subject": HASH, "verdict": "approve", "narrowing": None, "reason": ""},
        "withdraw": {"subject": HASH, "reason": ""},
        "suspend": {"run": HASH, "stop_at_us": None, "reason": "an incident"},
        "resume": {"run": HASH, "after": [HASH], "reason": "it is over"},
        "revoke": {"run": HASH, "after": [], "reason": "no longer wanted"},
        "amend": {"run": HASH, "after": [], "reason": "more chips", "scope": scope(), "spec": SPEC},
    }
    return {**common(kind, of, at), "policy": under, "person": "office/ivy", **said[kind], **changes}


def narrowing(**changes: Any) -> Json:
    return dict.fromkeys(scope(), None) | changes


# Kinds ------------------------------------------------------------------------------------------------------


def kinds() -> Cases:
    accepted: dict[str, tuple[str, Json]] = {
        "root": ("the first root", root()),
        "root_2": ("the next root", root(version=2, previous=HASH, root=HASH)),
        "policy": ("a policy", policy(HASH)),
        "policy_2": ("the next policy", policy(HASH, version=2, previous=HASH)),
        "request": ("a request", request()),
        "request_any_site": ("any site, one chip by name", request(scope=scope(sites=None, chip_uuids=["GPU-5a"]))),
        "request_unknown_ancestor": (
            "an ancestor of unknown compute",
            request(ancestors=[{"run": "elsewhere", "tflop": None, "basis": "bought"}]),
        ),
        "decision": ("an approval", about("decision")),
        "decision_narrowed": (
            "an approval of less",
            about("decision", narrowing=narrowing(chips=512, sites=["fra1"])),
        ),
        "veto": ("a veto", about("decision", verdict="veto", reason="not this one")),
        "withdraw": ("a withdrawal", about("withdraw")),
        "suspend": ("a suspension", about("suspend")),
        "suspend_sooner": ("a suspension at a moment", about("suspend", stop_at_us=T0)),
        "resume": ("a resumption", about("resume")),
        "revoke": ("a revocation", about("revoke")),
        "amend": ("an amendment", about("amend")),
    }
    for name, (what, said) in accepted.items():
        yield f"good_{name}", good(what, "parse_payload", _payload(said), {"hash": hash_of(said)})
    for name, (what, said, code) in {**_roots(), **_policies(), **_about_runs()}.items():
        yield name, bad(what, "parse_payload", _payload(said), code)


def _payload(said: Json) -> Json:
    return {"kind": said["type"], "payload": content(canonical(said))}


def _roots() -> dict[str, tuple[str, Json, str]]:
    people, parties = root()["persons"], root()["parties"]
    two = person("lab-a/bob", person_key("lab-a/bob"), person_key("lab-a/ada"))
    zero = {"persons": 0, "organisations": 1, "minimum": {}}
    good_one = {"persons": 1, "organisations": 1, "minimum": {}}
    services = root()["services"]
    steward = {"party": "office", "vkey": services["receipt_vkey"]}
    look_alike = [person("lab-a/\u0430da"), *people[1:]]
    return {
        "root_one_key_of_two_persons": ("one key for two persons", root(persons=[people[0], two]), "bad_root"),
        "root_key_twice": (
            "one key twice for a person",
            root(persons=[person("lab-a/ada", person_key("a"), person_key("a"))]),
            "bad_root",
        ),
        "root_key_never_valid": (
            "a key that is never valid",
            root(persons=[person("lab-a/ada", person_key("a", valid_from_us=5, valid_until_us=5))]),
            "bad_root",
        ),
        "root_person_of_no_party": ("a person of no party", root(persons=[person("lab-z/ada")]), "bad_root"),
        "root_person_of_another_party": (
            "a person named after another party",
            root(persons=[person("lab-a/ada") | {"party": "office"}]),
            "bad_root",
        ),
        "root_look_alike_person": ("a look-alike of a name", root(persons=look_alike), "not_canonical"),
        "root_persons_unsorted": ("persons out of order", root(persons=people[::-1]), "bad_root"),
        "root_persons_twice": ("a person twice", root(persons=[people[0], people[0]]), "bad_root"),
        "root_parties_unsorted": ("parties out of order", root(parties=parties[::-1]), "bad_root"),
        "root_no_persons": ("nobody", root(persons=[]), "not_canonical"),
        "root_class": ("an unknown class", root(parties=[parties[0] | {"class": "king"}]), "not_canonical"),
        "root_threshold_0": ("a threshold of 0", root(thresholds={"root": zero, "policy": good_one}), "not_canonical"),
        "root_no_threshold": ("a threshold left out", root(thresholds={"root": good_one}), "not_canonical"),
        "root_first_with_previous": ("version 1 after another", root(previous=HASH, root=HASH), "bad_root"),
        "root_next_without_previous": ("version 2 after none", root(version=2), "bad_root"),
        "root_previous_not_root": ("two names for the one before", root(version=2, previous=HASH), "bad_root"),
        "root_service_of_another_name": (
            "a service key of another name",
            root(services=services | {"log_vkey": services["lease_vkey"]}),
            "bad_root",
        ),
        "root_witness_with_a_service_key": ("one key for two purposes", root(witnesses=[steward]), "bad_root"),
        "root_key_text": (
            "a key that is none",
            root(persons=[person("lab-a/ada", person_key("a") | {"key": "rsa AAAA"})]),
            "bad_key",
        ),
        "root_deployment": ("no deployment's name", root(deployment="Keyturn"), "bad_identifier"),
    }


def _policies() -> dict[str, tuple[str, Json, str]]:
    def one(**changes: Any) -> Json:
        return policy(HASH, tiers=[tier(**changes)])

    def approve(**changes: Any) -> Json:
        return {**tier()["approve"], **changes}

    small = tier(name="small", above={"budget_tflop": 10**9, "chips": None, "lineage_tflop": None})
    nothing = {"budget_tflop": None, "chips": None, "lineage_tflop": None}
    return {
        "policy_no_tiers": ("no tiers", policy(HASH, tiers=[]), "not_canonical"),
        "policy_persons_0": ("an approval by nobody", one(approve=approve(persons=0)), "not_canonical"),
        "policy_no_approval": (
            "an approval left out",
            policy(HASH, tiers=[{k: v for k, v in tier().items() if k != "approve"}]),
            "not_canonical",
        ),
        "policy_no_class": ("no class whose consent it takes", one(approve=approve(minimum={})), "bad_policy"),
        "policy_minimum_above_persons": ("more by class than in all", one(approve=approve(persons=1)), "bad_policy"),
        "policy_organisations": (
            "more organisations than persons",
            one(approve=approve(organisations=3)),
            "bad_policy",
        ),
        "policy_no_bound": ("no size at which it begins", one(above=nothing), "bad_policy"),
        "policy_veto_unsorted": ("vetoes out of order", one(veto=["regulator", "operator"]), "bad_policy"),
        "policy_verified_twice": ("a part twice", one(verified=["argv", "argv"]), "bad_policy"),
        "policy_two_names": ("two tiers of one name", policy(HASH, tiers=[small, small]), "bad_policy"),
        "policy_order": ("a larger tier first", policy(HASH, tiers=[tier(), small]), "bad_policy"),
        "policy_less_consent": (
            "less consent above",
            policy(HASH, tiers=[small, tier(approve=approve(minimum={"operator": 1}))]),
            "bad_policy",
        ),
        "policy_less_veto": ("a veto less above", policy(HASH, tiers=[small, tier(veto=["operator"])]), "bad_policy"),
        "policy_first_with_previous": ("version 1 after another", policy(HASH, previous=HASH), "bad_policy"),
        "policy_name_of_tier": ("a tier's name in upper case", one(name="Large"), "not_canonical"),
    }


def _about_runs() -> dict[str, tuple[str, Json, str]]:
    def scoped(**changes: Any) -> Json:
        return request(scope=scope(**changes))

    def less(**changes: Any) -> Json:
        return about("decision", narrowing=narrowing(**changes))

    return {
        "request_budget_0": ("a budget of nothing", scoped(budget_tflop=0), "not_canonical"),
        "request_budget_float": ("a budget that isn't whole", scoped(budget_tflop=1.5), "not_canonical"),
        "request_sites_unsorted": ("sites out of order", scoped(sites=["fra2", "fra1"]), "bad_statement"),
        "request_no_sites": ("at no site", scoped(sites=[]), "bad_statement"),
        "request_no_dtypes": ("of no type", scoped(dtypes=[]), "not_canonical"),
        "request_dtype_unknown": ("an unknown type", scoped(dtypes=["fp3"]), "bad_statement"),
        "request_chip_with_space": ("a chip that is none", scoped(chip_uuids=["GPU 5a"]), "not_canonical"),
        "request_window": ("a window of no time", scoped(not_after_us=T0), "bad_statement"),
        "request_ancestor_twice": (
            "an ancestor twice",
            request(ancestors=[{"run": "a", "tflop": 1, "basis": ""}] * 2),
            "bad_statement",
        ),
        "request_no_lineage": ("no lineage", request(lineage=""), "not_canonical"),
        "request_label_turns_around": ("a label that turns text around", request(label="a\u202eb"), "not_canonical"),
        "request_spec_part": ("a fifth part", request(spec=SPEC | {"env": None}), "not_canonical"),
        "request_short_nonce": ("31 bytes", request(nonce="00" * 31), "not_canonical"),
        "request_upper_case_person": ("a person in upper case", request(requester="Lab-A/ada"), "not_canonical"),
        "decision_verdict": ("an unknown verdict", about("decision", verdict="abstain"), "not_canonical"),
        "decision_deny_without_reason": ("no reason", about("decision", verdict="deny"), "bad_statement"),
        "decision_veto_narrows": (
            "a veto of a part",
            about("decision", verdict="veto", reason="no", narrowing=narrowing(chips=1)),
            "bad_statement",
        ),
        "decision_narrowed_to_no_site": ("an approval of nothing", less(sites=[]), "bad_statement"),
        "decision_narrowed_unsorted": ("data types out of order", less(dtypes=["fp8", "bf16"]), "bad_statement"),
        "decision_narrowed_to_0": ("a narrowing to nothing", less(chips=0), "not_canonical"),
        "decision_no_person": ("of nobody", about("decision", person=""), "not_canonical"),
        "decision_look_alike": ("by a look-alike", about("decision", person="office/\u0456vy"), "not_canonical"),
        "decision_no_root": (
            "the root left out",
            {k: v for k, v in about("decision").items() if k != "root"},
            "not_canonical",
        ),
        "suspend_without_reason": ("no reason", about("suspend", reason=""), "not_canonical"),
        "resume_after_no_hash": ("an event that is no hash", about("resume", after=["x"]), "not_canonical"),
        "resume_answers_too_much": ("1,025 events", about("resume", after=[HASH] * 1025), "not_canonical"),
        "amend_window": ("a window of no time", about("amend", scope=scope(not_after_us=T0)), "bad_statement"),
        "amend_unknown_field": ("an unknown field", about("amend", why="because"), "not_canonical"),
        "withdraw_no_subject": (
            "of nothing",
            {k: v for k, v in about("withdraw").items() if k != "subject"},
            "not_canonical",
        ),
        "unknown_kind": ("a kind that there isn't", about("withdraw") | {"type": "wish"}, "bad_statement"),
        "kind_of_another": ("another kind's fields", about("withdraw") | {"type": "suspend"}, "not_canonical"),
    }


# Permit bundles ---------------------------------------------------------------------------------------------


def item(index: int, said: Json, *signers: str) -> Json:
    made = signed(canonical(said), *(FileKey(seed) for seed in signers), kind=said["type"])
    return {"envelope": made, "index": index, "time_us": T0 + index * MINUTE}


class Story:
    """A run that is approved and started; a statement a leaf, from leaf 1 on."""

    def __init__(self) -> None:
        self.root = root()
        self.of = hash_of(self.root)
        self.policy = policy(self.of)
        self.under = hash_of(self.policy)
        self.request = request(self.of, self.under)
        self.run = hash_of(self.request)
        self.items = [
            item(1, self.root, "lab-a/ada", "operator-b/eve"),
            item(2, self.policy, "lab-a/ada", "office/ivy"),
            item(3, self.request, "lab-a/ada"),
            item(4, self.say("decision", "operator-b/eve", 4), "operator-b/eve"),
            item(5, self.say("decision", "office/ivy", 5, narrowing=narrowing(chips=512)), "office/ivy"),
        ]

    def say(self, kind: str, who: str, at: int, **changes: Any) -> Json:
        subject = {"subject": self.run} if kind in ("decision", "withdraw") else {"run": self.run}
        return about(kind, self.of, self.under, at, person=who, **subject | changes)

    def start(self, index: int = 6, key: LeaseKey | None = None, **changes: Any) -> Json:
        at = T0 + index * MINUTE
        fields = {"run": self.run, "root": self.of, "policy": self.under, "time_us": at} | changes
        note = (key or LeaseKey(f"{NAME}/lease")).note(canonical(lease(**fields)) + b"\n")
        return {"index": index, "lease": note.decode(), "time_us": at}

    def bundle(self, **changes: Any) -> Json:
        return {"v": 1, "deployment": NAME, "run": self.run, "start": None, "statements": self.items, **changes}


def permits() -> Cases:
    story = Story()
    suspended = item(7, story.say("suspend", "office/ivy", 7), "office/ivy")
    next_root = root(version=2, previous=story.of, root=story.of, time_us=T0 + 8 * MINUTE)
    rooted = item(8, next_root, "lab-a/bob", "office/ivy")

    def given(bundle: Json | bytes, pinned: str = story.of, deployment: str = NAME) -> Json:
        data = bundle if isinstance(bundle, bytes) else canonical(bundle)
        return {"bundle": content(data), "root": pinned, "deployment": deployment}

    def value(**changes: Any) -> Json:
        said = {"root": 1, "policy": 1, "permit": 5, "epoch": 0, "stop_at_us": None, "chips": 512, "started": False}
        return said | changes

    alone = {"root": 1, "policy": 1, "permit": None, "epoch": None, "stop_at_us": None, "chips": None, "started": None}
    after = story.bundle(start=story.start(), statements=[*story.items, suspended, rooted])
    stop = T0 + 7 * MINUTE + 1800 * 1_000_000
    stopped = value(root=2, epoch=1, stop_at_us=stop, started=True)
    accepted = {
        "approved": ("a run that the quorum approved", given(story.bundle()), value()),
        "pending": (
            "a run that still lacks an approval",
            given(story.bundle(statements=story.items[:4])),
            value(permit=None, chips=16_384),
        ),
        "started": ("with its first lease", given(story.bundle(start=story.start())), value(started=True)),
        "suspended": ("and suspended, under a later root", given(after), stopped),
        "later_pin": ("a later version of the root is pinned", given(after, hash_of(next_root)), stopped),
        "authority": (
            "roots and policies alone",
            given(story.bundle(run=None, statements=story.items[:2])),
            alone,
        ),
    }
    for name, (what, one, want) in accepted.items():
        yield f"good_{name}", good(what, "open_permit_bundle", one, want)
    for name, (what, one, code) in _broken(story, given).items():
        yield name, bad(what, "open_permit_bundle", one, code)


def _broken(story: Story, given: Callable[..., Json]) -> dict[str, tuple[str, Json, str]]:
    items = story.items

    def of(*statements: Json, **changes: Any) -> Json:
        return given(story.bundle(statements=list(statements), **changes))

    def then(said: Json, *signers: str) -> Json:
        return of(*items, item(7, said, *signers))

    coup = root(version=2, previous=story.of, root=story.of, time_us=T0 + 7 * MINUTE)
    skipped = coup | {"version": 3}
    elsewhere = story.say("decision", "office/ivy", 7, subject=HASH)
    veto = story.say("decision", "office/ivy", 5, verdict="veto", reason="no")
    by_lab = story.say("decision", "lab-a/ada", 4)
    flipped = items[4] | {"envelope": item(5, veto, "operator-b/eve")["envelope"]}
    other = LeaseKey(f"{NAME}/lease", "another")
    by_bob = story.say("suspend", "lab-a/bob", 7)
    later = items[4] | {"index": 7, "time_us": T0 + 7 * MINUTE}
    too_late = story.start() | {"time_us": T0 + 31 * DAY_S * 1_000_000}
    cases = {
        "another_pin": ("another root is pinned", given(story.bundle(), "ab" * 32)),
        "another_deployment": ("for another deployment", given(story.bundle(), deployment="keyturn.example.net")),
        "no_root": ("without the root", of(*items[1:])),
        "no_policy": ("without the policy", of(items[0], *items[2:])),
        "no_request": ("without the request", of(*items[:2], *items[3:])),
        "nothing_of_the_run": ("without anything of the run", of(*items[:2])),
        "of_another_run": ("named after another run", given(story.bundle(run=HASH))),
        "authority_with_a_run": ("a run that isn't named", given(story.bundle(run=None))),
        "out_of_order": ("leaves out of order", of(*items[:3], items[4], items[3])),
        "leaf_twice": ("two statements of one leaf", of(*items[:4], items[4] | {"index": 4})),
        "time_goes_back": ("a leaf from before the one before", of(*items[:4], items[4] | {"time_us": T0})),
        "said_twice": ("one statement twice", of(*items, later)),
        "signed_by_another": ("a veto-holder's word by another", of(*items[:4], flipped)),
        "requester_approves": ("the requester approves", of(*items[:3], item(4, by_lab, "lab-a/ada"))),
        "invented": ("signed by a key of the verifier", then(story.say("withdraw", "lab-a/ada", 7), "service log")),
        "of_another_subject": ("a decision about something else", then(elsewhere, "office/ivy")),
        "after_a_veto": ("more after a veto", of(*items[:3], item(4, veto, "office/ivy"), items[3] | {"index": 5})),
        "suspended_without_a_veto": ("by someone without a veto", then(by_bob, "lab-a/bob")),
        "root_by_too_few": ("a root that one organisation signed", then(coup, "lab-a/ada", "lab-a/bob")),
        "root_that_skips": ("a version is left out", then(skipped, "lab-a/ada", "office/ivy")),
        "policy_by_too_few": (
            "a policy that one person signed",
            then(policy(story.of, version=2, previous=story.under), "office/ivy"),
        ),
        "lease_forged": ("a first lease by another key", given(story.bundle(start=story.start(key=other)))),
        "lease_of_another_run": ("another run's lease", given(story.bundle(start=story.start(run=HASH)))),
        "lease_before_the_permit": ("leased before it was approved", of(*items[:4], later, start=story.start())),
        "lease_too_late": ("leased after the last day to start", given(story.bundle(start=too_late))),
        "lease_in_the_place_of_a_leaf": ("the leaf of a statement", given(story.bundle(start=story.start(5)))),
        "replacement": (
            "a statement that has no place in it",
            then(
                common("replacement", story.of, 7) | {"old": "0" * 32, "new": "1" * 32, "reason": "a new disk"},
                "operator-b/eve",
            ),
        ),
    }  # fmt: skip
    found = {name: (what, one, "bad_permit") for name, (what, one) in cases.items()}
    whole = canonical(story.bundle())
    found |= {
        "empty": ("no statements", of(), "not_canonical"),
        "version_2": ("another version", given(story.bundle(v=2)), "not_canonical"),
        "spaces": ("white space", given(whole.replace(b",", b", ", 1)), "not_canonical"),
        "cut": ("cut short", given(whole[:-1]), "not_canonical"),
        "unknown_field": ("an unknown field", given(story.bundle(comment="")), "not_canonical"),
        "run_short": ("a run that is no hash", given(story.bundle(run="ab")), "not_canonical"),
        "no_start": (
            "a field left out",
            given({k: v for k, v in story.bundle().items() if k != "start"}),
            "not_canonical",
        ),
        "lease_that_is_none": (
            "a note that is none",
            given(story.bundle(start=story.start() | {"lease": "a lease"})),
            "bad_note",
        ),
    }
    return found
