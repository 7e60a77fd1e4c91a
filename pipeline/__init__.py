"""A conditional VAE on MNIST, and which KL weight is right for it."""

import os
import time

STARTED = time.monotonic()  # before the imports that take seconds

# How long a waiting OpenMP thread spins before it sleeps; it must be set before torch is imported, hence here. Images a
# second of the default training on two cores, alone (median of three) and beside two busy processes (mean of two):
# 34,258 and 5,800 with 10,000 spins, 33,385 and 9,100 with 3,000, 31,478 and 11,100 with 1,000. OpenMP's own number is
# far slower beside others.
SPINNING, SPINS = "GOMP_SPINCOUNT", "3000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault(SPINNING, SPINS)
