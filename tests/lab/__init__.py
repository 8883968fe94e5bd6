# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory: real kernels, QEMUs and libvirts under an emulator of AMD hardware.

``hosts`` builds the hosts from distribution packages, ``emulator`` boots them, ``inhost`` runs inside, ``guest`` is
the nested guest, ``scenarios`` lists what is recorded, and ``record`` makes the fixtures.
"""
