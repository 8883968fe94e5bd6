# SPDX-License-Identifier: GPL-2.0-or-later
"""What each of virsh's options is to libvirt."""

from __future__ import annotations

from typing import Any

import pytest

from qmpfilter.errors import PolicyError
from qmpfilter.libvirt.options import OPTIONS, Flag, wanted

# Names and numbers of libvirt 11.3's binding.
EXPECTED: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "live": (True, 1, {}),
    "p2p": (True, 2, {}),
    "persistent": (True, 8, {}),
    "undefinesource": (True, 16, {}),
    "suspend": (True, 32, {}),
    "copy_storage_all": (True, 64, {}),
    "copy_storage_inc": (True, 128, {}),
    "change_protection": (True, 256, {}),
    "unsafe": (True, 512, {}),
    "compressed": (True, 2048, {}),
    "abort_on_error": (True, 4096, {}),
    "auto_converge": (True, 8192, {}),
    "postcopy": (True, 32768, {}),
    "parallel": (True, 131072, {}),
    "copy_storage_synchronous_writes": (True, 262144, {}),
    "zerocopy": (True, 1048576, {}),
    "parallel_connections": (3, 0, {"parallel.connections": 3}),
    "comp_methods": ("mt,xbzrle", 0, {"compression": ["mt", "xbzrle"]}),
    "comp_mt_level": (1, 0, {"compression.mt.level": 1}),
    "comp_mt_threads": (2, 0, {"compression.mt.threads": 2}),
    "comp_mt_dthreads": (3, 0, {"compression.mt.dthreads": 3}),
    "comp_xbzrle_cache": (4096, 0, {"compression.xbzrle.cache": 4096}),
    "comp_zlib_level": (5, 0, {"compression.zlib.level": 5}),
    "comp_zstd_level": (6, 0, {"compression.zstd.level": 6}),
    "auto_converge_initial": (20, 0, {"auto_converge.initial": 20}),
    "auto_converge_increment": (10, 0, {"auto_converge.increment": 10}),
    "bandwidth": (100, 0, {"bandwidth": 100}),
    "postcopy_bandwidth": (0, 0, {"bandwidth.postcopy": 0}),
    "dname": ("new", 0, {"destination_name": "new"}),
    "xml": ("<domain/>", 0, {"destination_xml": "<domain/>"}),
    "persistent_xml": ("<domain/>", 0, {"persistent_xml": "<domain/>"}),
    "graphicsuri": ("spice://a", 0, {"graphics_uri": "spice://a"}),
    "listen_address": ("10.0.0.2", 0, {"listen_address": "10.0.0.2"}),
    "migrate_disks": ("vda,vdb", 0, {"migrate_disks": ["vda", "vdb"]}),
    "migrate_disks_detect_zeroes": ("vda", 0, {"migrate_disks_detect_zeroes": ["vda"]}),
    "disks_port": (49400, 0, {"disks_port": 49400}),
    "disks_uri": ("tcp://b:1", 0, {"disks_uri": "tcp://b:1"}),
}
REFUSED = {
    "tunnelled": "past every filter",
    "tls": "cannot be filtered",
    "tls_destination": "cannot be filtered",
    "rdma_pin_all": "migrate over TCP",
    "offline": "use virsh migrate",
    "postcopy_resume": "has not seen",
}


def test_every_option_is_told_here() -> None:
    assert {option.key for option in OPTIONS} == EXPECTED.keys() | REFUSED.keys()
    assert {option.key for option in OPTIONS if option.refused} == REFUSED.keys()


@pytest.mark.parametrize("key", EXPECTED)
def test_what_it_becomes(key: str) -> None:
    value, flags, parameters = EXPECTED[key]
    assert wanted({key: value}) == (Flag(flags), parameters)


def test_together_and_unused() -> None:
    assert wanted({"live": True, "p2p": True, "tls": False, "dname": None, "bandwidth": 9}) == (
        Flag.LIVE | Flag.PEER2PEER,
        {"bandwidth": 9},
    )
    assert (Flag.LIVE | Flag.PEER2PEER).names == ["LIVE", "PEER2PEER"]


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_be_filtered_is_refused_with_what_can(key: str) -> None:
    with pytest.raises(PolicyError, match=REFUSED[key]) as refused:
        wanted({"live": True, key: True})
    assert str(refused.value).startswith(f"--{key.replace('_', '-')} ")


def test_two_ways_to_copy_disks() -> None:
    with pytest.raises(PolicyError, match="exclude each other"):
        wanted({"copy_storage_all": True, "copy_storage_inc": True})
