#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# PID 1 of an emulated host: what a job may need, then the agent, then power off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /job
mount -t devpts devpts /dev/pts
for d in /run /tmp /dev/shm /job; do mount -t tmpfs tmpfs $d; done
mount -t cgroup2 cg /sys/fs/cgroup
ip link set lo up
hostname lab
modprobe kvm-amd nested=1
modprobe virtio_console
echo "lab-init: starting the agent"
cd / && python3 /lab-agent.py
echo o > /proc/sysrq-trigger
sleep 60
