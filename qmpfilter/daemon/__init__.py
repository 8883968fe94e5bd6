# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: starts a worker for every migration, tells what it does, keeps its report. No stream depends on it."""
