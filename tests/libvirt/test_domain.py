# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's XML: read, and changed in one place to the byte."""

from __future__ import annotations

import pytest

from qmpfilter.errors import HostError
from qmpfilter.libvirt.domain import DomainXml, Element

URI = "urn:ours"
OURS = Element(URI, "o", "state", {"mode": "a", "why": "<&\"'>"})
WRITTEN = """<o:state xmlns:o="urn:ours" mode="a" why="&lt;&amp;&quot;'&gt;"/>"""
FOREIGN = (
    """    <nova:instance xmlns:nova="urn:nova"><nova:name a='/>'>b\N{SNOWMAN}/></nova:name></nova:instance>\n"""
)
OTHER = """    <o:state xmlns:o="urn:ours" mode='"/>' old="1"/>\n"""
LONG = (
    """    <o:state xmlns:o="urn:ours" mode="x"><deep><![CDATA[</o:state>]]></deep><!-- </metadata> --></o:state>\n"""
)

HEAD = "<domain type='kvm' id='3'>\n  <name>g&amp;1</name>\n  <uuid>0a-1b</uuid>\n"
REST = "  <memory unit='KiB'>65536</memory>\n  <devices><graphics type='vnc' port='5901' websocket='-1'/></devices>\n"
END = "</domain>\n"


def xml(metadata: str) -> str:
    return f"{HEAD}{metadata}{REST}{END}"


def within(*rows: str) -> str:
    return xml(f"  <metadata>\n{''.join(rows)}  </metadata>\n")


OWN_ROW = f"    {WRITTEN}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (within(FOREIGN), within(FOREIGN, OWN_ROW)),
        (within(OTHER), within(OWN_ROW)),
        (within(LONG), within(OWN_ROW)),
        (within(FOREIGN, OTHER, FOREIGN.replace("nova", "more")),
         within(FOREIGN, OWN_ROW, FOREIGN.replace("nova", "more"))),
        (within(), within(OWN_ROW)),
        (xml("  <metadata/>\n"), within(OWN_ROW)),
        (xml("  <metadata></metadata>\n"), xml(f"  <metadata>{WRITTEN}</metadata>\n")),
        (xml(""), f"{HEAD}{REST}{END}".replace("</name>", f"</name>\n  <metadata>\n{OWN_ROW}  </metadata>")),
    ],
    ids=["beside another", "instead of ours", "instead of a long one", "between others", "none", "empty", "bare",
         "no metadata"],
)  # fmt: skip
def test_one_element_is_put_in_and_all_else_stays(before: str, after: str) -> None:
    assert DomainXml(before).with_element(OURS) == after
    attributes = DomainXml(after).attributes(URI)
    assert attributes == OURS.attributes


@pytest.mark.parametrize("rows", [(), (FOREIGN,), (FOREIGN, FOREIGN.replace("nova", "more"))], ids=len)
@pytest.mark.parametrize("own", [OTHER, LONG, OWN_ROW])
def test_what_was_put_in_can_be_taken_out(rows: tuple[str, ...], own: str) -> None:
    for at in range(len(rows) + 1):
        assert DomainXml(within(*rows[:at], own, *rows[at:])).without_element(URI) == within(*rows)
    assert DomainXml(within(*rows)).without_element(URI) == within(*rows)


def test_who_it_is() -> None:
    read = DomainXml(within(FOREIGN))
    assert (read.name, read.uuid, read.ports) == ("g&1", "0a-1b", {5901})
    assert read.attributes(URI) is None
    assert read.attributes("urn:nova") == {}


@pytest.mark.parametrize(
    "text",
    [
        "", "no XML", "<domain>", "<domain/>", "<pool><name>a</name></pool>", xml("  <metadata>\n"),
        "<!DOCTYPE domain [<!ENTITY a 'b'>]>\n<domain><name>&a;</name></domain>",
    ],
)  # fmt: skip
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="no XML of a domain"):
        DomainXml(text)
