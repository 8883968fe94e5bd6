# SPDX-License-Identifier: GPL-2.0-or-later
"""The output of ``info registers`` is read by QEMU's names."""

from __future__ import annotations

from tests.lab.inhost.truth import parse_registers

TEXT = """\
RAX=a2000007628d2285 RBX=a20003e208fa4f03 RCX=a20001a59a06dc04 RDX=a2000243d1809583
R8 =a20008f91e5aee7f R9 =a200099755d4a7fe
RIP=00000000001007de RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
FS =0033 ffffa20035c8dec0 000fffff 0000f300 DPL=3 DS   [-WA]
LDT=0040 00000000007a3000 00000037 00008200 DPL=0 LDT
GDT=     0000000000101c30 0000002f
CR0=80050033 CR2=a200342aa746d060 CR3=0000000000108000 CR4=00000620
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=8000000000000000 3fff FPR1=0000000000000000 0000
XMM00=a200118911a273f9 a20010eada28ba79 XMM01=a20013c58095e6f7 a2001227491c2d78
"""


def test_parse_registers() -> None:
    values = parse_registers(TEXT)
    assert values["RAX"] == "a2000007628d2285"
    assert values["R8"] == "a20008f91e5aee7f"
    assert values["FS"] == {
        "selector": "0033",
        "base": "ffffa20035c8dec0",
        "limit": "000fffff",
        "flags": "0000f300",
    }
    assert values["GDT"] == {"base": "0000000000101c30", "limit": "0000002f"}
    assert values["FPR0"] == {"mantissa": "8000000000000000", "exponent": "3fff"}
    assert values["XMM01"] == "a20013c58095e6f7a2001227491c2d78"
    assert "DPL" not in values
