# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts thousands of changed states to a host's KVM and compares what it does with what the verdict says."""

from __future__ import annotations

import json
import random
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from qmpfilter.svm.legacy import SIZE_L1
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET
from qmpfilter.verdict.attempt import Attempt
from qmpfilter.verdict.checks import met_by_kernel
from qmpfilter.verdict.cpuid import Cpuid
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.judge import READ
from qmpfilter.verdict.losses import losses
from qmpfilter.verdict.rule import Rule, Stage
from tests.lab.draft import HEADER, Draft, blob, emitted, recorded, registers
from tests.lab.emulator import EmulatedHost
from tests.lab.inhost.nested import ACCEPTED, ANSWER, AT_NESTED_STATE, AT_SREGS, STATE
from tests.lab.package import run_packaged, run_python
from tests.lab.witnesses import PLAIN, TABLES, borders

__all__ = ["SEEN_LOSSES", "Answer", "Comparison", "ask", "compare", "drafts", "host_facts"]

SECONDS = 240.0
UNREAD = "the sources of this kernel were not read"  # setup.cfg lets this warning pass
BASES = 6  # recordings on which every border is tried
RANDOM = 1500
_STAGES = {Stage.SREGS: AT_SREGS, Stage.NESTED_STATE: AT_NESTED_STATE}
_NAMES = {ACCEPTED: "accepted", AT_SREGS: Stage.SREGS.value, AT_NESTED_STATE: Stage.NESTED_STATE.value}
_EINVAL = 22
_FLAGS = (0, 1, 2, 3, 0x100, 0x101, 0x102, 0x103, 0x10B, 0x4, 0x105, 0x201)
_TABLE_NAMES = tuple(TABLES)
# What KVM gives back of a control area is what it took, but for these bits (nested_copy_vmcb_control_to_cache).
_IGNORED = {"iopm_base_pa": 0xFFF, "msrpm_base_pa": 0xFFF}
#: Losses that KVM_GET_NESTED_STATE shows; of others the bit stays, and has no effect.
SEEN_LOSSES = frozenset((
    "npt-cleared", "gmet-cleared", "intercept-xsetbv", "intercept-rdtscp", "intercept-skinit", "intercept-rdpru",
    "intercept-invpcid", "tlb-ctl", "int-vector", "int-state", "event-inj-reserved", "l1-lbr", "l1-cet",
))  # fmt: skip
# Since Linux 7.1; others give back zero.
_ERAP_CTL = "erap_ctl"


class Answer(NamedTuple):
    """What a host's KVM did with one state: see :data:`~tests.lab.inhost.nested.ANSWER`."""

    stage: int
    errno: int
    after: bytes


@dataclass
class Comparison:
    """What came of one host: sentences about each disagreement, and how often each rule spoke and was silent."""

    states: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)
    broken: Counter[tuple[str, Stage]] = field(default_factory=Counter)
    kept: Counter[tuple[str, Stage]] = field(default_factory=Counter)


def host_facts(host: EmulatedHost) -> HostFacts:
    """What the host says of itself, as the verdict would be given it.

    A distribution moves on without asking. Of a kernel that is newer than what was read it is said here, and it is
    taken for the newest of its branch that was: where it does otherwise, the kernel itself will show.
    """
    facts = HostFacts.from_json(run_packaged(host, SECONDS, "doctor", "--json").output)
    kernel = facts.kernel
    read = None if kernel is None else READ.get(kernel.branch)
    if kernel is None or kernel.micro is None or read is None or kernel.micro <= read:
        return facts
    warnings.warn(f"{UNREAD}: {kernel}, newer than level {read}", stacklevel=2)
    return replace(facts, kernel=replace(kernel, micro=read))


