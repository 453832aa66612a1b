"""Hosts that were set up again: what a replacement closes, and everything that it must not close."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.audit import Report, audit
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding, FindingCode
from keyturn_protocol.ids import NodeId
from keyturn_protocol.links import Link, Links, NodeLogs, Received, named, takeovers
from keyturn_protocol.statements import Replacement
from keyturn_protocol.totals import HOST, Moment
from tests.support.bundles import Site
from tests.support.hosts import START_US, Host
from tests.support.people import OPERATORS, replaces

MINUTE_US = 60_000_000
OLD_BOOT, NEW_BOOT, OTHER_BOOT = (f"0c6b1d9e-0000-4000-8000-00000000000{i}" for i in (2, 3, 4))
X, Y = "GPU-x", "GPU-y"


class World:
    """A host with chips x and y that reports for a minute, goes down, and comes back as another node."""

    def __init__(self) -> None:
        self.site = Site()
        self.old = self.host("old", OLD_BOOT, at_us=START_US)
        self.old.genesis(source="nvml").inventory(named=[X, Y])
        for _ in range(6):
            self.old.usage()
        self.receive(self.old)
        self.ended_us = self.old.now_us

    def host(self, seed: str, boot: str, at_us: int) -> Host:
        host = self.site.enrol(seed)
        host.boot, host.now_us = boot, at_us
        return host

    def receive(self, host: Host, lag_us: int = 0) -> None:
        self.site.now_s = max(self.site.now_s, (host.now_us + lag_us) // 1_000_000)
        self.site.receive(host)

    def again(self, after_us: int = 10 * MINUTE_US, seed: str = "new", boot: str = NEW_BOOT) -> Host:
        """The host's next life, enrolled: its genesis is receipted a second after it was written."""
        host = self.host(seed, boot, self.ended_us + after_us).genesis(source="nvml")
        self.receive(host)
        return host.wait(MINUTE_US)

    def link(self, old: Host, new: Host) -> None:
        self.site.say(replaces(old.name.node_id, new.name.node_id))

    def report(self, after_us: int = 60 * MINUTE_US) -> Report:
        self.site.now_s = max(self.site.now_s, (self.ended_us + after_us) // 1_000_000)
        bundle = self.site.export()
        return audit(bundle, bundle.trust, chip_table(), operators=OPERATORS)

    def gap_us(self) -> int:
        report = self.report()
        assert (report.outcome, report.reasons) == ("pass", ())
        return next(w.gap_us for w in report.workloads if w.workload == "gap")


HOUR_US = 60 * MINUTE_US
ENROLLED_US = 10 * MINUTE_US + 1_000_000


def test_without_a_replacement_both_chips_stay_silent() -> None:
    world = World()
    new = world.again().inventory(named=[X, Y])
    world.receive(new)
    listed_us = new.now_us - world.ended_us
    # The new node owes what comes after its listing, the old one everything: nothing says that it is one host.
    assert world.gap_us() == 2 * HOUR_US + 2 * (HOUR_US - listed_us)


def test_what_the_new_node_lists_is_silent_no_longer_and_what_it_doesnt_still_is() -> None:
    world = World()
    new = world.again().inventory(named=[X])
    world.link(world.old, new)
    listed_us = new.now_us - world.ended_us
    world.receive(new)
    assert world.gap_us() == listed_us + HOUR_US + (HOUR_US - listed_us)


def test_a_replacement_alone_closes_nothing() -> None:
    for linked in (False, True):
        world = World()
        new = world.again()
        if linked:
            world.link(world.old, new)
        world.receive(new.heartbeat())
        assert world.gap_us() == 2 * HOUR_US


def test_a_replacement_of_a_node_that_never_enrolled_closes_nothing() -> None:
    world = World()
    world.site.say(replaces(world.old.name.node_id, "00" * 16))
    assert world.gap_us() == 2 * HOUR_US


def test_a_chip_that_the_new_node_retires_by_name_is_silent_up_to_there() -> None:
    world = World()
    new = world.again().inventory(named=[X]).retired(Y)
    world.link(world.old, new)
    world.receive(new)
    at_us = new.now_us - world.ended_us
    assert world.gap_us() == 2 * at_us + (HOUR_US - at_us)


def test_a_new_node_that_retires_as_a_host_says_nothing_of_chips_it_never_had() -> None:
    world = World()
    new = world.again().inventory(named=[X]).retired()
    world.link(world.old, new)
    world.receive(new)
    assert world.gap_us() == (new.now_us - world.ended_us) + HOUR_US


def test_a_later_log_of_the_same_node_goes_before_the_new_node() -> None:
    world = World()
    second = world.site.next_incarnation(world.old)
    second.boot, second.lines = OTHER_BOOT, []
    second.now_us = world.ended_us + MINUTE_US
    second.genesis(world.old.previous(), source="nvml").inventory(named=[X])
    world.receive(second)
    new = world.again().inventory(named=[X, Y])
    world.link(world.old, new)
    world.receive(new)
    listed_us = new.now_us - world.ended_us
    first = [g for g in world.report().findings if g.code == FindingCode.GAP and g.origin == world.old.origin]
    # x by its second log, y by the new node.
    assert sorted((g.to_us or 0) - world.ended_us for g in first) == [MINUTE_US, listed_us]


def test_the_clock_of_the_new_host_cannot_take_a_chip_over_before_it_was_enrolled() -> None:
    """Set back to a moment after the old host's end, it would hide the time in between."""
    world = World()
    new = world.again()
    new.now_us, new.mono_us = world.ended_us + 1_000_000, 2_000_000
    world.link(world.old, new)
    world.receive(new.inventory(named=[X, Y]))
    # Enrolled ten minutes after the old one's end.
    assert world.gap_us() == 2 * ENROLLED_US + 2 * (HOUR_US - 1_000_000)


def test_a_boot_id_that_is_copied_gives_no_time_back_either() -> None:
    world = World()
    new = world.again(boot=OLD_BOOT)
    new.mono_us = world.old.mono_us + 1
    world.link(world.old, new)
    world.receive(new.inventory(named=[X, Y]))
    listed_us = new.now_us - world.ended_us
    assert world.gap_us() == 2 * listed_us + 2 * (HOUR_US - listed_us)


def coded(report: Report, code: FindingCode) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def test_a_replaced_node_that_goes_on_reporting_is_found_and_nothing_is_taken_over_from_it() -> None:
    world = World()
    new = world.again().inventory(named=[X, Y])
    world.receive(new)
    world.link(world.old, new)
    assert coded(world.report(), FindingCode.REPLACED_ACTIVE) == []

    world.old.wait(20 * MINUTE_US).usage()
    world.receive(world.old)
    report = world.report()
    (found,) = coded(report, FindingCode.REPLACED_ACTIVE)
    assert (found.origin, found.severity) == (world.old.origin, "high")
    silent = [f for f in coded(report, FindingCode.GAP) if f.origin == world.old.origin and f.to_us == report.until_us]
    assert len(silent) == 1
    assert silent[0].detail.startswith("2 chips")


def test_a_node_that_was_there_before_takes_nothing_over_even_if_it_once_had_the_chip() -> None:
    """Chip x went from b to a and is lost there: that b listed it long ago is no evidence of where it is."""
    world = World.__new__(World)
    world.site = Site()
    b = world.host("b", NEW_BOOT, START_US).genesis(source="nvml").inventory(named=[X]).usage().retired(X)
    world.receive(b)
    world.old = world.host("a", OLD_BOOT, b.now_us).genesis(source="nvml").inventory(named=[X]).usage()
    world.receive(world.old)
    world.ended_us = world.old.now_us
    world.link(world.old, b)
    assert world.gap_us() == HOUR_US
    assert len(coded(world.report(), FindingCode.REPLACED_ACTIVE)) == 1


def test_every_replacement_is_a_finding_with_its_reason() -> None:
    world = World()
    new = world.again()
    world.link(world.old, new)
    report = world.report()
    (found,) = coded(report, FindingCode.REPLACED)
    assert (found.origin, found.severity) == (world.old.origin, "medium")
    assert "new disk" in found.detail
    assert [(link.old, link.new) for link in report.links] == [(world.old.name.node_id, new.name.node_id)]


def test_a_chain_of_replacements_takes_over_from_each() -> None:
    world = World()
    second = world.again().inventory(named=[X])
    world.link(world.old, second)
    world.receive(second)
    x_us = second.now_us - world.ended_us
    third = world.host("third", OTHER_BOOT, world.ended_us + 30 * MINUTE_US).genesis(source="nvml")
    world.receive(third)
    world.link(second, third)
    world.receive(third.wait(MINUTE_US).inventory(named=[X, Y]))
    third_us = 31 * MINUTE_US
    # x: up to the second, then silent there up to the third; y: up to the third. Then both are silent there.
    assert world.gap_us() == x_us + (third_us - x_us) + third_us + 2 * (HOUR_US - third_us)


def test_a_replay_takes_nothing_over() -> None:
    world = World()
    new = world.host("new", NEW_BOOT, world.ended_us + MINUTE_US).genesis().inventory(named=[X, Y])
    world.link(world.old, new)
    world.receive(new)
    assert world.gap_us() == 2 * HOUR_US


# The pure rules ---------------------------------------------------------------------------------------------


def node(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def wish(old: int, new: int) -> Replacement:
    return Replacement(
        v=1, deployment="kt.example", root=None, time_us=0, old=node(old), new=node(new), reason="because"
    )


def joined(*pairs: tuple[int, int]) -> Links:
    links = Links()
    for at, (old, new) in enumerate(pairs):
        links.admit(wish(old, new), enrolled=True)
        links.add(Link(node(old), node(new), "because", f"{at:064x}", at, at))
    return links


@pytest.mark.parametrize(
    ("there", "wanted", "why"),
    [
        ([(1, 2)], (1, 3), "replaced already"),
        ([(1, 2)], (1, 2), "replaced already"),
        ([(1, 2)], (3, 2), "replaces another already"),
        ([(1, 2)], (2, 1), "in a circle"),
        ([(1, 2), (2, 3), (3, 4)], (4, 1), "in a circle"),
    ],
)
def test_what_contradicts_earlier_replacements_is_refused(
    there: list[tuple[int, int]], wanted: tuple[int, int], why: str
) -> None:
    with pytest.raises(ProtocolError, match=why) as error:
        joined(*there).admit(wish(*wanted), enrolled=True)
    assert error.value.code is Code.BAD_STATEMENT


def test_a_node_that_was_never_here_is_not_replaced() -> None:
    with pytest.raises(ProtocolError, match="never enrolled"):
        Links().admit(wish(1, 2), enrolled=False)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30))
