#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A libvirt of a user's session with the programs of a host's disk, in namespaces of its own: what it writes outside
# of SHARED goes to memory, and everything it starts ends with it.
#
#     unshare --mount --pid --fork session.sh DISK SHARED SCRATCH NAME USER:GROUP
#
# DISK stays as it is. SHARED appears at /shared in every session; the daemon's own files are in SHARED/NAME.

set -eu

disk=$1 shared=$2 scratch=$3 name=$4 user=$5

mount --make-rprivate /
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/disk" "$scratch/upper" "$scratch/work" "$scratch/root"
mount -o ro,loop,noload "$disk" "$scratch/disk"
mount -t overlay overlay -o "lowerdir=$scratch/disk,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
mkdir -p "$scratch/root/shared"
# Hooks are looked for in the system's place, whoever runs libvirt, and when it starts.
if [ -d "$shared/$name/hooks" ]; then
    mkdir -p "$scratch/root/etc/libvirt/hooks"
    cp -r "$shared/$name/hooks" "$scratch/root/etc/libvirt/hooks/qemu.d"
fi
mount --bind "$shared" "$scratch/root/shared"
mount -t proc proc "$scratch/root/proc"
mount --rbind /dev "$scratch/root/dev"
mount --rbind /sys "$scratch/root/sys"

home=/shared/$name
# The shell stays: as the first of the PID namespace it has to take leave of what nobody else waits for.
chroot --userspec="$user" "$scratch/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME="$home" \
    XDG_RUNTIME_DIR="$home/run" XDG_CONFIG_HOME="$home/config" XDG_CACHE_HOME="$home/cache" XDG_DATA_HOME="$home/data" \
    libvirtd --timeout 3600 &
wait $!