def drafts(seed: int) -> Iterator[Draft]:
    """The states: recorded ones as they are, each rule's borders on some of them, and random changes."""
    bases = recorded()
    in_l2 = [draft for draft in bases if draft.in_l2]
    chance = random.Random(seed)
    for base in bases:
        draft = base.copy()
        draft.table = PLAIN
        yield draft
    for base in chance.sample(in_l2, min(BASES, len(in_l2))):
        for change in borders():
            draft = base.copy()
            draft.table = PLAIN
            change(draft)
            yield draft
    for _ in range(RANDOM):
        draft = chance.choice(in_l2).copy()
        draft.table = chance.choice(_TABLE_NAMES) if chance.random() < 0.3 else PLAIN
        for _ in range(chance.choice((1, 1, 2, 3))):
            _mutate(chance, draft)
        yield draft


_CPU_FIELDS = (
    *("cr0", "cr2", "cr3", "cr4", "efer", "rflags", "hflags", "hflags2"),
    *(
        f"{name}_{part}"
        for name in ("cs", "ss", "ds", "tr", "ldt")
        for part in ("flags", "limit", "base", "selector")
    ),
)
_FIELDS = (
    *(f"cpu.{name}" for name in _CPU_FIELDS),
    *(f"control.{name}" for name in CONTROL.fields if name != "insn_bytes"),
    *(f"l1.{name}" for name in SAVE.fields),
    *("nested_state.vmcb_pa", "nested_state.size"),
)


def _mutate(chance: random.Random, draft: Draft) -> None:
    """One change somewhere; what decides most is changed most."""
    what = chance.random()
    if what < 0.05:
        draft.put("nested_state.flags", chance.choice(_FLAGS))
        return
    if what < 0.1:
        assert draft.page is not None
        at = chance.randrange(len(draft.page))
        draft.page[at : at + 8] = chance.randbytes(min(8, len(draft.page) - at))
        return
    name = chance.choice(_FIELDS)
    if name == "nested_state.size":
        draft.put(name, chance.choice((0x80, 0x107F, 0x1080)))
        return
    value = draft.get(name) & (1 << 64) - 1
    flipped = value ^ 1 << chance.randrange(64), value ^ 1 << chance.randrange(24)
    draft.put(name, chance.choice((0, *flipped, chance.getrandbits(64))))


def ask(host: EmulatedHost, facts: HostFacts, states: list[Draft]) -> list[Answer]:
    """What the host's KVM does with each state."""
    tables = _tables(facts)
    packed = b"".join(
        STATE.pack(_TABLE_NAMES.index(draft.table), registers(draft), blob(_attempt(facts, draft, tables)))
        for draft in states
    )
    rows = [[asdict(row) for row in tables[name].rows] for name in _TABLE_NAMES]
    files = {"tables.json": json.dumps(rows).encode(), "states": zlib.compress(packed, 1)}
    left = run_python(host, ["-m", "inhost.nested"], files, SECONDS).files
    return [Answer(*answer) for answer in ANSWER.iter_unpack(zlib.decompress(left["answers"]))]


def compare(facts: HostFacts, states: list[Draft], answers: list[Answer]) -> Comparison:
    """What the verdict says of each state, beside the host's answers."""
    tables = _tables(facts)
    result = Comparison()
    for draft, answer in zip(states, answers, strict=True):
        _compare(result, draft, _attempt(facts, draft, tables), answer)
    return result


def _tables(facts: HostFacts) -> dict[str, Cpuid]:
    assert facts.supported_cpuid is not None
    return {
        name: facts.supported_cpuid.changed(without=without, maxphyaddr=bits)
        for name, (without, bits) in TABLES.items()
    }


def _attempt(facts: HostFacts, draft: Draft, tables: dict[str, Cpuid]) -> Attempt:
    given = replace(facts, guest_cpuid=tables[draft.table])
    return Attempt(draft.state, bytes(draft.block), draft.subsections, given)