def test_whatever_is_asked_for_links_are_chains(pairs: list[tuple[int, int]]) -> None:
    links = Links()
    for at, (old, new) in enumerate(pair for pair in pairs if pair[0] != pair[1]):
        try:
            links.admit(wish(old, new), enrolled=True)
        except ProtocolError:
            continue
        links.add(Link(node(old), node(new), "", "", at, at))
    assert len(links.by_old) == len(links.by_new) == len(list(links))
    for replaced in links.by_old:
        chain = [link.new for link in links.after(replaced)]
        assert replaced not in chain
        assert len(set(chain)) == len(chain)


MOMENTS = st.builds(Moment, st.sampled_from([OLD_BOOT, NEW_BOOT]), st.integers(0, 99), st.integers(0, 99))
LOGS = st.lists(
    st.tuples(st.sampled_from(["nvml", "replay", None]), st.dictionaries(st.sampled_from([X, Y, HOST]), MOMENTS)),
    max_size=3,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(LOGS, st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=4))
def test_nothing_is_taken_over_without_an_entry_that_names_it(
    nodes: "list[tuple[list[tuple[None, dict[str, Moment]]], int, int]]",
) -> None:
    links = joined(*((at, at + 1) for at in range(len(nodes) - 1)))
    logs = {
        node(at): NodeLogs(Received(first, max(first, last)), named(of)) for at, (of, first, last) in enumerate(nodes)
    }
    taken = takeovers(links, logs)
    for at in range(len(nodes) - 1):
        for chip, (moment, not_before_us) in taken[node(at)].items():
            assert chip != HOST
            later = range(at + 1, len(nodes))
            said = [i for i in later if any(s != "replay" and of.get(chip) == moment for s, of in nodes[i][0])]
            assert said
            assert not_before_us >= logs[node(at)].received.last_s * 1_000_000
