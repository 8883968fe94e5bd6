# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks, as rows of data over what was found on a host, and their answers. Pure.

A check whose question makes no sense after another's answer is left out: without SVM there is nothing to ask of
kvm_amd.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qmpfilter.doctor.behaviour import KERNEL_BEHAVIOURS, QEMU_BEHAVIOURS, Behaviour
from qmpfilter.doctor.survey import Survey
from qmpfilter.svm.legacy import SIZE_L2
from qmpfilter.verdict.ternary import Ternary
from qmpfilter.verdict.version import Releases, Version

__all__ = ["CHECKS", "Answer", "Check", "Level", "examine"]

_AMD: Final = ("AuthenticAMD", "HygonGenuine")
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)
# Red Hat's builds carry changes back under an old number: "6.2.0 (qemu-kvm-6.2.0-53.module+el8.10.0)".
_CARRIED_BACK: Final = re.compile(r"qemu-kvm-\S*\bel\d")
# libvirt's NEWS: several hook scripts of one driver.
_HOOK_DIRECTORY: Final = Releases("6.4- 6.5+")


class Level(StrEnum):
    """How a check ended, in the words of virt-host-validate."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the report.

    :param subject: what is checked, six letters at most
    :param title: the check, to be read after "Checking"
    :param hint: what to do; empty for what passed
    """

    subject: str
    title: str
    level: Level
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question to a host. In `title` and `hint` stand the words of :func:`_words`.

    :param holds: the answer; None, which is a warning, if it is not known
    :param level: of the answer no
    :param applies: whether the question makes sense
    """

    subject: str
    title: str
    holds: Callable[[Survey], Ternary]
    hint: str
    level: Level = Level.FAIL
    applies: Callable[[Survey], bool] = lambda survey: True

    def ask(self, survey: Survey) -> Answer:
        """The answer of a host for which the question makes sense."""
        words = _words(survey)
        return _answer(
            self.subject, self.title.format(**words), self.holds(survey), self.level, self.hint.format(**words)
        )


def _maybe_amd(survey: Survey) -> bool:
    return survey.vendor is None or survey.vendor in _AMD


def _loaded(survey: Survey) -> bool:
    return _maybe_amd(survey) and "kvm_amd" in survey.modules


def _answering(survey: Survey) -> bool:
    return _loaded(survey) and survey.device_error is None


CHECKS: Final = (
    Check(
        "CPU",
        "for an AMD processor",
        lambda survey: None if survey.vendor is None else survey.vendor in _AMD,
        "SVM is AMD's and Hygon's alone; nested state of other processors is not for qmpfilter",
    ),
    Check(
        "CPU",
        "for SVM",
        lambda survey: "svm" in survey.cpu_flags,
        "enable SVM in the firmware's setup or, if this is a virtual machine, nested virtualization on its host",
        applies=lambda survey: survey.vendor in _AMD,
    ),
    Check(
        "KVM",
        "if module kvm_amd is loaded",
        lambda survey: "kvm_amd" in survey.modules,
        "run 'modprobe kvm_amd'; if that fails, dmesg says why",
        applies=lambda survey: _maybe_amd(survey) and "svm" in survey.cpu_flags,
    ),
    Check(
        "KVM",
        "if kvm_amd lets guests nest (nested=1)",
        lambda survey: survey.facts.nested,
        "stop all guests, run 'modprobe -r kvm_amd' and 'modprobe kvm_amd nested=1', "
        "and put 'options kvm_amd nested=1' into /etc/modprobe.d",
        applies=_loaded,
    ),
    Check(
        "KVM",
        "if kvm_amd uses nested paging (npt=1)",
        lambda survey: survey.facts.npt,
        "a guest whose L2 uses nested paging is refused or loses it; load kvm_amd with npt=1",
        Level.WARN,
        applies=_loaded,
    ),
    Check(
        "KVM",
        "if device /dev/kvm exists",
        lambda survey: survey.device_error not in _ABSENT,
        "load kvm_amd; in a container, pass the device in",
    ),
    Check(
        "KVM",
        "if device /dev/kvm is accessible",
        lambda survey: survey.device_error not in _FORBIDDEN,
        "{device_error}; run this as root or as a member of the group that owns the device, usually kvm",
        applies=lambda survey: survey.device_error not in _ABSENT,
    ),
    Check(
        "KVM",
        "if device /dev/kvm answers",
        lambda survey: survey.device_error is None,
        "{device_error}; load kvm_amd again, and see dmesg",
        applies=lambda survey: survey.device_error not in (*_ABSENT, *_FORBIDDEN),
    ),
    Check(
        "KVM",
        f"for KVM_CAP_NESTED_STATE of {SIZE_L2} bytes",
        lambda survey: None if survey.facts.nested_state_size is None else survey.facts.nested_state_size == SIZE_L2,
        "it is {nested_state_size}: this KVM cannot save or load an L2; "
        "use Linux 5.8 or newer and load kvm_amd with nested=1",
        applies=_answering,
    ),
    Check(
        "KVM",
        "if guests can have SVM",
        lambda survey: None if survey.facts.supported_cpuid is None else survey.facts.supported_cpuid.has("SVM"),
        "KVM_GET_SUPPORTED_CPUID does not have it; load kvm_amd with nested=1",
        # If kvm_amd is known not to nest, that was said.
        applies=lambda survey: _answering(survey) and survey.facts.nested is not False,
    ),
    Check(
        "KERNEL",
        "if the release tells the patch level",
        lambda survey: survey.facts.kernel is not None and survey.facts.kernel.micro is not None,
        "{release}: unknown patch level; what was fixed in its KVM is in its vendor's changelog under 'nSVM'",
        Level.WARN,
        applies=_maybe_amd,
    ),
    Check(
        "FORMAT",
        "for legacy nested state",
        lambda survey: "legacy" in survey.facts.formats,
        "mend what failed under KVM",
        applies=_answering,
    ),
    # Where the legacy state is taken the annex is too, and no stock kernel has the native one: where they are
    # not there is nothing to add.
    Check(
        "FORMAT",
        "for legacy nested state with svm2 annex",
        lambda survey: True,
        "",
        applies=lambda survey: "annex" in survey.facts.formats,
    ),
    Check(
        "FORMAT",
        "for native svm2",
        lambda survey: True,
        "",
        applies=lambda survey: "svm2" in survey.facts.formats,
    ),
    Check(
        "QEMU",
        "for an installed QEMU",
        lambda survey: bool(survey.facts.qemu),
        "install QEMU for x86-64, or name its program with --qemu",
    ),
    Check(
        "HOOKS",
        "if libvirt {libvirt} reads hooks/qemu.d",
        lambda survey: _HOOK_DIRECTORY.have_it(survey.libvirt),
        "upgrade libvirt to 6.5 or newer, or call qmpfilter's hook from /etc/libvirt/hooks/qemu",
        Level.WARN,
        applies=lambda survey: survey.libvirt is not None,
    ),
)
"""What is asked of every host; :func:`examine` adds what its kernel and its QEMUs are known for."""


def examine(survey: Survey) -> list[Answer]:
    """The answers of a host, by subject in the order of :data:`CHECKS`."""
    subjects = {check.subject: None for check in CHECKS}
    found = [check.ask(survey) for check in CHECKS if check.applies(survey)]
    found += _kernel(survey)
    found += _qemus(survey)
    return [answer for subject in subjects for answer in found if answer.subject == subject]


def _kernel(survey: Survey) -> Iterator[Answer]:
    version = survey.facts.kernel
    can_nest = _maybe_amd(survey) and survey.facts.nested_state_size in (None, SIZE_L2)
    if version is not None and can_nest:
        yield from _behaviours("KERNEL", version, KERNEL_BEHAVIOURS, own_numbers=False)


def _qemus(survey: Survey) -> Iterator[Answer]:
    """Of each version once, however many programs have it."""
    seen = set()
    for binary in survey.facts.qemu:
        said = survey.qemu_said[binary.path]
        title = f"if {binary.path} tells its version"
        if binary.version is None:
            yield Answer("QEMU", title, Level.FAIL, f"{said}; repair or remove it")
            continue
        yield Answer("QEMU", title, Level.PASS)
        own_numbers = bool(_CARRIED_BACK.search(said))
        if (key := (binary.version, own_numbers)) not in seen:
            seen.add(key)
            yield from _behaviours("QEMU", binary.version, QEMU_BEHAVIOURS, own_numbers=own_numbers)


def _behaviours(
    subject: str, version: Version, behaviours: Iterable[Behaviour], *, own_numbers: bool
) -> Iterator[Answer]:
    """:param own_numbers: its vendor carries changes back, so an old number does not say that one is missing"""
    for behaviour in behaviours:
        holds = behaviour.shown_by(version)
        yield _answer(
            subject,
            f"{version} for {behaviour.title}",
            None if own_numbers and not holds else holds,
            Level.FAIL if behaviour.fatal else Level.WARN,
            behaviour.hint,
        )


def _answer(subject: str, title: str, holds: Ternary, level: Level, hint: str) -> Answer:
    if holds:
        return Answer(subject, title, Level.PASS)
    if holds is None:
        return Answer(subject, title, Level.WARN, f"not known; if not: {hint}")
    return Answer(subject, title, level, hint)


def _words(survey: Survey) -> dict[str, object]:
    """What a title or a hint may name."""
    return {
        "device_error": os.strerror(survey.device_error or 0),
        "nested_state_size": survey.facts.nested_state_size,
        "release": survey.facts.kernel_release or "no release",
        "libvirt": survey.libvirt,
    }