def _compare(result: Comparison, draft: Draft, attempt: Attempt, answer: Answer) -> None:
    stage, errno, after = answer
    result.states += 1
    result.outcomes[_NAMES[stage]] += 1
    first = _first(result, attempt)
    predicted = ACCEPTED if first is None else _STAGES[first.stage]
    if predicted != stage or errno != (0 if stage == ACCEPTED else _EINVAL):
        why = "nothing" if first is None else f"{first.code}: {first.sentence(attempt)}"
        result.disagreements.append(
            f"KVM: {_NAMES[stage]} (errno {errno}); verdict: {_NAMES[predicted]} ({why}); {_shown(draft, attempt)}"
        )
    elif stage == ACCEPTED:
        result.disagreements += _after(result, attempt, after)


def _first(result: Comparison, attempt: Attempt) -> Rule | None:
    """The check that KVM would meet first; those before it count as kept."""
    for rule in met_by_kernel(attempt):
        broken = rule.judge(attempt)
        assert broken is not None, f"{rule.code} is not known: {attempt.missing}"
        if broken:
            result.broken[rule.code, rule.stage] += 1
            return rule
        result.kept[rule.code, rule.stage] += 1
    return None


def _after(result: Comparison, attempt: Attempt, after: bytes) -> Iterator[str]:
    """What the kernel made of an accepted state, against what the losses say."""
    flags, _, size, pa = HEADER.unpack_from(after)
    state = attempt.state
    spoken = [met.rule for met in losses(attempt) if _speaks(result, met.rule, attempt)]
    lost = {rule.field for rule in spoken if rule.code in SEEN_LOSSES}
    if flags != state.flags:
        yield f"flags {state.flags:#x} came back as {flags:#x}"
    if not attempt.in_l2:
        return
    if pa != state.vmcb_pa:
        yield f"vmcb_pa {state.vmcb_pa:#x} came back as {pa:#x}"
    page = after[SIZE_L1:size]
    assert state.page is not None
    for (name, sent), (_, got) in zip(emitted(state.page), emitted(page), strict=True):
        if name == _ERAP_CTL and not got:
            continue
        changed = (sent ^ got) & ~_IGNORED.get(name, 0) != 0
        if changed != (f"control.{name}" in lost):
            yield f"control.{name} {sent:#x} came back as {got:#x}; losses: {sorted(lost)}"
    for name in ("dbgctl", "s_cet"):
        sent, got = (SAVE.get(area, name, SAVE_OFFSET) for area in (state.page, page))
        if sent and (got != sent) != (f"l1.{name}" in lost):
            yield f"l1.{name} {sent:#x} came back as {got:#x}; losses: {sorted(lost)}"


def _speaks(result: Comparison, rule: Rule, attempt: Attempt) -> bool:
    broken = rule.judge(attempt)
    assert broken is not None, f"{rule.code} is not known: {attempt.missing}"
    (result.broken if broken else result.kept)[rule.code, rule.stage] += 1
    return broken


def _shown(draft: Draft, attempt: Attempt) -> str:
    v, state = attempt.view, attempt.state
    shown = [f"table {draft.table}", f"flags {state.flags:#x} format {state.format} size {state.size:#x}"]
    shown += [f"vmcb_pa {state.vmcb_pa:#x}"]
    areas = {"L2": (v.cpu, _SHOWN_L2), "L1": (v.l1, _SHOWN_L1), "control": (v.control, _SHOWN_CONTROL)}
    for title, (area, names) in areas.items():
        shown.append(f"{title}: " + " ".join(f"{name} {getattr(area, name):#x}" for name in names))
    return "; ".join(shown)


_SHOWN_L2 = ("cr0", "cr3", "cr4", "efer", "rflags", "cs_flags")
_SHOWN_L1 = ("cr0", "cr3", "cr4", "efer", "rflags", "cs_attrib", "dr6", "dr7")
_SHOWN_CONTROL = ("misc_ctl", "nested_cr3", "iopm_base_pa", "msrpm_base_pa", "int_ctl", "event_inj", "asid")
