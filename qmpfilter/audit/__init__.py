# SPDX-License-Identifier: GPL-2.0-or-later
"""Who was let go where: one record per migration, on the disk before the destination may start the guest. Where the
guest stayed all the same, because the migration ended while that was written, a second one says so."""
