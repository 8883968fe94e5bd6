# SPDX-License-Identifier: GPL-2.0-or-later
"""One vCPU's nested state as a destination's QEMU would put it to its kernel, and what that depends on.

QEMU takes whether L2 is active, and L1's GIF, from hflags and hflags2, and hands over a header of its own
where the stream has none. What the host or the guest's CPUID allows is answered in three values; the facts
that an answer lacked are collected, so that a verdict can name them.

Sources: QEMU 10.2.2 target/i386/kvm/kvm.c (kvm_put_nested_state, kvm_put_sregs2, kvm_init_nested_state);
Linux 5.10 to 7.3 arch/x86/kvm: x86.h and regs.h (__cr4_reserved_bits), x86.c (kvm_setup_efer_caps, before
7.1 kvm_enable_efer_bits), cpuid.h (kvm_vcpu_is_legal_gpa, kvm_vcpu_is_legal_cr3).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Final, NamedTuple, TypeVar, cast

from qmpfilter.errors import RecordError
from qmpfilter.layout import Fields
from qmpfilter.svm import annex
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L1, LegacyState, StateFlags
from qmpfilter.svm.view import View
from qmpfilter.svm.vmcb import PAGE_SIZE
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.ternary import Ternary, all_of, any_of, negated
from qmpfilter.verdict.version import Releases, Version

__all__ = ["Attempt", "IllegalBits", "about"]

_A = TypeVar("_A")

_GUEST_MODE: Final = int(StateFlags.GUEST_MODE)
_GIF_SET: Final = int(StateFlags.GIF_SET)

# QEMU's phys-bits is at least 32, and no x86 CPU has more than 52 (target/i386/cpu.c, x86_cpu_realizefn).
_LEAST_MAXPHYADDR: Final = 32
_MOST_MAXPHYADDR: Final = 52
# No AMD64 CPU with SVM is without these.
_EVERY_SVM_CPU: Final = frozenset(("LM", "NX"))
_CR3_LAM: Final = 1 << 61 | 1 << 62

_HAS_BUFFER: Final = "nested state"
_NESTS: Final = "whether KVM nests"
_NPT: Final = "kvm_amd's npt parameter"
# These two KVM gives to guests as kvm_amd's parameters say.
_BY_PARAMETER: Final = {"SVM": "nested", "NPT": "npt"}
_PARAMETER_FACTS: Final = {"SVM": _NESTS, "NPT": _NPT}

_ALWAYS: Final = Releases("5.8+")
# svm_set_nested_state, without which KVM_CAP_NESTED_STATE is 0 on AMD.
_NESTED_STATE: Final = Releases("5.7- 5.8+")


class _Bits(NamedTuple):
    """Bits of a register that are legal if the guest has one of the features, in kernels that know them."""

    mask: int
    features: tuple[str, ...]
    kernels: Releases = _ALWAYS


# CR4_RESERVED_BITS: VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT need nothing.
_CR4_FREE: Final = 0x7FF
_CR4: Final = (
    _Bits(1 << 11, ("UMIP",)),
    _Bits(1 << 12, ("LA57",)),
    _Bits(1 << 13, ("VMX",)),
    _Bits(1 << 16, ("FSGSBASE",)),
    _Bits(1 << 17, ("PCID",)),
    _Bits(1 << 18, ("XSAVE",)),
    _Bits(1 << 20, ("SMEP",)),
    _Bits(1 << 21, ("SMAP",)),
    _Bits(1 << 22, ("PKU",)),
    _Bits(1 << 23, ("SHSTK", "IBT"), Releases("6.17- 6.18+ 6.12.118-")),
    _Bits(1 << 28, ("LAM",), Releases("6.1- 6.12+ 6.1.192-")),
)
# SCE needs nothing.
_EFER_FREE: Final = 1 << 0
_EFER: Final = (
    _Bits(1 << 8 | 1 << 10, ("LM",)),
    _Bits(1 << 11, ("NX",)),
    _Bits(1 << 12, ("SVM",)),
    _Bits(1 << 14, ("FXSR_OPT",)),
    _Bits(1 << 21, ("AUTOIBRS",), Releases("6.1- 6.12+ 6.1.192-")),
)
_EFER_LMSLE: Final = 1 << 13
_LMSLE_MBZ: Final = Releases("6.19- 7.2+ 6.12.118-")


class Attempt:
    """What would be put to a kernel, and what is known of that kernel.

    :param nested: the nested state in the stream; None without ``cpu/nested_state``
    :param block: the section's fixed field block, 1817 bytes
    :param subsections: payloads of the section's subsections and their children by full name
    :param facts: of the destination
    :param view: of what the stream says, where it is at hand
    :ivar sent: what the stream says
    :ivar view: what KVM would be given: the same, but for flags, and with a page of zeros where the stream has
        none
    :ivar state: the nested state that KVM would be given
    :ivar cpu: the section's fields
    :ivar control: VMCB12's control area
    :ivar l1: L1's save area
    :ivar missing: facts that an answer lacked so far, in words
    :ivar assumed: an answer took the guest's CPUID to be that of the host
    """

    def __init__(
        self,
        nested: LegacyState | None,
        block: bytes,
        subsections: Mapping[str, bytes],
        facts: HostFacts,
        view: View | None = None,
    ) -> None:
        self.subsections: Final = subsections
        self.facts: Final = facts
        self.sent: Final = view or View(nested, block, subsections)
        put = _put(self.sent)
        self.view: Final = self.sent if put == nested else View(put, block, subsections)
        self.state: Final[LegacyState] = put
        self.cpu: Final[Fields] = self.view.cpu
        self.control: Final[Fields] = self.view.control
        self.l1: Final[Fields] = self.view.l1
        self.missing: set[str] = set()
        self.assumed = False

    @property
    def in_l2(self) -> bool:
        """KVM would be told that L2 is active, in SVM's format."""
        return self.view.svm_guest

    @property
    def whose(self) -> str:
        """Whose registers the section has, in words."""
        return "L2's" if self.sent.hf_guest else "L1's"

    @property
    def whose_qemu(self) -> str:
        """The destination's QEMU, in words."""
        version = self.facts.qemu_version
        return "the destination's QEMU" if version is None else f"QEMU {version}"

    @cached_property
    def damaged_record(self) -> str:
        """What is wrong with the svm2 record in the page's annex; empty where it is sound, or where there is none."""
        nested = self.sent.nested
        if nested is None or nested.page is None:
            return ""
        try:
            annex.decode(nested.page, nested.vmcb_pa, run_pending=nested.run_pending, gif=nested.gif)
        except RecordError as error:
            return str(error)
        return ""

    @property
    def nests(self) -> Ternary:
        """The host's KVM offers nested virtualization, with a state that QEMU can get and set."""
        size = self.facts.nested_state_size
        if self.facts.nested is False or size == 0 or self._kernel_too_old:
            return False
        return True if self.facts.nested else self._known(None if size is None else True, _NESTS)

    @property
    def _kernel_too_old(self) -> bool:
        # What KVM itself said goes before its version.
        return self.facts.nested_state_size is None and _NESTED_STATE.have_it(self.facts.kernel) is False

    @property
    def why_no_buffer(self) -> str:
        """What :attr:`has_buffer` would be False for, in words."""
        if self._kernel_too_old:
            return f"kernel {self.facts.kernel} has none for SVM, as only Linux 5.8 and newer do"
        return "the destination cannot nest, or does not give the guest SVM"

    @property
    def has_buffer(self) -> Ternary:
        """QEMU has nested state for this vCPU: the guest has SVM, and the kernel nests."""
        return self._again(_HAS_BUFFER, lambda: all_of(self.has("SVM"), self.nests))

    # --- the guest's CPUID -------------------------------------------------------------------------

    def has(self, feature: str) -> Ternary:
        """Whether the guest has a CPUID feature that the host supports.

        Where only the host's CPUID is known: the guest runs already with what its registers use, so what the
        host supports is taken to be there.
        """
        return self._again(("has", feature), lambda: self._has(feature))

    def _has(self, feature: str) -> Ternary:
        facts = self.facts
        host = self._host_has(feature)
        if host is False:
            return False
        if facts.guest_cpuid is not None:
            return all_of(facts.guest_cpuid.has(feature), self._known(host, "the host's CPUID"))
        self.assumed |= host is True and facts.supported_cpuid is not None
        return self._known(host, _PARAMETER_FACTS.get(feature, "the guest's CPUID"))

    def _host_has(self, feature: str) -> Ternary:
        if feature in _BY_PARAMETER and (parameter := self.facts.flag("kvm_amd", _BY_PARAMETER[feature])) is not None:
            return parameter
        if self.facts.supported_cpuid is not None:
            return self.facts.supported_cpuid.has(feature)
        return True if feature in _EVERY_SVM_CPU else None

    def illegal_address(self, address: int) -> Ternary:
        """Whether an address has bits that the guest's physical addresses do not."""
        if address < 1 << _LEAST_MAXPHYADDR:
            return False
        facts = self.facts
        if facts.guest_cpuid is not None:
            return bool(address >> facts.guest_cpuid.maxphyaddr)
        if facts.maxphyaddr is not None:
            return bool(address >> facts.maxphyaddr)
        if facts.supported_cpuid is not None:
            self.assumed = True
            return bool(address >> facts.supported_cpuid.maxphyaddr)
        return self._known(True if address >> _MOST_MAXPHYADDR else None, "the guest's MAXPHYADDR")

    def illegal_range(self, address: int, size: int) -> Ternary:
        """The same of the first and of the last byte of a range."""
        return any_of(self.illegal_address(address), self.illegal_address(address + size - 1))

    def illegal_cr3(self, cr3: int) -> Ternary:
        """Whether CR3 is no legal address; LAM's bits are passed over where the guest has it."""
        if cr3 & _CR3_LAM and (lam := self.kernel_has(_CR3_KNOWS_LAM)) is not False:
            has_lam = all_of(lam, self.has("LAM"))
            if has_lam is not False:
                without = self.illegal_address(cr3 & ~_CR3_LAM)
                return without if has_lam else any_of(without, None)
        return self.illegal_address(cr3)

    @property
    def l2_cr4(self) -> IllegalBits:
        """Bits of L2's CR4 that are not legal."""
        return self._illegal_cr4(self.cpu.cr4)

    @property
    def l1_cr4(self) -> IllegalBits:
        """Bits of L1's CR4 that are not legal."""
        return self._illegal_cr4(self.l1.cr4)

    @property
    def l2_efer(self) -> IllegalBits:
        """Bits of L2's EFER that are not legal."""
        return self._illegal_efer(self.cpu.efer)

    @property
    def l1_efer(self) -> IllegalBits:
        """Bits of L1's EFER that are not legal."""
        return self._illegal_efer(self.l1.efer)

    def _illegal_cr4(self, cr4: int) -> IllegalBits:
        return self._again(("cr4", cr4), lambda: self._illegal(cr4, _CR4_FREE, _CR4))

    def _illegal_efer(self, efer: int) -> IllegalBits:
        return self._again(("efer", efer), lambda: self._illegal_in_efer(efer))

    def _illegal_in_efer(self, efer: int) -> IllegalBits:
        rest = self._illegal(efer & ~_EFER_LMSLE, _EFER_FREE, _EFER)
        if not efer & _EFER_LMSLE:
            return rest
        legal = all_of(self.has("SVM"), negated(all_of(self.kernel_has(_LMSLE_MBZ), self.has("EFER_LMSLE_MBZ"))))
        return rest.with_bits(_EFER_LMSLE, negated(legal), self)

    def _illegal(self, value: int, free: int, rows: tuple[_Bits, ...]) -> IllegalBits:
        known = free
        for row in rows:
            known |= row.mask
        illegal = IllegalBits(value & ~known, 0, frozenset())
        for row in rows:
            if value & row.mask:
                self_has = any_of(*(self.has(feature) for feature in row.features))
                legal = all_of(self.kernel_has(row.kernels), self_has)
                illegal = illegal.with_bits(value & row.mask, negated(legal), self)
        return illegal

    # --- kernel and parameters ---------------------------------------------------------------------

    def kernel_has(self, kernels: Releases) -> Ternary:
        """Whether the destination's kernel is among those that have something."""
        return self._again(
            ("kernel", kernels), lambda: self._known(kernels.have_it(self.facts.kernel), about(self.facts.kernel))
        )

    def qemu_has(self, releases: Releases) -> Ternary:
        """Whether the destination's QEMU is among those that have something."""
        return self._again(
            ("QEMU", releases), lambda: self._known(releases.have_it(self.facts.qemu_version), "QEMU's version")
        )

    @property
    def npt(self) -> Ternary:
        """kvm_amd uses nested paging itself."""
        return self._known(self.facts.npt, _NPT)

    def _again(self, question: Hashable, work_out: Callable[[], _A]) -> _A:
        """The answer to what depends on the facts alone, worked out once for all vCPUs."""
        known = self.facts.answers.get(question)
        if known is None:
            missing, assumed = self.missing, self.assumed
            self.missing, self.assumed = set(), False
            try:
                answer = work_out()
                known = self.facts.answers[question] = answer, frozenset(self.missing), self.assumed
            finally:
                self.missing, self.assumed = missing, assumed
        answer, lacked, assumed = known
        if lacked:
            self.missing |= lacked
        self.assumed |= assumed
        return cast(_A, answer)

    def _known(self, answer: Ternary, fact: str) -> Ternary:
        if answer is None:
            self.missing.add(fact)
        return answer


