#!/bin/sh
# Becomes a systemd that has nothing to do but what is installed into it: own mounts, processes, cgroups. Nothing of the
# machine's own units is seen, and nothing is written to its disks but DIRECTORY. Run by tests/system/systemd.py:
#
#   unshare --mount --pid --fork --mount-proc --cgroup --ipc --uts systemd_in_namespaces.sh DIRECTORY
set -eu
directory=$1
mount --make-rprivate /
mkdir -p "$directory/scratch"
mount -t tmpfs tmpfs "$directory/scratch"
mkdir "$directory/scratch/upper" "$directory/scratch/work"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$directory/scratch/upper,workdir=$directory/scratch/work" /etc
for place in /run /var/lib /etc/systemd/system "$(realpath /lib/systemd/system)" "$(realpath /lib/systemd/system-generators)"; do
    mount -t tmpfs tmpfs "$place"
done
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mountpoint -q /sys/fs/cgroup || mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# What every service wants is there, and empty.
for target in sysinit basic network-online multi-user shutdown umount final; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" > "/etc/systemd/system/$target.target"
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=no
