# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: thin; every command is a module here."""
