#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The systemd of a host's disk as process 1 of namespaces of its own. What it writes outside of SHARED goes to memory,
# and everything it starts ends with it.
#
#     unshare --mount --pid --net --uts --ipc --fork systemd.sh DISK SHARED SCRATCH
#
# DISK stays as it is, and SHARED appears at /shared.

set -eu

disk=$1 shared=$2 scratch=$3

mount --make-rprivate /
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/disk" "$scratch/upper" "$scratch/work" "$scratch/root" "$scratch/cgroup"
mount -o ro,loop,noload "$disk" "$scratch/disk"
mount -t overlay overlay -o "lowerdir=$scratch/disk,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"

# systemd takes its whole control group for its own.
mount -t cgroup2 cgroup2 "$scratch/cgroup"
group=$scratch/cgroup/qmpfilter-lab-$(basename "$shared")
mkdir "$group"
echo 0 >"$group/cgroup.procs"

cd "$scratch/root"
mkdir -p shared .outside
mount --bind "$shared" shared
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
for directory in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs $directory; done
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ip link set lo up
pivot_root . .outside
# What a container's systemd leaves alone, and no questions and caches of a first boot.
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=lab unshare --cgroup sh -c '
    mount -t cgroup2 cgroup2 /sys/fs/cgroup && umount -l /.outside &&
    exec /lib/systemd/systemd systemd.condition_first_boot=no systemd.condition_needs_update=no'
