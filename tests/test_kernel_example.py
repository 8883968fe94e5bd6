# SPDX-License-Identifier: GPL-2.0-or-later
"""examples/kernel: the C layout is the package's, and `apply` adds lines where it knows the source, or nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qmpfilter.svm import annex, svm2

KERNEL = Path(__file__).parents[1] / "examples/kernel"
HEADER = (KERNEL / "svm2.h").read_text()
BITS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
# In the C structure the two have numbers, and L1's registers and VMCB12's save area other names.
NAMES = {"reserved1": "reserved_cac", "reserved2": "reserved_ce8", "save": "vmcb12_save"}

# What `apply` looks for, in a source of our own.
NESTED = """\
#include "svm.h"

static int svm_get_nested_state(struct kvm_vcpu *vcpu,
				u32 size)
{
	work();
out:
	return size;
}

static int svm_set_nested_state(struct kvm_vcpu *vcpu)
{
	int ret;

	save = memdup_user(from, size);
	if (IS_ERR(save)) {
		kfree(ctl);
		return PTR_ERR(save);
	}
	svm_switch_vmcb(svm, &svm->nested.vmcb02);
	nested_vmcb02_prepare_control(svm);
	ret = 0;
out_free:
	kfree(save);
	return ret;
}
"""


def define(name: str) -> str:
    found = re.search(rf"^#define {name}\s+(\S+)", HEADER, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_record_is_laid_out_as_the_package_has_it() -> None:
    body = HEADER.partition("struct svm2_record {")[2].partition("}")[0]
    fields = re.findall(r"^\t(u\d+) (\w+)(?:\[(\w+)\])?;", body, re.MULTILINE)
    at, found = 0, {}
    for kind, name, count in fields:
        found[NAMES.get(name, name.removeprefix("l1_"))] = at
        at += BITS[kind] * int(count or "1", 0)
    assert found == {name: annex.RECORD.offset(name) for name in annex.RECORD.fields}
    assert at == annex.RECORD.size
    assert int(define("SVM2_RECORD_OFFSET"), 0) == annex.ANNEX_OFFSET


def test_the_numbers_are_the_packages() -> None:
    assert int(define("SVM2_MAGIC"), 0).to_bytes(4, "little") == annex.MAGIC
    assert (int(define("SVM2_MAJOR")), int(define("SVM2_MINOR"))) == (svm2.MAJOR, svm2.MINOR)
    assert int(define("SVM2_PRODUCER_LINUX")) == svm2.Producer.LINUX
    names = {"ATTRIBS": "RAW_ATTRIBUTES"}
    bits = re.findall(r"^#define SVM2_(VALID_)?(\w+)\s+BIT(?:_ULL)?\((\d+)\)", HEADER, re.MULTILINE)
    assert {names.get(name, name): 1 << int(bit) for valid, name, bit in bits if valid} == dict(
        svm2.Validity.__members__
    )
    assert {name: 1 << int(bit) for valid, name, bit in bits if not valid} == dict(svm2.Svm2Flags.__members__)


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    directory = tmp_path / "linux/arch/x86/kvm/svm"
    directory.mkdir(parents=True)
    (directory / "nested.c").write_text(NESTED)
    return tmp_path / "linux"


def apply(linux: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KERNEL / "apply", linux], capture_output=True, text=True, timeout=60)


def nested(linux: Path) -> Path:
    return linux / "arch/x86/kvm/svm/nested.c"


def test_it_adds_lines_and_the_two_files(linux: Path) -> None:
    done = apply(linux)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = iter(nested(linux).read_text().splitlines())
    # Every line that was there is still there, in its order.
    assert all(line in lines for line in NESTED.splitlines())
    for name in ("svm2.h", "svm2.c"):
        assert nested(linux).with_name(name).read_bytes() == (KERNEL / name).read_bytes()


def test_every_function_that_it_calls_is_in_the_source_file(linux: Path) -> None:
    apply(linux)
    called = set(re.findall(r"\b(svm2_\w+)\(", nested(linux).read_text()))
    defined = set(re.findall(r"^static \w[\w *]*\b(svm2_\w+)\(", (KERNEL / "svm2.c").read_text(), re.MULTILINE))
    assert called
    assert called <= defined


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NESTED + "/* svm2 */\n", "svm2 is there already"),
        (NESTED.replace("svm_set_nested_state", "set_nested_state"), "no function svm_set_nested_state()"),
        (NESTED.replace("out_free:", "out:"), "0 places in svm_set_nested_state()"),
        (NESTED.replace("\tint ret;\n", "\tint ret;\n\tint ret;\n"), "2 places in svm_set_nested_state()"),
    ],
)
def test_what_looks_otherwise_is_refused_and_left_alone(linux: Path, text: str, said: str) -> None:
    nested(linux).write_text(text)
    done = apply(linux)
    assert done.returncode == 1
    assert said in done.stderr
    assert "nothing was changed" in done.stderr
    assert nested(linux).read_text() == text
    assert [path.name for path in nested(linux).parent.iterdir()] == ["nested.c"]


def test_another_directory_is_no_linux(tmp_path: Path) -> None:
    assert "no unpacked Linux source" in apply(tmp_path).stderr