def about(kernel: Version | None) -> str:
    """What of a kernel is not known where it is not known whether it has something, in words."""
    if kernel is None:
        return "the kernel's version"
    return f"the stable level of kernel {kernel}" if kernel.micro is None else f"what kernel {kernel} carries"


class IllegalBits(NamedTuple):
    """Bits that are not legal, bits of which it is not known, and the facts that would tell."""

    bits: int
    perhaps: int
    missing: frozenset[str]

    def with_bits(self, mask: int, illegal: Ternary, attempt: Attempt) -> IllegalBits:
        """The same and some more, as `illegal` says; what it lacked is in `attempt.missing`."""
        if illegal is None:
            return IllegalBits(self.bits, self.perhaps | mask, self.missing | attempt.missing)
        return self._replace(bits=self.bits | mask) if illegal else self

    def broken(self, attempt: Attempt) -> Ternary:
        """Whether there are any."""
        attempt.missing |= self.missing
        return True if self.bits else None if self.perhaps else False

    @property
    def shown(self) -> int:
        """The bits to name in a sentence."""
        return self.bits or self.perhaps


# kvm_vcpu_is_legal_cr3 came with LAM.
_CR3_KNOWS_LAM: Final = Releases("6.1- 6.12+ 6.1.192-")


def _put(sent: View) -> LegacyState:
    flags = (_GUEST_MODE if sent.hf_guest else 0) | (_GIF_SET if sent.hf2_gif else 0)
    nested = sent.nested
    if nested is None:
        return LegacyState(flags, FORMAT_SVM, SIZE_L1, 0, bytes(PAGE_SIZE))
    flags |= nested.flags & ~(_GUEST_MODE | _GIF_SET)
    page = bytes(PAGE_SIZE) if nested.page is None else nested.page
    return LegacyState(flags, nested.format, nested.size, nested.vmcb_pa, page)
