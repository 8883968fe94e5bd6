# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream recorded afresh on each host is what the fixtures claim to be."""

from __future__ import annotations

import pytest

from qmpfilter.inspect.vcpu import decode_vcpu
from qmpfilter.wire.events import DeviceSection, MachineConfiguration
from tests.helpers.parse import parse, rejoined
from tests.helpers.truth import decoded_registers, spoken_mask, spoken_registers
from tests.lab.emulator import EmulatedHost
from tests.lab.inhost.console import slot_value
from tests.lab.recording import Recording, record
from tests.lab.scenarios import L2

pytestmark = pytest.mark.lab


@pytest.fixture(scope="session")
def recording(emulated_host: EmulatedHost) -> Recording:
    return record(emulated_host, L2)


def test_stream_parses_to_the_last_byte(recording: Recording) -> None:
    stream = recording.files["stream"]
    parsed = parse(stream)
    assert parsed.error is None
    assert rejoined(parsed.events) == stream
    assert [event.machine for event in parsed.of(MachineConfiguration)] == [recording.machine]


def test_decoded_registers_are_what_qemu_says(recording: Recording) -> None:
    vcpus = [
        decode_vcpu(event) for event in parse(recording.files["stream"]).of(DeviceSection) if event.idstr == "cpu"
    ]
    assert [vcpu.in_l2 for vcpu in vcpus] == [True]
    text = recording.truth["registers"]["0"]["text"]
    spoken = spoken_registers(text)
    decoded = decoded_registers(vcpus[0], spoken_mask(text))
    assert {name: decoded[name] for name in spoken} == spoken
    assert vcpus[0].nested is not None
    assert vcpus[0].nested.vmcb_pa == int(recording.truth["vmcb12"]["0"]["address"], 16)
    assert not vcpus[0].findings


def test_truth_is_of_l2(recording: Recording) -> None:
    registers = recording.truth["registers"]["0"]["values"]
    symbols = recording.truth["guest"]["symbols"]
    assert int(registers["CR3"], 16) == int(symbols["l2_pml4"], 16)
    assert int(registers["FS"]["base"], 16) == slot_value(2, 0, "FS_BASE", context=0)
    assert int(registers["DR3"], 16) == slot_value(2, 0, "DR3", context=0)


def test_truth_has_vmcb12(recording: Recording) -> None:
    page = bytes.fromhex(recording.truth["vmcb12"]["0"]["bytes"])
    assert len(page) == 4096
    assert page[0x550:0x558] == int(recording.truth["guest"]["symbols"]["l2_pml4"], 16).to_bytes(8, "little")
